//! `doctor`.

use std::fs;

use serde_json::{Value, json};
use tunesmith_jobs::State;

use super::kit::{Kit, command};
use crate::support::{Bench, Ran, finish};

fn codes(ran: &Ran) -> Vec<String> {
    let report = ran.json();
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().all(|f| !f["message"].as_str().unwrap().is_empty() && f["fix"].is_string()));
    assert_eq!(ran.code, if findings.is_empty() { 0 } else { 65 });
    findings.iter().map(|f| f["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_sound_workspace_has_no_findings() {
    let mut kit = Kit::new();
    assert_eq!(codes(&kit.run(&["doctor", "--json"])), [""; 0]);
    let id = kit.over("a", State::Succeeded, None);
    kit.over("b", State::Cancelled, None);
    let ran = kit.run(&["doctor", "--json"]);
    assert_eq!(codes(&ran), [""; 0]);
    let report = ran.json();
    assert_eq!((&report["status"], &report["jobs"]), (&json!("ok"), &json!(2)));
    assert_eq!(report["supervisor"], Value::Null);
    let room = report["disk"].as_array().unwrap();
    assert!(
        room.len() == 2 && room.iter().any(|r| r["id"] == id.as_str() && r["bytes"].as_u64() > Some(100))
    );
    let text = kit.run(&["doctor"]).ok().stdout.clone();
    assert!(text.ends_with("\nnothing is wrong\n"), "{text}");
}

#[test]
fn a_workspace_that_is_not_there_is_not_made() {
    let bench = Bench::new();
    let ran = finish(&mut command(&bench, &["doctor", "--json"]));
    assert_eq!(codes(&ran), [""; 0]);
    assert!(!bench.home().exists());
}

#[test]
fn everything_that_is_wrong_is_found_and_nothing_is_touched() {
    let mut kit = Kit::new();
    let done = kit.over("done", State::Succeeded, None);
    let (running, _) = kit.running("runs", "cpu");
    kit.run(&["doctor", "--json"]).failed(65, "");
    let mut expected = vec!["not_at_work"];
    let jobs = kit.bench.home().join("jobs");

    fs::create_dir(jobs.join(format!(".removed-{done}"))).unwrap();
    expected.push("left_over");
    fs::create_dir(jobs.join("strange")).unwrap();
    expected.push("not_a_job");
    let dir = kit.dir(&done);
    fs::write(dir.join("spec.json"), "{").unwrap();
    expected.push("spec_damaged");
    fs::write(dir.join("data/train.jsonl"), "{\"prompt\":\"a\",\"completion\":\"c\"}\n").unwrap();
    expected.push("data_damaged");
    fs::create_dir(dir.join("ckpt-00000007")).unwrap();
    expected.push("checkpoint_corrupt");
    fs::create_dir(dir.join("ckpt-00000009.tmp")).unwrap();
    expected.push("left_over");
    fs::remove_dir(dir.join("adapter")).unwrap();
    expected.push("no_adapter");
    let gone = kit.over("gone", State::Cancelled, None);
    fs::remove_dir_all(kit.dir(&gone)).unwrap();
    expected.push("no_directory");
    let other = kit.over("other", State::Failed, Some(("data", "bad")));
    let result = fs::read_to_string(kit.dir(&other).join("result.json")).unwrap();
    fs::write(kit.dir(&other).join("result.json"), result.replace("\"error\",", "\"success\",")).unwrap();
    expected.push("ends_differ");
    let unknown = kit.over("unknown", State::Cancelled, None);
    assert!(kit.store.remove(&unknown).unwrap());
    expected.push("no_row");

    let ran = kit.run(&["doctor", "--json"]);
    let mut found = codes(&ran);
    found.sort();
    expected.sort_unstable();
    assert_eq!(found, expected, "{ran:?}");
    assert_eq!(kit.state(&running), State::Running);
    let text = kit.run(&["doctor"]);
    text.failed(65, "");
    assert!(text.stdout.ends_with(&format!("\n{} findings\n", expected.len())), "{}", text.stdout);
}

#[test]
fn a_damaged_store_is_made_again_from_the_directories() {
    let mut kit = Kit::new();
    let done = kit.over("done", State::Succeeded, None);
    let waiting = kit.queued("waits");
    let Kit { bench, store } = kit;
    drop(store);
    let run = |args: &[&str]| finish(&mut command(&bench, args));
    let path = bench.home().join("jobs.sqlite");
    for end in ["-wal", "-shm"] {
        let _ = fs::remove_file(bench.home().join(format!("jobs.sqlite{end}")));
    }
    fs::write(&path, [0x42; 8192]).unwrap();
    run(&["show"]).failed(74, "jobs.sqlite` is damaged").failed(74, "hint: `tunesmith doctor`");
    assert_eq!(codes(&run(&["doctor", "--json"])), ["store_damaged"]);

    let report = run(&["doctor", "--rebuild", "--json"]).ok().json();
    assert_eq!((&report["jobs"], &report["left_out"]), (&json!(2), &json!([])));
    assert_eq!(fs::read(report["old"].as_str().unwrap()).unwrap(), [0x42; 8192]);
    let jobs = run(&["show", "--json"]).ok().json();
    assert_eq!((&jobs[0]["id"], &jobs[0]["phase"]), (&json!(waiting), &json!("queued")));
    assert_eq!((&jobs[1]["id"], &jobs[1]["status"]), (&json!(done), &json!("success")));

    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(bench.home().join(format!("jobs.sqlite{end}")));
    }
    assert_eq!(codes(&run(&["doctor", "--json"])), ["no_store"]);
    let text = run(&["doctor", "--rebuild"]).ok().stdout.clone();
    assert!(text.contains("from the directories: 2 jobs"), "{text}");
}

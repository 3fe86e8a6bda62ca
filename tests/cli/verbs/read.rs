//! `show`, `describe`, `logs`.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use tunesmith_jobs::State;
use tunesmith_jobs::dir::Control;

use super::kit::Kit;

#[test]
fn an_empty_workspace_says_how_to_make_a_job() {
    let kit = Kit::new();
    kit.run(&["show"]).failed(0, "no jobs yet; `tunesmith create` makes one");
    assert_eq!(kit.run(&["show", "--json"]).ok().json(), json!([]));
    for verb in ["describe", "cancel", "pause", "resume", "retry", "logs"] {
        let ran = kit.run(&[verb, "nothing", "--json"]);
        ran.failed(65, "there is no job `nothing`; `tunesmith show` lists the jobs");
        assert_eq!(ran.json()["error"]["code"], "unknown_job", "{verb}");
    }
    kit.run(&["rm", "nothing", "-y"]).failed(65, "there is no job `nothing`");
}

#[test]
fn every_verb_has_an_example_in_its_help() {
    let kit = Kit::new();
    let all = kit.run(&["--help"]).ok().stdout.clone();
    for verb in ["create", "show", "describe", "cancel", "pause", "resume", "retry", "logs", "rm", "doctor"] {
        let help = kit.run(&[verb, "--help"]).ok().stdout.clone();
        assert!(help.contains("Example") && help.contains(&format!("  tunesmith {verb}")), "{verb}: {help}");
        assert!(all.contains(&format!("\n  {verb} ")), "{verb} is not in\n{all}");
    }
}

#[test]
fn show_lists_the_newest_first_with_status_and_steps() {
    let mut kit = Kit::new();
    let done = kit.over("first\u{1b}[31m", State::Succeeded, None);
    let failed = kit.over("second", State::Failed, Some(("data", "row 3 is bad")));
    let (running, _) = kit.running("third", "cpu");
    kit.ten_steps(&running);
    let waiting = kit.queued("fourth");
    kit.store.set_reason(&waiting, Some("waits for the device")).unwrap();

    let ran = kit.run(&["show"]);
    let lines: Vec<&str> = ran.ok().stdout.lines().collect();
    assert_eq!(lines.len(), 6, "{ran:?}");
    for (line, id, texts) in [
        (lines[2], &waiting, &["fourth", "pending (queued)", "waits for the device"][..]),
        (lines[3], &running, &["third", "in_progress (training)", "10/40 25%", "cpu"]),
        (lines[4], &failed, &["second", "error", "row 3 is bad"]),
        (lines[5], &done, &["first", "success", "base"]),
    ] {
        assert!(line.starts_with(id.as_str()), "{line}\n{}", ran.stdout);
        assert!(texts.iter().all(|text| line.contains(text)), "{line}\n{texts:?}");
    }
    assert!(!ran.stdout.contains('\u{1b}'), "{ran:?}");

    let all = kit.run(&["show", "--json"]).ok().json();
    let ids: Vec<&str> = all.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [&waiting, &running, &failed, &done]);
    let third = &all[1];
    assert_eq!((&third["name"], &third["status"]), (&json!("third"), &json!("in_progress")));
    assert_eq!((&third["progress"], &third["base_model"]), (&json!(0.25), &json!("/models/base")));
    assert_eq!((&third["phase"], &third["step"]), (&json!("training"), &json!(10)));
    assert!(third["created_on"].as_i64().unwrap() > 1_700_000_000_000);
    assert_eq!((&all[3]["progress"], &all[3]["name"]), (&json!(1.0), &json!("first\u{1b}[31m")));
}

#[test]
fn show_can_be_narrowed() {
    let mut kit = Kit::new();
    for name in ["a", "b", "c"] {
        kit.queued(name);
    }
    kit.over("d", State::Cancelled, None);
    let count = |args: &[&str]| {
        let ran = kit.run(&[&["show", "--json"], args].concat());
        ran.ok().json().as_array().unwrap().len()
    };
    assert_eq!(count(&[]), 4);
    assert_eq!(count(&["--status", "pending"]), 3);
    assert_eq!(count(&["--status", "pending", "--status", "cancelled"]), 4);
    assert_eq!(count(&["--limit", "2"]), 2);
    assert_eq!(count(&["--all"]), 4);
    kit.run(&["show", "--status", "success"]).failed(0, "no job of this status");
    kit.run(&["show", "--limit", "2"]).failed(0, "only the newest 2 jobs are shown; --all gives all");
    assert!(!kit.run(&["show", "--limit", "4"]).stderr.contains("only"));
    kit.run(&["show", "--status", "done"]).failed(2, "in_progress");
}

#[test]
fn describe_has_every_documented_field() {
    let mut kit = Kit::new();
    let (id, fence) = kit.running("support", "cpu");
    kit.ten_steps(&id);
    kit.events(
        &id,
        &[
            ("warning", json!({ "message": "look\u{7} here" })),
            ("checkpoint", json!({ "step": 10 })),
            ("evaluation", json!({ "step": 10, "loss": 3.0 })),
        ],
    );
    fs::create_dir(kit.dir(&id).join("ckpt-00000010")).unwrap();
    fs::write(kit.dir(&id).join("ckpt-00000010/state.json"), "12345").unwrap();
    fs::create_dir(kit.dir(&id).join("ckpt-00000020.tmp")).unwrap();

    let job = kit.run(&["describe", "support", "--json"]).ok().json();
    for (field, value) in [
        ("id", json!(id)),
        ("status", json!("in_progress")),
        ("phase", json!("training")),
        ("progress", json!(0.25)),
        ("base_model", json!("/models/base")),
        ("finished_on", Value::Null),
        ("model", Value::Null),
        ("training_data", json!("/rows/tickets.jsonl")),
        ("validation_data", json!("")),
        ("training_result", Value::Null),
        ("error", Value::Null),
        ("state", json!("running")),
        ("desired", json!("run")),
        ("step", json!(10)),
        ("total_steps", json!(40)),
        ("epoch", json!(0.5)),
        ("eta_seconds", json!(15.0)),
        ("tokens_per_second", json!(200.0)),
        ("initial_validation_loss", json!(3.5)),
        ("validation_loss", json!(3.0)),
        ("device", json!("cpu")),
        ("attempts", json!(1)),
        ("micro_batch_divisor", json!(1)),
        ("warnings", json!(1)),
        ("priority", json!(0)),
        ("job_dir", json!(kit.dir(&id))),
    ] {
        assert_eq!(job[field], value, "{field}");
    }
    assert_eq!((&job["options"]["epochs"], &job["options"]["batch_size"]), (&json!(3), &json!(4)));
    let checkpoint = &job["checkpoints"][0];
    assert_eq!(job["checkpoints"].as_array().unwrap().len(), 1, "{job}");
    assert_eq!((&checkpoint["step"], &checkpoint["bytes"]), (&json!(10), &json!(5)));
    assert_eq!((&checkpoint["best"], &checkpoint["last"]), (&json!(true), &json!(true)));
    let history: Vec<_> = job["history"].as_array().unwrap().iter().map(|h| (&h["old"], &h["new"])).collect();
    assert_eq!(history, [(&json!("validating"), &json!("queued")), (&json!("queued"), &json!("running"))]);
    let text = kit.run(&["describe", &id[..20]]).ok().stdout.clone();
    for line in [
        "status           in_progress (training)",
        "progress         step 10 of 40 (25%), epoch 0.50 of 2, about 0:15 left, 200 tokens/s",
        "validation loss  3.5000 before the first step, 3.0000 now",
        "checkpoint       step 10, 5 B, validation loss 3.0000, best, last",
        "warning          look\\u{7} here",
        "device           cpu (auto wanted)",
    ] {
        assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
    }

    kit.end(&id, fence, State::Succeeded, None);
    let job = kit.run(&["describe", &id, "--json"]).ok().json();
    assert_eq!((&job["status"], &job["progress"]), (&json!("success"), &json!(1.0)));
    assert_eq!(job["model"], json!({ "name": "support", "adapter": kit.dir(&id).join("adapter") }));
    assert_eq!(job["training_result"], json!({ "validation_loss": 2.5, "training_loss": 1.5 }));
    assert_eq!((&job["tokens"], &job["trained_tokens"]), (&json!(4000), &json!(1000)));
    assert!(job["finished_on"].as_i64() >= job["started_on"].as_i64() && job["started_on"].is_i64());
    assert_eq!(job["eta_seconds"], Value::Null);
}

#[test]
fn a_failed_job_says_why_and_what_to_do() {
    let mut kit = Kit::new();
    let id = kit.over("support", State::Failed, Some(("numeric", "the loss is not finite")));
    let job = kit.run(&["describe", &id, "--json"]).ok().json();
    assert_eq!(job["error"]["class"], "numeric");
    assert_eq!(job["error"]["message"], "the loss is not finite");
    let text = kit.run(&["describe", &id]).ok().stdout.clone();
    assert!(text.contains("error            the loss is not finite [numeric, numeric_code]"), "{text}");
    assert!(text.contains("hint             do something else"), "{text}");
}

#[test]
fn watching_a_job_that_is_over_ends_with_its_code() {
    let mut kit = Kit::new();
    for (class, code) in [
        ("data", 65),
        ("numeric", 65),
        ("memory", 69),
        ("device", 69),
        ("io", 74),
        ("internal", 70),
        ("worker_lost", 70),
    ] {
        let id = kit.over("a", State::Failed, Some((class, "it broke")));
        let ran = kit.run(&["describe", &id, "--watch"]);
        ran.failed(code, "error: it broke").failed(code, "hint: do something else");
        let ran = kit.run(&["describe", &id, "--watch", "--json"]);
        assert_eq!((ran.code, ran.stdout.lines().count()), (code, 1), "{class}");
        assert_eq!(ran.json()["error"]["class"], class);
    }
    let id = kit.over("a", State::Cancelled, None);
    kit.run(&["describe", &id, "--watch"]).failed(130, "a: cancelled");
    let id = kit.over("a", State::Succeeded, None);
    let ran = kit.run(&["describe", &id, "--watch"]);
    assert_eq!(ran.ok().stdout, format!("adapter: {}\n", kit.dir(&id).join("adapter").display()));
}

#[test]
fn watching_follows_every_change_to_the_end() {
    let mut kit = Kit::new();
    let id = kit.queued("support");
    let spawn =
        |args: &[&str]| kit.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let objects = spawn(&["describe", &id, "--watch", "--json"]);
    let lines = spawn(&["describe", &id, "--watch"]);
    // Each must have been seen to be counted, whatever the machine is doing besides.
    let pause = || std::thread::sleep(std::time::Duration::from_millis(1500));
    pause();
    let started = kit.store.start(&id, "cpu").unwrap().unwrap();
    kit.ten_steps(&id);
    pause();
    kit.events(&id, &[("warning", json!({ "message": "look here" }))]);
    pause();
    kit.end(&id, started.fence, State::Succeeded, None);

    let output = objects.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let seen: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let statuses: Vec<&str> = seen.iter().map(|job| job["status"].as_str().unwrap()).collect();
    assert_eq!((statuses.first(), statuses.last()), (Some(&"pending"), Some(&"success")));
    assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "an object only when something has changed");
    assert!(seen.iter().any(|job| job["status"] == "in_progress" && job["step"] == 10));

    let output = lines.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    for line in [
        "support: pending (queued)",
        "support: in_progress (training)",
        "80 training rows, 20 held out; 2 epochs, 40 steps",
        "step 1/40  epoch 0.05  loss 2.0000  lr 1.00e-4  200 tokens/s",
        "warning: look here",
    ] {
        assert!(stderr.lines().any(|l| l == line), "no {line:?} in\n{stderr}");
    }
    assert!(!stderr.contains(['\r', '\u{1b}']));
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_the_job_alone_and_says_how_to_cancel_it() {
    let mut kit = Kit::new();
    let id = kit.queued("support");
    let mut command = kit.command(&["describe", &id, "--watch", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The first object says that the handler is there.
    let mut first = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut first).unwrap();
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(&format!("`tunesmith cancel {id}` stops it")), "{stderr}");
    assert_eq!(kit.state(&id), State::Queued);
    assert_eq!(Control::read(&kit.dir(&id)).unwrap().generation, 0);
}

#[test]
fn logs_show_lines_and_events() {
    let mut kit = Kit::new();
    let (id, fence) = kit.running("support", "cpu");
    kit.run(&["logs", &id]).failed(0, "has no log");
    fs::write(kit.dir(&id).join("log"), "one\n\ttwo\u{1b}[2J\n\u{fe}half").unwrap();
    let ran = kit.run(&["logs", &id]);
    assert_eq!(ran.ok().stdout, "one\n\ttwo\\u{1b}[2J\n\u{fe}half\n");
    let ran = kit.run(&["logs", &id, "--json"]);
    let first: Value = serde_json::from_str(ran.ok().stdout.lines().next().unwrap()).unwrap();
    assert_eq!(first, json!({ "line": "one" }));

    kit.ten_steps(&id);
    let ran = kit.run(&["logs", &id, "--events"]);
    let last = ran.ok().stdout.lines().last().unwrap().to_owned();
    assert!(last.ends_with("  step 10/40  epoch 0.50  loss 2.0000  lr 1.00e-4  200 tokens/s"), "{last}");
    let ran = kit.run(&["logs", &id, "--events", "--json"]);
    let events: Vec<Value> =
        ran.ok().stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<u64> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=13).collect::<Vec<_>>());
    assert_eq!((&events[1]["type"], &events[1]["data"]["epochs"]), (&json!("plan"), &json!(2)));

    let mut command = kit.command(&["logs", &id, "-f"]);
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(800));
    fs::write(kit.dir(&id).join("log"), "one\n\ttwo\u{1b}[2J\n\u{fe}half and whole\nlast").unwrap();
    kit.end(&id, fence, State::Succeeded, None);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "one\n\ttwo\\u{1b}[2J\n\u{fe}half and whole\nlast\n"
    );
}

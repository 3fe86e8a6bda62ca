//! Jobs from `create` to their end, with the supervisor that the verbs start and the workers that it starts.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunesmith_jobs::dir::WorkerIdentity;
use tunesmith_jobs::supervisor;

use crate::support::{Bench, Ran, finish, read_json, rows, small_job};

/// A workspace in which whatever was started is killed at the end.
struct Whole {
    bench: Bench,
}

impl Whole {
    fn new(extra: &str) -> Self {
        let bench = Bench::new();
        bench.write("job.toml", small_job(extra));
        bench.write("rows.jsonl", rows(20));
        Self { bench }
    }

    /// A job that goes on for minutes if nobody stops it.
    fn long() -> Self {
        let whole = Self::new("save_steps = 2\n");
        whole.bench.write("rows.jsonl", rows(400));
        whole
    }

    fn command(&self, args: &[&str]) -> Command {
        self.bench.command(args)
    }

    fn run(&self, args: &[&str]) -> Ran {
        finish(&mut self.command(args))
    }

    fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Makes a job of `job.toml` and returns its id.
    #[track_caller]
    fn create(&self, name: &str, args: &[&str]) -> String {
        let ran = self.run(&[&["create", name, "--config", "job.toml", "--detach"], args].concat());
        ran.ok().stdout.trim().to_owned()
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.bench.home().join("jobs").join(id)
    }

    #[track_caller]
    fn job(&self, id: &str) -> Value {
        self.run(&["describe", id, "--json"]).ok().json()
    }

    /// Waits until a job is as it should be.
    #[track_caller]
    fn until(&self, id: &str, what: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            // It may not be there yet.
            let job = self.run(&["describe", id, "--json"]).json();
            if what(&job) {
                return job;
            }
            assert!(started.elapsed() < Duration::from_mins(3), "never came: {job}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[track_caller]
    fn until_stepping(&self, id: &str) -> Value {
        self.until(id, |job| job["phase"] == "training" && job["step"].as_u64() > Some(2))
    }

    /// Types of the events of a job.
    fn events(&self, id: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.dir(id).join("events.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        let kill = |pid: u32| drop(Command::new("kill").args(["-KILL", &pid.to_string()]).status());
        if let Ok(Some(pid)) = supervisor::running(&self.bench.home()) {
            kill(pid);
        }
        for dir in self.bench.jobs() {
            if let Ok(Some(worker)) = WorkerIdentity::read(&dir)
                && worker.is_alive()
            {
                kill(worker.pid);
            }
        }
    }
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_created_job_is_followed_to_its_adapter() {
    let whole = Whole::new("evals_per_epoch = 1\n");
    let done = whole.bench.path("done");
    let command = format!("touch '{}'", done.display());
    let ran = whole.run(&["create", "support", "--config", "job.toml", "-y", "--on-finish", &command]);
    let lines: Vec<&str> = ran.ok().stdout.lines().collect();
    let id = lines[0];
    assert_eq!(*lines.last().unwrap(), format!("adapter: {}", whole.dir(id).join("adapter").display()));
    for line in ["support: pending (", "16 training rows, 4 held out; 1 epoch, 4 steps", "step 4/4"] {
        assert!(ran.stderr.contains(line), "no {line:?} in\n{}", ran.stderr);
    }
    let job = whole.job("support");
    assert_eq!((&job["status"], &job["progress"]), (&json!("success"), &json!(1.0)));
    assert_eq!((&job["step"], &job["attempts"]), (&json!(4), &json!(1)));
    assert_eq!(
        job["training_result"]["validation_loss"],
        read_json(&whole.dir(id).join("result.json"))["validation_loss"]
    );
    assert!(job["training_result"]["training_loss"].is_f64() && job["tokens"].as_u64() > Some(100));
    let states: Vec<&Value> =
        job["history"].as_array().unwrap().iter().map(|change| &change["new"]).collect();
    assert_eq!(states, ["queued", "running", "succeeded"]);
    assert!(job["peak_memory_bytes"].as_u64() > Some(1 << 20) || cfg!(not(target_os = "linux")));
    let started = Instant::now();
    while !done.exists() {
        assert!(started.elapsed() < Duration::from_mins(1), "the command was not run");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(whole.run(&["logs", id]).ok().stdout.contains("step 4/4"));
    whole.run(&["doctor"]).ok();
    whole.run(&["rm", "support", "-y"]).ok();
    assert_eq!(whole.run(&["show", "--json"]).ok().json(), json!([]));
}

#[test]
fn rows_from_standard_input_reach_the_worker() {
    let whole = Whole::new("");
    let mut command = whole.command(&["create", "a", "--config", "job.toml", "--training-data", "-"]);
    command.stdin(fs::File::open(whole.bench.path("rows.jsonl")).unwrap());
    let ran = finish(&mut command);
    assert!(ran.ok().stdout.contains("adapter: "), "{ran:?}");
}

#[test]
fn a_job_of_bad_rows_says_so_and_ends_with_65() {
    let whole = Whole::new("");
    whole.bench.write("rows.jsonl", rows(20) + "{\"prompt\": \"a\"}\n");
    let ran = whole.run(&["create", "a", "--config", "job.toml"]);
    ran.failed(65, "rows.jsonl`:21: the row has no `completion` column");
    let job = whole.job("a");
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("error"), &json!("missing_column")));
    assert!(whole.run(&["show"]).ok().stdout.contains("has no `completion` column"));

    // With its rows put right it is made again from the start.
    whole.bench.write("rows.jsonl", rows(20));
    let ran = whole.run(&["retry", "a"]);
    assert!(ran.ok().stderr.contains("from the start, as its rows were at fault"));
    whole.run(&["describe", ran.stdout.trim(), "--watch"]).ok();
}

/// The first line of what a process prints, and not a byte more.
fn first_line(child: &mut std::process::Child) -> String {
    let out = child.stdout.as_mut().unwrap();
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.last() != Some(&b'\n') && std::io::Read::read(out, &mut byte).unwrap() > 0 {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn a_job_pauses_and_goes_on_where_it_was() {
    let whole = Whole::long();
    let id = whole.create("a", &["--epochs", "2"]);
    whole.until_stepping(&id);
    let ran = whole.run(&["pause", "a", "--wait"]);
    assert_eq!(ran.ok().stdout, "a: paused\n");
    let job = whole.job("a");
    assert_eq!((&job["status"], &job["phase"]), (&json!("in_progress"), &json!("paused")));
    let step = job["step"].as_u64().unwrap();
    let last = job["checkpoints"].as_array().unwrap().iter().find(|c| c["last"] == true).unwrap().clone();
    assert_eq!(last["step"], step, "it paused with a checkpoint: {job}");
    assert!(whole.run(&["show"]).ok().stdout.contains("in_progress (paused)"));

    let mut watch = whole.spawn(&["describe", "a", "--watch", "--json"]);
    // It must have seen the pause before that ends.
    let first = first_line(&mut watch);
    let ran = whole.run(&["resume", "a", "--wait"]);
    assert_eq!(ran.ok().stdout, "a: running\n");
    let (code, stdout, stderr) = text(&watch.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{stderr}");
    let stdout = first + &stdout;
    let seen: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&seen[0]["phase"], &seen.last().unwrap()["status"]), (&json!("paused"), &json!("success")));
    let steps: Vec<u64> = whole
        .events(&id)
        .iter()
        .filter(|e| e["type"] == "step")
        .map(|e| e["data"]["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "no step twice, none left out");
    assert_eq!(whole.job("a")["attempts"], 2);
}

#[test]
fn a_cancelled_job_is_retried_from_its_checkpoint() {
    let whole = Whole::long();
    let id = whole.create("a", &["--epochs", "2"]);
    whole.until(&id, |job| job["checkpoints"].as_array().is_some_and(|all| all.len() > 1));
    let watch = whole.spawn(&["describe", "a", "--watch"]);
    let ran = whole.run(&["cancel", "a", "--wait"]);
    assert_eq!(ran.ok().stdout, "a: cancelled\n");
    assert_eq!(whole.run(&["cancel", "a"]).ok().stdout, "a: cancelled already\n");
    assert_eq!(text(&watch.wait_with_output().unwrap()).0, Some(130));
    assert_eq!(whole.job("a")["status"], "cancelled");
    whole.run(&["pause", "a"]).failed(65, "is over (cancelled): too late to pause it");

    let ran = whole.run(&["retry", "a"]);
    let again = ran.ok().stdout.trim().to_owned();
    whole.run(&["rm", &id, "-y"]).ok();
    let step: u64 = ran.stderr.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(ran.stderr.contains("goes on from step") && step >= 2, "{ran:?}");
    whole.run(&["describe", &again, "--watch"]).ok();
    let resumed = whole.events(&again).into_iter().find(|e| e["type"] == "resumed").unwrap();
    assert_eq!(resumed["data"]["step"], step);
    assert!(whole.dir(&again).join("adapter").is_dir());
    whole.run(&["doctor"]).ok();
}

#[test]
fn a_job_in_the_terminal_waits_for_its_device_and_can_be_reached_from_elsewhere() {
    let whole = Whole::long();
    let id = whole.create("first", &[]);
    whole.until_stepping(&id);
    let second = whole.spawn(&["train", "job.toml", "--set", "name=second", "--epochs", "2"]);
    whole.until("second", |job| job["phase"] == "queued");
    // Long enough to have said what it waits for.
    std::thread::sleep(Duration::from_secs(1));
    whole.run(&["cancel", "first", "--wait"]).ok();
    whole.until_stepping("second");
    assert_eq!(whole.job("second")["device"], "cpu");
    let ran = whole.run(&["cancel", "second", "--wait"]);
    assert_eq!(ran.ok().stdout, "second: cancelled\n");
    let (code, _, stderr) = text(&second.wait_with_output().unwrap());
    assert_eq!(code, Some(130), "{stderr}");
    assert!(
        stderr.contains(&format!("waiting for cpu, which job {id} (first) has; Ctrl-C cancels")),
        "{stderr}"
    );
    whole.run(&["rm", "first", "second", "-y"]).ok();
}

#[test]
fn a_job_in_the_terminal_is_one_of_the_store_however_it_ends() {
    let whole = Whole::new("");
    whole.run(&["train", "job.toml", "--set", "name=good", "--quiet"]).ok();
    whole.bench.write("rows.jsonl", "");
    whole.run(&["train", "job.toml", "--set", "name=bad", "--quiet"]).failed(65, "has no rows");
    let good = whole.job("good");
    assert_eq!((&good["status"], &good["attempts"]), (&json!("success"), &json!(1)));
    let states: Vec<&Value> =
        good["history"].as_array().unwrap().iter().map(|change| &change["new"]).collect();
    assert_eq!(states, ["queued", "running", "succeeded"]);
    let bad = whole.job("bad");
    assert_eq!((&bad["status"], &bad["error"]["code"]), (&json!("error"), &json!("too_few_examples")));
    whole.run(&["doctor"]).ok();
}

#[test]
fn ctrl_c_cancels_a_job_that_waits_in_the_terminal() {
    let whole = Whole::long();
    let id = whole.create("first", &[]);
    whole.until_stepping(&id);
    let second = whole.spawn(&["train", "job.toml", "--set", "name=second"]);
    whole.until("second", |job| job["phase"] == "queued");
    assert!(Command::new("kill").args(["-INT", &second.id().to_string()]).status().unwrap().success());
    let (code, _, stderr) = text(&second.wait_with_output().unwrap());
    assert_eq!(code, Some(130), "{stderr}");
    assert_eq!(whole.job("second")["status"], "cancelled");
    let ran = whole.run(&["rm", "first", "-y", "--force"]);
    assert_eq!(ran.ok().stdout, format!("removed {id} (first)\n"));
    assert_eq!(whole.bench.jobs().len(), 1);
}

#[test]
fn a_job_paused_in_the_terminal_goes_on_without_it() {
    let whole = Whole::long();
    let train = whole.spawn(&["train", "job.toml", "--set", "name=a", "--epochs", "1"]);
    whole.until("a", |job| job["phase"] == "training" && job["step"].as_u64() > Some(2));
    assert_eq!(whole.run(&["pause", "a", "--wait"]).ok().stdout, "a: paused\n");
    let (code, stdout, stderr) = text(&train.wait_with_output().unwrap());
    assert_eq!((code, stdout.as_str()), (Some(75), ""), "{stderr}");
    assert!(stderr.contains("lets it go on, without this terminal"), "{stderr}");
    whole.run(&["resume", "a"]).ok();
    whole.run(&["describe", "a", "--watch"]).ok();
    assert_eq!(whole.job("a")["attempts"], 2);
}

#[test]
fn a_terminal_that_dies_leaves_its_job_to_the_supervisor() {
    let whole = Whole::long();
    let mut train = whole.spawn(&["train", "job.toml", "--set", "name=a", "--epochs", "1"]);
    whole.until("a", |job| job["checkpoints"].as_array().is_some_and(|all| all.len() > 1));
    train.kill().unwrap();
    train.wait().unwrap();
    whole.run(&["describe", "a", "--watch"]).ok();
    let job = whole.job("a");
    assert_eq!((&job["status"], &job["attempts"]), (&json!("success"), &json!(2)));
}

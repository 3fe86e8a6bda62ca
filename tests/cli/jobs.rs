//! Job directories: what is in them, and what happens when they cannot be made.

use std::fs;

use crate::support::{Bench, rows, small_job};
#[cfg(unix)]
use crate::support::{finish, read_json};

#[test]
fn what_can_be_known_to_fail_makes_no_job() {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    bench.run(&["train", "job.toml"]).failed(65, "rows.jsonl` does not exist");
    bench.write("rows.jsonl", rows(20));
    // On no machine, with no build: there is no CUDA in it, no driver, or no such card.
    bench.run(&["train", "job.toml", "--device", "cuda:99"]).failed(69, "device `cuda:99`");
    bench
        .run(&["train", "job.toml", "--set", "data.validation=none.jsonl"])
        .failed(65, "the validation data `");
    bench.run(&["train", "job.toml", "--set", "data.train=home/.."]).failed(65, "does not exist");
    fs::create_dir(bench.path("out")).unwrap();
    bench.run(&["train", "job.toml", "--output", "out"]).failed(65, "/out` already exists");
    assert!(bench.jobs().is_empty());
    assert!(fs::read_dir(bench.path("out")).unwrap().next().is_none());
}

#[test]
fn a_home_that_is_a_file_is_an_io_error_with_a_hint() {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    bench.write("rows.jsonl", rows(20));
    bench.write("home", "");
    let ran = bench.run(&["train", "job.toml", "--json"]);
    ran.failed(74, "cannot create `").failed(74, "hint: TUNESMITH_HOME");
    assert_eq!(ran.json()["error"]["class"], "io");
}

#[test]
#[cfg(target_os = "linux")]
fn without_any_home_the_way_out_is_named() {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    bench.write("rows.jsonl", rows(20));
    let mut command = bench.command(&["train", "job.toml"]);
    finish(command.env_remove("TUNESMITH_HOME").env_remove("HOME").env_remove("XDG_DATA_HOME"))
        .failed(74, "set TUNESMITH_HOME");
}

/// No file may grow beyond so many bytes: what a disk that fills up looks like to the program.
#[cfg(unix)]
pub(crate) fn with_file_limit(bench: &Bench, blocks: u32, args: &str) -> crate::support::Ran {
    let binary = env!("CARGO_BIN_EXE_tunesmith");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec {binary} {args}");
    let mut shell = std::process::Command::new("sh");
    finish(shell.args(["-c", &script]).current_dir(bench.path("")).env("TUNESMITH_HOME", bench.home()))
}

#[test]
#[cfg(unix)]
fn no_room_for_the_spec_is_one_sentence_and_code_74() {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    bench.write("rows.jsonl", rows(20));
    let ran = with_file_limit(&bench, 0, "train job.toml");
    ran.failed(74, "spec.json`: the file size limit is reached").failed(74, "hint: free some space");
    let names: Vec<_> = fs::read_dir(bench.only_job()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["lock"], "nothing half-written is left");
}

#[test]
#[cfg(unix)]
fn a_home_without_permission_is_an_io_error() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    bench.write("rows.jsonl", rows(20));
    fs::create_dir(bench.home()).unwrap();
    fs::set_permissions(bench.home(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::create_dir(bench.home().join("probe")).is_ok() {
        // The superuser may write everywhere; /proc refuses even that.
        let mut command = bench.command(&["train", "job.toml"]);
        finish(command.env("TUNESMITH_HOME", "/proc/tunesmith")).failed(74, "cannot create `/proc/tunesmith");
    } else {
        bench.run(&["train", "job.toml"]).failed(74, "permission denied");
    }
}

#[test]
#[cfg(unix)]
fn spec_json_holds_the_resolved_job() {
    let bench = Bench::new();
    bench.write("job.toml", small_job(""));
    bench.write("rows.jsonl", rows(20));
    bench.run(&["train", "job.toml", "--set", "name=first", "--quiet"]);
    let job = bench.only_job();
    let spec = read_json(&job.join("spec.json"));
    assert_eq!(spec["format_version"], 1);
    assert_eq!(spec["id"], job.file_name().unwrap().to_str().unwrap());
    assert_eq!(spec["spec"]["name"], "first");
    assert_eq!(spec["spec"]["lora"]["r"], 2);
    let result = read_json(&job.join("result.json"));
    assert_eq!((&result["name"], &result["id"]), (&spec["spec"]["name"], &spec["id"]));
}

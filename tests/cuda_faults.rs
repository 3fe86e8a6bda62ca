//! The built program with feature `cuda` and what can go wrong with a GPU, end to end, without one: a stand-in for the driver
//! and cuBLASLt (`kernels/tests/fake_cuda.c`) fails where it is told to. It computes nothing, so that all numbers are zero.
//!
//! The emulator says what parameters the kernels have: without a C++ compiler these tests are skipped.

#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tunesmith_emulator::Emulator;
use tunesmith_jobs::dir::AttemptFailure;
use tunesmith_jobs::store::Job;
use tunesmith_jobs::{State, Store};

/// After which a process counts as hanging: a run here takes a second or two.
const PATIENCE: Duration = Duration::from_mins(3);

/// The folder of the stand-in, and the file of what its kernels take.
static STAND_IN: LazyLock<Option<(PathBuf, PathBuf)>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda_faults-{}", std::process::id()));
    fs::create_dir_all(root.join("empty")).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/tests/fake_cuda.c");
    let library = root.join("libcuda.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).status();
    if !Emulator::available() || !built.is_ok_and(|status| status.success()) {
        return None;
    }
    // One file under two names is one library with one state.
    std::os::unix::fs::symlink(&library, root.join("libcublasLt.so")).unwrap();
    let kernels = Emulator::kernels().into_iter().fold(String::new(), |text, (name, bytes)| {
        let bytes: Vec<String> = bytes.iter().map(usize::to_string).collect();
        text + &format!("{name} {}\n", bytes.join(","))
    });
    assert!(kernels.lines().count() > 20, "{kernels}");
    fs::write(root.join("kernels"), kernels).unwrap();
    Some((root.clone(), root.join("kernels")))
});

/// Variables of the environment.
type Settings<'a> = &'a [(&'a str, &'a str)];

/// How a process ended.
#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn ended(&self, code: i32, said: &str) -> &Self {
        assert!(
            self.code == code && self.stderr.contains(said),
            "expected {code} and {said:?}, got {self:#?}"
        );
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains("fake:"), "{self:#?}");
        self
    }
}

/// A scratch directory with a job for `cuda:0`.
struct Bench {
    dir: TempDir,
    /// For every process, beside what a test gives.
    settings: Vec<(String, String)>,
}

impl Bench {
    /// `None` where the stand-in cannot be made.
    fn new() -> Option<Self> {
        let Some((folder, kernels)) = &*STAND_IN else {
            println!("skipped: no C and C++ compiler");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let rows = (0..24).fold(String::new(), |text, i| {
            text + &format!(
                "{{\"prompt\": \"Where is order {i}?\", \"completion\": \"Order {i} is here.\"}}\n"
            )
        });
        fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
        let job = format!(
            "base = '{}'\ndevice = \"cuda:0\"\n[data]\ntrain = \"rows.jsonl\"\nvalidation_split = 0.2\nmax_seq_length = 64\n\
             [lora]\nr = 2\ntarget_modules = [\"q_proj\", \"v_proj\"]\n\
             [train]\nepochs = 2\nbatch_size = 4\nevals_per_epoch = 1\nsave_steps = 1\nsave_total_limit = 50\n",
            base()
        );
        fs::write(dir.path().join("job.toml"), job).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let settings = [
            ("LD_LIBRARY_PATH", text(folder)),
            ("FAKE_KERNELS", text(kernels)),
            ("FAKE_DUMB", "1".into()),
            ("FAKE_MEMORY", (2_u64 << 30).to_string()),
            ("TUNESMITH_HOME", text(&dir.path().join("home"))),
            ("TUNESMITH_SUPERVISOR", "off".into()),
        ];
        Some(Self { dir, settings: settings.map(|(name, value)| (name.to_owned(), value)).to_vec() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str], settings: Settings<'_>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.envs(self.settings.iter().map(|(name, value)| (name, value))).envs(settings.iter().copied());
        command
    }

    /// Runs the program to its end, which has to come.
    #[track_caller]
    fn run(&self, args: &[&str], settings: Settings<'_>) -> Ran {
        let (out, err) = (self.path("stdout"), self.path("stderr"));
        let mut command = self.command(args, settings);
        let file = |path: &Path| fs::File::create(path).unwrap();
        let mut child = command.stdout(file(&out)).stderr(file(&err)).spawn().unwrap();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{args:?} {settings:?} hangs: {}", fs::read_to_string(&err).unwrap());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Ran { code: status.code().unwrap_or(-1), stdout: text(&out), stderr: text(&err) }
    }

    fn jobs(&self) -> usize {
        fs::read_dir(self.path("home/jobs")).map_or(0, Iterator::count)
    }

    /// A job whose rows are read, and its directory.
    fn prepared(&self) -> PathBuf {
        let made = self.run(&["create", "job", "--config", "job.toml", "-y", "--json"], &[]);
        let made: Value = serde_json::from_str(&made.ended(0, "").stdout).unwrap();
        let dir = self.path("home/jobs").join(made["id"].as_str().unwrap());
        self.run(&["worker", dir.to_str().unwrap(), "--stage", "prepare"], &[]).ended(0, "");
        dir
    }

    fn work(&self, job: &Path, settings: Settings<'_>) -> Ran {
        self.run(&["worker", job.to_str().unwrap(), "--stage", "train"], settings)
    }
}

fn base() -> String {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/support-base-4m");
    base.to_str().unwrap().to_owned()
}

/// What a whole run of the job asks of the driver: calls of each function, and the peak of its memory.
fn whole_run() -> Option<&'static HashMap<String, u64>> {
    static CALLS: LazyLock<Option<HashMap<String, u64>>> = LazyLock::new(|| {
        let bench = Bench::new()?;
        let job = bench.prepared();
        let calls = bench.path("calls");
        bench.work(&job, &[("FAKE_CALLS", calls.to_str().unwrap())]).ended(0, "");
        let text = fs::read_to_string(calls).unwrap();
        let lines = text.lines().map(|line| line.split_once(' ').unwrap());
        Some(lines.map(|(name, count)| (name.to_owned(), count.parse().unwrap())).collect())
    });
    CALLS.as_ref()
}

/// Steps of the checkpoints in a job's directory, which must all be whole as to their names.
fn checkpoints(job: &Path) -> Vec<u64> {
    let names = fs::read_dir(job).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.collect();
    assert!(names.iter().all(|name| !name.contains(".tmp")), "{names:?}");
    let mut steps: Vec<u64> =
        names.iter().filter_map(|name| name.strip_prefix("ckpt-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// The steps that attempts went on from.
fn resumed(job: &Path) -> Vec<u64> {
    let text = fs::read_to_string(job.join("events.jsonl")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events
        .filter(|event| event["type"] == "resumed")
        .map(|event| event["data"]["step"].as_u64().unwrap())
        .collect()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_build_with_cuda_works_where_there_is_none() {
    let Some(bench) = Bench::new() else { return };
    let empty = bench.settings[0].1.clone() + "/empty";
    let without = [("LD_LIBRARY_PATH", empty.as_str())];
    bench.run(&["--version"], &without).ended(0, "");
    bench
        .run(&["train", "job.toml", "--device", "cpu", "--set", "train.epochs=1", "--quiet"], &without)
        .ended(0, "");
    if Path::new("/proc/driver/nvidia").exists() {
        println!("skipped: this machine has the NVIDIA driver");
        return;
    }
    let sentence = "device `cuda:0` cannot be used: the NVIDIA driver (libcuda) is not installed. Install an NVIDIA driver that";
    bench
        .run(&["train", "job.toml"], &without)
        .ended(69, sentence)
        .ended(69, "`device = \"cpu\"` always works");
    bench.run(&["serve", "--device", "cuda:0"], &without).ended(69, sentence);
    let generate = ["generate", "--base", &base(), "--prompt", "a", "--device", "cuda:0"];
    bench.run(&generate, &without).ended(69, sentence);
}

/// Nothing is made and nothing read where the device is not to be had.
#[test]
fn a_device_that_is_not_to_be_had_is_said_before_a_job_is_made() {
    let Some(bench) = Bench::new() else { return };
    let base = base();
    let generate = ["generate", "--base", &base, "--prompt", "a", "--device", "cuda:0"];
    let commands: [&[&str]; 3] =
        [&["train", "job.toml"], &["create", "job", "--config", "job.toml", "-y", "--json"], &generate];
    for (settings, sentence) in [
        ([("FAKE_VERSION", "11080")], "the NVIDIA driver supports CUDA 11.8, and this build needs"),
        ([("FAKE_COUNT", "0")], "the NVIDIA driver sees no GPU. See what nvidia-smi lists"),
        ([("FAKE_MAJOR", "7")], "`Fake GPU` has compute capability 7.0, and 8.0 is the least. Use a card"),
        (
            [("FAKE_MODE", "2")],
            "`Fake GPU` is in compute mode `prohibited`, in which no program may use it. `nvidia-smi",
        ),
    ] {
        let sentence = format!("device `cuda:0` cannot be used: {sentence}");
        for args in commands {
            bench.run(args, &settings).ended(69, &sentence);
        }
    }
    let device = ["train", "job.toml", "--device", "cuda:7", "--json"];
    let ran = bench.run(&device, &[]);
    ran.ended(69, "there is no device 7: the NVIDIA driver sees 1 device. Devices are counted from 0");
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&told["error"]["class"], &told["error"]["code"]),
        (&json!("device"), &json!("device_missing"))
    );
    assert_eq!(bench.jobs(), 0);
}

/// What only the opening of a device shows: the job waits for it.
#[test]
fn a_device_that_is_taken_or_full_is_waited_for() {
    let Some(bench) = Bench::new() else { return };
    let job = bench.prepared();
    let exclusive = [("FAKE_MODE", "3"), ("FAKE_FAIL", "cuDevicePrimaryCtxRetain@1:46")];
    let full = [("FAKE_FAIL", "cuDevicePrimaryCtxRetain@1:2")];
    let nearly_full = [("FAKE_MEMORY", "40000000"), ("FAKE_OTHERS", "20000000")];
    let foreign = [("FAKE_FAIL", "cuModuleLoadData@1:209")];
    let no_host_memory = [("FAKE_FAIL", "cuMemHostAlloc@1:2")];
    let cases: [(Settings<'_>, &str); 5] = [
        (&no_host_memory, " of page-locked host memory could not be had: \"out of memory\""),
        (&exclusive, "`Fake GPU` is taken by another program, and its compute mode allows one at a time"),
        (&full, "are in use by other programs, and not even a context fits: \"out of memory\""),
        (
            &nearly_full,
            "cannot be used: Not enough device memory: 33.6 MB could not be allocated; of 40.0 MB this process holds 0 bytes, \
             the driver and other programs 20.0 MB, and 20.0 MB are free",
        ),
        (&foreign, "and none for the device: \"no kernel image is available for execution on the device\""),
    ];
    for (settings, sentence) in cases {
        bench.work(&job, settings).ended(69, sentence);
        let failure = AttemptFailure::read(&job).unwrap().unwrap().error;
        assert_eq!(
            (failure.class.as_str(), failure.code.as_str()),
            ("device", "device_missing"),
            "{failure:?}"
        );
        assert!(failure.message.contains(sentence) && !job.join("result.json").exists(), "{failure:?}");
    }
    bench.work(&job, &[]).ended(0, "");
}

/// What is known beforehand not to fit is refused before a weight is read; what turns out not to is planned again.
#[test]
fn memory_that_is_too_small_is_said_with_numbers() {
    let (Some(bench), Some(calls)) = (Bench::new(), whole_run()) else { return };
    let job = bench.prepared();
    let ran = bench.work(&job, &[("FAKE_MEMORY", "200000000")]);
    ran.ended(69, "Not enough memory: ")
        .ended(69, " bytes) are needed and ")
        .ended(69, " bytes) can be had; ");
    let failure = AttemptFailure::read(&job).unwrap().unwrap().error;
    assert_eq!((failure.class.as_str(), failure.code.as_str()), ("memory", "insufficient_memory"));
    assert!(failure.hint.unwrap().contains("take a device with "));

    // A device that has free what it then does not give: from the middle of what is allocated on, after the weights.
    let fail = format!("cuMemAllocAsync@{}+:2", calls["cuMemAllocAsync"] * 9 / 10);
    let ran = bench.work(&job, &[("FAKE_FAIL", &fail)]);
    ran.ended(69, "Not enough device memory: ").ended(69, "could not be allocated; of ");
    assert!(ran.stderr.contains(", with micro-batches of up to "), "{ran:#?}");
    let failure = AttemptFailure::read(&job).unwrap().unwrap().error;
    assert_eq!((failure.class.as_str(), failure.code.as_str()), ("memory", "insufficient_memory"));
    assert!(failure.hint.unwrap().contains("needs less memory"));
    bench.work(&job, &[]).ended(0, "");
}

/// Half-way through the run: what was saved is whole, and the next worker goes on from there.
#[test]
fn a_gpu_that_fails_in_a_step_ends_the_worker_and_costs_no_checkpoint() {
    let (Some(bench), Some(calls)) = (Bench::new(), whole_run()) else { return };
    let middle = |call: &str| calls[call] * 6 / 10;
    for (call, how, expected) in [
        (
            "cuLaunchKernel",
            ":700",
            "\"an illegal memory access was encountered\" (CUDA_ERROR_ILLEGAL_ADDRESS, 700); this",
        ),
        ("cuLaunchKernel", "~:719", "\"unspecified launch failure\" (CUDA_ERROR_LAUNCH_FAILED, 719)"),
        ("cuStreamSynchronize", ":214", "(CUDA_ERROR_ECC_UNCORRECTABLE, 214), after kernel `"),
        ("cublasLtMatmul", ":14", " reported CUBLAS_STATUS_INTERNAL_ERROR (14), after kernel `"),
    ] {
        let job = bench.prepared();
        let fail = format!("{call}@{}{how}", middle(call));
        let ran = bench.work(&job, &[("FAKE_FAIL", &fail)]);
        ran.ended(69, "The GPU failed: ").ended(69, expected).ended(69, "goes on from its last checkpoint");
        let failure = AttemptFailure::read(&job).unwrap().unwrap().error;
        assert_eq!(
            (failure.class.as_str(), failure.code.as_str()),
            ("device", "device_failed"),
            "{failure:?}"
        );
        assert!(failure.message.contains(expected) && !job.join("result.json").exists(), "{failure:?}");
        let saved = checkpoints(&job);
        assert!(saved.len() > 1 && saved.last() < Some(&10), "{fail}: {saved:?}");

        bench.work(&job, &[]).ended(0, "");
        assert_eq!(resumed(&job), [*saved.last().unwrap()], "{fail}");
        assert_eq!(json_of(&job.join("result.json"))["status"], "success");
        assert!(job.join("adapter/adapter_model.safetensors").exists());
    }
}

/// A call that makes no sense is a bug, which another attempt would meet again.
#[test]
fn a_launch_that_makes_no_sense_is_an_internal_error() {
    let (Some(bench), Some(calls)) = (Bench::new(), whole_run()) else { return };
    let job = bench.prepared();
    let fail = format!("cuLaunchKernel@{}:1", calls["cuLaunchKernel"] / 2);
    bench.work(&job, &[("FAKE_FAIL", &fail)]).ended(70, " failed: \"some error\" (CUDA_ERROR, 1)");
    let error = &json_of(&job.join("result.json"))["error"];
    assert_eq!((&error["class"], &error["code"]), (&json!("internal"), &json!("internal_error")));
    assert!(!checkpoints(&job).is_empty());
}

/// Whatever was planned: others may have taken the memory since.
#[test]
fn memory_that_runs_out_on_the_way_is_said_and_costs_no_checkpoint() {
    let (Some(bench), Some(calls)) = (Bench::new(), whole_run()) else { return };
    let mut with_tokens = 0;
    for sixth in 1..=6 {
        let job = bench.prepared();
        let fail = format!("cuMemAllocAsync@{}+:2", calls["cuMemAllocAsync"] * sixth / 6);
        let ran = bench.work(&job, &[("FAKE_FAIL", &fail)]);
        ran.ended(69, "Not enough device memory: ")
            .ended(69, " could not be allocated; of 2.15 GB this process holds ");
        ran.ended(69, "hint: ");
        with_tokens += usize::from(ran.stderr.contains(", with micro-batches of up to "));
        let failure = AttemptFailure::read(&job).unwrap().unwrap().error;
        assert_eq!((failure.class.as_str(), failure.code.as_str()), ("memory", "insufficient_memory"));
        let saved = checkpoints(&job);
        bench.work(&job, &[]).ended(0, "");
        assert_eq!(resumed(&job), saved.last().copied().into_iter().collect::<Vec<_>>(), "{fail}");
    }
    assert!(with_tokens > 0, "none of these was of a micro-batch");
}

#[test]
fn the_supervisor_tries_again_later_and_the_job_goes_on() {
    struct Served(Child);
    impl Drop for Served {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let (Some(bench), Some(calls)) = (Bench::new(), whole_run()) else { return };
    let made = bench.run(&["create", "job", "--config", "job.toml", "-y", "--json"], &[]);
    let id: Value = serde_json::from_str(&made.ended(0, "").stdout).unwrap();
    let id = id["id"].as_str().unwrap();
    let wait = |what: &str, is: &dyn Fn(&Job) -> bool| {
        let started = Instant::now();
        loop {
            let mut store = Store::open(&bench.path("home")).unwrap();
            store.ingest(id).unwrap();
            let job = store.job(id).unwrap();
            if is(&job) {
                return job;
            }
            let log = || fs::read_to_string(bench.path("home/jobs").join(id).join("log")).unwrap_or_default();
            assert!(
                started.elapsed() < PATIENCE && !job.state.is_terminal(),
                "never {what}: {job:?}\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let serve = |settings: Settings<'_>| {
        let mut command = bench.command(&["serve", "--device", "cuda:0"], settings);
        Served(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    };
    let fail = format!("cuLaunchKernel@{}:719", calls["cuLaunchKernel"] / 2);
    let served = serve(&[("FAKE_FAIL", &fail)]);
    let job = wait("queued again", &|job| job.attempt == 1 && job.state == State::Queued);
    let reason = job.reason.unwrap_or_default();
    assert!(
        reason.starts_with("tries again after 10 s: The GPU failed: ") && reason.contains("719"),
        "{reason}"
    );
    assert!(job.device.is_none(), "the device is free meanwhile");
    drop(served);
    // A new supervisor does not wait.
    let served = serve(&[]);
    let job = wait("over", &|job| job.state.is_terminal());
    drop(served);
    assert_eq!((job.state, job.attempt), (State::Succeeded, 2), "{job:?}");
    assert_eq!(resumed(&bench.path("home/jobs").join(id)).len(), 1);
}

/// In the foreground nobody tries again: the sentence says what does.
#[test]
fn a_run_in_the_foreground_fails_with_a_result_and_a_retry_goes_on() {
    let (Some(bench), Some(calls)) = (Bench::new(), whole_run()) else { return };
    let fail = format!("cuLaunchKernel@{}:719", calls["cuLaunchKernel"] / 2);
    let ran = bench.run(&["train", "job.toml", "--json"], &[("FAKE_FAIL", &fail)]);
    ran.ended(69, "The GPU failed: ").ended(69, "`tunesmith retry`");
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&told["status"], &told["error"]["code"]), (&json!("error"), &json!("device_failed")));
    let again = bench.run(&["retry", told["id"].as_str().unwrap(), "--json"], &[]);
    let again: Value = serde_json::from_str(&again.ended(0, "").stdout).unwrap();
    let job = bench.path("home/jobs").join(again["id"].as_str().unwrap());
    bench.work(&job, &[]).ended(0, "");
    assert!(resumed(&job)[0] > 0);
}

#[test]
fn a_reply_that_is_cut_off_by_a_fault_says_so() {
    let Some(bench) = Bench::new() else { return };
    let (base, calls) = (base(), bench.path("calls"));
    let generate = [
        "generate",
        "--base",
        &base,
        "--prompt",
        "Where is it?",
        "--device",
        "cuda:0",
        "--max-new-tokens",
        "8",
    ];
    bench.run(&generate, &[("FAKE_CALLS", calls.to_str().unwrap())]).ended(0, "");
    let text = fs::read_to_string(calls).unwrap();
    let launches =
        text.lines().find_map(|line| line.strip_prefix("cuLaunchKernel ")).unwrap().parse::<u64>().unwrap();
    for how in [":700", "~:719"] {
        let fail = format!("cuLaunchKernel@{}{how}", launches * 3 / 4);
        let ran = bench.run(&generate, &[("FAKE_FAIL", &fail)]);
        ran.ended(69, "The GPU failed: ").ended(69, "this process cannot use it any more");
    }
}

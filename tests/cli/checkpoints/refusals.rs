//! What a worker does not do: it refuses, or leaves it to the supervisor to decide.

use std::fs;

use tunesmith_jobs::dir::{Attempt, AttemptFailure};

use super::{EXTRA, bench, checkpoints, events, job, outcome, reference, work, work_failing, worker};
use crate::support::{finish, read_json};

#[test]
fn a_checkpoint_of_another_run_is_an_error_and_no_guess() {
    let bench = bench(EXTRA);
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    assert_eq!(work_failing(&bench, &job, "train", "ckpt:before_rename@3").code, -1);
    let path = job.join("spec.json");
    let spec = fs::read_to_string(&path).unwrap();
    let other = spec.replace("\"learning_rate\": 0.001", "\"learning_rate\": 0.002");
    assert_ne!(other, spec);
    fs::write(path, other).unwrap();
    work(&bench, &job, "train").failed(65, "belongs to another run").failed(65, "ckpt-00000002");
}

/// What is done to the text of a spec.
type Spoil = fn(&str) -> String;

#[test]
fn a_spec_that_this_version_does_not_understand_is_refused() {
    let bench = bench("");
    let spoil: [(Spoil, &str); 3] = [
        (
            |spec| spec.replace("\"format_version\": 1", "\"format_version\": 9"),
            "of format 9, which a later version",
        ),
        (|spec| spec.replace("\"lora_alpha\"", "\"lora_alpine\""), "unknown field `lora_alpine`"),
        (|spec| spec[..spec.len() / 2].to_owned(), "is damaged"),
    ];
    for (spoil, sentence) in spoil {
        let job = job(&bench, &[]);
        let path = job.join("spec.json");
        let spec = fs::read_to_string(&path).unwrap();
        fs::write(&path, spoil(&spec)).unwrap();
        work(&bench, &job, "prepare").failed(65, sentence);
        let error = &read_json(&job.join("result.json"))["error"];
        assert!(error["class"] == "data" && error["message"].as_str().unwrap().contains(sentence), "{error}");
    }
}

#[test]
#[cfg(debug_assertions)]
fn memory_that_runs_out_is_for_the_supervisor_to_decide_and_smaller_micro_batches_fit() {
    let bench = bench("micro_batch_size = 2\n");
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    let attempt = |fence, micro_batch_divisor| {
        Attempt { attempt: fence as u32, fence, device: "cpu".into(), micro_batch_divisor }
            .write(&job)
            .unwrap();
        finish(worker(&bench, &job, "train").env("TUNESMITH_FAKE_OOM_ABOVE", "50"))
    };
    attempt(1, 1).failed(69, "Not enough device memory");
    let failure = AttemptFailure::read(&job).unwrap().unwrap();
    assert_eq!((failure.fence, failure.error.class.as_str()), (1, "memory"));
    assert_eq!(failure.error.code, "insufficient_memory");
    assert!(!job.join("result.json").exists());
    attempt(2, 2).ok();
    assert!(AttemptFailure::read(&job).unwrap().is_none(), "it is of another attempt");
    assert_eq!(events(&job, "step").len(), 8, "the batch is what it was");
}

#[test]
fn a_device_that_is_not_there_is_for_the_supervisor_to_decide() {
    let bench = bench("");
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    let attempt = Attempt { attempt: 1, fence: 1, device: "cuda:99".into(), micro_batch_divisor: 1 };
    attempt.write(&job).unwrap();
    work(&bench, &job, "train").failed(69, "device `cuda:99`");
    assert_eq!(AttemptFailure::read(&job).unwrap().unwrap().error.class, "device");
    assert!(!job.join("result.json").exists());
}

#[test]
#[cfg(unix)]
fn a_disk_that_fills_up_leaves_the_checkpoints_before_and_no_half_one() {
    let bench = bench(EXTRA);
    let whole = reference(&bench);
    let job = job(&bench, &[]);
    work(&bench, &job, "prepare").ok();
    // Enough for events and rows, too little for weights.
    let args = format!("worker {} --stage train", job.display());
    let ran = crate::jobs::with_file_limit(&bench, 16, &args);
    ran.failed(74, "the file size limit is reached").failed(74, "ckpt-");
    let failure = AttemptFailure::read(&job).unwrap().unwrap();
    assert_eq!((failure.error.class.as_str(), failure.error.code.as_str()), ("io", "disk_full"));
    assert_eq!(checkpoints(&job), [""; 0]);
    work(&bench, &job, "train").ok();
    assert_eq!(outcome(&job), whole);
}

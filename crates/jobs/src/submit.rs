//! Making a job: its directory first, then its row.

use std::fs;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::dir::{JobDir, Submission, hex};
use crate::store::{Job, NewJob, Store};

/// A job that was made, or found.
#[derive(Debug)]
pub struct Submitted {
    /// The job.
    pub job: Job,
    /// Its directory, held; none when the idempotency key belonged to a job that was there already.
    pub dir: Option<JobDir>,
}

/// Makes a job of a resolved spec: its directory with `spec.json` on disk, then the row, `validating`. When this
/// returns, neither a crash nor a power cut loses the job.
///
/// # Errors
/// A disk or a store that cannot be written; [`Error::Refused`] for an idempotency key that belongs to another spec.
pub fn submit(store: &mut Store, spec: &Value, submission: &Submission) -> Result<Submitted, Error> {
    submit_with(store, submission, |_| Ok(spec.clone()))
}

/// [`submit`] for a job that brings files: `fill` puts them into the new directory and returns the spec, which may
/// name them. Nothing is left of the directory when it fails.
///
/// # Errors
/// As [`submit`], and those of `fill`.
pub fn submit_with(
    store: &mut Store,
    submission: &Submission,
    fill: impl FnOnce(&JobDir) -> Result<Value, Error>,
) -> Result<Submitted, Error> {
    let dir = JobDir::create(store.home())?;
    let spec = fill(&dir).inspect_err(|_| discard(&dir))?;
    let made = dir.write_spec_with(&spec, submission);
    match made.and_then(|()| register(store, dir.id(), &spec, submission)) {
        Ok((job, false)) => Ok(Submitted { job, dir: Some(dir) }),
        Ok((job, true)) => {
            discard(&dir);
            Ok(Submitted { job, dir: None })
        }
        Err(error) => {
            // Nobody was told of it. What is left for a person to see, if anything, is the file that failed.
            if !matches!(error, Error::Io { .. }) {
                discard(&dir);
            }
            Err(error)
        }
    }
}

/// The second half of [`submit`]: the row of a job whose `spec.json` is on disk. True if the idempotency key belonged to
/// a job that was there already, which comes back then.
///
/// # Errors
/// As [`Store::create`].
pub fn register(
    store: &mut Store,
    id: &str,
    spec: &Value,
    submission: &Submission,
) -> Result<(Job, bool), Error> {
    crate::failpoint::hit("submit:before_row");
    let created = store.create(&new_job(id, spec, submission));
    crate::failpoint::hit("submit:after_row");
    created
}

/// The row of a spec.
pub(crate) fn new_job(id: &str, spec: &Value, submission: &Submission) -> NewJob {
    let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    NewJob {
        id: id.to_owned(),
        name: text("/name").unwrap_or_default(),
        priority: submission.priority,
        device_wanted: text("/device").unwrap_or_else(|| "auto".to_owned()),
        base_model: text("/base").unwrap_or_default(),
        training_data: text("/data/train").unwrap_or_default(),
        validation_data: text("/data/validation"),
        // What the job brought itself lies in its own directory: two jobs of the same spec differ in that name alone.
        spec_sha256: hex(&Sha256::digest(spec.to_string().replace(id, "").as_bytes())),
        idempotency_key: submission.idempotency_key.clone(),
        retried_from: submission.retried_from.clone(),
        on_finish: submission.on_finish.clone(),
    }
}

fn discard(dir: &JobDir) {
    // A directory without a row is a leftover that `doctor` names.
    let _ = fs::remove_dir_all(dir.path());
}

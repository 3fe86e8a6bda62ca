//! A job as the store knows it.

use rusqlite::Row;
use serde::Serialize;

use super::Progress;
use crate::dir::JobResult;
use crate::{Desired, State, Status};

/// One row of the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Job id.
    pub id: String,
    /// Name of the job and of the model it makes.
    pub name: String,
    /// Where it is.
    pub state: State,
    /// What is wanted of it.
    pub desired: Desired,
    /// Counts the requests; `control` holds the same number once it is written.
    pub generation: u64,
    /// Higher ones run first.
    pub priority: i64,
    /// `cpu`, `auto` or `cuda:N`.
    pub device_wanted: String,
    /// Device it has while it runs.
    pub device: Option<String>,
    /// Base model.
    pub base_model: String,
    /// Path, table or query.
    pub training_data: String,
    /// Path, table or query.
    pub validation_data: Option<String>,
    /// Digest of `spec.json`'s spec.
    pub spec_sha256: String,
    /// Given by whoever created it, so that asking twice makes one job.
    pub idempotency_key: Option<String>,
    /// The job it repeats.
    pub retried_from: Option<String>,
    /// Command to run when it is over.
    pub on_finish: Option<String>,
    /// Goes up at each start of a worker.
    pub fence: u64,
    /// Starts of a worker that trains.
    pub attempt: u32,
    /// Micro-batches are made this many times smaller.
    pub micro_batch_divisor: u32,
    /// Attempts in a row that brought no newer checkpoint.
    pub stalls: u32,
    /// Step of the newest checkpoint that the events tell of.
    pub checkpoint_step: Option<u64>,
    /// Why it waits, is paused or was started again.
    pub reason: Option<String>,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// First start of a worker that trains, in milliseconds since 1970.
    pub started_ms: Option<i64>,
    /// When it was over, in milliseconds since 1970.
    pub finished_ms: Option<i64>,
    /// How far it is.
    pub progress: Progress,
    /// How it ended.
    pub result: Option<JobResult>,
}

impl Job {
    /// Status in Snowflake's words.
    pub fn status(&self) -> Status {
        self.state.status()
    }
}

/// What is needed to make a job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NewJob {
    /// Job id, that of the directory.
    pub id: String,
    /// Name of the job.
    pub name: String,
    /// Higher ones run first.
    pub priority: i64,
    /// `cpu`, `auto` or `cuda:N`.
    pub device_wanted: String,
    /// Base model.
    pub base_model: String,
    /// Path, table or query.
    pub training_data: String,
    /// Path, table or query.
    pub validation_data: Option<String>,
    /// Digest of `spec.json`'s spec.
    pub spec_sha256: String,
    /// So that asking twice makes one job.
    pub idempotency_key: Option<String>,
    /// The job it repeats.
    pub retried_from: Option<String>,
    /// Command to run when it is over.
    pub on_finish: Option<String>,
}

/// One event as it was ingested.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredEvent {
    /// From 1, without gaps.
    pub seq: u64,
    /// RFC 3339 time in UTC.
    pub time: String,
    /// What kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says.
    pub data: serde_json::Value,
}

/// One change of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Transition {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// Before.
    pub old: State,
    /// After.
    pub new: State,
    /// Fence at the time.
    pub fence: u64,
    /// Why, where there is more to say than the states do.
    pub reason: Option<String>,
}

/// The columns of [`Job`], in the order that [`read`] takes them.
pub(super) const COLUMNS: &str = "job.id, name, state, desired, generation, priority, device_wanted, base_model, \
    training_data, validation_data, spec_sha256, idempotency_key, retried_from, on_finish, fence, attempt, \
    micro_batch_divisor, stalls, checkpoint_step, reason, created_ms, started_ms, finished_ms, progress, result, \
    lease.device";

/// Reads a row of [`COLUMNS`].
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Job> {
    let json = |column: usize, error: serde_json::Error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    };
    let progress: String = row.get(23)?;
    let result: Option<String> = row.get(24)?;
    Ok(Job {
        id: row.get(0)?,
        name: row.get(1)?,
        state: word(row, 2, State::from_word)?,
        desired: word(row, 3, Desired::from_word)?,
        generation: row.get::<_, i64>(4)? as u64,
        priority: row.get(5)?,
        device_wanted: row.get(6)?,
        base_model: row.get(7)?,
        training_data: row.get(8)?,
        validation_data: row.get(9)?,
        spec_sha256: row.get(10)?,
        idempotency_key: row.get(11)?,
        retried_from: row.get(12)?,
        on_finish: row.get(13)?,
        fence: row.get::<_, i64>(14)? as u64,
        attempt: row.get(15)?,
        micro_batch_divisor: row.get(16)?,
        stalls: row.get(17)?,
        checkpoint_step: row.get::<_, Option<i64>>(18)?.map(|step| step as u64),
        reason: row.get(19)?,
        created_ms: row.get(20)?,
        started_ms: row.get(21)?,
        finished_ms: row.get(22)?,
        progress: serde_json::from_str(&progress).map_err(|e| json(23, e))?,
        result: result.map(|text| serde_json::from_str(&text).map_err(|e| json(24, e))).transpose()?,
        device: row.get(25)?,
    })
}

/// Reads a row of `seq, time, type, data`.
pub(super) fn read_event(row: &Row<'_>) -> rusqlite::Result<StoredEvent> {
    let data: String = row.get(3)?;
    Ok(StoredEvent {
        seq: row.get::<_, i64>(0)? as u64,
        time: row.get(1)?,
        kind: row.get(2)?,
        data: serde_json::from_str(&data).unwrap_or(serde_json::Value::String(data)),
    })
}

/// A column that holds one of a few words.
pub(super) fn word<T>(row: &Row<'_>, column: usize, read: fn(&str) -> Option<T>) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    read(&text).ok_or_else(|| {
        let unknown = format!("`{text}` is no word of this version").into();
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, unknown)
    })
}

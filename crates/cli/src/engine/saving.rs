//! When a run is saved, and saying so.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tunesmith_jobs::failpoint;
use tunesmith_train::checkpoint::{Adapter, CheckpointWriter, Found, Limits};
use tunesmith_train::{self as engine, ObserverError, Snapshot, StepPoint, TrainConfig};

use super::Run;
use crate::error::CliError;

/// How often checkpoints are made beside those that always are: at the end of an epoch, at the best evaluation, at the
/// end, and when the run is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Policy {
    /// After every so many steps.
    steps: Option<usize>,
    /// When so much time has passed since the last one.
    every: Option<Duration>,
    limits: Limits,
}

impl Policy {
    fn of(config: &TrainConfig) -> Self {
        let minutes = config.save_minutes;
        // Bytes beyond what fits into 64 bits are no limit.
        let bytes = (config.save_disk_gib * (1u64 << 30) as f64) as u64;
        Self {
            steps: (config.save_steps > 0).then_some(config.save_steps),
            every: (minutes > 0.0)
                .then(|| Duration::try_from_secs_f64(60.0 * minutes).unwrap_or(Duration::MAX)),
            limits: Limits { others: Some(config.save_total_limit), bytes: Some(bytes) },
        }
    }

    /// Whether a checkpoint is due after this step by the count of steps.
    fn counts(&self, step: usize) -> bool {
        self.steps.is_some_and(|n| step > 0 && step.is_multiple_of(n))
    }

    /// Whether one is due by the clock.
    fn is_time(&self, since: Duration) -> bool {
        self.every.is_some_and(|every| since >= every)
    }
}

/// Saves a run.
pub(super) struct Saver {
    writer: CheckpointWriter,
    policy: Policy,
    saved: Instant,
    /// One was due while the one before was still being written.
    owed: bool,
}

impl Saver {
    /// For a run whose directory has these checkpoints.
    pub(super) fn new(run: &mut Run<'_>, adapter: Adapter, found: &Found) -> Result<Self, CliError> {
        let policy = Policy::of(&run.spec.train);
        let hook = Arc::new(failpoint::hit);
        let writer = CheckpointWriter::new(run.job.path(), adapter, policy.limits, found, hook)?;
        let saver = Self { writer, policy, saved: Instant::now(), owed: false };
        // A process that dies between writing a checkpoint and telling of it has saved nothing that anybody knows of.
        if let Some((path, snapshot)) = &found.newest
            && told(run) < Some(snapshot.state.step)
        {
            let step = snapshot.state.step;
            let kept = found.kept.iter().find(|k| k.step == step);
            tell(
                run,
                json!({
                    "step": step,
                    "path": path,
                    "best": snapshot.state.best.as_ref().is_some_and(|best| best.step == step),
                    "epoch_end": kept.is_some_and(|k| k.epoch_end),
                    "seconds": Value::Null,
                    "bytes": kept.map(|k| k.bytes),
                }),
            )?;
        }
        Ok(saver)
    }

    /// While a device is busy with a step: whether a checkpoint is due after it.
    pub(super) fn wants_step(&mut self, run: &mut Run<'_>, point: &StepPoint) -> Result<bool, ObserverError> {
        self.report(run)?;
        self.is_due(point)
    }

    /// Whether a checkpoint is due at this point and can be made at once.
    fn is_due(&mut self, point: &StepPoint) -> Result<bool, ObserverError> {
        let epoch_end = point.end_of_epoch.is_some();
        let must =
            point.stopping || point.last || epoch_end || point.is_best || self.policy.counts(point.step);
        let due = must || self.owed || self.policy.is_time(self.saved.elapsed());
        let new = due && !self.writer.has(point.step, epoch_end, point.evaluated);
        // One that is due by the clock comes a step later rather than wait for the one before it to be written.
        self.owed = new && !must && self.writer.is_busy()?;
        Ok(new && !self.owed)
    }

    /// Between two steps: saves if a checkpoint is due.
    pub(super) fn at_step(
        &mut self,
        run: &mut Run<'_>,
        point: &StepPoint,
        snapshot: &mut dyn FnMut() -> Result<Snapshot, engine::Error>,
    ) -> Result<(), ObserverError> {
        self.report(run)?;
        if self.is_due(point)? {
            // Every one before is told of then, so that a process that dies has at most one to tell of.
            self.settle(run)?;
            // A checkpoint that survives a power cut must not know of steps that the log has lost.
            run.sync_log()?;
            self.writer.save(snapshot()?, point.end_of_epoch.is_some())?;
            self.saved = Instant::now();
        }
        if point.stopping || point.last {
            self.settle(run)?;
        }
        Ok(())
    }

    /// Waits for what is still being written, and tells of it.
    pub(super) fn settle(&mut self, run: &mut Run<'_>) -> Result<(), CliError> {
        self.writer.wait(&mut || {})?;
        self.report(run)
    }

    /// Tells of every checkpoint that has reached the disk.
    fn report(&mut self, run: &mut Run<'_>) -> Result<(), CliError> {
        while let Some(written) = self.writer.next_written()? {
            tell(
                run,
                json!({
                    "step": written.step,
                    "path": written.path,
                    "best": written.best,
                    "epoch_end": written.epoch_end,
                    "seconds": written.seconds,
                    "bytes": written.bytes,
                }),
            )?;
        }
        Ok(())
    }
}

fn tell(run: &mut Run<'_>, data: Value) -> Result<(), CliError> {
    run.log(&json!({ "type": "checkpoint", "data": data }))?;
    run.sync_log()
}

/// Step of the newest checkpoint that an earlier attempt told of.
fn told(run: &Run<'_>) -> Option<usize> {
    let text = fs::read_to_string(run.job.path().join("events.jsonl")).unwrap_or_default();
    let checkpoints = text.lines().filter(|line| line.contains("\"type\":\"checkpoint\""));
    let steps = checkpoints.filter_map(|line| {
        let event: Value = serde_json::from_str(line).ok()?;
        event["data"]["step"].as_u64().map(|step| step as usize)
    });
    steps.max()
}

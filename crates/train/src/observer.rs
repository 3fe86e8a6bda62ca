//! Whoever watches a run.

use crate::{Error, Event, Snapshot};

/// What an observer may fail with.
pub type ObserverError = Box<dyn std::error::Error + Send + Sync>;

/// Where a run stands between two optimizer steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four facts, each true or not whatever the others are")]
pub struct StepPoint {
    /// Optimizer steps done.
    pub step: usize,
    /// Steps of the whole run as planned.
    pub total_steps: usize,
    /// The epoch, from 0, that this step ended.
    pub end_of_epoch: Option<usize>,
    /// Whether the evaluation after this step, if one was due, is made.
    pub evaluated: bool,
    /// Whether that evaluation is the best so far.
    pub is_best: bool,
    /// Whether training ends here by itself: all steps are done, or more would not help.
    pub last: bool,
    /// Whether the run stops here because [`Observer::should_stop`] said so.
    pub stopping: bool,
}

/// Whoever watches a run: writes its events down, shows progress, keeps snapshots, may ask it to stop.
pub trait Observer {
    /// Takes one event.
    ///
    /// # Errors
    /// Whatever keeps the event from being kept; it ends the run.
    fn event(&mut self, event: &Event) -> Result<(), ObserverError>;

    /// Whether the run should stop. Asked before each step and after each micro-batch of steps and evaluations; what
    /// is half done then is thrown away.
    fn should_stop(&self) -> bool {
        false
    }

    /// A sign of life: called after every micro-batch. Where a device works behind the host, it is called when a
    /// micro-batch is queued and the one before the last is done: one that hangs stops it.
    fn beat(&mut self) {}

    /// Whether [`Observer::at_step`] has something to do at this point. Asked only where a device is still busy with the
    /// step, for that call waits for it: where the answer is no, it is left out. At the end of an epoch, after an
    /// evaluation and when the run ends it is made in any case.
    ///
    /// # Errors
    /// As for [`Observer::at_step`].
    fn wants_step(&mut self, point: &StepPoint) -> Result<bool, ObserverError> {
        let _ = point;
        Ok(true)
    }

    /// Called after each optimizer step and the evaluation that follows it, if any (but see
    /// [`Observer::wants_step`]), and once more when the run stops because it was asked to (then perhaps at step 0, or at a
    /// step whose evaluation is not made yet).
    ///
    /// `snapshot` copies the run's state to the host; it costs nothing when it is not called.
    ///
    /// # Errors
    /// Whatever keeps the snapshot from being kept; it ends the run. An error of `snapshot` itself comes out of the
    /// run as what it was.
    fn at_step(
        &mut self,
        point: &StepPoint,
        snapshot: &mut dyn FnMut() -> Result<Snapshot, Error>,
    ) -> Result<(), ObserverError> {
        let _ = (point, snapshot);
        Ok(())
    }
}

//! Optimizer, schedule, step loop, evaluation and events.
//!
//! [`Trainer`] does one step at a time; [`train`] does a whole run, or the rest of one from a [`Snapshot`], and tells
//! an [`Observer`] what happens. The loss of a step is the sum of its token losses divided once by its trained tokens,
//! so the result does not depend on how the step is cut into micro-batches.
//!
//! A run is a pure function of its settings and rows, on a device that sums in a fixed order: what it is between two
//! steps is in a [`RunState`] and four flat tensors, and a run that goes on from them ends with the same bits as one
//! that never stopped. How often it visits its rows, [`EpochPlan`] says.

pub mod checkpoint;
mod config;
mod ending;
mod epochs;
mod error;
mod event;
mod evidence;
mod observer;
mod order;
pub mod plan;
mod prefetch;
mod run;
mod schedule;
mod state;
mod trainer;

pub use config::{LrScheduler, Recompute, TrainConfig};
pub use ending::Summary;
pub use epochs::{EpochPlan, Epochs, MAX_EPOCHS};
pub use error::Error;
pub use event::Event;
pub use observer::{Observer, ObserverError, StepPoint};
pub use order::epoch_order;
pub use run::{RunInput, train};
pub use schedule::Schedule;
pub use state::{Best, Exact, RunState, STATE_VERSION, Snapshot};
pub use trainer::{PreparedStep, RowLoss, StepOutcome, Trainer};

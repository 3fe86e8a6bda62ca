use std::io;
use std::path::{Path, PathBuf};

use tunesmith_data::Place;

use crate::plan::Shortage;

/// What can stop a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing to learn from.
    #[error(
        "None of the {examples} training rows has a token that counts in the loss; nothing can be learned from them"
    )]
    NoTrainedTokens {
        /// Rows there are.
        examples: usize,
    },
    /// A setting that no run can have.
    #[error("`train.{key}` is {value}; it must be {allowed}")]
    Setting {
        /// The key of the `[train]` table.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// No adapter to train.
    #[error(
        "The model has no LoRA parameters to train; `lora.target_modules` must name at least one linear layer"
    )]
    NoAdapter,
    /// A loss that is NaN or infinite.
    #[error("The loss is not finite at step {step}, in the rows of {}; the adapter before this step is kept", in_words(.places))]
    LossNotFinite {
        /// Optimizer step, from 1.
        step: usize,
        /// Where the step's rows stand in the training data.
        places: Vec<Place>,
    },
    /// A gradient that is NaN or infinite.
    #[error("The gradient is not finite at step {step}, whose rows are those of {}; the adapter before this step is kept, and a lower `train.learning_rate` may help", in_words(.places))]
    GradientNotFinite {
        /// Optimizer step, from 1.
        step: usize,
        /// Where the step's rows stand in the training data.
        places: Vec<Place>,
    },
    /// An evaluation loss that is NaN or infinite.
    #[error("The validation loss is not finite after step {step}, in the rows of {}", in_words(.places))]
    EvaluationNotFinite {
        /// Optimizer steps done.
        step: usize,
        /// Where the rows stand in the validation data.
        places: Vec<Place>,
    },
    /// An update that the device has left out although all of its numbers were finite.
    #[error(
        "The device has not made the update of step {step}, and every loss and gradient of it was finite; this is a fault of the device or of tunesmith, and `tunesmith selftest` may tell which"
    )]
    NoUpdate {
        /// Optimizer step, from 1.
        step: usize,
    },
    /// No thread to read rows ahead.
    #[error(
        "No thread could be started to read rows ahead of the device: {0}; see what limits this user's processes"
    )]
    Thread(#[source] io::Error),
    /// A checkpoint that cannot be written or gone on from.
    #[error("`{}` {problem}", path.display())]
    Checkpoint {
        /// The checkpoint, or a file of it.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    File {
        /// `create`, `read`, `remove`.
        action: &'static str,
        /// What was touched.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A snapshot that this run cannot go on from.
    #[error("Cannot go on from this checkpoint: {why}")]
    Resume {
        /// What does not fit, and what to do.
        why: String,
    },
    /// No way to run fits the memory.
    #[error(transparent)]
    NoRoom(#[from] Box<Shortage>),
    /// Memory ran out for or in micro-batches of this size.
    #[error("{source}, with micro-batches of up to {tokens} tokens")]
    Memory {
        /// The most tokens of a micro-batch.
        tokens: usize,
        /// What could not be had.
        source: tunesmith_ops::Error,
    },
    /// The rows could not be read back or packed.
    #[error(transparent)]
    Data(#[from] tunesmith_data::Error),
    /// The model could not do what it was asked.
    #[error(transparent)]
    Model(#[from] tunesmith_model::Error),
    /// The device could not do what it was asked.
    #[error(transparent)]
    Ops(#[from] tunesmith_ops::Error),
    /// Whoever watches the run could not take an event (a full disk, say).
    #[error("{0}")]
    Observer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// The step that this says has failed, and with it all after it.
    pub(crate) fn bad_step(&self) -> Option<usize> {
        match self {
            Self::LossNotFinite { step, .. }
            | Self::GradientNotFinite { step, .. }
            | Self::NoUpdate { step } => Some(*step),
            _ => None,
        }
    }

    pub(crate) fn checkpoint(path: &Path, problem: String) -> Self {
        Self::Checkpoint { path: path.to_owned(), problem }
    }

    /// Says of what size the micro-batches were that memory ran out for; another error stays what it is.
    pub(crate) fn with_micro_batch(self, tokens: usize) -> Self {
        match self {
            Self::Ops(source) | Self::Model(tunesmith_model::Error::Ops(source))
                if source.is_out_of_memory() =>
            {
                Self::Memory { tokens, source }
            }
            other => other,
        }
    }

    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}

/// `line 4`, `line 4 and 7`, `line 1, 2, 3 and 5 more`; rows of further files as `line 4 of file 2`.
fn in_words(places: &[Place]) -> String {
    const SHOWN: usize = 10;
    let one = |place: &Place| match place.file {
        0 => place.number.to_string(),
        file => format!("{} of file {}", place.number, file + 1),
    };
    let shown: Vec<String> = places.iter().take(SHOWN).map(one).collect();
    if places.len() > SHOWN {
        return format!("line {} and {} more", shown.join(", "), places.len() - SHOWN);
    }
    match shown.split_last() {
        Some((last, [])) => format!("line {last}"),
        Some((last, rest)) => format!("line {} and {last}", rest.join(", ")),
        None => "(none)".into(),
    }
}

//! Everything a command can end with other than success, and the exit code of each.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use crate::engine::{Stop, StopFlag};
use crate::spec::SpecError;
use tunesmith_jobs::dir::{io_words, is_disk_full};

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line makes no sense.
    #[error("{message}")]
    Usage {
        /// What is wrong with it.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The job file or an override of it is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Something the user gave is wrong: rows, a model, an adapter, a path.
    #[error("{message}")]
    Input {
        /// One of the service's error codes.
        code: &'static str,
        /// What, where, and what to do.
        message: String,
        /// What else may help.
        hint: Option<String>,
    },
    /// The device asked for is not there, or not to be had.
    #[error("{0}")]
    Device(String),
    /// The device is there, and does not compute what it should.
    #[error("{message}")]
    Untested {
        /// Which device, and which operation.
        message: String,
        /// How to go on.
        hint: String,
    },
    /// What is asked for is taken.
    #[error("{message}")]
    Unavailable {
        /// One of the service's error codes.
        code: &'static str,
        /// What, and by whom.
        message: String,
        /// What may help.
        hint: Option<String>,
    },
    /// The job directory could not be written or read.
    #[error(transparent)]
    Jobs(#[from] tunesmith_jobs::Error),
    /// The file system refused something else.
    #[error("cannot {action} `{}`: {}", path.display(), io_words(source))]
    Io {
        /// `read`, `write`, `create`.
        action: &'static str,
        /// What was read or written.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A model or adapter that cannot be used.
    #[error(transparent)]
    Model(#[from] tunesmith_model::Error),
    /// Rows, a tokenizer or a chat template that cannot be used.
    #[error(transparent)]
    Data(#[from] tunesmith_data::Error),
    /// A prompt that cannot be rendered or tokenised.
    #[error("the prompt cannot be used: {0}")]
    Prompt(#[from] tunesmith_data::RowError),
    /// Training stopped.
    #[error(transparent)]
    Train(#[from] tunesmith_train::Error),
    /// Generation stopped.
    #[error(transparent)]
    Infer(#[from] tunesmith_infer::Error),
    /// Stopped by Ctrl-C or a termination signal.
    #[error("stopped before the end")]
    Cancelled,
    /// Stopped where it can go on.
    #[error("stopped at a checkpoint; run it again to go on")]
    Paused,
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

/// The exit code for a run that goes on when it is run again.
pub const GO_ON: u8 = 75;

/// The exit code of a selftest that failed.
pub const WRONG: u8 = 1;

/// The exit code for input that fails again.
pub const BAD_DATA: u8 = 65;

/// One line of the table of exit codes.
pub const EXIT_CODES: [(u8, &str); 9] = [
    (0, "done"),
    (WRONG, "`selftest` found a device that does not compute what it should"),
    (2, "the command line is wrong"),
    (
        BAD_DATA,
        "the job file, data, model or adapter is wrong, or the loss stopped being a number; the same input fails again; \
         a request that comes too late for its job; `data check` or `doctor` found something",
    ),
    (
        69,
        "the device asked for is not there, is taken or failed, does not compute what it should, or its memory is too small; or \
         the workspace has a `serve` already",
    ),
    (70, "internal error: a bug"),
    (74, "a file could not be read or written: disk full, no permission"),
    (GO_ON, "checkpointed; run it again to go on"),
    (130, "stopped by Ctrl-C, or the job was cancelled"),
];

/// The exit code of a cause class, be it this process's or that of a job that failed elsewhere.
pub fn class_exit_code(class: &str) -> u8 {
    match class {
        "io" => 74,
        "device" | "memory" => 69,
        "internal" | "worker_lost" => 70,
        "cancelled" => 130,
        _ => BAD_DATA,
    }
}

impl From<tunesmith_ops::Error> for CliError {
    fn from(error: tunesmith_ops::Error) -> Self {
        Self::Model(error.into())
    }
}

impl CliError {
    /// The error of a panic: its own message.
    pub fn from_panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self::Internal(text.unwrap_or("the program panicked").to_owned())
    }

    /// [`CliError::Cancelled`] or [`CliError::Paused`] if a run is asked to stop.
    pub(crate) fn check(stop: &StopFlag) -> Result<(), Self> {
        match stop.now() {
            Stop::None => Ok(()),
            Stop::Pause => Err(Self::Paused),
            Stop::Cancel => Err(Self::Cancelled),
        }
    }

    /// The I/O error behind this one.
    fn cause(&self) -> Option<&io::Error> {
        use tunesmith_model::Error as Model;
        match self {
            Self::Jobs(e) => e.io(),
            Self::Io { source, .. }
            | Self::Model(Model::Io { source, .. })
            | Self::Data(
                tunesmith_data::Error::Io { source, .. } | tunesmith_data::Error::Temporary { source, .. },
            )
            | Self::Train(
                tunesmith_train::Error::Model(Model::Io { source, .. })
                | tunesmith_train::Error::File { source, .. },
            )
            | Self::Infer(tunesmith_infer::Error::Model(Model::Io { source, .. }))
            | Self::Spec(SpecError::Read { source, .. }) => Some(source),
            _ => None,
        }
    }

    /// The I/O error where the file system refused, and not what the user gave is the trouble: a named file that
    /// is not there is wrong input.
    fn io(&self) -> Option<&io::Error> {
        let file = |e: &tunesmith_train::Error| matches!(e, tunesmith_train::Error::File { .. });
        let ours = match self {
            Self::Train(e) => file(e),
            other => matches!(other, Self::Jobs(_) | Self::Io { .. }),
        };
        self.cause()
            .filter(|e| ours || !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData))
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Spec(SpecError::Set { .. }) => 2,
            Self::Cancelled => 130,
            Self::Paused => GO_ON,
            _ => class_exit_code(self.class()),
        }
    }

    /// Cause class of a failed job, which a supervisor decides on: `data`, `memory`, `numeric`, `io`, `device`,
    /// `internal` (or `cancelled`).
    pub fn class(&self) -> &'static str {
        self.kind().0
    }

    /// Error code: finer than the class, stable, for programs.
    pub fn code(&self) -> &'static str {
        self.kind().1
    }

    fn kind(&self) -> (&'static str, &'static str) {
        if let Some(source) = self.io() {
            return ("io", if is_disk_full(source) { "disk_full" } else { "io_error" });
        }
        match self {
            Self::Usage { .. } => ("data", "invalid_usage"),
            Self::Spec(_) => ("data", "invalid_config"),
            Self::Input { code, .. } => ("data", code),
            Self::Device(_) => ("device", "device_missing"),
            Self::Untested { .. } => ("device", "selftest_failed"),
            Self::Unavailable { code, .. } => ("device", code),
            Self::Jobs(e) => jobs_kind(e),
            Self::Io { .. } => ("io", "io_error"),
            Self::Model(e) | Self::Infer(tunesmith_infer::Error::Model(e)) => model_kind(e),
            Self::Data(tunesmith_data::Error::Table(e)) => table_kind(e),
            Self::Data(e) => data_kind(e),
            Self::Train(e) => train_kind(e),
            Self::Infer(tunesmith_infer::Error::NotFinite { .. }) => ("numeric", "non_finite_output"),
            Self::Prompt(_) | Self::Infer(_) => ("data", "invalid_prompt"),
            Self::Cancelled => ("cancelled", "cancelled"),
            Self::Paused => ("paused", "paused"),
            Self::Internal(_) => INTERNAL,
        }
    }

    /// What may help, when there is something to say beyond the sentence.
    pub fn hint(&self) -> Option<String> {
        let full = "free some space, or set TUNESMITH_HOME to a directory on another disk";
        match self {
            Self::Usage { hint, .. } | Self::Input { hint, .. } | Self::Unavailable { hint, .. } => {
                hint.clone()
            }
            Self::Spec(SpecError::Problems(_)) => {
                Some("`tunesmith config schema` lists every key and what it accepts".to_owned())
            }
            Self::Untested { hint, .. } => Some(hint.clone()),
            Self::Device(_) => Some("`device = \"cpu\"` always works".to_owned()),
            _ if self.code() == "device_failed" => Some(
                "a job goes on from its last checkpoint, which is intact: by itself, or by `tunesmith retry` once it has \
                 ended; if it comes again, `nvidia-smi -q` and the system's log (`Xid`) tell of a faulty card, and with \
                 CUDA_LAUNCH_BLOCKING=1 the kernel that failed is the one named"
                    .to_owned(),
            ),
            Self::Train(tunesmith_train::Error::LossNotFinite { .. }) => {
                Some("look at the rows, or lower `train.learning_rate` or `train.max_grad_norm`".to_owned())
            }
            Self::Train(tunesmith_train::Error::NoRoom(shortage)) => Some(shortage.advice()),
            _ if self.class() == "memory" => Some(
                "a smaller `train.micro_batch_size`, or `train.recompute = \"min\"`, needs less memory; `tunesmith plan` says \
                 what fits"
                    .to_owned(),
            ),
            _ if self.code() == "disk_full" => Some(full.to_owned()),
            Self::Jobs(
                tunesmith_jobs::Error::NoJob { .. }
                | tunesmith_jobs::Error::Ambiguous { .. }
                | tunesmith_jobs::Error::Refused { .. },
            ) => None,
            // The store can be made again; another damaged file has no second copy.
            Self::Jobs(tunesmith_jobs::Error::Corrupt { path, .. }) if path.ends_with("jobs.sqlite") => Some(
                "`tunesmith doctor` says what is damaged; `tunesmith doctor --rebuild` makes the job store again from the \
                 jobs' directories"
                    .to_owned(),
            ),
            Self::Jobs(tunesmith_jobs::Error::Corrupt { .. }) => {
                Some("`tunesmith doctor` says what else is damaged and what to do".to_owned())
            }
            Self::Jobs(_) => Some("TUNESMITH_HOME chooses the directory that jobs are kept in".to_owned()),
            Self::Internal(_) => Some("please report this with the command and the job file".to_owned()),
            _ => None,
        }
    }

    /// The sentence, followed by its causes.
    pub fn message(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let more = error.downcast_ref::<io::Error>().map_or_else(|| error.to_string(), io_words);
            // Some errors already say their cause in their own sentence.
            if !text.contains(&more) && !text.contains(&error.to_string()) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = error.source();
        }
        // One vocabulary for what a file system says, whichever crate met it.
        self.cause().map_or(text.clone(), |e| text.replace(&e.to_string(), &io_words(e)))
    }
}

fn jobs_kind(error: &tunesmith_jobs::Error) -> (&'static str, &'static str) {
    use tunesmith_jobs::Error;
    match error {
        Error::NoJob { .. } => ("data", "unknown_job"),
        Error::Ambiguous { .. } => ("data", "ambiguous_job"),
        Error::Refused { code, .. } => ("data", code),
        _ => ("io", "io_error"),
    }
}

const INTERNAL: (&str, &str) = ("internal", "internal_error");

fn ops_kind(error: &tunesmith_ops::Error) -> (&'static str, &'static str) {
    use tunesmith_ops::{DeviceError, Error};
    match error {
        e if e.is_out_of_memory() => ("memory", "insufficient_memory"),
        Error::Device(DeviceError::Unavailable { .. }) => ("device", "device_missing"),
        Error::Device(DeviceError::Device { .. }) => ("device", "device_failed"),
        Error::TokenOutOfRange { .. } => ("data", "unsupported_model"),
        _ => INTERNAL,
    }
}

fn model_kind(error: &tunesmith_model::Error) -> (&'static str, &'static str) {
    match error {
        tunesmith_model::Error::Ops(e) => ops_kind(e),
        tunesmith_model::Error::Internal(_) => INTERNAL,
        tunesmith_model::Error::Lora { .. } => ("data", "invalid_config"),
        tunesmith_model::Error::Adapter { .. } => ("data", "invalid_adapter"),
        _ => ("data", "unsupported_model"),
    }
}

fn data_kind(error: &tunesmith_data::Error) -> (&'static str, &'static str) {
    use tunesmith_data::{Error, RowError};
    let code = match error {
        Error::NoRows { .. } => "too_few_examples",
        Error::ZeroTrainable { .. } => "zero_trainable_tokens",
        Error::Row { source, .. } | Error::Rows { source, .. } if source.is_missing_column() => {
            "missing_column"
        }
        Error::AllOverLong { .. }
        | Error::Row { source: RowError::OverLong { .. }, .. }
        | Error::Rows { source: RowError::OverLong { .. }, .. } => "example_too_long",
        Error::Row { .. } | Error::Rows { .. } | Error::Io { .. } | Error::Source(_) => "invalid_file_format",
        _ => "unsupported_model",
    };
    ("data", code)
}

fn table_kind(error: &tunesmith_data::TableError) -> (&'static str, &'static str) {
    use tunesmith_data::TableError;
    match error {
        TableError::Full { .. } => ("io", "disk_full"),
        e if e.is_io() => ("io", "io_error"),
        TableError::NoTable { .. } | TableError::NoSnapshot { .. } => ("data", "unknown_table"),
        TableError::Exists { .. } | TableError::FileExists { .. } => ("data", "already_exists"),
        TableError::NoColumn { .. } => ("data", "missing_column"),
        TableError::Nothing { .. } => ("data", "too_few_examples"),
        TableError::Record { .. } => ("data", "invalid_file_format"),
        TableError::Refused { .. } => ("data", "query_refused"),
        TableError::Limit { .. } => ("data", "query_limit"),
        TableError::Sql { .. } | TableError::Value { .. } => ("data", "invalid_query"),
        _ => ("data", "invalid_table"),
    }
}

fn train_kind(error: &tunesmith_train::Error) -> (&'static str, &'static str) {
    use tunesmith_train::Error;
    match error {
        Error::LossNotFinite { .. } | Error::GradientNotFinite { .. } | Error::EvaluationNotFinite { .. } => {
            ("numeric", "non_finite_loss")
        }
        Error::Model(e) => model_kind(e),
        Error::Ops(e) | Error::Memory { source: e, .. } => ops_kind(e),
        Error::Checkpoint { .. } | Error::Resume { .. } => ("data", "invalid_checkpoint"),
        Error::File { .. } => ("io", "io_error"),
        Error::NoTrainedTokens { .. } => ("data", "zero_trainable_tokens"),
        Error::NoRoom(_) => ("memory", "insufficient_memory"),
        Error::Observer(_) => INTERNAL,
        _ => ("data", "invalid_config"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once_and_in_our_words() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = tunesmith_model::Error::Io { action: "read", path: "x".into(), source };
        let said = CliError::Model(error).message();
        let words = io_words(&io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(said, format!("cannot read `x`: {words}"));
    }
}

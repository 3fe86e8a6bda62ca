//! Everything a command can end with other than success, and the exit code of each.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use crate::jobdir::{JobDirError, io_words, is_disk_full};
use crate::spec::SpecError;

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
    /// Loss or gradients stopped being numbers.
    #[error("{message}")]
    Numeric {
        /// The step and the rows.
        message: String,
    },
    /// The device asked for is not there.
    #[error("{0}")]
    Device(String),
    /// The job directory could not be written or read.
    #[error(transparent)]
    JobDir(#[from] JobDirError),
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
    /// Stopped by Ctrl-C or a termination signal.
    #[error("stopped before the end; no adapter was written")]
    Cancelled,
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

/// One line of the table of exit codes.
pub const EXIT_CODES: [(u8, &str); 8] = [
    (0, "done"),
    (2, "the command line is wrong"),
    (
        65,
        "the job file, data, model or adapter is wrong, or the loss stopped being a number; the same input fails again",
    ),
    (69, "the device asked for is not there"),
    (70, "internal error: a bug"),
    (74, "a file could not be read or written: disk full, no permission"),
    (75, "checkpointed; run it again to go on"),
    (130, "stopped by Ctrl-C"),
];

impl CliError {
    /// The error of a panic: its own message.
    pub fn from_panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self::Internal(text.unwrap_or("the program panicked").to_owned())
    }

    /// The I/O error behind a refusal of the file system, where that and not its content is the trouble.
    fn io(&self) -> Option<&io::Error> {
        match self {
            Self::JobDir(e) => e.io(),
            Self::Io { source, .. }
            | Self::Model(tunesmith_model::Error::Io { source, .. })
            | Self::Spec(SpecError::Read { source, .. }) => Some(source),
            _ => None,
        }
        .filter(|e| !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData))
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::Spec(SpecError::Set { .. }) => 2,
            Self::Cancelled => 130,
            _ => match self.class() {
                "io" => 74,
                "device" => 69,
                "internal" => 70,
                _ => 65,
            },
        }
    }

    /// Cause class of a failed job: what a supervisor decides on.
    pub fn class(&self) -> &'static str {
        match self {
            Self::JobDir(_) | Self::Io { .. } => "io",
            Self::Model(_) | Self::Spec(_) if self.io().is_some() => "io",
            Self::Usage { .. } | Self::Spec(_) | Self::Input { .. } | Self::Model(_) => "data",
            Self::Numeric { .. } => "numeric",
            Self::Device(_) => "device",
            Self::Cancelled => "cancelled",
            Self::Internal(_) => "internal",
        }
    }

    /// Error code: finer than the class, stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            _ if self.io().is_some_and(is_disk_full) => "disk_full",
            _ if self.class() == "io" => "io_error",
            Self::Usage { .. } => "invalid_usage",
            Self::Spec(_) => "invalid_config",
            Self::Input { code, .. } => code,
            Self::Model(_) => "unsupported_model",
            Self::Numeric { .. } => "non_finite_loss",
            Self::Device(_) => "device_missing",
            Self::JobDir(_) | Self::Io { .. } => "io_error",
            Self::Cancelled => "cancelled",
            Self::Internal(_) => "internal_error",
        }
    }

    /// What may help, when there is something to say beyond the sentence.
    pub fn hint(&self) -> Option<String> {
        let full = "free some space, or set TUNESMITH_HOME to a directory on another disk";
        match self {
            Self::Usage { hint, .. } | Self::Input { hint, .. } => hint.clone(),
            Self::Spec(SpecError::Problems(_)) => {
                Some("`tunesmith config schema` lists every key and what it accepts".to_owned())
            }
            Self::Numeric { .. } => {
                Some("a lower `train.learning_rate` or `train.max_grad_norm` usually helps".to_owned())
            }
            Self::Device(_) => Some("`device = \"cpu\"` always works".to_owned()),
            _ if self.code() == "disk_full" => Some(full.to_owned()),
            Self::JobDir(_) => Some("TUNESMITH_HOME chooses the directory that jobs are kept in".to_owned()),
            Self::Internal(_) => Some("please report this with the command and the job file".to_owned()),
            _ => None,
        }
    }

    /// The sentence, followed by its causes.
    pub fn message(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let more = error.to_string();
            // Some errors already say their cause in their own sentence.
            if !text.contains(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = error.source();
        }
        text
    }
}

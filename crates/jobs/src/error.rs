//! What can go wrong with jobs.

use std::io;
use std::path::{Path, PathBuf};

use crate::dir::io_words;

/// What went wrong with jobs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot {action} `{}`: {}", path.display(), io_words(source))]
    Io {
        /// `create`, `write`, `lock`.
        action: &'static str,
        /// What was touched.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// Another process works in this job directory.
    #[error("the job in `{}` is already running in another process", path.display())]
    Busy {
        /// The job directory.
        path: PathBuf,
    },
    /// A value could not be written as JSON.
    #[error("cannot write `{}` as JSON: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with the value.
        message: String,
    },
    /// A file of a job is not what it should be.
    #[error("`{}` is damaged: {message}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A later version wrote it.
    #[error("`{}` is of format {version}, which a later version of tunesmith wrote; this one knows up to {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u64,
        /// The latest format that is known.
        known: u64,
    },
    /// The store could not do it.
    #[error("the job store `{}` cannot be used: {message}", path.display())]
    Store {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        message: String,
    },
    /// No such job.
    #[error("there is no job `{wanted}`; `tunesmith show` lists the jobs")]
    NoJob {
        /// Id, beginning of an id, or name.
        wanted: String,
    },
    /// More than one job it could be.
    #[error("`{wanted}` may be {}; give the whole id", ids.join(", "))]
    Ambiguous {
        /// Beginning of an id, or name.
        wanted: String,
        /// The first of them.
        ids: Vec<String>,
    },
    /// The request comes too late, or does not fit what the job is.
    #[error("{message}")]
    Refused {
        /// What, and what to do.
        message: String,
        /// `already_finished`, `not_finished`, `already_exists`.
        code: &'static str,
    },
    /// The workspace has a supervisor already.
    #[error("another process ({pid}) looks after the jobs in `{}` already", home.display())]
    Supervised {
        /// The workspace.
        home: PathBuf,
        /// The process that does; 0 if it has not said its number yet.
        pid: u32,
    },
    /// No directory to keep jobs in is known.
    #[error("no directory to keep jobs in: set TUNESMITH_HOME to one (neither it nor HOME is set)")]
    NoHome,
}

impl Error {
    /// The I/O error behind it, if there is one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }

    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

//! The one error type of this crate.

use std::path::{Path, PathBuf};

/// What can go wrong while reading reference material or running the oracle.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("Cannot access `{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A JSON file is not valid or lacks a field.
    #[error("Cannot read `{}` as JSON: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's reason, with line and column.
        source: serde_json::Error,
    },
    /// A tensor file is damaged, or cannot be written.
    #[error("Cannot read or write the tensors of `{}`: {source}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// The reason given by the safetensors library.
        source: safetensors::SafeTensorError,
    },
    /// Reference material is there, but not as its description says.
    #[error("`{}`: {what}", path.display())]
    Reference {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The arguments do not fit together.
    #[error("{0}")]
    Argument(String),
    /// Two tensors that should agree do not; the message names tensor, place and both values.
    #[error("{0}")]
    Mismatch(String),
    /// candle refused an operation of the oracle.
    #[cfg(feature = "oracle")]
    #[error("The oracle failed: {0}")]
    Candle(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Json { path, source }
    }

    pub(crate) fn tensors(path: &Path) -> impl FnOnce(safetensors::SafeTensorError) -> Self {
        let path = path.to_owned();
        move |source| Self::Tensors { path, source }
    }

    pub(crate) fn reference(path: &Path, what: impl Into<String>) -> Self {
        Self::Reference { path: path.to_owned(), what: what.into() }
    }
}

/// Reads a JSON file into `T`.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(Error::json(path))
}

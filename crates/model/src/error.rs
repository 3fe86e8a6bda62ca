//! The one error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong while reading, writing or running a model. Each message is one sentence that says what is
/// wrong, where, and where it helps, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// The verb of the sentence, such as "read".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A JSON file does not parse.
    #[error("`{path}` is not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A key of a JSON configuration file is missing, malformed or asks for something unsupported.
    #[error("`{key}` in `{path}`: {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The key, dotted when nested.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// Weights that exist only as Python pickles.
    #[error(
        "`{path}` is a pickle file, which can run any code while it is loaded, so it is never opened; \
         convert the weights to safetensors"
    )]
    Pickle {
        /// The pickle that was found.
        path: PathBuf,
    },
    /// A weights file or directory is damaged or incomplete.
    #[error("`{path}`: {problem}")]
    Weights {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A weight that is NaN or infinite.
    #[error("tensor `{name}` holds a value that is not finite at element {index}; the weights are damaged")]
    NotFinite {
        /// The tensor's name.
        name: String,
        /// Where in it, row-major.
        index: usize,
    },
    /// A weight beyond what the device stores weights as.
    #[error(
        "tensor `{name}` holds {value:e} at element {index}, which is more than bf16 can hold; the weights are damaged, or \
         only a CPU can run them"
    )]
    TooLarge {
        /// The tensor's name.
        name: String,
        /// Where in it, row-major.
        index: usize,
        /// The weight.
        value: f32,
    },
    /// A text longer than the key/value cache.
    #[error(
        "{tokens} tokens do not fit the {capacity} that this generation made room for; ask for fewer new tokens"
    )]
    CacheFull {
        /// Tokens of prompt and reply.
        tokens: usize,
        /// Tokens there is room for.
        capacity: usize,
    },
    /// The device could not do what it was asked.
    #[error(transparent)]
    Ops(#[from] tunesmith_ops::Error),
    /// A broken promise between parts of this program.
    #[error("internal error: {0}")]
    Internal(String),
    /// A tensor that the model needs is not in its weights.
    #[error("tensor `{name}` is missing from `{path}`")]
    MissingTensor {
        /// The tensor's name.
        name: String,
        /// The file or directory that should hold it.
        path: PathBuf,
    },
    /// A tensor's shape is not the one that the model's configuration gives.
    #[error(
        "tensor `{name}` in `{path}` has shape {found:?}, but the model's config.json gives {expected:?}"
    )]
    TensorShape {
        /// The tensor's name.
        name: String,
        /// The file that holds it.
        path: PathBuf,
        /// The shape that the configuration gives.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's element type is not one that is read.
    #[error("tensor `{name}` in `{path}` has dtype {found}; only F32, F16 and BF16 are read")]
    TensorDtype {
        /// The tensor's name.
        name: String,
        /// The file that holds it.
        path: PathBuf,
        /// The dtype in the file.
        found: String,
    },
    /// A LoRA setting is out of range, unsupported or matches nothing.
    #[error("LoRA setting `{key}`: {problem}")]
    Lora {
        /// The key, in PEFT's spelling.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// An adapter directory cannot be written or does not fit the base model.
    #[error("adapter `{path}`: {problem}")]
    Adapter {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A base model could not be found or downloaded.
    #[error("base model `{base}`: {problem}")]
    Hub {
        /// What the user asked for: a directory or a repository id.
        base: String,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err`: wraps an [`io::Error`] with the verb and the path of the sentence.
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }

    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::Internal(what.into())
    }

    pub(crate) fn weights(path: &Path, problem: impl Into<String>) -> Self {
        Self::Weights { path: path.to_path_buf(), problem: problem.into() }
    }

    pub(crate) fn lora(key: &str, problem: impl Into<String>) -> Self {
        Self::Lora { key: key.to_string(), problem: problem.into() }
    }
}

//! What a check found.

use serde::Serialize;
use tunesmith_ops::Kernels;

/// What a backend keeps activations and frozen weights in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32, as the CPU does.
    F32,
    /// bf16 with f32 sums, as a device does.
    Bf16,
}

impl Precision {
    /// That of a backend.
    pub fn of<K: Kernels>(k: &K) -> Self {
        if k.storage().bytes == 2 { Self::Bf16 } else { Self::F32 }
    }
}

/// How much is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Awkward shapes alone: what an emulator has the time for.
    Small,
    /// Those and shapes of a real training step.
    Real,
}

/// One comparison, and how it went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// The operation, by its name in `Kernels`, or the part of the fine-tune.
    pub name: &'static str,
    /// At which shapes.
    pub shape: String,
    /// How far off it was, in what `allowed` is in: the relative L2 distance for operations. Infinite where there is no
    /// number to compare.
    pub error: f64,
    /// How far off it may be.
    pub allowed: f64,
    /// Whether it was as it should be.
    pub passed: bool,
    /// What was wrong, where a number does not say it.
    pub detail: Option<String>,
}

impl Check {
    /// A check that is passed by a small enough distance. A distance that is no number is too large.
    pub(crate) fn distance(name: &'static str, shape: String, error: f64, allowed: f64) -> Self {
        let (error, passed) = if error.is_nan() { (f64::INFINITY, false) } else { (error, error <= allowed) };
        Self { name, shape, error, allowed, passed, detail: None }
    }

    /// A check that failed without a number.
    pub fn failed(name: &'static str, shape: String, allowed: f64, detail: String) -> Self {
        Self { name, shape, error: f64::INFINITY, allowed, passed: false, detail: Some(detail) }
    }
}

/// Why the fine-tune of a selftest could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its model or its adapter.
    #[error(transparent)]
    Model(#[from] tunesmith_model::Error),
    /// Its training.
    #[error(transparent)]
    Train(#[from] tunesmith_train::Error),
    /// The device.
    #[error(transparent)]
    Ops(#[from] tunesmith_ops::Error),
    /// The files of its model.
    #[error("the selftest's model cannot be written to `{path}`: {text}")]
    File {
        /// Which file or folder.
        path: String,
        /// What the file system said.
        text: String,
    },
}

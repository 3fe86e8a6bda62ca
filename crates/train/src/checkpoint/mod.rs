//! Checkpoints: what a run needs to go on, in directories that are there whole or not at all.
//!
//! ```text
//! ckpt-<step>/  adapter_config.json, adapter_model.safetensors   an adapter as PEFT has it
//!               optimizer.safetensors                            both moments, and the best parameters if others
//!               state.json                                       everything of the run but its tensors
//!               manifest.json                                    bytes and sha256 of every other file; written last
//! ```
//!
//! A checkpoint is built in `ckpt-<step>.tmp`, brought to the disk file by file, and renamed. Nothing is read back
//! whose manifest, lengths and digests are not right.

mod manifest;
mod read;
mod retention;
mod write;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};

use tunesmith_model::AdapterLayout;
use tunesmith_model::peft::PeftConfig;

use crate::Error;

pub use read::{Found, latest, verify};
pub use retention::{Kept, Limits, excess, remove, sweep};
pub use write::{Written, write};
pub use writer::{CheckpointWriter, Hook};

/// Version of a checkpoint's files.
const FORMAT_VERSION: u32 = 1;
const PREFIX: &str = "ckpt-";
/// Ends the name of everything that is not whole yet, or not any more.
const TMP: &str = ".tmp";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const STATE_FILE: &str = "state.json";
const MANIFEST_FILE: &str = "manifest.json";
const FIRST_MOMENT: &str = "first_moment";
const SECOND_MOMENT: &str = "second_moment";
const BEST_PARAMETERS: &str = "best_parameters";

/// What a checkpoint needs beside the run itself to be an adapter.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// The adapter's configuration.
    pub config: PeftConfig,
    /// Where each matrix lies in the flat parameters.
    pub layout: AdapterLayout,
}

/// Name of the checkpoint after so many steps: `ckpt-` and 8 digits.
pub fn name(step: usize) -> String {
    format!("{PREFIX}{step:08}")
}

/// The step that a name stands for, if it is a whole checkpoint's.
fn step_of(name: &str) -> Option<usize> {
    let step = name.strip_prefix(PREFIX)?.parse().ok()?;
    (self::name(step) == name).then_some(step)
}

/// The checkpoints in a directory, oldest first, whatever state they are in.
fn list(dir: &Path) -> Result<Vec<(usize, PathBuf)>, Error> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::file("read", dir))? {
        let entry = entry.map_err(Error::file("read", dir))?;
        if let Some(step) = entry.file_name().to_str().and_then(step_of) {
            found.push((step, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests;

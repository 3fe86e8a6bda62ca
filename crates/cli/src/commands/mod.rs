//! The commands, one module each.

pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod data_check;
mod deliver;
pub(crate) mod generate;
pub(crate) mod inspect;
mod mask;
pub(crate) mod quote;
pub(crate) mod serve;
pub(crate) mod train;
mod watch;
pub(crate) mod worker;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::args::Overrides;
use crate::error::CliError;
use crate::spec::{self, Assignment, Loaded};

/// Loads a job file with what the command line lays over it.
fn load(job: &Path, overrides: &Overrides) -> Result<Loaded, CliError> {
    let mut flags = Vec::new();
    let mut flag = |key, flag, value| flags.push(Assignment { key, value, flag });
    if let Some(epochs) = overrides.epochs {
        flag("train.epochs", "--epochs", json!(epochs));
    }
    if let Some(seed) = overrides.seed {
        flag("train.seed", "--seed", json!(seed));
    }
    if let Some(output) = &overrides.output {
        flag("output", "--output", json!(utf8(output)?));
    }
    if overrides.offline {
        flag("offline", "--offline", json!(true));
    }
    if let Some(device) = &overrides.device {
        flag("device", "--device", json!(device));
    }
    Ok(spec::load(job, &overrides.set, &flags, &current_dir()?)?)
}

fn utf8(path: &Path) -> Result<&str, CliError> {
    path.to_str().ok_or_else(|| CliError::Usage {
        message: format!("the path `{}` is not valid UTF-8", path.display()),
        hint: None,
    })
}

fn current_dir() -> Result<PathBuf, CliError> {
    std::env::current_dir().map_err(|source| CliError::Io {
        action: "find",
        path: PathBuf::from("the current directory"),
        source,
    })
}

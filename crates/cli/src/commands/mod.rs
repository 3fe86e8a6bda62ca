//! The commands, one module each.

pub(crate) mod bench;
pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod data_check;
mod deliver;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod jobs;
mod mask;
pub(crate) mod plan;
pub(crate) mod quote;
pub(crate) mod selftest;
pub(crate) mod serve;
pub(crate) mod train;
mod watch;
pub(crate) mod worker;

use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::args::Overrides;
use crate::error::CliError;
use crate::out;
use crate::spec::{self, Assignment, Loaded};

/// Loads a job file with what the command line lays over it.
fn load(job: &Path, overrides: &Overrides) -> Result<Loaded, CliError> {
    load_over(Some(job), overrides, Vec::new())
}

/// Loads a job, from a file or without one, with what the command line lays over it.
fn load_over(
    job: Option<&Path>,
    overrides: &Overrides,
    mut flags: Vec<Assignment>,
) -> Result<Loaded, CliError> {
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
    if let Some(limit) = overrides.memory_limit {
        flag("train.memory_limit", "--memory-limit", json!(limit));
    }
    Ok(spec::load_over(job, &overrides.set, &flags, &current_dir()?)?)
}

/// Asks on the terminal; `doing` says what is not done without an answer.
///
/// # Errors
/// [`CliError::Usage`] where there is no terminal to ask on.
fn confirm(question: &str, doing: &str) -> Result<bool, CliError> {
    let stdin = std::io::stdin();
    if !has_terminal() {
        return Err(CliError::Usage {
            message: "there is no terminal to ask on".to_owned(),
            hint: Some(format!("add -y to {doing} without being asked")),
        });
    }
    out::note(question);
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(|source| CliError::Io {
        action: "read",
        path: PathBuf::from("standard input"),
        source,
    })?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// Whether there is somebody to ask.
fn has_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
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

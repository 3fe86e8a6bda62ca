//! What `auto` comes to: the first GPU that can be used, once it has shown that it computes what it should; the CPU
//! where there is none.
//!
//! A GPU shows it by a selftest that this very program has passed on it, with this driver. That is written down in the
//! workspace. Where it is not, whoever says `auto` first runs the part of the selftest that takes seconds. One that fails
//! is an error: nobody who wants a GPU gets the CPU without a word.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use tunesmith_jobs::dir::{self as jobdir, rfc3339_now, write_atomic};
use tunesmith_selftest::Check;

use super::device::{self, Gpu};
use super::selftest::{self, is_sound};
use crate::error::CliError;
use crate::{out, program};

/// Decides what device `wanted` is: `auto` becomes `cpu` or `cuda:N`, other words stay. `quiet` keeps notes back.
///
/// # Errors
/// [`CliError::Untested`] when the GPU that `auto` would take does not compute what it should; [`CliError::Device`] when
/// that cannot be found out.
pub fn resolve(wanted: &str, quiet: bool) -> Result<String, CliError> {
    if wanted == "auto" {
        decide(&Here, stamps().as_deref(), &mut notes(quiet))
    } else {
        Ok(wanted.to_owned())
    }
}

/// Sees to it that a device may be taken for somebody who said `auto`: what [`resolve`] does for a device that is decided
/// already.
///
/// # Errors
/// As [`resolve`].
pub fn trust(device: &str, quiet: bool) -> Result<(), CliError> {
    if device == "cpu" {
        return Ok(());
    }
    ensure(&Here, stamps().as_deref(), &device::look(device)?, &mut notes(quiet))
}

/// What `auto` would take, whether or not it computes what it should: what a selftest is to find out.
pub(super) fn candidate(quiet: bool) -> String {
    first(&Here, &mut notes(quiet)).map_or_else(|| "cpu".to_owned(), |gpu| gpu.device)
}

/// Writes down that a whole selftest was passed on a GPU; says so where it cannot be.
pub(super) fn passed(gpu: &Gpu, quiet: bool) {
    stamp(&Here, stamps().as_deref(), gpu, &mut notes(quiet));
}

fn notes(quiet: bool) -> impl FnMut(&str) {
    move |text| {
        if !quiet {
            out::note(text);
        }
    }
}

/// Where it is written down; nowhere on a machine without a workspace.
fn stamps() -> Option<PathBuf> {
    jobdir::home().ok().map(|home| home.join("selftest"))
}

/// What the decision depends on: this machine, or what a test makes of one.
trait Machine {
    /// Every GPU, or why it cannot be used.
    fn gpus(&self) -> Vec<Result<Gpu, CliError>>;
    /// Which program this is.
    fn program(&self) -> Program;
    /// Runs every operation on a GPU.
    fn check(&self, gpu: &Gpu) -> Result<Vec<Check>, CliError>;
}

struct Here;

impl Machine for Here {
    fn gpus(&self) -> Vec<Result<Gpu, CliError>> {
        device::gpus()
    }

    fn program(&self) -> Program {
        Program::own()
    }

    fn check(&self, gpu: &Gpu) -> Result<Vec<Check>, CliError> {
        selftest::kernels(&gpu.device, &mut |_| ())
    }
}

/// Tells one build of the program from another: a version is built many times while it is worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Program {
    version: String,
    /// Size of its file, and when that was written in milliseconds since 1970; nothing where that is not known.
    file: Option<(u64, u64)>,
}

impl Program {
    fn own() -> Self {
        let file = program::own().and_then(fs::metadata).ok().and_then(|file| {
            let written = file.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
            Some((file.len(), written.as_millis() as u64))
        });
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), file }
    }
}

/// That a selftest was passed.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    passed_at: String,
    program: Program,
    gpu: Gpu,
}

fn path(stamps: &Path, gpu: &Gpu) -> PathBuf {
    stamps.join(format!("{}.json", gpu.device.replace(':', "-")))
}

/// Whether this program has passed a selftest on this GPU with this driver. A stamp that cannot be read is none.
fn is_stamped(machine: &dyn Machine, stamps: Option<&Path>, gpu: &Gpu) -> bool {
    let text = stamps.and_then(|stamps| fs::read(path(stamps, gpu)).ok());
    let stamp = text.and_then(|text| serde_json::from_slice::<Stamp>(&text).ok());
    let program = machine.program();
    stamp.is_some_and(|stamp| stamp.gpu == *gpu && stamp.program == program && program.file.is_some())
}

fn stamp(machine: &dyn Machine, stamps: Option<&Path>, gpu: &Gpu, say: &mut dyn FnMut(&str)) {
    let Some(stamps) = stamps else { return };
    let stamp = Stamp { passed_at: rfc3339_now(), program: machine.program(), gpu: gpu.clone() };
    let path = path(stamps, gpu);
    let text = serde_json::to_vec_pretty(&stamp).map_err(|e| e.to_string());
    let written = text.and_then(|text| {
        fs::create_dir_all(stamps).map_err(|e| jobdir::io_words(&e))?;
        write_atomic(&path, &text).map_err(|e| e.to_string())
    });
    if let Err(why) = written {
        say(&format!("note: that the selftest was passed is not in `{}`: {why}", path.display()));
    }
}

fn decide(
    machine: &dyn Machine,
    stamps: Option<&Path>,
    say: &mut dyn FnMut(&str),
) -> Result<String, CliError> {
    let Some(gpu) = first(machine, say) else { return Ok("cpu".to_owned()) };
    ensure(machine, stamps, &gpu, say)?;
    Ok(gpu.device)
}

/// The first GPU that can be used. Where there are only others, the reason of the first is said.
fn first(machine: &dyn Machine, say: &mut dyn FnMut(&str)) -> Option<Gpu> {
    let mut unusable = None;
    for gpu in machine.gpus() {
        match gpu {
            Ok(gpu) => return Some(gpu),
            Err(error) => unusable = unusable.or(Some(error)),
        }
    }
    if let Some(error) = unusable {
        say(&format!("note: `auto` is the CPU here: {error}"));
    }
    None
}

fn ensure(
    machine: &dyn Machine,
    stamps: Option<&Path>,
    gpu: &Gpu,
    say: &mut dyn FnMut(&str),
) -> Result<(), CliError> {
    if is_stamped(machine, stamps, gpu) {
        return Ok(());
    }
    let Gpu { device, name, .. } = gpu;
    say(&format!("trying every kernel on {device} ({name}) before `auto` takes it: once, some seconds"));
    let checks = machine.check(gpu)?;
    if is_sound(&checks) {
        stamp(machine, stamps, gpu, say);
        return Ok(());
    }
    let failed: Vec<&Check> = checks.iter().filter(|check| !check.passed).collect();
    let what = failed.first().map_or_else(
        || "nothing was checked".to_owned(),
        |check| {
            let why = check.detail.clone().unwrap_or_else(|| {
                format!("it is {:.1e} off, and {:.1e} is allowed", check.error, check.allowed)
            });
            format!("`{}` at {}: {why}", check.name, check.shape)
        },
    );
    Err(CliError::Untested {
        message: format!(
            "{device} ({name}) does not compute what it should: {} of {} checks failed, first {what}",
            failed.len(),
            checks.len()
        ),
        hint: format!(
            "`tunesmith selftest --device {device}` lists all of them; `--device cpu` computes on the CPU"
        ),
    })
}

#[cfg(test)]
mod tests;

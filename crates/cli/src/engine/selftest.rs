//! `tunesmith selftest`: what this machine is, and whether it computes what it should.

use std::time::Instant;

use serde::Serialize;
use tunesmith_ops::Kernels;
use tunesmith_selftest::{self as checks, Check, Precision, STEPS, Size};

use super::auto;
use super::device::{self, Gpu, Work};
use crate::error::CliError;

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Facts {
    /// The CPU.
    Cpu {
        /// The model that it says it is, where the system tells.
        name: Option<String>,
        /// The instruction set that the kernels use.
        instructions: &'static str,
        /// Threads that compute.
        threads: usize,
    },
    /// A GPU.
    Gpu(Gpu),
}

impl Facts {
    /// Those of `cpu` or `cuda:N`.
    ///
    /// # Errors
    /// [`CliError::Device`] when the device is not there.
    pub fn of(device: &str) -> Result<Self, CliError> {
        if device != "cpu" {
            return device::look(device).map(Self::Gpu);
        }
        Ok(Self::Cpu {
            name: device::cpu_name(),
            instructions: tunesmith_ops::cpu_instructions(),
            threads: rayon::current_num_threads(),
        })
    }
}

/// How a selftest went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SelftestReport {
    /// `ok` or `failed`.
    pub status: &'static str,
    /// Version of the program.
    pub version: &'static str,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// What that is.
    pub facts: Facts,
    /// Every comparison.
    pub checks: Vec<Check>,
    /// Wall time.
    pub seconds: f64,
}

impl SelftestReport {
    /// Whether everything was as it should be.
    pub fn passed(&self) -> bool {
        self.status == "ok"
    }
}

/// What to test where `wanted` is asked for: for `auto` the first GPU that can be used, or else the CPU.
pub fn device_to_test(wanted: &str, quiet: bool) -> String {
    if wanted == "auto" { auto::candidate(quiet) } else { wanted.to_owned() }
}

/// Runs every check on `cpu` or `cuda:N`; `tell` hears of each as it is done. A selftest that failed is a report too; that
/// a GPU has passed one is written down for `auto`. `quiet` keeps notes back.
///
/// # Errors
/// [`CliError::Device`] when the device is not there.
pub fn selftest(device: &str, quiet: bool, tell: &mut dyn FnMut(&Check)) -> Result<SelftestReport, CliError> {
    let (facts, started) = (Facts::of(device)?, Instant::now());
    let checks = device::run(device, Testing { whole: true, tell })?;
    if let (true, Facts::Gpu(gpu)) = (is_sound(&checks), &facts) {
        auto::passed(gpu, quiet);
    }
    Ok(SelftestReport {
        status: if is_sound(&checks) { "ok" } else { "failed" },
        version: env!("CARGO_PKG_VERSION"),
        device: device.to_owned(),
        facts,
        checks,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The part of [`selftest`] that takes seconds: every operation, and no fine-tune.
///
/// # Errors
/// As [`selftest`].
pub(super) fn kernels(device: &str, tell: &mut dyn FnMut(&Check)) -> Result<Vec<Check>, CliError> {
    device::run(device, Testing { whole: false, tell })
}

/// Whether there are checks and all were passed.
pub(super) fn is_sound(checks: &[Check]) -> bool {
    !checks.is_empty() && checks.iter().all(|check| check.passed)
}

struct Testing<'a> {
    whole: bool,
    tell: &'a mut dyn FnMut(&Check),
}

impl Work for Testing<'_> {
    type Output = Vec<Check>;

    fn on<K: Kernels>(self, kernels: K) -> Result<Vec<Check>, CliError> {
        let precision = Precision::of(&kernels);
        let mut found = checks::kernels(&kernels, precision, Size::Real, self.tell);
        // A fine-tune on operations that are wrong says nothing new, and on a device that failed nothing at all.
        if self.whole && is_sound(&found) {
            match checks::fine_tune(kernels, precision, STEPS, self.tell) {
                Ok(more) => found.extend(more),
                Err(error) => {
                    let check = Check::failed("fine-tune", format!("{STEPS} steps"), 0.0, error.to_string());
                    (self.tell)(&check);
                    found.push(check);
                }
            }
        }
        Ok(found)
    }
}

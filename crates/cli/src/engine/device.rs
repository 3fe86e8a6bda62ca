//! Where to compute.

use tunesmith_ops::{Kernels, RefKernels};

use crate::energy::Counter;
use crate::error::CliError;

/// Something to do on whichever device was asked for.
pub(super) trait Work {
    /// What comes of it.
    type Output;

    /// Does it.
    fn on<K: Kernels>(self, kernels: K) -> Result<Self::Output, CliError>;
}

/// Does `work` on `cpu`, `auto` or `cuda:N`. `auto` is the CPU.
///
/// # Errors
/// [`CliError::Device`] when the device is not there; whatever the work returns.
pub(super) fn run<W: Work>(device: &str, work: W) -> Result<W::Output, CliError> {
    match ordinal(device) {
        None => work.on(RefKernels),
        Some(ordinal) => on_cuda(device, ordinal, work),
    }
}

/// What a word for a device means: `auto` is the CPU, wherever a job runs, as long as no GPU has shown what it does.
pub fn resolve(device: &str) -> &str {
    if device == "auto" { "cpu" } else { device }
}

/// Whether a device can be used, before anything is read.
///
/// # Errors
/// [`CliError::Device`] when it is not there.
pub fn check(device: &str) -> Result<(), CliError> {
    ordinal(device).map_or(Ok(()), |ordinal| check_cuda(device, ordinal))
}

/// Every device that can be used: `cpu`, then the GPUs.
pub fn all() -> Vec<String> {
    let gpus = (0..).map(|n| format!("cuda:{n}")).take_while(|device| check(device).is_ok());
    std::iter::once("cpu".to_owned()).chain(gpus).collect()
}

/// The counter of what a GPU draws, or why there is none; nothing for the CPU.
pub(super) fn energy_counter(device: &str) -> Option<Result<Counter, String>> {
    ordinal(device).map(cuda_energy)
}

/// The number of a GPU, which the spec has checked to be one.
fn ordinal(device: &str) -> Option<usize> {
    device.strip_prefix("cuda:").and_then(|n| n.parse().ok())
}

#[cfg(feature = "cuda")]
fn on_cuda<W: Work>(device: &str, ordinal: usize, work: W) -> Result<W::Output, CliError> {
    work.on(tunesmith_ops::CudaKernels::open(ordinal).map_err(|error| unusable(device, error))?)
}

#[cfg(feature = "cuda")]
fn check_cuda(device: &str, ordinal: usize) -> Result<(), CliError> {
    tunesmith_ops::CudaKernels::check(ordinal).map_err(|error| unusable(device, error))
}

#[cfg(feature = "cuda")]
fn cuda_energy(ordinal: usize) -> Result<Counter, String> {
    let monitor = tunesmith_ops::CudaKernels::monitor(ordinal)?;
    Ok(Box::new(move || monitor.energy()))
}

#[cfg(feature = "cuda")]
fn unusable(device: &str, error: tunesmith_ops::Error) -> CliError {
    use tunesmith_ops::{DeviceError, Error};
    let why = match error {
        Error::Device(DeviceError::Unavailable { reason, hint }) => format!("{reason}. {hint}"),
        // Whoever has its memory may give it back; smaller micro-batches would not help.
        Error::Device(error @ (DeviceError::OutOfMemory { .. } | DeviceError::Device { .. })) => {
            error.to_string()
        }
        other => return CliError::Internal(other.to_string()),
    };
    CliError::Device(format!("device `{device}` cannot be used: {why}"))
}

#[cfg(not(feature = "cuda"))]
fn on_cuda<W: Work>(device: &str, ordinal: usize, _: W) -> Result<W::Output, CliError> {
    check_cuda(device, ordinal)
}

#[cfg(not(feature = "cuda"))]
fn check_cuda<T>(device: &str, _: usize) -> Result<T, CliError> {
    Err(CliError::Device(format!(
        "device `{device}` was asked for, but this build has no CUDA; one made with `--features cuda` has"
    )))
}

#[cfg(not(feature = "cuda"))]
fn cuda_energy(_: usize) -> Result<Counter, String> {
    Err("this build has no CUDA".to_owned())
}

//! Where to compute.

use serde::{Deserialize, Serialize};
use tunesmith_ops::{Kernels, RefKernels, Storage};

use crate::energy::Counter;
use crate::error::CliError;

/// Something to do on whichever device was asked for.
pub(super) trait Work {
    /// What comes of it.
    type Output;

    /// Does it.
    fn on<K: Kernels>(self, kernels: K) -> Result<Self::Output, CliError>;
}

/// What a GPU that can be used is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// `cuda:N`.
    pub device: String,
    /// The name that its maker gave it.
    pub name: String,
    /// Compute capability, as in `9.0`.
    pub compute_capability: String,
    /// The CUDA version that its driver supports, as in `13.0`.
    pub driver_cuda: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Version of the cuBLASLt that computes its products.
    pub cublaslt: Option<String>,
}

/// Does `work` on `cpu` or `cuda:N`; what `auto` is has been decided before.
///
/// # Errors
/// [`CliError::Device`] when the device is not there; whatever the work returns.
pub(super) fn run<W: Work>(device: &str, work: W) -> Result<W::Output, CliError> {
    match ordinal(device) {
        Some(ordinal) => on_cuda(device, ordinal, work),
        None if device == "cpu" => work.on(RefKernels),
        None => Err(CliError::Internal(format!("nobody has decided what device `{device}` is"))),
    }
}

/// Every GPU that the driver sees, or why it cannot be used; none in a build without CUDA.
pub(super) fn gpus() -> Vec<Result<Gpu, CliError>> {
    (0..count_cuda()).map(|n| look(&format!("cuda:{n}"))).collect()
}

/// What a GPU is.
///
/// # Errors
/// [`CliError::Device`] when it is not there.
pub(super) fn look(device: &str) -> Result<Gpu, CliError> {
    match ordinal(device) {
        Some(ordinal) => look_cuda(device, ordinal),
        None => Err(CliError::Internal(format!("`{device}` is no GPU"))),
    }
}

/// What the CPU calls itself, where the system tells.
pub(super) fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

/// How a device stores values.
pub(super) fn storage(device: &str) -> Storage {
    if ordinal(device).is_some() { Storage::DEVICE } else { Storage::CPU }
}

/// Whether a device can be used, before anything is read.
///
/// # Errors
/// [`CliError::Device`] when it is not there.
pub fn check(device: &str) -> Result<(), CliError> {
    ordinal(device).map_or(Ok(()), |ordinal| look_cuda(device, ordinal).map(drop))
}

/// Every device that can be used: `cpu`, then the GPUs.
pub fn all() -> Vec<String> {
    let gpus = gpus().into_iter().flatten().map(|gpu| gpu.device);
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
fn look_cuda(device: &str, ordinal: usize) -> Result<Gpu, CliError> {
    use tunesmith_ops::CudaKernels;
    let facts = CudaKernels::look(ordinal).map_err(|error| unusable(device, error))?;
    let dotted = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    Ok(Gpu {
        device: device.to_owned(),
        name: facts.name,
        compute_capability: dotted(facts.capability),
        driver_cuda: dotted(facts.driver),
        memory_bytes: facts.memory as u64,
        multiprocessors: facts.multiprocessors,
        cublaslt: CudaKernels::cublaslt(),
    })
}

#[cfg(feature = "cuda")]
fn count_cuda() -> usize {
    tunesmith_ops::CudaKernels::count()
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
    match look_cuda(device, ordinal) {
        Ok(gpu) => Err(CliError::Internal(format!("`{}` is there without CUDA", gpu.device))),
        Err(error) => Err(error),
    }
}

#[cfg(not(feature = "cuda"))]
fn count_cuda() -> usize {
    0
}

#[cfg(not(feature = "cuda"))]
fn look_cuda(device: &str, _: usize) -> Result<Gpu, CliError> {
    Err(CliError::Device(format!(
        "device `{device}` was asked for, but this build has no CUDA; one made with `--features cuda` has"
    )))
}

#[cfg(not(feature = "cuda"))]
fn cuda_energy(_: usize) -> Result<Counter, String> {
    Err("this build has no CUDA".to_owned())
}

//! Where a program computes, and what can be asked of that place beside its kernels.

use serde::Serialize;
use serde_json::Value;
use tunesmith_ops::{Kernels, RefKernels};

use crate::Error;

/// Something to do on whichever device was asked for.
pub trait Work {
    /// Does it.
    ///
    /// # Errors
    /// Whatever comes up.
    fn on<K: Kernels>(self, kernels: K, probe: &Probe) -> Result<(), Error>;
}

/// Bytes of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// In use at the end.
    pub used: u64,
    /// The most there was in use since the peak was last forgotten.
    pub peak: u64,
    /// Taken from the device at the end, with what is kept for reuse.
    pub held: u64,
}

type Ask<T> = Box<dyn Fn() -> Result<T, Error>>;

/// What a device tells of itself.
pub struct Probe {
    /// Name, compute capability and so on, for the record.
    pub facts: Value,
    memory: Option<Ask<Memory>>,
    forget_peak: Ask<()>,
    synchronize: Ask<()>,
    joules: Box<dyn Fn() -> Option<f64>>,
}

impl Probe {
    /// What the whole card has drawn since its driver was loaded, where that can be known.
    pub fn joules(&self) -> Option<f64> {
        (self.joules)()
    }

    /// Device memory in use; nothing on the CPU, where the system counts the process's.
    ///
    /// # Errors
    /// A device fault.
    pub fn memory(&self) -> Result<Option<Memory>, Error> {
        self.memory.as_ref().map(|ask| ask()).transpose()
    }

    /// Starts the record of the peak anew.
    ///
    /// # Errors
    /// A device fault.
    pub fn forget_peak(&self) -> Result<(), Error> {
        (self.forget_peak)()
    }

    /// Waits until everything that was queued is done.
    ///
    /// # Errors
    /// What failed of it.
    pub fn synchronize(&self) -> Result<(), Error> {
        (self.synchronize)()
    }

    fn cpu() -> Self {
        Self {
            facts: serde_json::json!({ "name": "cpu" }),
            memory: None,
            forget_peak: Box::new(|| Ok(())),
            synchronize: Box::new(|| Ok(())),
            joules: Box::new(|| None),
        }
    }
}

/// Does `work` on `cpu` or `cuda:N`.
///
/// # Errors
/// A device that there is none of, or that cannot be used; whatever the work returns.
pub fn run<W: Work>(device: &str, work: W) -> Result<(), Error> {
    let ordinal = device.strip_prefix("cuda:").and_then(|n| n.parse().ok());
    match ordinal {
        None if device == "cpu" => work.on(RefKernels, &Probe::cpu()),
        None => Err(Error::Usage(format!("`--device {device}` is neither cpu nor cuda:N"))),
        Some(ordinal) => on_cuda(ordinal, work),
    }
}

#[cfg(feature = "cuda")]
fn on_cuda<W: Work>(ordinal: usize, work: W) -> Result<(), Error> {
    use tunesmith_kernels::gpu::Driver;
    use tunesmith_kernels::gpu::cuda::{Cuda, Facts};
    use tunesmith_ops::CudaKernels;

    let device = |e: tunesmith_ops::DeviceError| Error::Ops(e.into());
    let kernels = CudaKernels::open(ordinal)?;
    let cuda: Cuda = kernels.driver().clone();
    let Facts { name, capability, multiprocessors, memory, driver, .. } = cuda.facts().clone();
    let facts = serde_json::json!({
        "name": name,
        "capability": format!("{}.{}", capability.0, capability.1),
        "multiprocessors": multiprocessors,
        "memory_bytes": memory,
        "driver_cuda": format!("{}.{}", driver.0, driver.1),
    });
    let monitor = cuda.monitor().ok();
    let (ask, forget, wait) = (cuda.clone(), cuda.clone(), cuda);
    let read = move || {
        let now = ask.memory().map_err(device)?;
        Ok(Memory { used: now.used, peak: now.peak, held: now.held })
    };
    let probe = Probe {
        facts,
        memory: Some(Box::new(read)),
        forget_peak: Box::new(move || forget.forget_peak().map_err(device)),
        synchronize: Box::new(move || wait.synchronize().map_err(device)),
        joules: Box::new(move || monitor.as_ref()?.energy().ok()),
    };
    work.on(kernels, &probe)
}

#[cfg(not(feature = "cuda"))]
fn on_cuda<W: Work>(ordinal: usize, _: W) -> Result<(), Error> {
    Err(Error::Usage(format!(
        "`--device cuda:{ordinal}` was asked for, but this program was built without CUDA (cargo build --features cuda)"
    )))
}

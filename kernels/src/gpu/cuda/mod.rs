//! The CUDA driver as a [`Driver`]: device set-up, memory, launches, and cuBLASLt for the products.
//!
//! The driver and cuBLASLt are loaded when the first device is opened, so that a program with this feature starts on
//! any machine and says in words what it lacks.

mod device;
mod event;
mod gemm;
mod late;
mod library;
mod mark;
mod modules;
mod nvml;
mod seen;
mod staging;
mod status;

use std::ffi::c_void;
use std::fmt::{self, Debug, Formatter};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cudarc::driver::result::{launch_kernel, memcpy_dtod_async};
use cudarc::driver::sys::{cuMemcpyDtoHAsync_v2, cuMemsetD8Async};

use self::device::Device;
pub use self::device::{Facts, Memory};
pub use self::late::Download;
pub use self::mark::Mark;
pub use self::modules::RESOURCES;
pub use self::nvml::{Clocks, Known, Monitor};
use self::status::Named;
use super::driver::{Arg, DeviceMemory, Driver, Gemm, Launch, Limits};
use super::error::{Error, Result, expect};
use super::pieces::{Fill, Rows};

/// The most arguments that a kernel may have.
const MAX_ARGS: usize = 48;

/// A GPU with one queue. Copies share it.
#[derive(Clone)]
pub struct Cuda(Arc<Device>);

impl Debug for Cuda {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({})", self.0.facts.name)
    }
}

/// Bytes of device memory that went through a [`Cuda`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Allocated now.
    pub used: u64,
    /// The most that was allocated since the start or [`Cuda::forget_peak`].
    pub peak: u64,
    /// Held for reuse, with what is allocated.
    pub held: u64,
}

impl Cuda {
    /// Opens a device, counted from 0.
    ///
    /// # Errors
    /// [`Error::Unavailable`] tells what is missing: the driver or a version of it, a device, cuBLASLt.
    pub fn new(ordinal: usize) -> Result<Self> {
        Device::new(ordinal).map(|device| Self(Arc::new(device)))
    }

    /// What a device is, without setting anything up on it.
    ///
    /// # Errors
    /// As [`Cuda::new`], but for what its set-up meets.
    pub fn look(ordinal: usize) -> Result<Facts> {
        Ok(Device::find(ordinal)?.1)
    }

    /// What the device is.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }

    /// Device memory in use, and the peak of it.
    pub fn memory(&self) -> Result<MemoryUse> {
        self.enter()?;
        let (used, peak, held) = self.0.context.memory()?;
        Ok(MemoryUse { used, peak, held })
    }

    /// Starts the record of the peak anew.
    pub fn forget_peak(&self) -> Result<()> {
        self.enter()?;
        self.0.context.forget_peak()
    }

    /// Whether the first product of each shape tries cuBLASLt's candidates and keeps the fastest, or takes the one that
    /// cuBLASLt puts first (as it does unless told).
    ///
    /// Trying costs some twenty runs of the product: worth it for the shapes of a fixed token budget, which come back
    /// thousands of times, and a waste on those that depend on how many rows of a batch are trained. So a caller turns it
    /// on for a warm-up at its fixed shapes and off again. Candidates sum in different orders and a close race may end
    /// differently in another process, so the last bits of products are the same from one process to the next only
    /// without it. Within one, a shape keeps its choice.
    pub fn set_gemm_trials(&self, on: bool) {
        self.0.products.set_trials(on);
    }

    /// The time that the device takes for the work that `work` queues.
    pub fn time<R>(&self, work: impl FnOnce(&Self) -> Result<R>) -> Result<(R, Duration)> {
        let start = self.mark()?;
        let out = work(self)?;
        Ok((out, self.between(&start, &self.mark()?)?))
    }

    /// Queues the driver's own copy of a whole block to another of the same size: what memory-bound kernels are held
    /// against.
    pub fn copy(&self, from: &Memory, to: &mut Memory) -> Result<()> {
        expect("copy", from.bytes == to.bytes, || format!("{} bytes into {}", from.bytes, to.bytes))?;
        self.enter()?;
        // SAFETY: both blocks are live and of that size.
        unsafe { memcpy_dtod_async(to.address, from.address, from.bytes, self.0.context.stream) }
            .named("cuMemcpyDtoDAsync")
    }

    /// The meters of this GPU: power, energy, clocks.
    ///
    /// # Errors
    /// In words, why it has none.
    pub fn monitor(&self) -> Known<Monitor> {
        Monitor::of(self.0.context.device())
    }

    fn enter(&self) -> Result<()> {
        self.0.context.enter()
    }
}

impl Driver for Cuda {
    type Memory = Memory;

    fn alloc(&self, bytes: usize) -> Result<Memory> {
        Memory::new(&self.0, bytes)
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.address
    }

    fn upload(&self, from: &[u8], to: &mut Memory, at: usize) -> Result<()> {
        self.enter()?;
        let mut staging = self.0.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: slices stay inside their memory, which `to` keeps alive.
        let queued = unsafe { staging.copy(self.0.context.stream, from, to.address + at as u64) };
        self.0.context.blamed(queued)
    }

    fn download(&self, from: &Memory, at: usize, to: &mut [u8]) -> Result<()> {
        self.enter()?;
        let (at, stream) = (from.address + at as u64, self.0.context.stream);
        // SAFETY: slices stay inside their memory; the host bytes are ours until the wait below is over.
        let queued = unsafe { cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), at, to.len(), stream) }
            .result()
            .named("cuMemcpyDtoHAsync");
        let context = &self.0.context;
        context.blamed(queued.and_then(|()| context.synchronize()))
    }

    fn clear(&self, memory: &mut Memory, at: usize, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: slices stay inside their memory, which `memory` keeps alive.
        unsafe { cuMemsetD8Async(memory.address + at as u64, 0, bytes, self.0.context.stream) }
            .result()
            .named("cuMemsetD8Async")
    }

    fn synchronize(&self) -> Result<()> {
        self.enter()?;
        self.0.context.blamed(self.0.context.synchronize())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.enter()?;
        // The driver copies each argument from where a pointer says, as many bytes as the parameter has.
        let mut values = [0_u64; MAX_ARGS];
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGS];
        if launch.args.len() > MAX_ARGS {
            let text = format!("{} arguments, and {MAX_ARGS} is the most", launch.args.len());
            return Err(Error::Refused { call: launch.kernel.into(), text });
        }
        for ((value, pointer), arg) in values.iter_mut().zip(&mut pointers).zip(launch.args) {
            // Little-endian, as every machine with a GPU is: the low bytes come first.
            *value = match *arg {
                Arg::Address(v) => v,
                Arg::I64(v) => v as u64,
                Arg::I32(v) => u64::from(v as u32),
                Arg::U32(v) => u64::from(v),
                Arg::F32(v) => u64::from(v.to_bits()),
            };
            *pointer = (&raw mut *value).cast();
        }
        let [x, y, z] = launch.grid;
        self.0.context.queues(launch.kernel);
        self.0.modules.with(launch, self.0.facts.shared_per_block, |kernel| {
            let (grid, block) = ((x, y, z), (launch.threads, 1, 1));
            let pointers = &mut pointers[..launch.args.len()];
            // SAFETY: the arguments have the parameters' number and sizes; the caller vouches for what they point to.
            unsafe { launch_kernel(kernel, grid, block, launch.shared, self.0.context.stream, pointers) }
                .named(launch.kernel)
        })
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.enter()?;
        // SAFETY: passed on to the caller.
        let queued = unsafe { self.0.products.queue(&self.0.context, gemm) };
        self.0.context.blamed(self.0.context.explained(queued))
    }

    fn limits(&self) -> Limits {
        let Facts { multiprocessors, shared_per_block, .. } = self.0.facts;
        Limits { multiprocessors, shared_per_block }
    }

    // --- loading and timing ---

    type Mark = Mark;

    fn upload_rows(&self, to: &mut Memory, rows: Rows, fill: &mut Fill<'_>) -> Result<()> {
        self.enter()?;
        let mut staging = self.0.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: views stay inside their memory, which `to` keeps alive.
        unsafe { staging.copy_rows(self.0.context.stream, rows, fill, to.address) }
    }

    fn mark(&self) -> Result<Mark> {
        Mark::new(&self.0)
    }

    fn between(&self, start: &Mark, end: &Mark) -> Result<Duration> {
        end.since(start)
    }

    fn name(&self) -> String {
        self.0.facts.name.clone()
    }

    // Memory.

    fn device_memory(&self) -> Result<Option<DeviceMemory>> {
        self.enter()?;
        self.0.context.device_memory().map(Some)
    }

    type Download = Download;

    fn download_later(&self, from: &Memory, at: usize, bytes: usize) -> Result<Download> {
        self.enter()?;
        // SAFETY: slices stay inside their memory, which is freed behind whatever is queued.
        unsafe { Download::queue(&self.0, from.address + at as u64, bytes) }
    }

    fn wait(&self, download: Download, to: &mut [u8]) -> Result<()> {
        self.enter()?;
        self.0.context.blamed(download.wait(to))
    }

    fn tune(&self, on: bool) {
        self.set_gemm_trials(on);
    }
}

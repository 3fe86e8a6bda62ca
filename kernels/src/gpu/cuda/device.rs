//! One GPU: its facts, its context, its queue and its memory pool.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::result::{
    DriverError, ctx, device, free_async, malloc_async, mem_get_info, mem_pool, primary_ctx, stream,
};
use cudarc::driver::sys::{
    CUcomputemode, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUmemPool_attribute, CUmemoryPool,
    CUresult, CUstream,
};

use super::gemm::Products;
use super::late::Buffers;
use super::library;
use super::modules::{self, Modules};
use super::staging::Staging;
use super::status::{Named, unavailable, words};
use crate::gpu::driver::DeviceMemory;
use crate::gpu::error::{Error, Result, size};

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The name that its maker gave it.
    pub name: String,
    /// Compute capability, as in (9, 0).
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: usize,
    /// Shared memory that one block may ask for, in bytes.
    pub shared_per_block: u32,
    /// The CUDA version that the driver supports, as in (13, 0).
    pub driver: (u32, u32),
}

/// A device with all that was made on it, taken down in the order of the fields when the last user is gone.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) products: Products,
    pub(super) modules: Modules,
    pub(super) staging: Mutex<Staging>,
    pub(super) late: Mutex<Buffers>,
    pub(super) context: Context,
    pub(super) facts: Facts,
}

impl Device {
    /// A device that can be used, with nothing set up on it yet.
    pub(super) fn find(ordinal: usize) -> Result<(CUdevice, Facts)> {
        let driver = library::start_driver()?;
        let count = device::get_count().named("cuDeviceGetCount")?.max(0) as usize;
        if count == 0 {
            return Err(library::no_gpu());
        }
        if ordinal >= count {
            let devices = if count == 1 { "1 device".into() } else { format!("{count} devices") };
            let reason = format!("there is no device {ordinal}: the NVIDIA driver sees {devices}");
            return Err(unavailable(
                reason,
                "Devices are counted from 0, and CUDA_VISIBLE_DEVICES can hide some",
            ));
        }
        let handle = device::get(ordinal as i32).named("cuDeviceGet")?;
        let facts = facts(handle, driver)?;
        modules::check_architecture(&facts.name, facts.capability)?;
        if compute_mode(handle)? == CUcomputemode::CU_COMPUTEMODE_PROHIBITED as i32 {
            return Err(prohibited(ordinal, &facts.name));
        }
        library::load_cublaslt()?;
        Ok((handle, facts))
    }

    pub(super) fn new(ordinal: usize) -> Result<Self> {
        let (handle, facts) = Self::find(ordinal)?;
        let context = Context::new(handle, ordinal, &facts)?;
        let products = Products::new(&context, facts.capability.0 >= 9)?;
        let (staging, late) = (Mutex::default(), Mutex::default());
        Ok(Self { products, modules: Modules::default(), staging, late, context, facts })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let Self { context, products, .. } = self;
        let _ = context.enter();
        products.give_back_workspace(context);
        // Whatever the fields give back may still be in use by queued work.
        let _ = context.synchronize();
    }
}

fn facts(handle: CUdevice, driver: (u32, u32)) -> Result<Facts> {
    use CUdevice_attribute as Attribute;
    // SAFETY: the handle is one that the driver gave.
    let attribute = |which| unsafe { device::get_attribute(handle, which) }.named("cuDeviceGetAttribute");
    let name = device::get_name(handle).named("cuDeviceGetName")?;
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32;
    if major < 8 {
        return Err(unavailable(
            format!("`{name}` has compute capability {major}.{minor}, and 8.0 is the least"),
            "Use a card of the Ampere generation or newer",
        ));
    }
    if attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
        return Err(unavailable(
            format!("`{name}` has no memory pools here"),
            "Use a driver or a virtual GPU profile that supports cudaMallocAsync",
        ));
    }
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
    let shared = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as u32;
    // SAFETY: as above.
    let memory = unsafe { device::total_mem(handle) }.named("cuDeviceTotalMem")?;
    let capability = (major, minor);
    Ok(Facts { name, capability, multiprocessors, memory, shared_per_block: shared, driver })
}

/// Who may use a device: the driver's number of it.
fn compute_mode(handle: CUdevice) -> Result<i32> {
    // SAFETY: the handle is one that the driver gave.
    unsafe { device::get_attribute(handle, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE) }
        .named("cuDeviceGetAttribute")
}

fn prohibited(ordinal: usize, name: &str) -> Error {
    unavailable(
        format!("`{name}` is in compute mode `prohibited`, in which no program may use it"),
        format!("`nvidia-smi -i {ordinal} -c DEFAULT` changes that"),
    )
}

/// Why a device gives no context, though it is there.
fn no_context(error: DriverError, handle: CUdevice, ordinal: usize, facts: &Facts) -> Error {
    let (name, said) = (&facts.name, words(error));
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => unavailable(
            format!(
                "the {} of `{name}` are in use by other programs, and not even a context fits: {said}",
                size(facts.memory)
            ),
            "`nvidia-smi` lists the programs that use it: end one of them, or choose another device",
        ),
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE | CUresult::CUDA_ERROR_INVALID_DEVICE => {
            match compute_mode(handle) {
                Ok(mode) if mode == CUcomputemode::CU_COMPUTEMODE_PROHIBITED as i32 => {
                    prohibited(ordinal, name)
                }
                Ok(mode) if mode == CUcomputemode::CU_COMPUTEMODE_EXCLUSIVE_PROCESS as i32 => unavailable(
                    format!(
                        "`{name}` is taken by another program, and its compute mode allows one at a time: {said}"
                    ),
                    format!(
                        "Wait for that program, which `nvidia-smi` names, or allow several with `nvidia-smi -i {ordinal} -c DEFAULT`"
                    ),
                ),
                _ => unavailable(
                    format!("`{name}` is busy or does not answer: {said}"),
                    "See what `nvidia-smi` says of it; a card that has failed may need a restart of the machine",
                ),
            }
        }
        _ => match Err::<(), _>(error).named("cuDevicePrimaryCtxRetain") {
            Err(error) => error,
            Ok(()) => prohibited(ordinal, name),
        },
    }
}

/// The primary context of a device with one queue. Everything that is queued goes there.
#[derive(Debug)]
pub(super) struct Context {
    handle: CUdevice,
    primary: CUcontext,
    pub(super) stream: CUstream,
    pool: CUmemoryPool,
    /// The peak of memory use before the pool's own record was last reset.
    earlier_peak: AtomicU64,
    /// The kernel queued last, for errors that show late.
    latest: Mutex<&'static str>,
}

// SAFETY: the driver's handles may be used from any thread, where the context is made current first (`enter`).
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn new(handle: CUdevice, ordinal: usize, facts: &Facts) -> Result<Self> {
        // SAFETY: the handle is one that the driver gave.
        let primary =
            unsafe { primary_ctx::retain(handle) }.map_err(|e| no_context(e, handle, ordinal, facts))?;
        let (stream, pool) = (std::ptr::null_mut(), std::ptr::null_mut());
        // Made before what may fail, so that it is given back.
        let mut new =
            Self { handle, primary, stream, pool, earlier_peak: AtomicU64::new(0), latest: Mutex::new("") };
        new.enter()?;
        new.stream = stream::create(stream::StreamKind::NonBlocking).named("cuStreamCreate")?;
        // SAFETY: as above.
        new.pool = unsafe { device::get_default_mem_pool(handle) }.named("cuDeviceGetDefaultMemPool")?;
        // By default freed memory goes back to the system at every wait, and the next step maps it again.
        new.set_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
        Ok(new)
    }

    /// The driver's number for the device.
    pub(super) fn device(&self) -> CUdevice {
        self.handle
    }

    /// Makes the context current on the calling thread.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained for the life of `self`.
        unsafe { ctx::set_current(self.primary) }.named("cuCtxSetCurrent")
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        unsafe { stream::synchronize(self.stream) }.named("cuStreamSynchronize")
    }

    /// Notes a kernel that is about to be queued.
    pub(super) fn queues(&self, kernel: &'static str) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = kernel;
    }

    /// Names the kernel queued last in an error of the device: what fails in the queue is told by a later call.
    pub(super) fn blamed<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let kernel = *self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            match error {
                Error::Device { call, text } if !kernel.is_empty() && call != kernel => {
                    Error::Device { call, text: format!("{text}, after kernel `{kernel}` was queued") }
                }
                other => other,
            }
        })
    }

    /// Adds the driver's words to a failure of cuBLASLt, which tells that something went wrong and not what.
    pub(super) fn explained<T>(&self, result: Result<T>) -> Result<T> {
        let Err(Error::Device { call, text }) = result else { return result };
        match self.synchronize() {
            Err(Error::Device { text: words, .. }) => {
                Err(Error::Device { call, text: format!("{text} and the driver {words}") })
            }
            _ => Err(Error::Device { call, text }),
        }
    }

    /// Memory from the pool, in the order of the queue.
    pub(super) fn alloc(&self, bytes: usize) -> Result<CUdeviceptr> {
        // SAFETY: the stream lives as long as `self`.
        let attempt = || unsafe { malloc_async(self.stream, bytes) };
        let mut found = attempt();
        if found.is_err_and(|e| e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
            // What the pool holds in pieces too small may fit once they are given back.
            self.synchronize()?;
            // SAFETY: the pool is the device's own.
            unsafe { mem_pool::trim_to(self.pool, 0) }.named("cuMemPoolTrimTo")?;
            found = attempt();
        }
        match found {
            Err(e) if e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = mem_get_info().named("cuMemGetInfo")?;
                let held = self.get_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)? as usize;
                Err(Error::OutOfMemory { bytes, free, total, held })
            }
            found => found.named("cuMemAllocAsync"),
        }
    }

    /// Gives memory back, after the work that was queued before.
    ///
    /// # Safety
    /// `address` must come from `alloc` and not be used in work that is queued later.
    pub(super) unsafe fn free(&self, address: CUdeviceptr) -> Result<()> {
        // SAFETY: passed on to the caller.
        unsafe { free_async(address, self.stream) }.named("cuMemFreeAsync")
    }

    /// Bytes in use, the most there were since `forget_peak`, and bytes that the pool holds.
    pub(super) fn memory(&self) -> Result<(u64, u64, u64)> {
        let used = self.get_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        let peak = self.get_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?;
        let held = self.get_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        Ok((used, peak.max(self.earlier_peak.load(Ordering::Relaxed)), held))
    }

    /// As [`Context::memory`], beside what the device has; what the pool holds for reuse can be taken again.
    pub(super) fn device_memory(&self) -> Result<DeviceMemory> {
        // What was given back is the pool's once the work before it is done.
        self.synchronize()?;
        let (used, peak, held) = self.memory()?;
        let (free, total) = mem_get_info().named("cuMemGetInfo")?;
        let free = (free as u64).saturating_add(held.saturating_sub(used));
        Ok(DeviceMemory { total: total as u64, free, used, peak })
    }

    pub(super) fn forget_peak(&self) -> Result<()> {
        self.earlier_peak.store(0, Ordering::Relaxed);
        self.set_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
    }

    /// Runs `trial`, whose temporary memory is not to count in the peak.
    pub(super) fn apart_from_peak<R>(&self, trial: impl FnOnce() -> Result<R>) -> Result<R> {
        let (_, before, _) = self.memory()?;
        let out = trial()?;
        self.synchronize()?;
        self.set_pool(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)?;
        self.earlier_peak.store(before, Ordering::Relaxed);
        Ok(out)
    }

    fn get_pool(&self, which: CUmemPool_attribute) -> Result<u64> {
        let mut value = 0_u64;
        // SAFETY: the pool is the device's own, and these attributes are 64-bit numbers.
        unsafe { mem_pool::get_attribute(self.pool, which, (&raw mut value).cast::<c_void>()) }
            .named("cuMemPoolGetAttribute")?;
        Ok(value)
    }

    fn set_pool(&self, which: CUmemPool_attribute, mut value: u64) -> Result<()> {
        // SAFETY: as above.
        unsafe { mem_pool::set_attribute(self.pool, which, (&raw mut value).cast::<c_void>()) }
            .named("cuMemPoolSetAttribute")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A failure of any of these leaves nothing to do.
        // SAFETY: the stream was created here, nobody uses it any more, and the context was retained here.
        unsafe {
            if !self.stream.is_null() {
                let _ = stream::destroy(self.stream);
            }
            let _ = primary_ctx::release(self.handle);
        }
    }
}

/// Device memory. Dropped, it is freed after the work that was queued before.
#[derive(Debug)]
pub struct Memory {
    pub(super) address: CUdeviceptr,
    pub(super) bytes: usize,
    device: Arc<Device>,
}

impl Memory {
    pub(super) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        device.context.enter()?;
        Ok(Self { address: device.context.alloc(bytes.max(1))?, bytes, device: Arc::clone(device) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let context = &self.device.context;
        // A device that failed has taken its memory with it: nothing is left to do.
        // SAFETY: the address comes from `alloc`, and no later work can name it.
        let _ = context.enter().and_then(|()| unsafe { context.free(self.address) });
    }
}

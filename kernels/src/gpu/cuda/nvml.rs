//! What a GPU draws, and what slows it down: NVIDIA's management library (NVML), which comes with the driver.
//!
//! It is loaded when it is first asked, and nothing depends on it: whatever it does not tell is a reason in words.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt::{self, Debug, Formatter, Write as _};

use cudarc::driver::result::device;
use cudarc::driver::sys::{CUdevice, cuDeviceGetPCIBusId};
use libloading::Library;

use super::library;
use super::status::Named;
use crate::gpu::error;

/// A number, or in words why it is not known.
pub type Known<T> = std::result::Result<T, String>;

/// The library's name for a device.
type Handle = *mut c_void;
/// `nvmlDeviceGet...(device, &value)`.
type Get<T> = unsafe extern "C" fn(Handle, *mut T) -> c_int;
/// The same with a choice between.
type GetOf<T> = unsafe extern "C" fn(Handle, c_uint, *mut T) -> c_int;

/// `NVML_SUCCESS`, `NVML_ERROR_NOT_SUPPORTED`, `NVML_ERROR_INSUFFICIENT_SIZE` of nvml.h.
const SUCCESS: c_int = 0;
const NOT_SUPPORTED: c_int = 3;
const INSUFFICIENT_SIZE: c_int = 7;
/// `NVML_TEMPERATURE_GPU`.
const DIE: c_uint = 0;
/// `NVML_CLOCK_SM` and `NVML_CLOCK_MEM`.
const SM: c_uint = 1;
const MEMORY: c_uint = 2;
/// A process's memory where the driver does not tell it (`NVML_VALUE_NOT_AVAILABLE`).
const NOT_TOLD: u64 = u64::MAX;

/// What keeps the clocks down: bits of `nvmlClocksEventReasons`.
const SLOWDOWNS: &[(u64, &str)] = &[
    (0x1, "nothing to do"),
    (0x2, "clocks set by hand"),
    (0x4, "the power limit"),
    (0x8, "a hardware slowdown"),
    (0x10, "clocks in step with other cards"),
    (0x20, "heat, by the driver"),
    (0x40, "heat, by the hardware"),
    (0x80, "the power supply"),
    (0x100, "a display"),
];

/// `nvmlProcessInfo_t` of the calls with `_v3`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Process {
    pid: c_uint,
    bytes: u64,
    instances: [c_uint; 2],
}

/// Clocks of a GPU, in MHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// Of the multiprocessors.
    pub multiprocessors: u32,
    /// Of the memory.
    pub memory: u32,
}

/// The meters of one GPU.
pub struct Monitor {
    device: Handle,
    calls: Calls,
    /// Last: it holds the code of `calls`.
    library: Library,
}

// SAFETY: NVML may be called from any thread, and its handles belong to none.
unsafe impl Send for Monitor {}
// SAFETY: as above.
unsafe impl Sync for Monitor {}

impl Debug for Monitor {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Monitor")
    }
}

/// The functions; of those that a driver may lack, the ones it has.
struct Calls {
    shutdown: unsafe extern "C" fn() -> c_int,
    text: Option<unsafe extern "C" fn(c_int) -> *const c_char>,
    power: Option<Get<c_uint>>,
    energy: Option<Get<u64>>,
    temperature: Option<GetOf<c_uint>>,
    clock: Option<GetOf<c_uint>>,
    slowdown: Option<Get<u64>>,
    processes: Option<unsafe extern "C" fn(Handle, *mut c_uint, *mut Process) -> c_int>,
}

impl Monitor {
    /// The meters of a GPU, counted from 0 as CUDA counts: found by its place on the bus, else by its UUID, because NVML
    /// does not know `CUDA_VISIBLE_DEVICES`.
    ///
    /// # Errors
    /// In words: no GPU of that number, no library, or one that does not know the GPU.
    pub fn open(ordinal: usize) -> Known<Self> {
        let words = |e: error::Error| match e {
            error::Error::Unavailable { reason, .. } => reason,
            other => other.to_string(),
        };
        library::start_driver().map_err(words)?;
        Self::of(device::get(ordinal as c_int).named("cuDeviceGet").map_err(words)?)
    }

    pub(super) fn of(cuda: CUdevice) -> Known<Self> {
        // SAFETY: loading the library runs nothing but its initialisers.
        let library = unsafe { Library::new("libnvidia-ml.so.1") }
            .map_err(|_| "the NVIDIA driver's NVML (libnvidia-ml.so.1) is not found".to_owned())?;
        // SAFETY: the types are those of nvml.h, here and below.
        let (init, shutdown) = unsafe {
            let init = find::<unsafe extern "C" fn() -> c_int>(&library, "nvmlInit_v2");
            (init, find::<unsafe extern "C" fn() -> c_int>(&library, "nvmlShutdown"))
        };
        let (Some(init), Some(shutdown)) = (init, shutdown) else { return Err(absent("nvmlInit_v2")) };
        // SAFETY: as above.
        let calls = unsafe {
            // The newer name is that of CUDA 12.
            let slowdown = find(&library, "nvmlDeviceGetCurrentClocksEventReasons");
            Calls {
                shutdown,
                text: find(&library, "nvmlErrorString"),
                power: find(&library, "nvmlDeviceGetPowerUsage"),
                energy: find(&library, "nvmlDeviceGetTotalEnergyConsumption"),
                temperature: find(&library, "nvmlDeviceGetTemperature"),
                clock: find(&library, "nvmlDeviceGetClockInfo"),
                slowdown: slowdown.or_else(|| find(&library, "nvmlDeviceGetCurrentClocksThrottleReasons")),
                processes: find(&library, "nvmlDeviceGetComputeRunningProcesses_v3"),
            }
        };
        // SAFETY: takes nothing; may be called more than once.
        let started = unsafe { init() };
        if started != SUCCESS {
            return Err(calls.failed("nvmlInit_v2", started));
        }
        // From here on `drop` shuts down what was started.
        let mut new = Self { device: std::ptr::null_mut(), calls, library };
        new.device = new.find(cuda)?;
        Ok(new)
    }

    fn find(&self, cuda: CUdevice) -> Known<Handle> {
        type Named = unsafe extern "C" fn(*const c_char, *mut Handle) -> c_int;
        let mut why = "CUDA tells neither the GPU's place on the bus nor its UUID".to_owned();
        let names =
            [("nvmlDeviceGetHandleByPciBusId_v2", bus_id(cuda)), ("nvmlDeviceGetHandleByUUID", uuid(cuda))];
        for (call, name) in names {
            let Some(name) = name else { continue };
            // SAFETY: the type is that of nvml.h.
            let Some(by_name) = (unsafe { find::<Named>(&self.library, call) }) else {
                why = absent(call);
                continue;
            };
            let mut handle = std::ptr::null_mut();
            // SAFETY: the name ends with a zero; the handle outlives the call.
            match unsafe { by_name(name.as_ptr().cast(), &raw mut handle) } {
                SUCCESS => return Ok(handle),
                status => why = self.calls.failed(call, status),
            }
        }
        Err(why)
    }

    /// What the whole card draws now, in watts (over the last second on data centre cards).
    ///
    /// # Errors
    /// Why that is not known.
    pub fn power(&self) -> Known<f64> {
        Ok(f64::from(self.get("nvmlDeviceGetPowerUsage", self.calls.power)?) / 1e3)
    }

    /// What the whole card has drawn since the driver was loaded, in joules: a run's energy is a difference of two.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn energy(&self) -> Known<f64> {
        Ok(self.get("nvmlDeviceGetTotalEnergyConsumption", self.calls.energy)? as f64 / 1e3)
    }

    /// The temperature of the chip, in degrees Celsius.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn temperature(&self) -> Known<u32> {
        self.get_of("nvmlDeviceGetTemperature", self.calls.temperature, DIE)
    }

    /// The clocks as they are now.
    ///
    /// # Errors
    /// Why they are not known.
    pub fn clocks(&self) -> Known<Clocks> {
        let clock = |which| self.get_of("nvmlDeviceGetClockInfo", self.calls.clock, which);
        Ok(Clocks { multiprocessors: clock(SM)?, memory: clock(MEMORY)? })
    }

    /// What keeps the clocks below their highest now; nothing when they are free.
    ///
    /// # Errors
    /// Why that is not known.
    pub fn slowdowns(&self) -> Known<Vec<&'static str>> {
        let bits = self.get("nvmlDeviceGetCurrentClocksEventReasons", self.calls.slowdown)?;
        Ok(SLOWDOWNS.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| *word).collect())
    }

    /// The processes that compute on the GPU, and bytes of its memory that each has, where the driver tells.
    ///
    /// # Errors
    /// Why they are not known.
    pub fn processes(&self) -> Known<Vec<(u32, Option<u64>)>> {
        let name = "nvmlDeviceGetComputeRunningProcesses_v3";
        let call = self.calls.processes.ok_or_else(|| absent(name))?;
        let mut out = vec![Process::default(); 16];
        loop {
            let mut count = out.len() as c_uint;
            // SAFETY: as many elements as the count says, of the type of nvml.h.
            match unsafe { call(self.device, &raw mut count, out.as_mut_ptr()) } {
                SUCCESS => {
                    out.truncate(count as usize);
                    break;
                }
                // More have started meanwhile: room for some more of them.
                INSUFFICIENT_SIZE if out.len() < 1 << 16 => out.resize(2 * out.len(), Process::default()),
                status => return Err(self.calls.failed(name, status)),
            }
        }
        Ok(out.iter().map(|p| (p.pid, (p.bytes != NOT_TOLD).then_some(p.bytes))).collect())
    }

    fn get<T: Default>(&self, name: &str, call: Option<Get<T>>) -> Known<T> {
        let call = call.ok_or_else(|| absent(name))?;
        let mut value = T::default();
        // SAFETY: the handle is the library's own, the value outlives the call.
        match unsafe { call(self.device, &raw mut value) } {
            SUCCESS => Ok(value),
            status => Err(self.calls.failed(name, status)),
        }
    }

    fn get_of<T: Default>(&self, name: &str, call: Option<GetOf<T>>, which: c_uint) -> Known<T> {
        let call = call.ok_or_else(|| absent(name))?;
        let mut value = T::default();
        // SAFETY: as above.
        match unsafe { call(self.device, which, &raw mut value) } {
            SUCCESS => Ok(value),
            status => Err(self.calls.failed(name, status)),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // A failure leaves nothing to do.
        // SAFETY: started once for each `Monitor`, and no handle is used after this.
        let _ = unsafe { (self.calls.shutdown)() };
    }
}

impl Calls {
    fn failed(&self, call: &str, status: c_int) -> String {
        if status == NOT_SUPPORTED {
            return format!("this GPU or its driver does not tell ({call})");
        }
        // SAFETY: takes any number and returns a text that lives as long as the library, or null.
        let text = self.text.map(|text| unsafe { text(status) }).filter(|text| !text.is_null());
        // SAFETY: the text ends with a zero.
        let text = text.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
        format!("{call} failed: {} ({status})", text.as_deref().unwrap_or("no words for it"))
    }
}

fn absent(call: &str) -> String {
    format!("the NVIDIA driver's NVML has no {call}; a newer driver has it")
}

/// A function of the library.
///
/// # Safety
/// `F` has to be the type of a pointer to the function of that name.
unsafe fn find<F: Copy>(library: &Library, name: &str) -> Option<F> {
    // SAFETY: passed on to the caller. The pointer is used only as long as the library is loaded.
    unsafe { library.get::<F>(name.as_bytes()) }.ok().map(|symbol| *symbol)
}

/// The GPU's place on the bus, as in `0000:3b:00.0`, with the zero that ends it.
fn bus_id(cuda: CUdevice) -> Option<Vec<u8>> {
    let mut text = vec![0_u8; 32];
    // SAFETY: writes at most as many bytes as it is told, the zero among them.
    unsafe { cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as c_int, cuda) }.result().ok()?;
    Some(text)
}

/// The GPU's UUID in NVML's writing, `GPU-8-4-4-4-12` hexadecimal digits, with the zero that ends it.
fn uuid(cuda: CUdevice) -> Option<Vec<u8>> {
    let bytes = device::get_uuid(cuda).ok()?.bytes;
    let mut text = String::from("GPU");
    for (i, byte) in bytes.iter().enumerate() {
        let dash = if [0, 4, 6, 8, 10].contains(&i) { "-" } else { "" };
        write!(text, "{dash}{:02x}", *byte as u8).ok()?;
    }
    text.push('\0');
    Some(text.into_bytes())
}

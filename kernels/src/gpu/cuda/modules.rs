//! The kernels that `build.rs` compiled, loaded when first asked for.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError, RwLock};

use cudarc::driver::result::{function, module};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUmodule, CUresult, cuFuncGetParamInfo};

use super::status::{Named, unavailable, words};
use crate::gpu::driver::{Arg, Launch};
use crate::gpu::error::{Error, Result};

/// Shared memory of a block above which the choice between it and the cache decides how many blocks run at a time.
const PLENTY: u32 = 48 << 10;

/// The compiled kernels of one `.cu` file.
struct Fatbin {
    file: &'static str,
    kernels: &'static [&'static str],
    image: &'static Aligned<[u8]>,
}

/// The driver reads an image in words.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Registers, spilled bytes and stack bytes of each kernel on each architecture, as ptxas reported them: a heading, then
/// one line each, in columns separated by a space.
pub const RESOURCES: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.txt"));

/// Loaded modules and the kernels found in them. Its context must be current at every call and when dropped.
#[derive(Debug, Default)]
pub(super) struct Modules {
    functions: RwLock<HashMap<&'static str, Function>>,
    /// By index in `FATBINS`.
    loaded: Mutex<HashMap<usize, CUmodule>>,
}

#[derive(Debug)]
struct Function {
    handle: CUfunction,
    /// Bytes of each parameter.
    parameters: Vec<usize>,
}

// SAFETY: handles may be used from any thread, and are not changed once stored.
unsafe impl Send for Modules {}
// SAFETY: as above.
unsafe impl Sync for Modules {}

impl Modules {
    /// Calls `queue` with the kernel of a launch, whose arguments were found to have the number and sizes that the
    /// kernel has.
    pub(super) fn with<R>(
        &self,
        launch: &Launch<'_>,
        shared_per_block: u32,
        queue: impl FnOnce(CUfunction) -> Result<R>,
    ) -> Result<R> {
        loop {
            if let Some(found) =
                self.functions.read().unwrap_or_else(PoisonError::into_inner).get(launch.kernel)
            {
                found.check(launch)?;
                return queue(found.handle);
            }
            let found = self.find(launch, shared_per_block)?;
            self.functions.write().unwrap_or_else(PoisonError::into_inner).insert(launch.kernel, found);
        }
    }

    fn find(&self, launch: &Launch<'_>, shared_per_block: u32) -> Result<Function> {
        let kernel = launch.kernel;
        let index = FATBINS.iter().position(|fatbin| fatbin.kernels.contains(&kernel));
        let index = index.ok_or_else(|| failed(kernel, "this build has no kernel of that name"))?;
        let module = self.load(index)?;
        let name = CString::new(kernel).map_err(|e| failed(kernel, e.to_string()))?;
        // SAFETY: the module stays loaded for the life of `self`.
        let handle = unsafe { module::get_function(module, name) }.named(kernel)?;
        let limit = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // Without this, a launch that asks for more than 48 KiB fails.
        // SAFETY: the handle was just found.
        unsafe { function::set_function_attribute(handle, limit, shared_per_block as i32) }.named(kernel)?;
        if launch.shared > PLENTY {
            // As much of the cache as there is becomes shared memory, so that two such blocks fit a multiprocessor.
            let carveout = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            // SAFETY: as above.
            unsafe { function::set_function_attribute(handle, carveout, 100) }.named(kernel)?;
        }
        Ok(Function { handle, parameters: parameters(handle) })
    }

    fn load(&self, index: usize) -> Result<CUmodule> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(&index) {
            return Ok(*module);
        }
        let fatbin = &FATBINS[index];
        // SAFETY: the image is a whole fatbin, which says how long it is.
        let loaded_now = unsafe { module::load_data(fatbin.image.0.as_ptr().cast()) };
        let module = loaded_now.or_else(|e| match e.0 {
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => Err(unavailable(
                format!("this build has kernels for {ARCHITECTURES} and none for the device: {}", words(e)),
                REBUILD,
            )),
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => Err(unavailable(
                format!("the driver is too old to compile this build's PTX for the device: {}", words(e)),
                "Install a newer driver, or build with the device's architecture in TUNESMITH_CUDA_ARCHS",
            )),
            CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => Err(unavailable(
                format!("the driver's compiler for PTX is not installed: {}", words(e)),
                "Install libnvidia-ptxjitcompiler of the driver's own version",
            )),
            _ => Err(e).named_with(|| format!("cuModuleLoadData of {}", fatbin.file)),
        })?;
        loaded.insert(index, module);
        Ok(module)
    }
}

impl Function {
    fn check(&self, launch: &Launch<'_>) -> Result<()> {
        let given = launch.args.iter().map(|arg| match arg {
            Arg::Address(_) | Arg::I64(_) => 8,
            Arg::I32(_) | Arg::U32(_) | Arg::F32(_) => 4,
        });
        if given.clone().eq(self.parameters.iter().copied()) {
            return Ok(());
        }
        let given: Vec<usize> = given.collect();
        let text = format!("its parameters take {:?} bytes, the arguments {given:?}", self.parameters);
        Err(failed(launch.kernel, text))
    }
}

fn parameters(handle: CUfunction) -> Vec<usize> {
    let (mut offset, mut size) = (0, 0);
    let mut out = Vec::new();
    // SAFETY: the handle is live; an index past the last parameter is an error and writes nothing.
    while unsafe { cuFuncGetParamInfo(handle, out.len(), &raw mut offset, &raw mut size) }
        == CUresult::CUDA_SUCCESS
    {
        out.push(size);
    }
    out
}

fn failed(call: &str, text: impl Into<String>) -> Error {
    Error::Refused { call: call.into(), text: text.into() }
}

/// What to do about kernels of other architectures only.
const REBUILD: &str =
    "Build it without TUNESMITH_CUDA_ARCHS, or with the architecture of the device in it (89 for 8.9)";

/// Refuses a device that none of the built architectures runs on, before anything is set up on it.
pub(super) fn check_architecture(name: &str, capability: (u32, u32)) -> Result<()> {
    if ARCHITECTURES.split(", ").any(|built| runs_on(built, capability)) {
        return Ok(());
    }
    let (major, minor) = capability;
    Err(unavailable(
        format!(
            "this build has kernels for {ARCHITECTURES}, and `{name}` has compute capability {major}.{minor}"
        ),
        REBUILD,
    ))
}

/// Whether code for an architecture, such as `sm_80`, `sm_90a` or `compute_90`, runs on a device: machine code does within
/// a major version, from its minor version on; PTX does from its version on; what is marked `a` does on that one alone.
fn runs_on(built: &str, capability: (u32, u32)) -> bool {
    let (kind, version) = built.split_once('_').unwrap_or_default();
    let digits = version.trim_end_matches(char::is_alphabetic);
    let Ok(number) = digits.parse::<u32>() else { return false };
    let code = (number / 10, number % 10);
    match (kind, &version[digits.len()..]) {
        (_, "a") => code == capability,
        ("compute", "") => code <= capability,
        _ => code.0 == capability.0 && code.1 <= capability.1,
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
        for module in loaded.values() {
            // SAFETY: the device has been waited for, so no kernel of it runs. A failure leaves nothing to do.
            let _ = unsafe { module::unload(*module) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_where_the_driver_would_load_it() {
        let runs =
            |built| [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 1)].map(|device| runs_on(built, device));
        assert_eq!(runs("sm_80"), [true, true, true, false, false, false]);
        assert_eq!(runs("sm_86"), [false, true, true, false, false, false]);
        assert_eq!(runs("sm_90a"), [false, false, false, true, false, false]);
        assert_eq!(runs("sm_120"), [false, false, false, false, false, true]);
        assert_eq!(runs("compute_90"), [false, false, false, true, true, true]);
        assert_eq!(runs("compute_90a"), [false, false, false, true, false, false]);
        assert_eq!(runs("sm_100f"), [false, false, false, false, true, false]);
        assert_eq!(runs("nonsense"), [false; 6]);
    }
}

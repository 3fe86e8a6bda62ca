//! Finding the driver and cuBLASLt, before anything would panic for the lack of them.

use std::env;
use std::path::{Path, PathBuf};

use cudarc::cublaslt;
use cudarc::driver::{result, sys};

use super::modules::TOOLKIT;
use super::status::{Named, unavailable, words};
use crate::gpu::error::{Error, Result};

/// The least CUDA version of a driver (as in 13000 for 13.0): a driver loads what toolkits of its own major version and
/// older ones make, and 12.8 brought the last function that is called here.
const NEEDED: i32 = if TOOLKIT < 13 { 12_080 } else { TOOLKIT as i32 * 1000 };

/// Loads and starts the driver, and returns the CUDA version that it supports.
pub(super) fn start_driver() -> Result<(u32, u32)> {
    // SAFETY: loading the driver runs nothing but its initialisers.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable(
            "the NVIDIA driver (libcuda) is not installed",
            format!("Install an NVIDIA driver that supports CUDA {}; {CONTAINER}", dotted(NEEDED)),
        ));
    }
    if !is_driver() {
        return Err(unavailable(
            "the libcuda that was found is no NVIDIA driver: it lacks the driver's functions",
            "Take its folder out of LD_LIBRARY_PATH, or install the driver anew",
        ));
    }
    let mut version = 0;
    // SAFETY: writes one int; allowed before `cuInit`.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().named("cuDriverGetVersion")?;
    if version < NEEDED {
        let (there, needed) = (dotted(version), dotted(NEEDED));
        let release = if NEEDED >= 13_000 { 580 } else { 570 };
        return Err(unavailable(
            format!("the NVIDIA driver supports CUDA {there}, and this build needs {needed}"),
            format!("Install driver {release} or newer"),
        ));
    }
    result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => no_gpu(),
        sys::CUresult::CUDA_ERROR_STUB_LIBRARY => unavailable(
            "the libcuda that was found is the stub of a toolkit",
            "Take the toolkit's `stubs` folder out of LD_LIBRARY_PATH",
        ),
        sys::CUresult::CUDA_ERROR_SYSTEM_NOT_READY => unavailable(
            format!("the machine is not ready for CUDA: {}", words(e)),
            "On a machine with NVSwitch, start the service nvidia-fabricmanager of the driver's own version",
        ),
        sys::CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => unavailable(
            format!("libcuda is not of the version of the running kernel module: {}", words(e)),
            "Restart the machine after an update of the driver; in a container, use the host's libcuda",
        ),
        sys::CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => unavailable(
            format!("the libcuda that was found is a toolkit's, for forward compatibility: {}", words(e)),
            "Take the toolkit's `compat` folder out of LD_LIBRARY_PATH, or install a newer driver",
        ),
        _ => unavailable(
            format!("the NVIDIA driver does not start: {}", words(e)),
            "See whether nvidia-smi works; after an update of the driver, restart the machine",
        ),
    })?;
    Ok((version as u32 / 1000, version as u32 % 1000 / 10))
}

/// Whether the libcuda that was found, and one must have been, is a driver's: a file of that name need not be, and a symbol that
/// is missing later would end the program.
pub(super) fn is_driver() -> bool {
    let has = |symbol: &[u8]| {
        // SAFETY: the library is there, and the symbol is looked up without being called.
        unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol) }.is_ok()
    };
    [&b"cuInit\0"[..], b"cuDriverGetVersion\0", b"cuMemAllocAsync\0"].into_iter().all(has)
}

const CONTAINER: &str = "in a container, start it with access to the GPUs";

/// The driver runs, and has nothing to drive.
pub(super) fn no_gpu() -> Error {
    unavailable(
        "the NVIDIA driver sees no GPU",
        format!("See what nvidia-smi lists and whether CUDA_VISIBLE_DEVICES hides it; {CONTAINER}"),
    )
}

/// Loads cuBLASLt, from where the loader finds it or from where toolkits and wheels put it.
pub(super) fn load_cublaslt() -> Result<()> {
    let hint = "Install it with `pip install nvidia-cublas==13.*` or with a CUDA toolkit, and put its folder into \
                LD_LIBRARY_PATH";
    // SAFETY: loading the library runs nothing but its initialisers.
    if !unsafe { cublaslt::sys::is_culib_present() } && !preload_cublaslt() {
        return Err(unavailable("cuBLASLt (libcublasLt.so.13) is not found", hint));
    }
    // SAFETY: takes nothing and returns a number.
    let version = unsafe { cublaslt::sys::cublasLtGetVersion() };
    // As in 130100 for 13.1; 12.0 was the first to know Hopper's architecture by its own name.
    if version < 120_000 {
        return Err(unavailable(
            format!("cuBLASLt is of version {}, and 12 is the least", version / 10_000),
            hint,
        ));
    }
    Ok(())
}

fn preload_cublaslt() -> bool {
    let names = ["libcublasLt.so.13", "libcublasLt.so.12"];
    folders().iter().flat_map(|folder| names.map(|name| folder.join(name))).any(|path| {
        // SAFETY: as above.
        let found = unsafe { libloading::Library::new(path) };
        // Kept for the life of the process: the loader now gives it to whoever asks for its name.
        found.map(std::mem::forget).is_ok()
    })
}

/// Where libraries may lie that no loader path names: beside the program, in a toolkit, in a Python environment.
fn folders() -> Vec<PathBuf> {
    let mut out = Vec::new();
    out.extend(env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("lib"))));
    for root in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os) {
        out.extend(["lib64", "lib"].map(|lib| Path::new(&root).join(lib)));
    }
    out.push(PathBuf::from("/usr/local/cuda/lib64"));
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os) {
        let lib = Path::new(&root).join("lib");
        let pythons = lib.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        out.extend(pythons.map(|python| python.join("site-packages/nvidia/cu13/lib")));
        out.push(lib);
    }
    out
}

fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

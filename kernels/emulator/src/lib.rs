//! Runs the CUDA kernels of tunesmith on the CPU, for tests.
//!
//! The build compiles `cuda/*.cu` as C++. [`Emulator`] runs such a kernel block by block: every CUDA thread is a fiber
//! that goes on until its next barrier or warp collective, and which one goes on next is drawn by a seed, so that a
//! missing barrier shows as a wrong number. Memory lies between pages without access and starts out as NaN. What no
//! kernel may do comes back as [`Error::Fault`](tunesmith_kernels::gpu::Error::Fault), in words.
//!
//! Tests are written once for every device and run by [`backends!`]; [`check`] has what they share.

#![allow(unsafe_code)]

pub mod check;
mod emulator;
mod frugal;
mod gemm;
mod memory;
#[cfg(emulator)]
mod native;
#[cfg(not(emulator))]
#[path = "absent.rs"]
mod native;

pub use emulator::Emulator;
pub use frugal::{Frugal, Record};
pub use memory::Memory;

use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

/// Why a test is skipped where [`Emulator::available`] is false.
pub const NEEDS: &str = "the emulator needs g++ on x86-64 Linux";

/// The seeds that [`backends!`] runs a test under.
pub const SEEDS: [u64; 3] = [1, 2, 3];

/// Runs an expression on every device that is there: `backends!(|d| check(&d))`.
///
/// `d` is an [`Emulator`] under each of [`SEEDS`], then, with feature `cuda`, the first GPU. Where one of the two is not
/// there, a line says so. With `TUNESMITH_TEST_ON=gpu` in the environment it is the GPU alone, and none there is a failure.
/// `backends!([1], |d| check(&d))` has seeds of its own.
#[macro_export]
macro_rules! backends {
    (|$d:ident| $run:expr) => {
        $crate::backends!($crate::SEEDS, |$d| $run)
    };
    ($seeds:expr, |$d:ident| $run:expr) => {{
        if $crate::gpu_alone() {
            // The emulator has had its turn elsewhere.
        } else if $crate::Emulator::available() {
            for seed in $seeds {
                let $d = $crate::Emulator::new(seed);
                $run;
            }
        } else {
            $crate::skipped($crate::NEEDS);
        }
        $crate::on_gpu!(|$d| $run);
    }};
}

/// The part of [`backends!`] that needs a GPU.
#[cfg(feature = "cuda")]
#[macro_export]
#[doc(hidden)]
macro_rules! on_gpu {
    (|$d:ident| $run:expr) => {
        match ::tunesmith_kernels::gpu::cuda::Cuda::new(0) {
            Ok($d) => {
                $run;
            }
            Err(error) if $crate::gpu_alone() => panic!("{error}"),
            Err(error) => $crate::skipped(&error.to_string()),
        }
    };
}

/// The part of [`backends!`] that needs a GPU.
#[cfg(not(feature = "cuda"))]
#[macro_export]
#[doc(hidden)]
macro_rules! on_gpu {
    (|$d:ident| $run:expr) => {};
}

/// Whether tests are to run on a GPU and nowhere else.
#[doc(hidden)]
pub fn gpu_alone() -> bool {
    std::env::var_os("TUNESMITH_TEST_ON").is_some_and(|on| on == "gpu")
}

/// Says that a test did not run, past the capture of the test harness.
#[doc(hidden)]
pub fn skipped(why: &str) {
    // The same reason is given once: a program of tests has it for all of them or for none.
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.iter().any(|one| one == why) {
        return;
    }
    said.push(why.to_owned());
    // In one piece, since other threads write too; and a line that cannot be written is no reason to fail.
    let _ = std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes());
}

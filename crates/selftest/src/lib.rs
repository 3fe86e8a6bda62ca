//! Whether a machine computes what it should, for `tunesmith selftest` and for the tests.
//!
//! [`kernels`] runs every operation of [`Kernels`] at awkward shapes and at a few real ones and compares it with plain
//! loops in f64, written from the formulas and sharing nothing with any backend. [`fine_tune`] trains a tiny model for
//! twenty steps whose losses and gradient norms are stored here, saves and loads its adapter, and generates. Both take
//! any backend: the CPU, a GPU, the emulator of the tests.

mod cases;
mod check;
mod draw;
mod finetune;
mod lab;
mod placed;
mod recorded;
mod reference;

pub use check::{Check, Error, Precision, Size};
pub use finetune::{FALL, STEPS, Tolerance, fine_tune, record};

use tunesmith_ops::Kernels;

use lab::Lab;

/// Runs every operation of `k` and says how far from f64 it is. `tell` hears of each check as it is done.
///
/// Where the device itself fails, the list ends there: what comes after such a failure means nothing.
pub fn kernels<K: Kernels>(
    k: &K,
    precision: Precision,
    size: Size,
    tell: &mut dyn FnMut(&Check),
) -> Vec<Check> {
    let mut lab = Lab::new(k, precision, size, tell);
    cases::all(&mut lab);
    lab.checks
}

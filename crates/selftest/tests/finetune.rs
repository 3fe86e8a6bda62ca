//! The fine-tune on every backend that is there; what rounding costs it; and that it can fail.

#![allow(clippy::unwrap_used, missing_docs, reason = "helpers of tests")]

mod common;

use common::broken::{Broken, How};
use common::rounded::Rounded;
use tunesmith_emulator::Emulator;
use tunesmith_ops::{DeviceKernels, Kernels, RefKernels};
use tunesmith_selftest::{Check, Precision, STEPS, Tolerance, fine_tune, record};

/// What storing everything rounded costs, times this, is what a device may cost, which also rounds inside operations and
/// sums in another order.
const FACTOR: f64 = 3.0;

fn run<K: Kernels>(kernels: K, precision: Precision, steps: usize) -> Vec<Check> {
    fine_tune(kernels, precision, steps, &mut |_| ()).unwrap()
}

#[track_caller]
fn passes<K: Kernels>(kernels: K, precision: Precision, steps: usize) {
    let checks = run(kernels, precision, steps);
    assert!(checks.iter().all(|c| c.passed) && checks.len() >= 4, "{checks:#?}");
}

#[test]
fn the_cpu_follows_the_stored_losses() {
    passes(RefKernels, Precision::F32, STEPS);
}

#[test]
fn a_device_follows_them() {
    // The emulator has the time for two steps.
    if std::env::var_os("TUNESMITH_TEST_ON").is_some_and(|on| on == "gpu") {
        // It has had its turn elsewhere.
    } else if Emulator::available() {
        passes(DeviceKernels::new(Emulator::new(7)), Precision::Bf16, 2);
    } else {
        tunesmith_emulator::skipped(tunesmith_emulator::NEEDS);
    }
    tunesmith_emulator::on_gpu!(|d| passes(DeviceKernels::new(d), Precision::Bf16, STEPS));
}

/// The tolerances of bf16 are what rounding alone costs, times [`FACTOR`], and not much more.
#[test]
fn what_is_allowed_is_what_rounding_costs() {
    let exact = record(RefKernels, STEPS).unwrap();
    let rounded = record(Rounded, STEPS).unwrap();
    let pairs = || rounded.iter().zip(&exact);
    let loss = pairs().map(|(a, b)| (a.0 - b.0).abs()).fold(0.0, f64::max);
    let norm = pairs().map(|(a, b)| (a.1 / b.1 - 1.0).abs()).fold(0.0, f64::max);
    let allowed = Tolerance::of(Precision::Bf16);
    for (cost, allowed) in [(loss, allowed.loss), (norm, allowed.norm)] {
        assert!(FACTOR * cost <= allowed && allowed <= 1.5 * FACTOR * cost, "{cost:.2e} for {allowed:.2e}");
    }
    passes(Rounded, Precision::Bf16, STEPS);
}

/// Operations that are a little wrong are seen in the losses or the norms: all of them in f32, those that are wrong by
/// more than what rounding costs within what bf16 is allowed too.
#[test]
fn a_broken_operation_shows() {
    for (mutation, also_in_bf16) in [
        (("attention", How::Documents), true),
        (("attention_backward", How::Large), false),
        (("gemm_full", How::Large), true),
        (("gemm", How::Large), true),
        (("rope", How::Large), false),
        (("rms_norm_backward", How::Forgets), true),
        (("linear_cross_entropy", How::Large), true),
        (("clip_and_update", How::Position), true),
        (("swiglu_backward", How::SecondLarge), false),
    ] {
        let checks = run(Broken::new(&RefKernels, mutation), Precision::F32, STEPS);
        let failed = |loss, norm| {
            checks.iter().any(|c| {
                (c.name == "losses" && c.error > loss) || (c.name == "gradient norms" && c.error > norm)
            })
        };
        assert!(checks.iter().any(|c| !c.passed), "{mutation:?}: {checks:#?}");
        let allowed = Tolerance::of(Precision::Bf16);
        let seen = failed(allowed.loss, allowed.norm);
        assert!(seen || !also_in_bf16, "{mutation:?}: {checks:#?}");
    }
}

//! The operations on every backend that is there; and that each check can fail.

#![allow(clippy::unwrap_used, missing_docs, reason = "helpers of tests")]

mod common;

use common::broken::{Broken, MUTATIONS};
use common::rounded::Rounded;
use tunesmith_emulator::backends;
use tunesmith_ops::{DeviceKernels, Kernels, RefKernels};
use tunesmith_selftest::{Check, Precision, Size, kernels};

fn table(checks: &[Check]) -> String {
    let line = |c: &Check| {
        let mark = if c.passed { "  " } else { "**" };
        format!(
            "{mark} {:22} {:50} {:9.1e} {:9.1e} {}\n",
            c.name,
            c.shape,
            c.error,
            c.allowed,
            c.detail.as_deref().unwrap_or_default()
        )
    };
    checks.iter().map(line).collect()
}

fn passes<K: Kernels>(k: &K, precision: Precision, size: Size) {
    let mut told = 0;
    let checks = kernels(k, precision, size, &mut |_| told += 1);
    assert!(checks.iter().all(|c| c.passed), "{}", table(&checks));
    assert!(told == checks.len() && told > 60, "{told}");
}

#[test]
fn the_cpu_passes() {
    passes(&RefKernels, Precision::F32, Size::Real);
}

/// What a device is but for the order of its sums: the tolerances of bf16 have room for the roundings that it has to make.
#[test]
fn the_cpu_with_everything_rounded_passes_as_bf16() {
    passes(&Rounded, Precision::Bf16, Size::Real);
}

#[test]
fn devices_pass() {
    backends!(|d| passes(&DeviceKernels::new(d), Precision::Bf16, Size::Small));
}

/// With one operation broken its own checks fail and no others, in the tight tolerances of f32 and in those of bf16.
#[test]
fn a_broken_operation_is_found_and_named() {
    fn found<K: Kernels<Buf = Vec<f32>, Full = Vec<f32>>>(inner: K, precision: Precision) {
        for mutation in MUTATIONS {
            let broken = Broken::new(&inner, mutation);
            let checks = kernels(&broken, precision, Size::Small, &mut |_| ());
            let failed: Vec<_> = checks.iter().filter(|c| !c.passed).collect();
            let (op, what) = mutation;
            // What a guard does shows in an update.
            let is_named = |c: &Check| c.name == op || (op, c.name) == ("clip_and_update", "watch");
            assert!(!failed.is_empty(), "{precision:?}: nobody sees that {op} {what:?}");
            assert!(
                failed.iter().any(|c| c.name == op) && failed.iter().all(|c| is_named(c)),
                "{precision:?}: {op} {what:?} fails {failed:?}"
            );
        }
    }
    found(RefKernels, Precision::F32);
    found(Rounded, Precision::Bf16);
}

/// A check for every operation that the mutations know, and a mutation for every check.
#[test]
fn every_operation_is_checked_and_can_be_broken() {
    let checks = kernels(&RefKernels, Precision::F32, Size::Small, &mut |_| ());
    for (op, _) in MUTATIONS {
        assert!(checks.iter().any(|c| c.name == op), "{op} is not checked");
    }
    for check in &checks {
        assert!(MUTATIONS.iter().any(|(op, _)| *op == check.name), "nothing breaks {}", check.name);
    }
}

/// Without an answer from the device nothing more is asked of it.
#[test]
fn a_device_that_fails_ends_the_list() {
    let broken = Broken::new(&RefKernels, ("add", common::broken::How::Fails));
    let checks = kernels(&broken, Precision::F32, Size::Small, &mut |_| ());
    let last = checks.last().unwrap();
    assert_eq!((last.name, last.passed), ("add", false));
    assert!(last.detail.as_deref().unwrap().contains("made up"), "{last:?}");
}

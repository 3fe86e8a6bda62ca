//! The norm of a flat buffer against f64.

#![allow(clippy::unwrap_used)]

use tunesmith_emulator::backends;
use tunesmith_emulator::check::values;
use tunesmith_kernels::gpu::norm::{GUARD, OUT, PARTIALS, guarded, norm, watch};
use tunesmith_kernels::gpu::{Driver, Slice};

/// Around what a block sums at a time, and what all of them do.
const LENGTHS: [usize; 11] = [0, 1, 3, 4, 5, 1023, 4096, 4097, 8191, 100_000, PARTIALS * 4096 + 4099];

/// Norm, factor and flag, with room around them that must stay.
fn run<D: Driver>(d: &D, x: &[f32], max_norm: Option<f32>) -> [f32; 3] {
    let x = Slice::from_host(d, x).unwrap();
    let mut partials = Slice::uninit(d, PARTIALS).unwrap();
    let mut out = Slice::from_host(d, &[-7.0; OUT + 2]).unwrap();
    norm(d, &x, max_norm, &mut partials, &mut out).unwrap();
    let out = out.to_host(d).unwrap();
    assert_eq!(out[OUT..], [-7.0; 2], "more results than there are");
    [out[0], out[1], out[2]]
}

fn reference(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

#[track_caller]
fn right(what: &str, out: [f32; 3], x: &[f32]) {
    let norm = reference(x);
    let error = (f64::from(out[0]) - norm).abs();
    assert!(error <= 1e-6 * norm, "{what}: the norm of {} values is {}, not {norm}", x.len(), out[0]);
    assert_eq!(out[2], 1.0, "{what}: a finite norm");
}

fn against_f64<D: Driver>(d: &D) {
    for n in LENGTHS {
        let x = values(n as u64, n);
        let out = run(d, &x, None);
        right("values below 1", out, &x);
        assert_eq!(out[1], 1.0, "no clipping");
        assert_eq!(run(d, &x, None), out, "a second run");
    }
}

#[test]
fn agrees_with_f64_at_every_length() {
    backends!(|d| against_f64(&d));
}

fn magnitudes<D: Driver>(d: &D) {
    let n = 10_007;
    let noise = values(1, n);
    // Rounding errors that all go the same way.
    right("equal values", run(d, &vec![0.1; n], None), &vec![0.1; n]);
    // From where the squares are nothing to where they overflow.
    for scale in [1e-40, 1e-30, 1e-25, 1e-19, 1e-15, 1e-8, 1e8, 1e15, 1e18, 1e19, 1e20, 1e30, 1e36] {
        let x: Vec<f32> = noise.iter().map(|v| v * scale).collect();
        if scale > 1e-40 {
            right(&format!("values below {scale:e}"), run(d, &x, None), &x);
        } else {
            // The norm itself is subnormal, so that f32 has fewer digits for it.
            let error = (f64::from(run(d, &x, None)[0]) - reference(&x)).abs();
            assert!(error <= f64::from(f32::from_bits(1)), "values below {scale:e} are {error:e} off");
        }
    }
    for (large, small) in [(1e18, 1e-3), (1e20, 1e-3), (1e30, 1e-30), (3e38, 1e-38), (1e4, 1e-15)] {
        for every in [5, 1000, n] {
            let x: Vec<f32> = (0..n).map(|i| if i % every == every - 1 { large } else { small }).collect();
            if reference(&x) < f64::from(f32::MAX) {
                right(&format!("{large:e} among {small:e}"), run(d, &x, None), &x);
            }
        }
    }
    let out = run(d, &[3e38; 5], Some(1.0));
    assert_eq!(out, [f32::INFINITY, 0.0, 0.0], "a norm that f32 cannot hold");
}

#[test]
fn is_right_at_every_magnitude() {
    backends!(|d| magnitudes(&d));
}

fn not_finite<D: Driver>(d: &D) {
    for n in [1, 5, 1023, 4096, 4097, 20_001] {
        for at in [0, n / 2, n - 1] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = values(3, n);
                x[at] = bad;
                let out = run(d, &x, None);
                assert!(!out[0].is_finite(), "the norm with {bad} at {at} of {n} is {}", out[0]);
                assert_eq!(out[1..], [1.0, 0.0], "{bad} at {at} of {n}");
            }
        }
    }
    let out = run(d, &[1.0, f32::NAN, f32::INFINITY], Some(1.0));
    assert!(out[0].is_nan() && out[1].is_nan() && out[2] == 0.0, "{out:?}");
}

#[test]
fn one_value_that_is_not_finite_shows() {
    backends!(|d| not_finite(&d));
}

fn clipping<D: Driver>(d: &D) {
    let x = values(4, 3001);
    let norm = reference(&x);
    for limit in [1e-3, 1.0, 10.0, norm as f32 * 0.999, norm as f32 * 1.001, 1e9] {
        let out = run(d, &x, Some(limit));
        right("with a limit", out, &x);
        let factor = (f64::from(limit) / (norm + 1e-6)).min(1.0);
        let error = (f64::from(out[1]) - factor).abs();
        assert!(error <= 1e-6 * factor, "the factor for a limit of {limit} is {}, not {factor}", out[1]);
    }
    assert_eq!(run(d, &[], Some(1.0)), [0.0, 1.0, 1.0], "the norm of nothing");
    assert_eq!(run(d, &[0.0; 9], Some(1.0)), [0.0, 1.0, 1.0], "the norm of zeros");
}

#[test]
fn the_factor_clips() {
    backends!(|d| clipping(&d));
}

fn refusals<D: Driver>(d: &D) {
    let x = Slice::zeros(d, 4).unwrap();
    let mut partials = Slice::zeros(d, PARTIALS).unwrap();
    let (mut few, mut out) = (Slice::zeros(d, 7).unwrap(), Slice::zeros(d, OUT).unwrap());
    let error = norm(d, &x, None, &mut few, &mut out).unwrap_err().to_string();
    assert_eq!(error, "norm: 7 partial sums of 512");
    for limit in [0.0, -1.0, f32::NAN] {
        let error = norm(d, &x, Some(limit), &mut partials, &mut out).unwrap_err().to_string();
        assert_eq!(error, format!("norm: a largest norm of {limit} is not above 0"));
    }
    let mut short = Slice::zeros(d, 2).unwrap();
    let error = norm(d, &x, None, &mut partials, &mut short).unwrap_err().to_string();
    assert_eq!(error, "norm: room for 2 results of 3");
    let mut none = Slice::zeros(d, 0).unwrap();
    let error = guarded(d, &x, None, &mut none, &mut partials, &mut out).unwrap_err().to_string();
    assert_eq!(error, "norm: a guard of 0 values");
    assert_eq!(watch(d, &x, 4, &mut none).unwrap_err().to_string(), "watch: a guard of 0 values");
    assert_eq!(watch(d, &x, 5, &mut short).unwrap_err().to_string(), "watch: 5 losses of 4");
}

#[test]
fn wrong_shapes_are_refused() {
    backends!(|d| refusals(&d));
}

/// Norm, factor and flag of each of these one after the other, with one guard and the losses before them.
fn with_guard<D: Driver>(d: &D, steps: &[(&[f32], &[f32])]) -> (Vec<[f32; 3]>, Vec<f32>) {
    let mut guard = Slice::from_host(d, &[1.0; GUARD + 1]).unwrap();
    let (mut partials, mut out) = (Slice::uninit(d, PARTIALS).unwrap(), Slice::uninit(d, OUT).unwrap());
    let steps = steps.iter().map(|(losses, x)| {
        let (losses, x) = (Slice::from_host(d, losses).unwrap(), Slice::from_host(d, x).unwrap());
        watch(d, &losses, losses.len(), &mut guard).unwrap();
        guarded(d, &x, Some(1.0), &mut guard, &mut partials, &mut out).unwrap();
        let out = out.to_host(d).unwrap();
        [out[0], out[1], out[2]]
    });
    let steps = steps.collect();
    (steps, guard.to_host(d).unwrap())
}

fn sticky<D: Driver>(d: &D) {
    let (fine, many) = (values(1, 50), values(2, 5000));
    let losses = |n: usize, at: usize, bad: f32| {
        let mut losses = values(3, n);
        losses[at] = bad;
        losses
    };
    let alone = run(d, &fine, Some(1.0));
    assert_eq!(alone[2], 1.0);
    assert_eq!(
        with_guard(d, &[(&fine, &fine), (&many, &fine), (&[], &fine)]),
        (vec![alone; 3], vec![1.0, 1.0])
    );
    // Bad losses anywhere among few and many, and gradients that are fine.
    for (n, at) in [(1, 0), (31, 30), (33, 32), (1025, 1024), (5000, 1500)] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let bad = losses(n, at, bad);
            let (out, guard) = with_guard(d, &[(&fine, &fine), (&bad, &fine), (&fine, &fine)]);
            let flags: Vec<f32> = out.iter().map(|out| out[2]).collect();
            assert_eq!(flags, [1.0, 0.0, 0.0], "loss {at} of {n}");
            assert_eq!(guard, [0.0, 1.0]);
            // Norm and factor say what they say without a guard.
            assert_eq!(out[1][..2], alone[..2]);
        }
    }
    assert_eq!(with_guard(d, &[(&losses(9, 8, f32::MAX), &fine)]).0[0][2], 1.0, "the largest of all losses");
    // A gradient that is not finite, and losses that are fine.
    for bad in [f32::NAN, f32::INFINITY] {
        let bad = losses(50, 49, bad);
        let flags: Vec<f32> =
            with_guard(d, &[(&fine, &bad), (&fine, &fine)]).0.iter().map(|out| out[2]).collect();
        assert_eq!(flags, [0.0, 0.0]);
    }
}

#[test]
fn a_guard_stays_tripped() {
    backends!(|d| sticky(&d));
}

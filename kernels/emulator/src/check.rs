//! What the tests of kernels share: values, and the distance between results.

use half::bf16;

/// A value as bf16 holds it.
pub fn round_bf16(v: f32) -> f32 {
    bf16::from_f32(v).to_f32()
}

/// `len` values between -1 and 1, the same for the same `seed`.
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            (z >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
        })
        .collect()
}

/// [`values`] rounded to bf16.
pub fn values_bf16(seed: u64, len: usize) -> Vec<bf16> {
    to_bf16(&values(seed, len))
}

/// Every value rounded to bf16.
pub fn to_bf16(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|&v| bf16::from_f32(v)).collect()
}

/// A number that a kernel puts out.
pub trait Value: Copy {
    /// It as f64, exactly.
    fn wide(self) -> f64;
}

impl Value for bf16 {
    fn wide(self) -> f64 {
        self.to_f64()
    }
}

impl Value for f32 {
    fn wide(self) -> f64 {
        self.into()
    }
}

impl Value for f64 {
    fn wide(self) -> f64 {
        self
    }
}

/// ‖out − reference‖ / ‖reference‖; NaN if either holds one.
///
/// # Panics
/// If they differ in length.
pub fn relative_l2<T: Value>(out: &[T], reference: &[f64]) -> f64 {
    assert_eq!(out.len(), reference.len(), "results of different length");
    let mut distance = 0.0;
    let mut size = 0.0;
    for (o, r) in out.iter().zip(reference) {
        distance += (o.wide() - r).powi(2);
        size += r.powi(2);
    }
    // Against a reference of zeros the distance itself counts.
    if size == 0.0 { distance.sqrt() } else { (distance / size).sqrt() }
}

/// Asserts that [`relative_l2`] is at most `tolerance`, and not NaN.
///
/// # Panics
/// If it is not; the message has `what` and where the largest difference is.
#[track_caller]
pub fn close<T: Value>(what: &str, out: &[T], reference: &[f64], tolerance: f64) {
    let error = relative_l2(out, reference);
    if error <= tolerance {
        return;
    }
    let distance = |i: usize| {
        let d = (out[i].wide() - reference[i]).abs();
        if d.is_nan() { f64::INFINITY } else { d }
    };
    let worst = (0..out.len()).max_by(|&a, &b| distance(a).total_cmp(&distance(b)));
    let place = worst.map_or_else(String::new, |i| {
        format!("; value {i} is {} where {} is right", out[i].wide(), reference[i])
    });
    panic!("{what}: the relative error is {error:.2e}, allowed is {tolerance:.1e}{place}");
}

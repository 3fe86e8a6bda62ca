//! Row kernels: one row, or one stretch of a flat buffer, per call. The caller spreads rows over threads.

use super::simd::multiversion;

/// Lanes of the hand-unrolled sums: enough for one AVX-512 register of independent accumulators, twice.
const LANES: usize = 32;

/// Sums `LANES` partial sums in a fixed order.
#[inline(always)]
fn fold(acc: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut acc = acc;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}

#[inline(always)]
fn dot_body(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    let mut acc = [0f32; LANES];
    let (xc, yc) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (xr, yr) = (xc.remainder(), yc.remainder());
    for (a, b) in xc.zip(yc) {
        for l in 0..LANES {
            acc[l] += a[l] * b[l];
        }
    }
    for (l, (a, b)) in xr.iter().zip(yr).enumerate() {
        acc[l] += a * b;
    }
    fold(acc)
}

/// e^x in f32 to about 1 ulp, without a branch, so that it vectorises: 2^n · p(r), r = x - n ln 2 in two parts.
///
/// Below -87.3 the result is 0 (it would be subnormal); above 88.7 it is infinity; NaN stays NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 · 2^23 rounds to the nearest whole number.
    const ROUND: f32 = 12_582_912.0;
    let c = x.clamp(-87.3, 88.7);
    let shifted = c * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (c - n * LN2_HI) - n * LN2_LO;
    let p = 1.987_569_1e-4f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // 2^n in two factors: n reaches 128, which one exponent field cannot hold.
    // The whole number stands in the low bits of `shifted`; `n as i32` would cost a scalar instruction per value.
    let n = shifted.to_bits().cast_signed().wrapping_sub(ROUND.to_bits().cast_signed());
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(n.wrapping_add(127).cast_unsigned() << 23);
    let y = y * power(half) * power(n.wrapping_sub(half));
    let y = if x < -87.3 { 0.0 } else { y };
    let y = if x > 88.7 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

multiversion! {
    /// Σ x·y. Both `[n]`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn dot(x: &[f32], y: &[f32]) -> f32 { dot_body(x, y) }
}

multiversion! {
    /// Σ x² in f64, for norms over millions of values.
    pub fn sum_squares(x: &[f32]) -> f64 {
        let mut acc = [0f64; 8];
        let chunks = x.chunks_exact(8);
        for (l, v) in chunks.remainder().iter().enumerate() {
            acc[l] += f64::from(*v) * f64::from(*v);
        }
        for c in chunks {
            for l in 0..8 {
                acc[l] += f64::from(c[l]) * f64::from(c[l]);
            }
        }
        acc.iter().sum()
    }
}

multiversion! {
    /// y += x. Both `[n]`.
    pub fn add_assign(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y += x);
    }
}

multiversion! {
    /// y = y · x, elementwise. Both `[n]`.
    pub fn mul_assign(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y *= x);
    }
}

multiversion! {
    /// y = a·y.
    pub fn scale(y: &mut [f32], a: f32) {
        y.iter_mut().for_each(|y| *y *= a);
    }
}

multiversion! {
    /// The largest value; -inf for an empty row. A NaN anywhere gives NaN, so that it is not lost.
    pub fn max_value(x: &[f32]) -> f32 {
        let mut acc = [f32::NEG_INFINITY; LANES];
        let mut nan = [0f32; LANES];
        let chunks = x.chunks_exact(LANES);
        for (l, &v) in chunks.remainder().iter().enumerate() {
            acc[l] = if v > acc[l] { v } else { acc[l] };
            nan[l] += v * 0.0;
        }
        for c in chunks {
            for l in 0..LANES {
                acc[l] = if c[l] > acc[l] { c[l] } else { acc[l] };
                // 0 for finite values, NaN for NaN and infinities.
                nan[l] += c[l] * 0.0;
            }
        }
        let max = acc.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
        let suspicious = nan.iter().any(|v| v.is_nan());
        if suspicious && x.iter().any(|v| v.is_nan()) { f32::NAN } else { max }
    }
}

multiversion! {
    /// x = e^(x - shift) in place; returns Σ x.
    pub fn exp_shifted_sum(x: &mut [f32], shift: f32) -> f32 {
        let mut acc = [0f32; LANES];
        let mut chunks = x.chunks_exact_mut(LANES);
        for c in &mut chunks {
            for l in 0..LANES {
                c[l] = exp(c[l] - shift);
                acc[l] += c[l];
            }
        }
        for (l, v) in chunks.into_remainder().iter_mut().enumerate() {
            *v = exp(*v - shift);
            acc[l] += *v;
        }
        fold(acc)
    }
}

multiversion! {
    /// RMSNorm of one row: `rstd = 1 / √(mean(x²) + eps)`, `y = x · rstd · w`. Returns `rstd`. All `[d]`.
    ///
    /// Where x² overflows, the formula would give a row of zeros and a loss that looks sound; here it gives NaN,
    /// which the loss shows.
    pub fn rms_norm_row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 {
        let mean = dot_body(x, x) / x.len() as f32;
        let rstd = if mean.is_finite() { 1.0 / (mean + eps).sqrt() } else { f32::NAN };
        rms_norm_scale_body(x, w, rstd, y);
        rstd
    }
}

#[inline(always)]
fn rms_norm_scale_body(x: &[f32], w: &[f32], rstd: f32, y: &mut [f32]) {
    y.iter_mut().zip(x).zip(w).for_each(|((y, &x), &w)| *y = w * (x * rstd));
}

multiversion! {
    /// The output of [`rms_norm_row`] again, from the `rstd` that it returned. All `[d]`.
    pub fn rms_norm_scale_row(x: &[f32], w: &[f32], rstd: f32, y: &mut [f32]) {
        rms_norm_scale_body(x, w, rstd, y);
    }
}

multiversion! {
    /// Backward of [`rms_norm_row`], added to the residual's gradient that is in `dx`:
    /// `dx += rstd · (g - x̂ · mean(g · x̂))` with `g = dy · w`, `x̂ = x · rstd`. All `[d]`.
    pub fn rms_norm_backward_row(dy: &[f32], x: &[f32], w: &[f32], rstd: f32, dx: &mut [f32]) {
        let n = x.len();
        assert!(dy.len() == n && w.len() == n && dx.len() == n);
        let mut acc = [0f32; LANES];
        let whole = n - n % LANES;
        for at in (0..whole).step_by(LANES) {
            for l in 0..LANES {
                acc[l] += dy[at + l] * w[at + l] * x[at + l];
            }
        }
        for i in whole..n {
            acc[i - whole] += dy[i] * w[i] * x[i];
        }
        let mean = fold(acc) * rstd / n as f32;
        for i in 0..n {
            dx[i] += rstd * (dy[i] * w[i] - x[i] * rstd * mean);
        }
    }
}

multiversion! {
    /// Rotates the heads of one token in place, Hugging Face's half-split layout:
    /// `(a, b) = (x[i], x[i + d/2])` becomes `(a cos - b sin, b cos + a sin)`.
    ///
    /// `x` is `[heads * 2 * half]`, `cos` and `sin` are `[half]`. The backward is the same with `-sin`,
    /// which `sign` -1 asks for.
    pub fn rope_row(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in x.chunks_exact_mut(2 * half) {
            let (lo, hi) = head.split_at_mut(half);
            for i in 0..half {
                let (a, b, s) = (lo[i], hi[i], sign * sin[i]);
                lo[i] = a * cos[i] - b * s;
                hi[i] = b * cos[i] + a * s;
            }
        }
    }
}

multiversion! {
    /// h = silu(gate) · up, with silu(g) = g / (1 + e^-g). All `[f]`.
    pub fn swiglu_row(gate: &[f32], up: &[f32], h: &mut [f32]) {
        h.iter_mut().zip(gate).zip(up).for_each(|((h, &g), &u)| *h = g / (1.0 + exp(-g)) * u);
    }
}

multiversion! {
    /// Backward of [`swiglu_row`], in place: `gate` and `up` become their own gradients, and `h` is made again.
    ///
    /// With σ = 1 / (1 + e^-g): `dup = dh · g σ`, `dgate = dh · up · σ (1 + g (1 - σ))`. All `[f]`.
    pub fn swiglu_backward_row(dh: &[f32], gate: &mut [f32], up: &mut [f32], h: &mut [f32]) {
        for (((&dh, gate), up), h) in dh.iter().zip(gate).zip(up).zip(h) {
            let (g, u) = (*gate, *up);
            let s = 1.0 / (1.0 + exp(-g));
            *h = g / (1.0 + exp(-g)) * u;
            *up = dh * g * s;
            *gate = dh * u * s * (1.0 + g * (1.0 - s));
        }
    }
}

multiversion! {
    /// Cross-entropy of one row of logits `[v]` against `target`: returns `-log softmax(z)[target]` and turns
    /// the row into its gradient, `(softmax(z) - onehot(target)) · weight`.
    ///
    /// # Panics
    /// If `target` is not below `v`.
    pub fn cross_entropy_row(z: &mut [f32], target: usize, weight: f32) -> f32 {
        let max = max_value(z);
        let hit = z[target];
        let sum = exp_shifted_sum(z, max);
        let factor = weight / sum;
        z.iter_mut().for_each(|z| *z *= factor);
        z[target] -= weight;
        sum.ln() + max - hit
    }
}

/// One step's constants of AdamW (PyTorch's `torch.optim.AdamW`).
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The step, from 1, for the bias corrections.
    pub step: u64,
    /// Factor on the gradients (clipping).
    pub grad_scale: f32,
}

/// One AdamW update of a stretch of the flat buffers, all `[n]`:
/// `p *= 1 - lr wd; m = β1 m + (1 - β1) g; v = β2 v + (1 - β2) g²;
///  p -= lr / (1 - β1^t) · m / (√v / √(1 - β2^t) + eps)`.
///
/// # Panics
/// If the lengths differ.
pub fn adamw(c: AdamW, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    assert!(p.len() == g.len() && p.len() == m.len() && p.len() == v.len());
    let t = c.step as f64;
    let step_size = (c.lr / (1.0 - c.beta1.powf(t))) as f32;
    let root_correction = (1.0 - c.beta2.powf(t)).sqrt() as f32;
    adamw_body(
        p,
        g,
        m,
        v,
        [
            (1.0 - c.lr * c.weight_decay) as f32,
            (1.0 - c.beta1) as f32,
            c.beta2 as f32,
            (1.0 - c.beta2) as f32,
            step_size,
            root_correction,
            c.eps as f32,
            c.grad_scale,
        ],
    );
}

multiversion! {
    fn adamw_body(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], k: [f32; 8]) {
        let [decay, one_b1, b2, one_b2, step_size, root, eps, gs] = k;
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * gs;
            // PyTorch writes the first moment as a lerp; the same sum in this form loses least.
            *m += (g - *m) * one_b1;
            *v = *v * b2 + g * g * one_b2;
            let denom = v.sqrt() / root + eps;
            *p = *p * decay - step_size * (*m / denom);
        }
    }
}

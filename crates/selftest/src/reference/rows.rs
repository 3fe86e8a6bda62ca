//! What moves rows, or goes value by value: gathers, dropout, the rotary embedding, SwiGLU.

/// Row `rows[i]` of `m` for each `i`.
pub(crate) fn gather(m: &[f32], cols: usize, rows: &[usize]) -> Vec<f64> {
    rows.iter().flat_map(|&r| &m[r * cols..(r + 1) * cols]).map(|&v| f64::from(v)).collect()
}

/// Row `i` of `m` at row `rows[i]` of `out` rows, which are zero otherwise.
pub(crate) fn scatter(m: &[f32], cols: usize, rows: &[usize], out: usize) -> Vec<f64> {
    let mut scattered = vec![0.0; out * cols];
    for (i, &r) in rows.iter().enumerate() {
        for c in 0..cols {
            scattered[r * cols + c] = f64::from(m[i * cols + c]);
        }
    }
    scattered
}

/// Philox 4x32 with 10 rounds, from its paper (Salmon et al., 2011): rounds of two multiplications, the key raised by two
/// constants between them.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let left = 0xD251_1F53_u64 * u64::from(counter[0]);
        let right = 0xCD9E_8D57_u64 * u64::from(counter[2]);
        let (high, low) = (|x: u64| (x >> 32) as u32, |x: u64| (x & 0xFFFF_FFFF) as u32);
        counter =
            [high(right) ^ counter[1] ^ key[0], low(right), high(left) ^ counter[3] ^ key[1], low(left)];
    }
    counter
}

/// What names a dropout mask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mask {
    pub(crate) seed: u64,
    pub(crate) step: u32,
    pub(crate) site: u32,
    pub(crate) p: f32,
}

/// m u / (1 - p), with u = 0 where 24 bits of the generator are below p and 1 elsewhere. The key is the seed with the
/// step, from one, in its upper half; the counter is the block of four columns, the site and the row's two names.
pub(crate) fn dropout(m: &[f32], cols: usize, mask: Mask, names: &[[u32; 2]]) -> Vec<f64> {
    let stream = mask.step.wrapping_add(1).wrapping_mul(0x9E37_79B9);
    let key = [(mask.seed & 0xFFFF_FFFF) as u32, (mask.seed >> 32) as u32 ^ stream];
    let keep = f64::from(1.0 / (1.0 - mask.p));
    let mut out = Vec::with_capacity(m.len());
    for (row, name) in names.iter().enumerate() {
        for col in 0..cols {
            let words = philox([(col / 4) as u32, mask.site, name[0], name[1]], key);
            let drawn = f64::from(words[col % 4] >> 8) / f64::from(1_u32 << 24);
            let factor = if drawn < f64::from(mask.p) { 0.0 } else { keep };
            out.push(f64::from(m[row * cols + col]) * factor);
        }
    }
    out
}

/// Weights of a tensor: the sum of the four bytes of a word, less its mean, over its standard deviation. Value `i` is of
/// word `i % 4` at the counter (i / 4, tensor, a purpose) under the seed.
pub(crate) fn fill(seed: u64, tensor: u32, std: f32, len: usize) -> Vec<f64> {
    let deviation = (4.0 * (256_f64.powi(2) - 1.0) / 12.0).sqrt();
    let one = |i: usize| {
        let key = [(seed & 0xFFFF_FFFF) as u32, (seed >> 32) as u32];
        let word = philox([(i / 4) as u32, 0, tensor, 0xF111], key)[i % 4];
        let sum: f64 = (0..4).map(|byte| f64::from(word >> (8 * byte) & 0xFF)).sum();
        (sum - 4.0 * 127.5) / deviation * f64::from(std)
    };
    (0..len).map(one).collect()
}

/// Every head of row `t` turned by the angle of `positions[t]`: the pair (i, i + half) by position times frequency `i`,
/// that product in f32 as the models were trained with.
pub(crate) fn rope(
    x: &[f32],
    cols: usize,
    positions: &[usize],
    frequencies: &[f32],
    inverse: bool,
) -> Vec<f64> {
    let half = frequencies.len();
    let mut out = vec![0.0; x.len()];
    for (t, &p) in positions.iter().enumerate() {
        for head in 0..cols / (2 * half) {
            for (i, &f) in frequencies.iter().enumerate() {
                let angle = f64::from(p as f32 * f);
                let (sin, cos) = if inverse { (-angle).sin_cos() } else { angle.sin_cos() };
                let (low, high) = (t * cols + head * 2 * half + i, t * cols + head * 2 * half + half + i);
                let (a, b) = (f64::from(x[low]), f64::from(x[high]));
                out[low] = a * cos - b * sin;
                out[high] = b * cos + a * sin;
            }
        }
    }
    out
}

/// gate σ(gate) up, of rows that hold gate and then up.
pub(crate) fn swiglu(gate_up: &[f32], f: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(gate_up.len() / 2);
    for row in gate_up.chunks_exact(2 * f) {
        for i in 0..f {
            let (gate, up) = (f64::from(row[i]), f64::from(row[f + i]));
            out.push(gate / (1.0 + (-gate).exp()) * up);
        }
    }
    out
}

/// d gate beside d up: dh up σ (1 + gate (1 - σ)) and dh gate σ.
pub(crate) fn swiglu_backward(dh: &[f32], gate_up: &[f32], f: usize) -> Vec<f64> {
    let mut out = vec![0.0; gate_up.len()];
    for (row, dh) in dh.chunks_exact(f).enumerate() {
        for (i, &dh) in dh.iter().enumerate() {
            let (at_gate, at_up) = (row * 2 * f + i, row * 2 * f + f + i);
            let (gate, up, dh) = (f64::from(gate_up[at_gate]), f64::from(gate_up[at_up]), f64::from(dh));
            let s = 1.0 / (1.0 + (-gate).exp());
            out[at_gate] = dh * up * s * (1.0 + gate * (1.0 - s));
            out[at_up] = dh * gate * s;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::philox;

    #[test]
    fn the_generator_gives_the_published_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }
}

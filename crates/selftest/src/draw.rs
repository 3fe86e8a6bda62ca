//! Numbers that are the same on every machine.

use half::bf16;

/// A value as bf16 holds it.
pub(crate) fn round(v: f32) -> f32 {
    bf16::from_f32(v).to_f32()
}

/// `len` values from -`size` to `size` that bf16 holds exactly: every backend starts from the same numbers, whatever it
/// stores them in.
pub(crate) fn values(seed: u64, len: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
    let mut next = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 40
    };
    (0..len).map(|_| round((next() as f32 / (1_u32 << 23) as f32 - 1.0) * size)).collect()
}

//! Philox as its paper has it, for the tests of what draws from it; `dropout.rs` holds it to the published answers.

/// Philox 4x32-10.
pub(crate) fn philox(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let first = u64::from(c[0]) * 0xd251_1f53;
        let second = u64::from(c[2]) * 0xcd9e_8d57;
        let high = |v: u64| (v >> 32) as u32;
        c = [high(second) ^ c[1] ^ key[0], second as u32, high(first) ^ c[3] ^ key[1], first as u32];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    c
}

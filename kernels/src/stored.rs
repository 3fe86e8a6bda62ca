//! Values as weight files hold them, on their way into a backend's storage type: converted and checked in one pass.
//!
//! Bytes are little-endian and need no alignment. A value that is not finite is never taken over silently.

use half::bf16;

use crate::cpu::simd::multiversion;

/// Values converted at a time, so that what a pass writes is still in the nearest cache when it is checked.
const BLOCK: usize = 1024;

/// The type of a stored value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
}

impl StoredType {
    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A value that may not be taken over: NaN, an infinity, or one that the storage type would make an infinity of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unfit {
    /// Its place among the values of the call.
    pub at: usize,
    /// The value.
    pub value: f32,
}

/// The bytes of f32 values in memory, to read stored ones into.
pub fn bytes_of_mut(values: &mut [f32]) -> &mut [u8] {
    bytemuck::cast_slice_mut(values)
}

/// The first of `values` that is not finite.
pub fn first_not_finite(values: &[f32]) -> Option<Unfit> {
    if !any_not_finite(values) {
        return None;
    }
    let at = values.iter().position(|v| !v.is_finite())?;
    Some(Unfit { at, value: values[at] })
}

/// Stored values of type `from` as f32, exactly; the first that is not finite.
///
/// # Panics
/// If `bytes` are not those of as many values as `out` has.
pub fn widen(from: StoredType, bytes: &[u8], out: &mut [f32]) -> Option<Unfit> {
    assert_eq!(bytes.len(), out.len() * from.bytes(), "stored bytes for another number of values");
    let blocks = out.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK * from.bytes()));
    for (i, (out, bytes)) in blocks.enumerate() {
        widen_block(from, bytes, out);
        if let Some(unfit) = first_not_finite(out) {
            return Some(Unfit { at: i * BLOCK + unfit.at, ..unfit });
        }
    }
    None
}

/// Stored values of type `from` as bf16, to the nearest and ties to even, as little-endian bytes; the first that is not
/// finite, before or after.
///
/// # Panics
/// If `bytes` are not those of as many values as `out` has.
pub fn narrow(from: StoredType, bytes: &[u8], out: &mut [u8]) -> Option<Unfit> {
    assert_eq!(bytes.len() * 2, out.len() * from.bytes(), "stored bytes for another number of values");
    if from == StoredType::Bf16 {
        out.copy_from_slice(bytes);
        return narrow_in_place(from, out);
    }
    let mut wide = [0.0; BLOCK];
    for (i, (out, bytes)) in out.chunks_mut(BLOCK * 2).zip(bytes.chunks(BLOCK * from.bytes())).enumerate() {
        let wide = &mut wide[..out.len() / 2];
        widen_block(from, bytes, wide);
        if let Some(unfit) = narrow_block(wide, out) {
            return Some(Unfit { at: i * BLOCK + unfit.at, ..unfit });
        }
    }
    None
}

/// As [`narrow`], where the bf16 values take the place of stored ones of the same size: `from` is f16 or bf16.
///
/// # Panics
/// If `from` is f32, or `bytes` are not those of whole values.
pub fn narrow_in_place(from: StoredType, bytes: &mut [u8]) -> Option<Unfit> {
    assert!(from.bytes() == 2 && bytes.len().is_multiple_of(2), "{from:?} values do not narrow in place");
    let mut wide = [0.0; BLOCK];
    for (i, block) in bytes.chunks_mut(BLOCK * 2).enumerate() {
        let unfit = match from {
            StoredType::Bf16 if !any_not_finite_bf16(block) => None,
            _ => {
                let wide = &mut wide[..block.len() / 2];
                widen_block(from, block, wide);
                narrow_block(wide, block)
            }
        };
        if let Some(unfit) = unfit {
            return Some(Unfit { at: i * BLOCK + unfit.at, ..unfit });
        }
    }
    None
}

fn widen_block(from: StoredType, bytes: &[u8], out: &mut [f32]) {
    match from {
        StoredType::F32 => from_f32(bytes, out),
        StoredType::Bf16 => from_bf16(bytes, out),
        StoredType::F16 => from_f16(bytes, out),
    }
}

multiversion! {
    fn any_not_finite(values: &[f32]) -> bool {
        values.iter().fold(false, |bad, v| bad | (v.to_bits() & 0x7f80_0000 == 0x7f80_0000))
    }
}

multiversion! {
    fn any_not_finite_bf16(bytes: &[u8]) -> bool {
        let (words, _) = bytes.as_chunks::<2>();
        words.iter().fold(false, |bad, w| bad | (u16::from_le_bytes(*w) & 0x7f80 == 0x7f80))
    }
}

multiversion! {
    fn from_f32(bytes: &[u8], out: &mut [f32]) {
        let (words, _) = bytes.as_chunks::<4>();
        for (value, word) in out.iter_mut().zip(words) {
            *value = f32::from_le_bytes(*word);
        }
    }
}

multiversion! {
    fn from_bf16(bytes: &[u8], out: &mut [f32]) {
        let (words, _) = bytes.as_chunks::<2>();
        for (value, word) in out.iter_mut().zip(words) {
            *value = f32::from_bits(u32::from(u16::from_le_bytes(*word)) << 16);
        }
    }
}

multiversion! {
    /// By whole-number arithmetic, which vectorises, where the CPU's own conversion is behind a call for each few values.
    fn from_f16(bytes: &[u8], out: &mut [f32]) {
        /// Exponents are counted from 127 in place of 15.
        const REBASE: u32 = 112 << 23;
        const LEAST_NORMAL: u32 = 113 << 23;
        let (words, _) = bytes.as_chunks::<2>();
        for (value, word) in out.iter_mut().zip(words) {
            let half = u32::from(u16::from_le_bytes(*word));
            let magnitude = (half & 0x7fff) << 13;
            let subnormal = f32::from_bits(magnitude + LEAST_NORMAL) - f32::from_bits(LEAST_NORMAL);
            let bits = if half & 0x7c00 == 0 { subnormal.to_bits() } else { magnitude + REBASE };
            let bits = if half & 0x7c00 == 0x7c00 { magnitude | 0x7f80_0000 } else { bits };
            *value = f32::from_bits(bits | (half & 0x8000) << 16);
        }
    }
}

/// Rounds a block; the first value that is not finite, or no longer.
fn narrow_block(values: &[f32], out: &mut [u8]) -> Option<Unfit> {
    if !round_block(values, out) {
        return None;
    }
    let at = values.iter().position(|&v| !bf16::from_f32(v).is_finite())?;
    Some(Unfit { at, value: values[at] })
}

multiversion! {
    /// Whether any value is not finite, before or after.
    fn round_block(values: &[f32], out: &mut [u8]) -> bool {
        let (words, _) = out.as_chunks_mut::<2>();
        let mut bad = false;
        for (word, value) in words.iter_mut().zip(values) {
            let bits = value.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            // Of the first, a NaN may be rounded to something else; of the second, what rounds to an infinity.
            bad |= bits & 0x7f80_0000 == 0x7f80_0000;
            bad |= rounded & 0x7f80 == 0x7f80;
            *word = (rounded as u16).to_le_bytes();
        }
        bad
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// Every bf16 and f16 bit pattern, and f32 ones around every rounding case.
    fn patterns(of: StoredType) -> Vec<u32> {
        match of {
            StoredType::F16 | StoredType::Bf16 => (0..=u32::from(u16::MAX)).collect(),
            StoredType::F32 => (0..=u32::from(u16::MAX))
                .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low))
                .collect(),
        }
    }

    fn value(of: StoredType, bits: u32) -> f32 {
        match of {
            StoredType::F32 => f32::from_bits(bits),
            StoredType::F16 => f16::from_bits(bits as u16).to_f32(),
            StoredType::Bf16 => bf16::from_bits(bits as u16).to_f32(),
        }
    }

    fn bytes(of: StoredType, bits: &[u32]) -> Vec<u8> {
        bits.iter().flat_map(|b| b.to_le_bytes()[..of.bytes()].to_vec()).collect()
    }

    const ALL: [StoredType; 3] = [StoredType::F32, StoredType::F16, StoredType::Bf16];

    #[test]
    fn every_value_that_fits_is_converted_as_half_does() {
        for of in ALL {
            let fits = |&b: &u32| bf16::from_f32(value(of, b)).is_finite() && value(of, b).is_finite();
            let bits: Vec<u32> = patterns(of).into_iter().filter(fits).collect();
            // At an odd address, too.
            let stored = [vec![0], bytes(of, &bits)].concat();
            let mut wide = vec![0.0; bits.len()];
            assert_eq!(widen(of, &stored[1..], &mut wide), None);
            let mut narrow_bytes = vec![0; 2 * bits.len() + 1];
            assert_eq!(narrow(of, &stored[1..], &mut narrow_bytes[1..]), None);
            for (i, &b) in bits.iter().enumerate() {
                assert_eq!(wide[i].to_bits(), value(of, b).to_bits(), "{of:?} {b:#x}");
                let got = [narrow_bytes[1 + 2 * i], narrow_bytes[2 + 2 * i]];
                assert_eq!(got, bf16::from_f32(value(of, b)).to_le_bytes(), "{of:?} {b:#x}");
            }
            if of != StoredType::F32 {
                let mut here = stored;
                assert_eq!(narrow_in_place(of, &mut here[1..]), None);
                assert_eq!(here[1..], narrow_bytes[1..]);
            }
        }
    }

    #[test]
    fn the_first_value_that_does_not_fit_is_named() {
        for of in ALL {
            let bad: Vec<u32> =
                patterns(of).into_iter().filter(|&b| !bf16::from_f32(value(of, b)).is_finite()).collect();
            assert!(bad.len() > 100);
            for (n, &b) in bad.iter().enumerate().step_by(97) {
                let at = [0, 1, 999, 1023, 1024, 2999][n % 6];
                let mut bits = vec![0x3c00; 3000];
                (bits[at], bits[2999]) = (b, b);
                let stored = bytes(of, &bits);
                let same = |found: Option<Unfit>| {
                    let found = found.expect("it does not fit");
                    let want = value(of, b);
                    // A NaN is a NaN, whatever else it says.
                    let equal = found.value == want || (found.value.is_nan() && want.is_nan());
                    assert!(found.at == at && equal, "{of:?} {b:#x}: {found:?}");
                };
                let mut out = vec![0; 6000];
                same(narrow(of, &stored, &mut out));
                if of != StoredType::F32 {
                    same(narrow_in_place(of, &mut stored.clone()));
                }
                let mut wide = vec![0.0; 3000];
                match widen(of, &stored, &mut wide) {
                    None => assert!(value(of, b).is_finite() && of == StoredType::F32),
                    found => same(found),
                }
            }
        }
    }
}

//! NF4, the four-bit storage of QLoRA, in the layout of bitsandbytes.
//!
//! A weight is a row-major stream of values, cut into blocks of 64 across the ends of rows. A block is stored as its
//! largest magnitude and, for each value, the nearest of sixteen fractions of that. Two codes share a byte, the first
//! in the high half. Double quantisation stores the magnitudes themselves in 8 bits, in blocks of 256.
//!
//! All of it is bit for bit what bitsandbytes does on a CPU, so that a checkpoint quantised here and one quantised
//! there are the same file. One thing differs there from machine to machine: the order in which the mean magnitude is
//! summed. Here it is that of one thread with AVX2, on every machine.

use rayon::prelude::*;

/// Values of a block.
pub const NF4_BLOCK: usize = 64;
/// Magnitudes of a block of the second quantisation.
pub const NF4_NESTED_BLOCK: usize = 256;
/// The sixteen fractions: quantiles of the normal distribution, with an exact zero.
pub const NF4_CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Values that a thread takes at a time, a whole number of blocks.
const STRETCH: usize = 256 * NF4_BLOCK;

/// A weight of `n` values in NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    /// Codes, `[⌈n / 2⌉]`.
    pub packed: Vec<u8>,
    /// What they are fractions of.
    pub scales: Nf4Scales,
}

/// The largest magnitude of each block of 64.
#[derive(Debug, Clone, PartialEq)]
pub enum Nf4Scales {
    /// As they are.
    Plain {
        /// `[⌈n / 64⌉]`
        absmax: Vec<f32>,
    },
    /// In 8 bits: `map[code] · nested_absmax + offset`.
    Double {
        /// `[⌈n / 64⌉]`
        codes: Vec<u8>,
        /// `[256]`, rising.
        map: Vec<f32>,
        /// Of each block of 256 codes, `[⌈n / 64 / 256⌉]`.
        nested_absmax: Vec<f32>,
        /// The mean magnitude.
        offset: f32,
    },
}

impl Nf4 {
    /// Quantises a weight, `[n]` row-major.
    ///
    /// A block with a NaN gets a magnitude of NaN, so that all of it shows.
    pub fn quantize(values: &[f32], double: bool) -> Self {
        let bounds: [f32; 15] = std::array::from_fn(|i| f32::midpoint(NF4_CODE[i], NF4_CODE[i + 1]));
        let mut packed = vec![0; values.len().div_ceil(2)];
        let mut absmax = vec![0.0; values.len().div_ceil(NF4_BLOCK)];
        values
            .par_chunks(STRETCH)
            .zip(packed.par_chunks_mut(STRETCH / 2))
            .zip(absmax.par_chunks_mut(STRETCH / NF4_BLOCK))
            .for_each(|((values, packed), absmax)| {
                let blocks = values.chunks(NF4_BLOCK).zip(packed.chunks_mut(NF4_BLOCK / 2));
                for ((block, packed), absmax) in blocks.zip(absmax) {
                    *absmax = quantize_block(block, &bounds, packed);
                }
            });
        let scales = if double { quantize_scales(&absmax) } else { Nf4Scales::Plain { absmax } };
        Self { packed, scales }
    }

    /// The values as a matrix whose rows are `ld` apart; what lies between the rows is left alone.
    ///
    /// # Panics
    /// If there are fewer than `rows · cols` values, or `out` does not hold the matrix.
    pub fn dequantize(&self, rows: usize, cols: usize, out: &mut [f32], ld: usize) {
        if rows == 0 || cols == 0 {
            return;
        }
        assert!(self.packed.len() >= (rows * cols).div_ceil(2), "fewer codes than values");
        assert!(ld >= cols && out.len() >= (rows - 1) * ld + cols, "the matrix does not fit");
        out.par_chunks_mut(ld).take(rows).enumerate().for_each(|(row, out)| {
            let (mut block, mut scale) = (usize::MAX, 0.0);
            for (i, out) in (row * cols..).zip(&mut out[..cols]) {
                if i / NF4_BLOCK != block {
                    block = i / NF4_BLOCK;
                    scale = self.scales.of(block);
                }
                let byte = self.packed[i / 2];
                let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                *out = NF4_CODE[code as usize] * scale;
            }
        });
    }
}

impl Nf4Scales {
    /// The magnitude of a block.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn of(&self, block: usize) -> f32 {
        match self {
            Self::Plain { absmax } => absmax[block],
            Self::Double { codes, map, nested_absmax, offset } => {
                // Two roundings: a fused multiply-add would give other bits.
                map[codes[block] as usize] * nested_absmax[block / NF4_NESTED_BLOCK] + offset
            }
        }
    }
}

/// Writes the codes of one block and returns its magnitude.
fn quantize_block(block: &[f32], bounds: &[f32; 15], packed: &mut [u8]) -> f32 {
    // PyTorch's tensors have no magnitude below this where the block is cut short, nor is anything divided by less.
    const SMALLEST: f32 = 1e-38;
    let absmax = largest_magnitude(block);
    let short = block.len() < NF4_BLOCK;
    let floored = if absmax < SMALLEST { SMALLEST } else { absmax };
    let inverse = 1.0 / floored;
    let code = |v: f32| {
        let fraction = (if short { v / floored } else { v * inverse }).clamp(-1.0, 1.0);
        bounds.iter().filter(|&&bound| fraction > bound || fraction.is_nan()).count() as u8
    };
    for (pair, byte) in block.chunks(2).zip(packed) {
        *byte = code(pair[0]) << 4 | code(pair.get(1).copied().unwrap_or(0.0));
    }
    if short { floored } else { absmax }
}

/// NaN if any value is.
fn largest_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max: f32, v| if v.abs() > max || v.is_nan() { v.abs() } else { max })
}

fn quantize_scales(absmax: &[f32]) -> Nf4Scales {
    let map = nf4_dynamic_map();
    let bounds: Vec<f32> = map.windows(2).map(|w| 0.5 * (w[0] + w[1])).collect();
    let offset = mean(absmax);
    let mut codes = vec![0; absmax.len()];
    let mut nested_absmax = Vec::with_capacity(absmax.len().div_ceil(NF4_NESTED_BLOCK));
    for (block, codes) in absmax.chunks(NF4_NESTED_BLOCK).zip(codes.chunks_mut(NF4_NESTED_BLOCK)) {
        let shifted: Vec<f32> = block.iter().map(|v| v - offset).collect();
        let max = largest_magnitude(&shifted);
        nested_absmax.push(max);
        // All magnitudes equal: any code will do, and 0 is what the original writes.
        if max != 0.0 {
            let inverse = 1.0 / max;
            codes.iter_mut().zip(&shifted).for_each(|(code, v)| *code = nearest(v * inverse, &bounds));
        }
    }
    Nf4Scales::Double { codes, map, nested_absmax, offset }
}

/// The code of a fraction: of the nearest of 65,536 even steps from -1 to 1, as the original's table has it.
fn nearest(fraction: f32, bounds: &[f32]) -> u8 {
    const LAST: f32 = 65_535.0;
    let step = ((fraction.clamp(-1.0, 1.0) + 1.0) * 0.5 * LAST + 0.5) as u16;
    let value = -1.0 + 2.0 * f32::from(step) / LAST;
    bounds.partition_point(|&bound| bound < value) as u8
}

/// bitsandbytes' signed "dynamic" 8-bit map, `[256]`, rising: for each power of ten from 1e-6 to 1, the middles of 1, 2,
/// 4 ... 64 equal parts of the decade, both signs, and 0 and 1.
pub fn nf4_dynamic_map() -> Vec<f32> {
    let mut map = vec![0.0, 1.0];
    for exponent in 0..7 {
        let parts = 1_usize << exponent;
        let step = (1.0_f32 - 0.1) / parts as f32;
        // As torch.linspace: from both ends to the middle, with one rounding each.
        let edge = |i: usize| {
            if i < parts.div_ceil(2) {
                step.mul_add(i as f32, 0.1)
            } else {
                (-step).mul_add((parts - i) as f32, 1.0)
            }
        };
        let scale = 10_f64.powi(exponent - 6) as f32;
        for i in 0..parts {
            let value = scale * f32::midpoint(edge(i), edge(i + 1));
            map.extend([value, -value]);
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// The mean in f32, summed in the order of PyTorch on one thread with vectors of eight: four rows of eight lanes, whose
/// sums move up a level of a tree of four every so many rows. The last bit of the mean is in every weight.
fn mean(x: &[f32]) -> f32 {
    const LANES: usize = 8;
    const ROWS: usize = 4;
    const LEVELS: usize = 4;
    type Rows = [[f32; LANES]; ROWS];
    let add = |to: &mut [f32], from: &[f32]| to.iter_mut().zip(from).for_each(|(t, f)| *t += f);

    let whole = x.len() / LANES;
    let groups = whole / ROWS;
    let power = (usize::BITS - groups.saturating_sub(1).leading_zeros()) as usize / LEVELS;
    let power = power.max(4);
    let mut levels: [Rows; LEVELS] = [[[0.0; LANES]; ROWS]; LEVELS];
    for (i, group) in x[..groups * ROWS * LANES].chunks(ROWS * LANES).enumerate() {
        add(levels[0].as_flattened_mut(), group);
        let done = i + 1;
        // Rows after the last whole step stay where they are.
        if !done.is_multiple_of(1 << power) {
            continue;
        }
        for level in 1..LEVELS {
            let lower = std::mem::take(&mut levels[level - 1]);
            add(levels[level].as_flattened_mut(), lower.as_flattened());
            if !(done >> (level * power)).is_multiple_of(1 << power) {
                break;
            }
        }
    }
    let [mut rows, upper @ ..] = levels;
    upper.iter().for_each(|level| add(rows.as_flattened_mut(), level.as_flattened()));
    let [mut lanes, others @ ..] = rows;
    x[groups * ROWS * LANES..whole * LANES].chunks(LANES).for_each(|row| add(&mut lanes, row));
    others.iter().for_each(|row| add(&mut lanes, row));
    let sum = x[whole * LANES..].iter().chain(&lanes).fold(0.0, |sum, v| sum + v);
    sum / x.len() as f32
}

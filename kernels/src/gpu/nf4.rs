//! NF4 dequantisation (`nf4.cu`).

use half::bf16;

use super::driver::{Arg, Driver, Launch};
use super::error::{Result, expect};
use super::slice::{Slice, ViewMut};
use crate::cpu::{NF4_BLOCK, NF4_NESTED_BLOCK};

const OP: &str = "nf4_dequantize";
const THREADS: usize = 256;
/// Values of a thread.
const VALUES: usize = 32;

/// A weight `[rows, cols]` in NF4 on the device; see [`cpu::Nf4`](crate::cpu::Nf4) for the format.
#[derive(Debug)]
pub struct Nf4<'a, D: Driver> {
    /// Codes, `[⌈rows · cols / 2⌉]` or longer.
    pub packed: &'a Slice<D, u8>,
    /// What they are fractions of.
    pub scales: Nf4Scales<'a, D>,
}

/// The largest magnitude of each block of 64 values.
#[derive(Debug)]
pub enum Nf4Scales<'a, D: Driver> {
    /// `[⌈rows · cols / 64⌉]` or longer.
    Plain(&'a Slice<D, f32>),
    /// Quantised again, in blocks of 256.
    Double {
        /// `[⌈rows · cols / 64⌉]` or longer.
        codes: &'a Slice<D, u8>,
        /// `[256]`
        map: &'a Slice<D, f32>,
        /// `[⌈rows · cols / 64 / 256⌉]` or longer.
        nested_absmax: &'a Slice<D, f32>,
        /// Added to what the codes stand for.
        offset: f32,
    },
}

/// Writes the weight as bf16, bit for bit what bitsandbytes makes of it.
///
/// # Shapes
/// - out: `[rows, cols]` bf16. Rows that start at multiples of 8 values and are a multiple of 8 long go several times
///   faster than others.
///
/// # Errors
/// If the codes or the magnitudes are too few, or `out` is not inside its slice.
pub fn nf4_dequantize<D: Driver>(d: &D, weight: &Nf4<'_, D>, out: ViewMut<'_, D, bf16>) -> Result<()> {
    out.check(OP, "out", 1)?;
    let values = out.rows * out.cols;
    // Words of eight values are counted in 32 bits.
    expect(OP, values <= 1 << 34 && i32::try_from(out.cols).is_ok(), || {
        format!("a weight of [{}, {}] is too large", out.rows, out.cols)
    })?;
    let (codes, blocks) = (values.div_ceil(2), values.div_ceil(NF4_BLOCK));
    let enough = |name: &str, len: usize, needed: usize| {
        expect(OP, len >= needed, || {
            format!("[{}, {}] needs {needed} {name}, there are {len}", out.rows, out.cols)
        })
    };
    enough("bytes of codes", weight.packed.len(), codes)?;
    let double = match &weight.scales {
        Nf4Scales::Plain(absmax) => {
            enough("magnitudes", absmax.len(), blocks)?;
            false
        }
        Nf4Scales::Double { codes, map, nested_absmax, .. } => {
            enough("codes of magnitudes", codes.len(), blocks)?;
            enough("nested magnitudes", nested_absmax.len(), blocks.div_ceil(NF4_NESTED_BLOCK))?;
            expect(OP, map.len() == 256, || format!("a map of {} values instead of 256", map.len()))?;
            true
        }
    };
    if values == 0 {
        return Ok(());
    }

    let fast = out.cols.is_multiple_of(8) && out.check(OP, "out", 8).is_ok();
    let kernel = match (fast, double) {
        (true, false) => "nf4_dequantize_plain",
        (true, true) => "nf4_dequantize_double",
        (false, false) => "nf4_dequantize_plain_any",
        (false, true) => "nf4_dequantize_double_any",
    };
    let per_block = if fast { THREADS * VALUES } else { THREADS };
    let null = Arg::Address(0);
    let (absmax, codes, map, offset) = match &weight.scales {
        Nf4Scales::Plain(absmax) => (absmax.arg(d, 0), null, null, 0.0),
        Nf4Scales::Double { codes, map, nested_absmax, offset } => {
            (nested_absmax.arg(d, 0), codes.arg(d, 0), map.arg(d, 0), *offset)
        }
    };
    let args = [
        weight.packed.arg(d, 0),
        absmax,
        codes,
        map,
        Arg::F32(offset),
        out.arg(d),
        Arg::I64(out.ld as i64),
        Arg::I32(out.cols as i32),
        Arg::I64(values as i64),
    ];
    let launch = Launch {
        kernel,
        grid: [values.div_ceil(per_block) as u32, 1, 1],
        threads: THREADS as u32,
        shared: if double { 4 * (16 + 256) } else { 4 * 16 },
        args: &args,
    };
    // SAFETY: the kernel reads what the counts above cover and writes `out`, found inside its slice.
    unsafe { d.launch(&launch) }
}

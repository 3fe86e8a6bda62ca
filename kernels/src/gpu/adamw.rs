//! AdamW over flat buffers, and the bf16 copies of what it trains (`adamw.cu`).

use half::bf16;

use super::driver::{Arg, Driver, Launch};
use super::error::{Result, expect};
use super::norm::OUT;
use super::slice::Slice;
use crate::cpu::AdamW;

const OP: &str = "adamw";
const THREADS: usize = 256;
/// Values of a block.
const CHUNK: usize = 4 * THREADS;
/// Numbers of a segment in the table on the device.
const WORDS: usize = 12;

/// The flat buffers of all trained parameters, each `[n]` f32.
#[derive(Debug)]
pub struct Buffers<'a, D: Driver> {
    /// Parameters.
    pub p: &'a mut Slice<D, f32>,
    /// Gradients.
    pub g: &'a Slice<D, f32>,
    /// First moments.
    pub m: &'a mut Slice<D, f32>,
    /// Second moments.
    pub v: &'a mut Slice<D, f32>,
}

/// A factor on the gradients, over and above [`AdamW::grad_scale`].
#[derive(Debug, Clone, Copy)]
pub enum Scale<'a, D: Driver> {
    /// A number.
    Host(f32),
    /// The clip factor in what [`norm`](super::norm::norm) has put out. Where the norm is not finite, the update does not
    /// take place: parameters, moments and copies keep their bits.
    Device(&'a Slice<D, f32>),
}

/// A matrix `[rows, cols]` in the flat buffer of parameters that has a bf16 copy: value `at + r * ld + c` of slice `to`
/// is `factor · p[start + r * cols + c]`, rounded once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// Its first value in the flat buffer.
    pub start: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Which of the slices the copy lies in.
    pub to: usize,
    /// The copy's first value there.
    pub at: usize,
    /// Distance between the copy's rows.
    pub ld: usize,
    /// Factor on the copy: s for B of LoRA, 1 for A.
    pub factor: f32,
}

/// Which parameters have bf16 copies, and where: a table on the device, made once.
#[derive(Debug)]
pub struct Copies<D: Driver> {
    /// For each block the first segment that ends behind its first value.
    first: Slice<D, u32>,
    segments: Slice<D, u32>,
    count: usize,
    n: usize,
    /// Address and length of the slices.
    to: Vec<(u64, usize)>,
}

impl<D: Driver> Copies<D> {
    /// A table for `n` parameters and segments in any order, with their copies in the slices `to`.
    ///
    /// # Errors
    /// If segments or their copies overlap or are not inside the parameters and slices.
    pub fn new(d: &D, n: usize, to: &[&Slice<D, bf16>], segments: &[Segment]) -> Result<Self> {
        let mut sorted: Vec<Segment> =
            segments.iter().filter(|s| s.rows > 0 && s.cols > 0).copied().collect();
        sorted.sort_by_key(|s| s.start);
        let lengths: Vec<usize> = to.iter().map(|slice| slice.len()).collect();
        check(n, &lengths, &sorted)?;
        let to: Vec<(u64, usize)> = to.iter().map(|slice| (slice.address(d, 0), slice.len())).collect();
        let words: Vec<u32> = sorted.iter().flat_map(|s| words(s, to[s.to].0)).collect();
        let first: Vec<u32> = (0..n.div_ceil(CHUNK))
            .map(|block| sorted.partition_point(|s| s.start + s.rows * s.cols <= block * CHUNK) as u32)
            .collect();
        let (first, segments) = (Slice::from_host(d, &first)?, Slice::from_host(d, &words)?);
        Ok(Self { first, segments, count: sorted.len(), n, to })
    }
}

/// Bytes of a table of [`Copies`] for `n` parameters in `segments` segments.
pub fn table_bytes(n: usize, segments: usize) -> usize {
    (n.div_ceil(CHUNK) + segments * WORDS) * size_of::<u32>()
}

/// The copies to make in an update: `to` is the slices that the table was made for, in the same order.
#[derive(Debug)]
pub struct Refresh<'a, 'b, D: Driver> {
    /// The table.
    pub copies: &'a Copies<D>,
    /// What is written.
    pub to: &'a mut [&'b mut Slice<D, bf16>],
}

/// One update of all parameters, as [`cpu::adamw`](crate::cpu::adamw), and their bf16 copies in the same pass.
///
/// # Shapes
/// - p, g, m, v: `[n]` f32
///
/// # Errors
/// If the lengths differ, or the table of copies is not for these parameters and slices.
pub fn adamw<D: Driver>(
    d: &D,
    step: AdamW,
    scale: Scale<'_, D>,
    buffers: Buffers<'_, D>,
    refresh: Option<Refresh<'_, '_, D>>,
) -> Result<()> {
    let Buffers { p, g, m, v } = buffers;
    let n = p.len();
    expect(OP, g.len() == n && m.len() == n && v.len() == n, || {
        format!("{n} parameters, {} gradients, moments of {} and {}", g.len(), m.len(), v.len())
    })?;
    let (factor, norm) = match scale {
        Scale::Host(factor) => (factor, Arg::Address(0)),
        Scale::Device(out) => {
            expect(OP, out.len() >= OUT, || format!("a norm of {} values, not {OUT}", out.len()))?;
            (1.0, out.arg(d, 0))
        }
    };
    let blocks = n.div_ceil(CHUNK);
    expect(OP, blocks < 1 << 31, || format!("{n} parameters are more than a kernel can count"))?;
    let mut args = vec![p.arg(d, 0), g.arg(d, 0), m.arg(d, 0), v.arg(d, 0), Arg::I64(n as i64)];
    args.extend(constants(step).map(Arg::F32));
    args.extend([Arg::F32(step.grad_scale * factor), norm]);
    let mut kernel = "adamw_plain";
    if let Some(Refresh { copies, to }) = refresh {
        expect(OP, copies.n == n, || format!("copies of {} parameters, where there are {n}", copies.n))?;
        let same = copies.to.len() == to.len()
            && copies.to.iter().zip(&*to).all(|(&was, slice)| was == (slice.address(d, 0), slice.len()));
        expect(OP, same, || "the copies were laid out for other slices".into())?;
        if copies.count > 0 {
            kernel = "adamw_copies";
            args.extend([copies.first.arg(d, 0), copies.segments.arg(d, 0), Arg::U32(copies.count as u32)]);
        }
    }
    if n == 0 {
        return Ok(());
    }
    let launch =
        Launch { kernel, grid: [blocks as u32, 1, 1], threads: THREADS as u32, shared: 0, args: &args };
    // SAFETY: the four buffers have n values; all segments were found inside the parameters and their copies inside
    // slices that are borrowed here, at the addresses in the table; the table has an entry for every block; and the
    // kernel takes these arguments.
    unsafe { d.launch(&launch) }
}

/// One update of all parameters with [`AdamW::grad_scale`] as the only factor, and no copies.
///
/// # Shapes
/// - p, g, m, v: `[n]` f32
///
/// # Errors
/// If the lengths differ.
pub fn update<D: Driver>(
    d: &D,
    step: AdamW,
    p: &mut Slice<D, f32>,
    g: &Slice<D, f32>,
    m: &mut Slice<D, f32>,
    v: &mut Slice<D, f32>,
) -> Result<()> {
    adamw(d, step, Scale::Host(1.0), Buffers { p, g, m, v }, None)
}

/// decay, 1 - β1, β2, 1 - β2, step size, root of the second moment's correction, eps.
fn constants(step: AdamW) -> [f32; 7] {
    let t = step.step as f64;
    [
        1.0 - step.lr * step.weight_decay,
        1.0 - step.beta1,
        step.beta2,
        1.0 - step.beta2,
        step.lr / (1.0 - step.beta1.powf(t)),
        (1.0 - step.beta2.powf(t)).sqrt(),
        step.eps,
    ]
    .map(|v| v as f32)
}

/// `Segment` of `adamw.cu`, for a slice at `base`.
fn words(s: &Segment, base: u64) -> [u32; WORDS] {
    let to = base + (s.at * size_of::<bf16>()) as u64;
    let fours = [s.start, s.cols, s.ld].iter().all(|v| v.is_multiple_of(4));
    let whole = fours && to.is_multiple_of(8);
    let mut out = [0; WORDS];
    for (i, v) in [s.start as u64, (s.rows * s.cols) as u64, to, s.ld as u64].into_iter().enumerate() {
        out[2 * i] = v as u32;
        out[2 * i + 1] = (v >> 32) as u32;
    }
    out[8] = s.cols as u32;
    out[9] = s.factor.to_bits();
    out[10] = whole.into();
    out
}

/// Checks segments that are sorted and not empty against each other, `n` parameters and slices of these lengths.
fn check(n: usize, lengths: &[usize], segments: &[Segment]) -> Result<()> {
    let mut end = 0;
    for s in segments {
        let length = s.rows.checked_mul(s.cols).filter(|&length| length < 1 << 31);
        let stop = length.and_then(|length| length.checked_add(s.start));
        let inside = stop.is_some_and(|stop| stop <= n);
        expect(OP, inside, || format!("{s:?} is not inside {n} parameters"))?;
        expect(OP, s.start >= end, || format!("{s:?} overlaps the segment before it"))?;
        end = stop.unwrap_or(n);
        let slice = lengths.get(s.to).copied().unwrap_or(0);
        let fits = (s.rows == 1 || s.cols <= s.ld) && last(s).is_some_and(|last| last < slice);
        expect(OP, fits, || format!("the copy of {s:?} is not inside its {slice} values"))?;
    }
    let mut order: Vec<&Segment> = segments.iter().collect();
    order.sort_by_key(|s| (s.to, s.at));
    let mut open: Vec<&Segment> = Vec::new();
    for s in order {
        open.retain(|before| before.to == s.to && last(before).is_some_and(|last| last >= s.at));
        for before in &open {
            expect(OP, apart(before, s), || format!("the copies of {before:?} and {s:?} overlap"))?;
        }
        open.push(s);
    }
    Ok(())
}

/// Where the last value of a segment's copy lies.
fn last(s: &Segment) -> Option<usize> {
    (s.rows - 1).checked_mul(s.ld)?.checked_add(s.cols - 1)?.checked_add(s.at)
}

/// Whether the copies of two segments, which start in this order in one slice and before the first one's end, lie side
/// by side in one matrix. Of copies that interleave at different distances no layout has need.
fn apart(a: &Segment, b: &Segment) -> bool {
    // A single row fits any distance between rows.
    let ld = if a.rows > 1 { a.ld } else { b.ld };
    if (b.rows > 1 && b.ld != ld) || a.rows == 1 {
        return false;
    }
    let (row, col) = ((b.at - a.at) / ld, (b.at - a.at) % ld);
    // b can also run over the end of one of a's rows into the next.
    let runs_over = col + b.cols > ld && row + 1 < a.rows;
    let inside = col < a.cols && row < a.rows;
    !inside && !runs_over
}

//! Attention of new tokens over a key/value cache (`attention_decode.cu`).

use half::bf16;

use super::attention::{Heads, MAX_LD};
use super::driver::{Arg, Driver, Launch, Limits};
use super::error::{Result, expect};
use super::slice::{Slice, View, ViewMut};

const OP: &str = "attention_decode";
/// Query heads that a block takes at a time.
const HEADS: usize = 16;
/// Keys for which a block of its own is worth the second pass.
const SHARE: usize = 128;
const MAX_SHARES: usize = 128;
/// More blocks than this per multiprocessor would wait for each other.
const BLOCKS: usize = 4;
const MAX_KEYS: usize = 1 << 30;

/// The keys of one query: a run of rows of the cache that ends with the query's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// First row of the sequence in the cache.
    pub start: usize,
    /// How many keys there are, one at least.
    pub keys: usize,
}

/// The contexts of a batch of queries on the device: made once a step, read by every layer.
///
/// Several new tokens of one sequence are several queries whose contexts grow by one.
#[derive(Debug)]
pub struct Contexts<D: Driver> {
    queries: usize,
    longest: usize,
    rows: usize,
    list: Slice<D, i32>,
}

impl<D: Driver> Contexts<D> {
    /// Of no queries, with room for some.
    pub fn with_room(d: &D, queries: usize) -> Result<Self> {
        Ok(Self { queries: 0, longest: 0, rows: 0, list: Slice::uninit(d, 2 * queries)? })
    }

    /// Of these queries.
    ///
    /// # Errors
    /// If a context has no keys, or too many to count.
    pub fn new(d: &D, contexts: &[Context]) -> Result<Self> {
        let mut out = Self::with_room(d, contexts.len())?;
        out.set(d, contexts)?;
        Ok(out)
    }

    /// Of these queries, in the memory of `old` where that is large enough, and otherwise in memory for at least `room`
    /// queries. What still reads the old ones was queued before, and is done first.
    ///
    /// # Errors
    /// As [`Contexts::new`].
    pub fn in_memory_of(old: Option<Self>, d: &D, room: usize, contexts: &[Context]) -> Result<Self> {
        let mut out = match old {
            Some(old) if old.list.len() / 2 >= contexts.len() => old,
            old => {
                drop(old);
                Self::with_room(d, room.max(contexts.len()))?
            }
        };
        out.set(d, contexts)?;
        Ok(out)
    }

    /// Takes other queries.
    ///
    /// # Errors
    /// As [`Contexts::new`], and if there is no room for so many.
    pub fn set(&mut self, d: &D, contexts: &[Context]) -> Result<()> {
        let room = self.list.len() / 2;
        expect(OP, contexts.len() <= room, || format!("{} queries with room for {room}", contexts.len()))?;
        let (mut longest, mut rows) = (0, 0);
        let mut list = Vec::with_capacity(2 * contexts.len());
        for (i, &Context { start, keys }) in contexts.iter().enumerate() {
            expect(OP, (1..MAX_KEYS).contains(&keys) && start <= i32::MAX as usize - keys, || {
                format!("query {i} has {keys} keys from row {start} on")
            })?;
            longest = longest.max(keys);
            rows = rows.max(start + keys);
            list.extend([start as i32, keys as i32]);
        }
        self.list.write(d, 0, &list)?;
        (self.queries, self.longest, self.rows) = (contexts.len(), longest, rows);
        Ok(())
    }

    /// Queries of the batch.
    pub fn queries(&self) -> usize {
        self.queries
    }
}

/// Blocks of a query that one call of heads takes.
fn rounds(h: Heads) -> usize {
    h.kv_heads * h.group().div_ceil(HEADS)
}

/// Shares that contexts are cut into: enough to keep the device busy, none too short.
fn shares(limits: Limits, queries: usize, longest: usize, h: Heads) -> usize {
    let blocks = (queries * rounds(h)).max(1);
    let wanted = (limits.multiprocessors as usize * BLOCKS).div_ceil(blocks);
    let keys = h.window.map_or(longest, |w| w.min(longest));
    wanted.min(keys.div_ceil(SHARE)).clamp(1, MAX_SHARES)
}

/// Values of scratch with which [`attention_decode`] takes any batch of up to `queries` queries whose contexts have up
/// to `longest` keys.
pub fn scratch(limits: Limits, queries: usize, longest: usize, h: Heads) -> usize {
    // Fewer queries are cut into more shares.
    let most = |n: usize| match shares(limits, n, longest, h) {
        1 => 0,
        shares => n * h.heads * shares * (h.head_dim + 2),
    };
    (1..=queries).map(most).max().unwrap_or(0)
}

/// o = attention of each query over its context.
///
/// # Shapes
/// - q, o: `[queries, heads * head_dim]`, k, v: `[rows, kv_heads * head_dim]` bf16, rows on 16 bytes
/// - scratch: what [`scratch`] says, f32
///
/// # Errors
/// If the shapes do not match, a context passes the cache, a matrix is not inside its slice, or a row is not aligned.
pub fn attention_decode<D: Driver>(
    d: &D,
    contexts: &Contexts<D>,
    h: Heads,
    q: View<'_, D, bf16>,
    k: View<'_, D, bf16>,
    v: View<'_, D, bf16>,
    scratch: &mut Slice<D, f32>,
    o: ViewMut<'_, D, bf16>,
) -> Result<()> {
    h.check(OP)?;
    let Contexts { queries, longest, rows, ref list } = *contexts;
    expect(OP, [(q.rows, q.cols), (o.rows, o.cols)] == [(queries, h.width()); 2], || {
        format!(
            "q [{}, {}] and o [{}, {}] must be [{queries}, {}]",
            q.rows,
            q.cols,
            o.rows,
            o.cols,
            h.width()
        )
    })?;
    let fits = k.rows >= rows && v.rows >= rows && k.cols == h.kv_width() && v.cols == h.kv_width();
    expect(OP, fits, || {
        let (width, cache) = (h.kv_width(), [k.rows, k.cols, v.rows, v.cols]);
        format!(
            "k [{}, {}] and v [{}, {}] must have {rows} rows of {width}",
            cache[0], cache[1], cache[2], cache[3]
        )
    })?;
    q.check(OP, "q", 8)?;
    k.check(OP, "k", 8)?;
    v.check(OP, "v", 8)?;
    o.check(OP, "o", 8)?;
    expect(OP, k.ld < MAX_LD && v.ld < MAX_LD, || {
        format!("the rows of k and v lie {} and {} apart, at most {MAX_LD} can be handled", k.ld, v.ld)
    })?;
    let shares = shares(d.limits(), queries, longest, h);
    let partials = queries * h.heads * shares * (h.head_dim + 2);
    expect(OP, shares == 1 || scratch.len() >= partials, || {
        format!("{} values of scratch for {partials}", scratch.len())
    })?;
    expect(OP, queries <= 65_535 && i32::try_from(queries * h.heads).is_ok(), || {
        format!("{queries} queries of {} heads are too many", h.heads)
    })?;
    if queries == 0 {
        return Ok(());
    }

    let (kernel, warps, shared) = instance(h.head_dim);
    let matrix = |view: &View<'_, D, bf16>| [view.arg(d), Arg::I64(view.ld as i64)];
    let out = [o.arg(d), Arg::I64(o.ld as i64)];
    let args = [
        &[list.arg(d, 0)],
        [matrix(&q), matrix(&k), matrix(&v), out].as_flattened(),
        &[scratch.arg(d, 0), Arg::I32(h.heads as i32), Arg::I32(h.group() as i32)],
        &[Arg::I32(h.head_dim as i32), Arg::I32(h.window()), Arg::F32(h.scale())],
    ]
    .concat();
    let most = d.limits().shared_per_block;
    expect(OP, shared <= most, || {
        format!("{kernel} takes {shared} bytes of shared memory, the device has {most}")
    })?;
    let grid = [rounds(h) as u32, shares as u32, queries as u32];
    let launch = Launch { kernel, grid, threads: warps * 32, shared, args: &args };
    // SAFETY: every matrix was found inside its slice, the contexts inside k and v, scratch holds every share's sums if
    // there are several, and the kernel takes these arguments.
    unsafe { d.launch(&launch)? };
    if shares == 1 {
        return Ok(());
    }
    let args = [
        &[list.arg(d, 0), scratch.arg(d, 0)],
        out.as_slice(),
        &[Arg::I32(queries as i32), Arg::I32(h.heads as i32), Arg::I32(h.head_dim as i32)],
        &[Arg::I32(shares as i32), Arg::I32(h.window())],
    ]
    .concat();
    let grid = [(queries * h.heads).div_ceil(4) as u32, 1, 1];
    let launch = Launch { kernel: "attention_decode_combine", grid, threads: 128, shared: 0, args: &args };
    // SAFETY: as above.
    unsafe { d.launch(&launch) }
}

/// The kernel for heads of `head_dim`, its warps, and its bytes of shared memory.
fn instance(head_dim: usize) -> (&'static str, u32, u32) {
    /// The numbers of an instance: width, warps, and stages of 16 keys and values for each warp.
    macro_rules! instance {
        ($width:literal, $warps:literal, $stages:literal) => {
            (concat!("attention_decode_", $width), $warps, $warps * $stages * 2 * 16 * $width * 2)
        };
    }
    match head_dim {
        0..=32 => instance!(32, 4, 2),
        33..=64 => instance!(64, 4, 3),
        65..=96 => instance!(96, 4, 2),
        97..=128 => instance!(128, 4, 2),
        129..=192 => instance!(192, 2, 2),
        _ => instance!(256, 2, 2),
    }
}

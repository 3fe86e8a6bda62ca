//! Which query sees which keys, as lists of tiles on the device.

use super::OP;
use crate::gpu::driver::{Arg, Driver};
use crate::gpu::error::{Error, Result, expect};
use crate::gpu::slice::Slice;

/// Rows of a tile of queries or keys.
const TILE: usize = 128;
/// Numbers of a query tile: its rows, and its document's first key row.
const QUERY_TILE: usize = 3;
/// Numbers of a key tile: its rows, its document's first key row, and the query rows that can see any of it.
const KEY_TILE: usize = 5;

/// Documents laid end to end.
#[derive(Debug, Clone, Copy)]
pub struct Documents<'a> {
    /// Document `i` has the query rows `cu_queries[i]..cu_queries[i + 1]`; the first is 0.
    pub cu_queries: &'a [usize],
    /// And the key rows `cu_keys[i]..cu_keys[i + 1]`; the first is 0.
    pub cu_keys: &'a [usize],
    /// `[queries]`: the position of each query among its document's keys, ascending in a document.
    pub positions: &'a [usize],
}

/// What a plan may have to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Query rows.
    pub queries: usize,
    /// Key rows.
    pub keys: usize,
    /// Documents.
    pub documents: usize,
}

impl Room {
    /// No documents cut into more tiles than this.
    fn tiles(rows: usize, documents: usize) -> usize {
        // Every document has at most one tile that is not full.
        rows.min(rows.div_ceil(TILE).saturating_add(documents))
    }
}

/// The tiles of a batch, longest first, and the positions of its queries: made once, read by every layer.
#[derive(Debug)]
pub struct Plan<D: Driver> {
    queries: usize,
    keys: usize,
    positions: Slice<D, i32>,
    query_tiles: Slice<D, i32>,
    key_tiles: Slice<D, i32>,
    /// Tiles that a pass over the queries and one over the keys look at.
    tiles: (usize, usize),
}

/// The lists before they are on the device.
struct Lists {
    positions: Vec<i32>,
    query_tiles: Vec<i32>,
    key_tiles: Vec<i32>,
}

impl<D: Driver> Plan<D> {
    /// The plan of a batch, with no more tiles than it takes.
    ///
    /// # Errors
    /// If the documents' rows do not ascend from 0, there are not as many positions as queries, or the positions of a
    /// document do not ascend or pass its keys.
    pub fn new(d: &D, documents: Documents<'_>) -> Result<Self> {
        Self::in_memory_of(None, d, documents, Room { queries: 0, keys: 0, documents: 0 })
    }

    /// The plan of a batch as [`Plan::new`] makes it, in the memory of `old` where that is large enough, and otherwise in
    /// memory for any batch that fits the room. What still reads the old plan was queued before, and is done first.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn in_memory_of(old: Option<Self>, d: &D, documents: Documents<'_>, room: Room) -> Result<Self> {
        let lists = Lists::new(documents)?;
        let (positions, query_tiles, key_tiles) = match old {
            Some(old) => (Some(old.positions), Some(old.query_tiles), Some(old.key_tiles)),
            None => (None, None, None),
        };
        let tiles = |rows| Room::tiles(rows, room.documents);
        Ok(Self {
            queries: documents.positions.len(),
            keys: last(documents.cu_keys),
            tiles: (lists.query_tiles.len() / QUERY_TILE, lists.key_tiles.len() / KEY_TILE),
            positions: Slice::in_memory_of(positions, d, room.queries, &lists.positions)?,
            query_tiles: Slice::in_memory_of(
                query_tiles,
                d,
                tiles(room.queries) * QUERY_TILE,
                &lists.query_tiles,
            )?,
            key_tiles: Slice::in_memory_of(key_tiles, d, tiles(room.keys) * KEY_TILE, &lists.key_tiles)?,
        })
    }

    /// The plan of an empty batch whose lists have a fixed length, filled up with empty tiles: with [`Plan::set`],
    /// addresses and grids stay the same for any batch that fits the room.
    pub fn with_room(d: &D, room: Room) -> Result<Self> {
        let tiles = (Room::tiles(room.queries, room.documents), Room::tiles(room.keys, room.documents));
        Ok(Self {
            queries: 0,
            keys: 0,
            positions: Slice::zeros(d, room.queries)?,
            query_tiles: Slice::zeros(d, tiles.0 * QUERY_TILE)?,
            key_tiles: Slice::zeros(d, tiles.1 * KEY_TILE)?,
            tiles,
        })
    }

    /// Takes another batch into the same lists.
    ///
    /// # Errors
    /// As [`Plan::new`], and if the batch does not fit the lists.
    pub fn set(&mut self, d: &D, documents: Documents<'_>) -> Result<()> {
        let mut lists = Lists::new(documents)?;
        let lengths = [
            ("positions", lists.positions.len(), self.positions.len(), 1),
            ("query tiles", lists.query_tiles.len(), self.query_tiles.len(), QUERY_TILE),
            ("key tiles", lists.key_tiles.len(), self.key_tiles.len(), KEY_TILE),
        ];
        for (what, len, room, of) in lengths {
            expect(OP, len <= room, || format!("{} {what} in a plan for {}", len / of, room / of))?;
        }
        lists.query_tiles.resize(self.query_tiles.len(), 0);
        lists.key_tiles.resize(self.key_tiles.len(), 0);
        self.tiles = (lists.query_tiles.len() / QUERY_TILE, lists.key_tiles.len() / KEY_TILE);
        (self.queries, self.keys) = (documents.positions.len(), last(documents.cu_keys));
        self.positions.write(d, 0, &lists.positions)?;
        self.query_tiles.write(d, 0, &lists.query_tiles)?;
        self.key_tiles.write(d, 0, &lists.key_tiles)
    }

    /// Query rows of the batch.
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// Key rows of the batch.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Blocks per head of a pass over the queries.
    pub(super) fn query_blocks(&self) -> usize {
        self.tiles.0
    }

    /// Blocks per head of a pass over the keys.
    pub(super) fn key_blocks(&self) -> usize {
        self.tiles.1
    }

    /// The first two arguments of a pass over the queries.
    pub(super) fn query_args(&self, d: &D) -> [Arg; 2] {
        [self.query_tiles.arg(d, 0), self.positions.arg(d, 0)]
    }

    /// The first two arguments of a pass over the keys.
    pub(super) fn key_args(&self, d: &D) -> [Arg; 2] {
        [self.key_tiles.arg(d, 0), self.positions.arg(d, 0)]
    }
}

impl Lists {
    fn new(documents: Documents<'_>) -> Result<Self> {
        let Documents { cu_queries, cu_keys, positions } = documents;
        check(documents)?;
        // What a tile costs (pairs of a row and the rows it meets, near enough) and its numbers.
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        for (q, k) in cu_queries.windows(2).zip(cu_keys.windows(2)) {
            for row in (q[0]..q[1]).step_by(TILE) {
                let end = q[1].min(row + TILE);
                queries.push((positions[end - 1] + 1, [row, end, k[0]]));
            }
            for row in (k[0]..k[1]).step_by(TILE) {
                let first = q[0] + positions[q[0]..q[1]].partition_point(|&p| p < row - k[0]);
                keys.push((q[1] - first, [row, k[1].min(row + TILE), k[0], first, q[1]]));
            }
        }
        // Stable, so that equal tiles stay in the order of their rows.
        queries.sort_by_key(|&(cost, _)| std::cmp::Reverse(cost));
        keys.sort_by_key(|&(cost, _)| std::cmp::Reverse(cost));
        // Every number is at most a count of rows, which was found to fit.
        let int = |v: usize| v as i32;
        Ok(Self {
            positions: positions.iter().map(|&p| int(p)).collect(),
            query_tiles: queries.iter().flat_map(|(_, tile)| tile.map(int)).collect(),
            key_tiles: keys.iter().flat_map(|(_, tile)| tile.map(int)).collect(),
        })
    }
}

fn last(cu: &[usize]) -> usize {
    cu.last().copied().unwrap_or(0)
}

fn check(documents: Documents<'_>) -> Result<()> {
    let Documents { cu_queries, cu_keys, positions } = documents;
    expect(OP, cu_queries.len() == cu_keys.len() && !cu_keys.is_empty(), || {
        format!("{} bounds of queries, {} of keys", cu_queries.len(), cu_keys.len())
    })?;
    for (what, cu) in [("query", cu_queries), ("key", cu_keys)] {
        expect(OP, cu[0] == 0 && cu.is_sorted(), || {
            format!("the documents' {what} rows must ascend from 0, not {cu:?}")
        })?;
        expect(OP, i32::try_from(last(cu)).is_ok(), || format!("{} {what} rows are too many", last(cu)))?;
    }
    expect(OP, last(cu_queries) == positions.len(), || {
        format!("{} positions for {} queries", positions.len(), last(cu_queries))
    })?;
    for (i, (q, k)) in cu_queries.windows(2).zip(cu_keys.windows(2)).enumerate() {
        let (positions, keys) = (&positions[q[0]..q[1]], k[1] - k[0]);
        if let Some(&[before, after]) = positions.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(Error::shape(OP, format!("document {i}: position {after} after {before}")));
        }
        if let Some(&p) = positions.last().filter(|&&p| p >= keys) {
            return Err(Error::shape(OP, format!("document {i}: position {p} with {keys} keys")));
        }
    }
    Ok(())
}

//! A matrix on its way through a small staging memory: cut into pieces, each filled and sent on by itself.

use std::ops::ControlFlow;

/// Fills a piece of staging memory: is told where its first byte stands in the whole, rows one after another, and may
/// stop. It must not use the device meanwhile.
pub type Fill<'a> = dyn FnMut(usize, &mut [u8]) -> ControlFlow<()> + 'a;

/// Rows in a block of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// The first byte of the first one.
    pub at: usize,
    /// How many.
    pub rows: usize,
    /// Bytes of one.
    pub bytes: usize,
    /// Bytes from the start of one to that of the next: at least `bytes`.
    pub pitch: usize,
}

/// Whole rows, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte in the whole, rows one after another.
    pub from: usize,
    /// Where it goes.
    pub to: Rows,
}

impl Piece {
    /// Its bytes.
    pub fn len(&self) -> usize {
        self.to.rows * self.to.bytes
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Rows {
    /// `bytes` bytes one after another.
    pub fn flat(at: usize, bytes: usize) -> Self {
        Self { at, rows: 1, bytes, pitch: bytes }
    }

    /// Pieces of at most `most` bytes, in order. A longer row is cut; rows without a gap count as one.
    ///
    /// `most` must be even, so that no bf16 value is cut.
    pub fn pieces(self, most: usize) -> impl Iterator<Item = Piece> {
        let Self { at, mut rows, mut bytes, mut pitch } = self;
        if pitch == bytes || rows == 1 {
            (rows, bytes) = (rows.min(1), rows * bytes);
            pitch = bytes;
        }
        let whole = most.checked_div(bytes).unwrap_or(0);
        let (tall, wide) = if whole > 0 { (whole, bytes) } else { (1, most) };
        let across = bytes.div_ceil(wide.max(1));
        (0..rows.div_ceil(tall) * across).map(move |i| {
            let (row, byte) = (i / across * tall, i % across * wide);
            let to = Rows {
                at: at + row * pitch + byte,
                rows: tall.min(rows - row),
                bytes: wide.min(bytes - byte),
                pitch,
            };
            Piece { from: row * bytes + byte, to }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_byte_once_and_in_order() {
        for (rows, bytes, gap, most) in [
            (1, 10, 0, 4),
            (5, 6, 0, 4),
            (5, 6, 2, 4),
            (5, 6, 2, 6),
            (7, 6, 2, 20),
            (7, 6, 0, 20),
            (1, 6, 9, 100),
            (3, 0, 4, 8),
            (0, 6, 0, 8),
            (0, 6, 2, 8),
        ] {
            let all = Rows { at: 3, rows, bytes, pitch: bytes + gap };
            let mut next = 0;
            let mut places = Vec::new();
            for piece in all.pieces(most) {
                assert!(piece.len() <= most && !piece.is_empty(), "{all:?}: {piece:?}");
                assert_eq!(piece.from, next, "{all:?}");
                next += piece.len();
                for row in 0..piece.to.rows {
                    places.extend((0..piece.to.bytes).map(|b| piece.to.at + row * piece.to.pitch + b));
                }
            }
            let expected: Vec<usize> =
                (0..rows).flat_map(|r| (0..bytes).map(move |b| 3 + r * (bytes + gap) + b)).collect();
            assert_eq!(places, expected, "{all:?}");
        }
    }
}

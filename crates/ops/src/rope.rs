//! The table of rotary position embeddings.

use crate::Tag;

/// cos and sin of every position and frequency, f32 as transformers computes them: the angle is the f32
/// product of position and inverse frequency.
#[derive(Debug, Clone)]
pub struct RopeTable {
    tag: Tag,
    half: usize,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table for `positions` positions.
    ///
    /// # Shapes
    /// - `inverse_frequencies`: `[head_dim / 2]`
    pub fn new(inverse_frequencies: &[f32], positions: usize) -> Self {
        let half = inverse_frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(half * positions), Vec::with_capacity(half * positions));
        for p in 0..positions {
            for &f in inverse_frequencies {
                let angle = p as f32 * f;
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        Self { tag: Tag::fresh(), half, positions, cos, sin }
    }

    /// What this table is remembered by.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// Half the head size.
    pub fn half(&self) -> usize {
        self.half
    }

    /// How many positions there are.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// cos and sin of all positions, `[positions, head_dim / 2]` each.
    pub(crate) fn values(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// cos and sin of one position, `[head_dim / 2]` each; `None` beyond the table.
    pub fn row(&self, position: usize) -> Option<(&[f32], &[f32])> {
        let at = position * self.half;
        (position < self.positions).then(|| (&self.cos[at..at + self.half], &self.sin[at..at + self.half]))
    }
}

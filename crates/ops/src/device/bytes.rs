//! What [`super::DeviceKernels`] holds beside its callers' buffers, in bytes.

use tunesmith_kernels::gpu::{attention, norm};

use super::{logits_rows, memo};
use crate::Calls;

/// Logits of one chunk, bf16, in rows that start at multiples of 16 bytes.
pub(crate) fn logits(calls: &Calls) -> u64 {
    (logits_rows(calls.vocab, calls.rows) * calls.vocab.next_multiple_of(8) * 2) as u64
}

/// The most that everything else takes: the buffers of single calls, and copies of what batches fix, as many as are kept.
pub(crate) fn lists(calls: &Calls) -> u64 {
    let Calls { rows, documents, training, dropout, heads, head_dim, positions, .. } = *calls;
    let statistics = if training { attention::backward_scratch(rows, heads) } else { 0 };
    let once = 4 * rows + 4 * statistics.max(norm::OUT) + 8 * norm::PARTIALS;
    let angles = 2 * 4 * positions * head_dim.div_ceil(2);
    // Two plans of each batch, for the last block's queries and for all others.
    let tiles = 4 * (3 + 5) * rows.min(rows.div_ceil(attention::TILE) + documents);
    let plans = (4 * rows + tiles) * memo::KEPT;
    // Positions, selected rows and their inverse, and, with dropout, the names of rows, two words each.
    let batches = (3 * 4 + if dropout { 8 } else { 0 }) * rows * memo::KEPT;
    (once + angles + plans + batches) as u64
}

//! What [`super::DeviceKernels`] holds beside its callers' buffers, in bytes.

use tunesmith_kernels::gpu::{adamw, attention, norm};

use super::{logits_rows, memo};
use crate::Calls;

/// What a guard keeps.
const GUARD: usize = 8 * norm::PARTIALS + 4 * (norm::OUT + norm::GUARD);

/// The table that updates refresh copies by.
pub(crate) fn copies(parameters: usize, matrices: usize) -> u64 {
    adamw::table_bytes(parameters, matrices) as u64
}

/// Logits of one chunk, bf16, in rows that start at multiples of 16 bytes.
pub(crate) fn logits(calls: &Calls) -> u64 {
    (logits_rows(calls.vocab, calls.rows) * calls.vocab.next_multiple_of(8) * 2) as u64
}

/// The most that everything else takes: the buffers of single calls, copies of what batches fix, as many as are kept, and
/// what a warm-up's trials of products write to instead of the residual stream.
pub(crate) fn lists(calls: &Calls) -> u64 {
    let Calls { rows, training, dropout, heads, head_dim, width, positions, .. } = *calls;
    let statistics = if training { attention::backward_scratch(rows, heads) } else { 0 };
    let once = 4 * rows + 4 * statistics.max(norm::OUT) + 8 * norm::PARTIALS + GUARD;
    let angles = 2 * 4 * positions * head_dim.div_ceil(2);
    // A plan's positions and tiles: three numbers for those of queries, five for those of keys, one to a row at most.
    let plan = 4 * (1 + 3 + 5) * rows;
    // Positions, selected rows and their inverse, and, with dropout, the names of rows, two words each.
    let batch = 4 * (3 + if dropout { 2 } else { 0 }) * rows;
    (once + angles + (plan + batch) * memo::KEPT + 2 * rows * width) as u64
}

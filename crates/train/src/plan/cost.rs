//! What a step costs, in operations of an endlessly large batch.

use tunesmith_model::Footprint;

use super::Wish;
use super::lengths::{Lengths, packs};

/// What every micro-batch costs beside its tokens, as tokens: reading the frozen weights twice takes as long as the
/// products of some 200 tokens (rate over bandwidth, 788 TFLOP/s and 4.3 TB/s on an H200, much the same on other cards), and
/// the last wave of tiles of each product is half empty, which with a width of 4,096 is worth another 500.
///
/// Together they are the 700 that published runs show: Llama-3-8B at 4 to 32 rows of 4,096 tokens on one A100 makes 4,009,
/// 4,105, 4,140 and 4,160 tokens a second (fms-acceleration, QLoRA with fused kernels), which is 4,183 / (1 + 709 / n) within
/// 0.3 % for n tokens. So 4,096 tokens get 85 % of a card, 16,384 get 96 %.
fn tokens_of_a_micro_batch(width: usize) -> f64 {
    200.0 + 500.0 * 4096.0 / width.max(1) as f64
}

/// The price of the ways to cut a run's steps.
#[derive(Debug)]
pub(super) struct Cost {
    /// Operations of a token where nothing is computed again.
    flops: f64,
    keys: f64,
    /// What a micro-batch costs, as tokens.
    each: f64,
    /// Lengths of the rows of a typical step.
    typical: Vec<usize>,
}

impl Cost {
    pub(super) fn new(footprint: &Footprint, lengths: &Lengths, batch: usize) -> Self {
        let keys = lengths.mean_keys();
        let flops = footprint.training_flops(keys);
        Self {
            flops,
            keys,
            each: tokens_of_a_micro_batch(footprint.width()),
            typical: lengths.typical(batch),
        }
    }

    /// Keys that a token sees on average.
    pub(super) fn keys(&self) -> f64 {
        self.keys
    }

    /// Share that `again` operations of a token add to its others.
    pub(super) fn share(&self, again: f64) -> f64 {
        again / self.flops
    }

    /// Micro-batches of a typical step.
    pub(super) fn micro_batches(&self, wish: Wish, tokens: usize) -> usize {
        match wish {
            Wish::Rows(rows) => self.typical.len().div_ceil(rows).max(1),
            Wish::Tokens => packs(&self.typical, tokens),
        }
    }

    /// How much longer a typical step takes than its tokens would in one endless batch with nothing computed again.
    pub(super) fn slowdown(&self, micro_batches: usize, again: f64) -> f64 {
        let tokens = self.typical.iter().sum::<usize>().max(1) as f64;
        (1.0 + self.share(again)) * (tokens + self.each * micro_batches as f64) / tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cost_of_a_micro_batch_is_that_of_the_published_runs() {
        let each = tokens_of_a_micro_batch(4096);
        for (rows, published) in [(4, 4009.0), (8, 4105.0), (16, 4140.0), (32, 4160.0)] {
            let ours = 4183.0 / (1.0 + each / f64::from(rows * 4096));
            assert!((ours / published - 1.0_f64).abs() < 0.003, "{rows} rows: {ours}");
        }
    }
}

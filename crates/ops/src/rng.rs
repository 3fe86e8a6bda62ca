//! Counter-based random numbers: the value at a counter depends on nothing that came before it, so a
//! recomputed layer, another micro-batch size or a resumed run sees the same numbers.

use tunesmith_kernels::gpu::fill::SPREAD;

/// Philox 4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
#[derive(Debug, Clone, Copy)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The generator of one seed and one purpose (`stream`).
    pub fn new(seed: u64, stream: u32) -> Self {
        Self { key: [seed as u32, (seed >> 32) as u32 ^ stream.wrapping_mul(0x9E37_79B9)] }
    }

    /// Four random words at a counter.
    pub fn words(&self, counter: [u32; 4]) -> [u32; 4] {
        const M0: u64 = 0xD251_1F53;
        const M1: u64 = 0xCD9E_8D57;
        let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, self.key);
        for _ in 0..10 {
            let (p0, p1) = (M0 * u64::from(a), M1 * u64::from(c));
            (a, b, c, d) = ((p1 >> 32) as u32 ^ b ^ k0, p1 as u32, (p0 >> 32) as u32 ^ d ^ k1, p0 as u32);
            k0 = k0.wrapping_add(0x9E37_79B9);
            k1 = k1.wrapping_add(0xBB67_AE85);
        }
        [a, b, c, d]
    }

    /// A number in [0, 1) from 24 bits of a word.
    pub fn unit(word: u32) -> f32 {
        (word >> 8) as f32 / (1u32 << 24) as f32
    }
}

/// Names the dropout mask of one site in one optimizer step. Rows are named by the batch.
#[derive(Debug, Clone, Copy)]
pub struct DropoutKey {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step.
    pub step: u32,
    /// Layer and linear: every site has its own mask, as in PEFT.
    pub site: u32,
}

impl DropoutKey {
    /// Fills one row with 0 where it is dropped and `1 / (1 - p)` where it is kept.
    ///
    /// `row` names the row by its example's place in the step and its position in the example, so that the
    /// mask does not depend on how the step is cut into micro-batches.
    pub fn mask_row(&self, row: [u32; 2], p: f32, out: &mut [f32]) {
        let rng = Philox::new(self.seed, self.step.wrapping_add(1));
        let keep = 1.0 / (1.0 - p);
        for (block, out) in out.chunks_mut(4).enumerate() {
            let words = rng.words([block as u32, self.site, row[0], row[1]]);
            for (o, w) in out.iter_mut().zip(words) {
                *o = if Philox::unit(w) < p { 0.0 } else { keep };
            }
        }
    }
}

/// Names the random weights of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillKey {
    /// Seed of all tensors.
    pub seed: u64,
    /// Which tensor.
    pub tensor: u32,
}

impl FillKey {
    /// What tells these numbers from others of the same seed.
    const PURPOSE: u32 = 0xf111;

    /// Values `first`, `first + 1`, ... of the tensor: mean 0, standard deviation `std`, symmetric and bell-shaped (the sum
    /// of the four bytes of a random word).
    pub fn values(&self, std: f32, first: u64, out: &mut [f32]) {
        let rng = Philox::new(self.seed, 0);
        let scale = std / SPREAD;
        let value = |word: u32| {
            let sum: i32 = word.to_le_bytes().into_iter().map(i32::from).sum();
            (sum - 510) as f32 * scale
        };
        let mut at = first;
        let mut rest = out;
        while !rest.is_empty() {
            let block = at / 4;
            let words = rng.words([block as u32, (block >> 32) as u32, self.tensor, Self::PURPOSE]);
            let words = &words[(at % 4) as usize..];
            let count = words.len().min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            for (v, &word) in now.iter_mut().zip(words) {
                *v = value(word);
            }
            at += count as u64;
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_known_answers() {
        let zero = Philox { key: [0, 0] };
        assert_eq!(zero.words([0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Philox { key: [u32::MAX; 2] };
        assert_eq!(ones.words([u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = Philox { key: [0xa409_3822, 0x299f_31d0] };
        let words = pi.words([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
        assert_eq!(words, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn dropout_drops_its_share_and_keeps_the_mean() {
        let key = DropoutKey { seed: 3, step: 5, site: 2 };
        let (mut dropped, mut sum, mut row) = (0, 0.0, [0f32; 1000]);
        for r in 0..200 {
            key.mask_row([r, 1], 0.3, &mut row);
            dropped += row.iter().filter(|v| **v == 0.0).count();
            sum += row.iter().map(|v| f64::from(*v)).sum::<f64>();
        }
        assert!((dropped as f64 / 200_000.0 - 0.3).abs() < 0.005);
        assert!((sum / 200_000.0 - 1.0).abs() < 0.01);
        let mut other = [0f32; 1000];
        DropoutKey { site: 3, ..key }.mask_row([199, 1], 0.3, &mut other);
        assert_ne!(row, other);
    }
}

//! The order in which rows are visited: a pure function of seed and epoch, never of what came before.

use tunesmith_ops::Philox;

/// A permutation of `0..n` for one epoch (from 0).
pub fn epoch_order(seed: u64, epoch: usize, n: usize) -> Vec<usize> {
    let rng = Philox::new(seed, 0x0DE5);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let [a, b, ..] = rng.words([i as u32, (i >> 32) as u32, epoch as u32, 0]);
        let word = u64::from(a) << 32 | u64::from(b);
        // The product's high half is uniform on 0..=i up to 2^-32.
        let j = ((u128::from(word) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once_and_the_order_depends_on_seed_and_epoch_only() {
        let order = epoch_order(7, 2, 101);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..101).collect::<Vec<_>>());
        assert_eq!(order, epoch_order(7, 2, 101));
        assert_ne!(order, epoch_order(7, 3, 101));
        assert_ne!(order, epoch_order(8, 2, 101));
        assert!(epoch_order(0, 0, 0).is_empty());
    }
}

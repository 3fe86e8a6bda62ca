//! The head and its cross-entropy.

use super::{dot, wide};

/// -log softmax(x headᵀ)\[target\] of each row, and `weight` times its gradient by x.
pub(crate) fn cross_entropy(
    x: &[f32],
    head: &[f32],
    d: usize,
    targets: &[u32],
    weight: f32,
) -> [Vec<f64>; 2] {
    let (mut losses, mut dx) = (Vec::new(), Vec::new());
    for (row, &target) in x.chunks_exact(d).zip(targets) {
        let logits: Vec<f64> = head.chunks_exact(d).map(|h| dot(wide(row), wide(h))).collect();
        // A maximum that a NaN does not hide in.
        let max = logits.iter().fold(f64::NEG_INFINITY, |m, &z| if z > m || z.is_nan() { z } else { m });
        let sum: f64 = logits.iter().map(|z| (z - max).exp()).sum();
        losses.push(max + sum.ln() - logits[target as usize]);
        let mut gradient = vec![0.0; d];
        for (v, (z, h)) in logits.iter().zip(head.chunks_exact(d)).enumerate() {
            let hit = if v == target as usize { 1.0 } else { 0.0 };
            let dz = ((z - max).exp() / sum - hit) * f64::from(weight);
            gradient.iter_mut().zip(wide(h)).for_each(|(g, h)| *g += dz * h);
        }
        dx.extend(gradient);
    }
    [losses, dx]
}

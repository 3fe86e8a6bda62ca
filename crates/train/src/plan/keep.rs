//! What each layer keeps, so that it fits and as little as possible is computed again.

use tunesmith_model::{Footprint, Keep};

/// Every mode, from the one that keeps most.
pub(super) const KEEPS: [Keep; 4] = [Keep::All, Keep::NoMlp, Keep::Residuals, Keep::Input];

/// A choice for every layer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chosen {
    pub(super) keep: Vec<Keep>,
    /// Operations that a token costs again.
    pub(super) again: f64,
}

/// Operations that a token costs again in all layers.
pub(super) fn again(footprint: &Footprint, keep: &[Keep], keys: f64) -> f64 {
    keep.iter().enumerate().map(|(layer, &keep)| footprint.again_flops(layer, keep, keys)).sum()
}

/// The choice that computes least again within `room` bytes; nothing if none fits.
///
/// All layers with a backward cost and save the same, so only how many have each mode is chosen, over all that fit. The
/// last layers, whose backward comes first, keep most. Layers below the lowest update have no backward: whatever they keep
/// is never read, so they keep the least that any layer does.
pub(super) fn choose(
    footprint: &Footprint,
    tokens: usize,
    dropout: bool,
    room: u64,
    keys: f64,
) -> Option<Chosen> {
    let (layers, first) = (footprint.layers(), footprint.first_trained().unwrap_or(0));
    let prices = KEEPS.map(|keep| footprint.again_flops(layers - 1, keep, keys));
    let bytes = KEEPS.map(|keep| footprint.kept(tokens, keep));
    let mut best: Option<(f64, [usize; 4], Keep)> = None;
    for (level, least) in KEEPS.into_iter().enumerate() {
        let below = first as u64 * bytes[level];
        let Some(left) = room.checked_sub(footprint.shared(tokens, least, dropout) + below) else { continue };
        for counts in most_kept(layers - first, level, &bytes, left) {
            let price: f64 = counts.iter().zip(prices).map(|(&n, price)| n as f64 * price).sum();
            if best.is_none_or(|(known, ..)| price < known) {
                best = Some((price, counts, least));
            }
        }
        if best.is_some_and(|(price, ..)| price == 0.0) {
            break;
        }
    }
    let (_, counts, least) = best?;
    let mut keep = vec![least; first];
    for (&count, mode) in counts.iter().zip(KEEPS).rev() {
        keep.extend(std::iter::repeat_n(mode, count));
    }
    let again = again(footprint, &keep, keys);
    Some(Chosen { keep, again })
}

/// Ways to give `layers` layers the modes up to `level` within `left` bytes: for each number of layers in all modes but the
/// last two, as many as fit in the better of those.
fn most_kept(layers: usize, level: usize, bytes: &[u64; 4], left: u64) -> Vec<[usize; 4]> {
    let mut out = Vec::new();
    let free = level.saturating_sub(1);
    // Counts of the first `free` modes, each combination once.
    let (first, second) = (if free > 0 { layers } else { 0 }, if free > 1 { layers } else { 0 });
    for a in 0..=first {
        for b in 0..=second.min(layers - a) {
            let mut counts = [0; 4];
            if free > 0 {
                counts[0] = a;
            }
            if free > 1 {
                counts[1] = b;
            }
            let rest = layers - a - b;
            let used = a as u64 * bytes[0] + b as u64 * bytes[1];
            let least = used + rest as u64 * bytes[level];
            if least > left {
                continue;
            }
            let better = if level == 0 {
                0
            } else {
                let step = bytes[level - 1] - bytes[level];
                ((left - least) / step.max(1)).min(rest as u64) as usize
            };
            counts[level] = rest - better;
            if level > 0 {
                counts[level - 1] += better;
            }
            out.push(counts);
        }
    }
    out
}

//! What a device could do: its largest matrix products, measured, and what its maker says.

use std::time::{Duration, Instant};

use serde::Serialize;
use tunesmith_ops::{Error, FillKey, Kernels, Mat, MatMut};

/// Runs of a product, at least.
const RUNS: usize = 7;
/// Runs before them.
const WARM_UP: usize = 2;

/// The fastest of the products that were measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Peak {
    /// Floating-point operations a second, in units of 10^12: the median of some runs.
    pub tflop_s: f64,
    /// Rows and columns of the product, and its depth.
    pub shape: [usize; 3],
}

/// Measures products X Wᵀ of random values and gives the fastest. Each is run for `least` or longer.
///
/// # Errors
/// If the device fails or has no room.
pub(super) fn measure<K: Kernels>(k: &K, shapes: &[[usize; 3]], least: Duration) -> Result<Peak, Error> {
    let mut best = Peak { tflop_s: 0.0, shape: [0; 3] };
    for &shape in shapes {
        let [m, n, depth] = shape;
        let (mut x, mut w, mut y) = (k.zeros(m * depth)?, k.zeros(n * depth)?, k.zeros(m * n)?);
        let key = |tensor| FillKey { seed: 0, tensor };
        k.fill_random(key(0), 1.0, MatMut::new(&mut x, m, depth, depth))?;
        k.fill_random(key(1), 0.02, MatMut::new(&mut w, n, depth, depth))?;
        let mut times = Vec::new();
        let mut started = Instant::now();
        for run in 0.. {
            if run == WARM_UP {
                started = Instant::now();
                times.clear();
            }
            let start = k.mark()?;
            let (x, w) = (Mat::new(&x, m, depth, depth), Mat::new(&w, n, depth, depth));
            k.gemm(1.0, x, w.t(), 0.0, MatMut::new(&mut y, m, n, n))?;
            times.push(k.between(&start, &k.mark()?)?);
            if run >= WARM_UP && times.len() >= RUNS && started.elapsed() >= least {
                break;
            }
        }
        times.sort_unstable();
        let seconds = times[times.len() / 2].as_secs_f64();
        let tflop_s = 2.0 * (m as f64) * (n as f64) * (depth as f64) / seconds / 1e12;
        if tflop_s > best.tflop_s {
            best = Peak { tflop_s, shape };
        }
    }
    Ok(best)
}

/// bf16 products with f32 sums in units of 10^12 operations a second, without sparsity, as the makers' datasheets have them,
/// by a part of the name that the driver gives. The first that fits counts.
const DATASHEET: [(&str, f64); 22] = [
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("GH200", 989.0),
    ("GB200", 2500.0),
    ("H200", 989.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("B200", 2250.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A30", 165.0),
    ("A40", 150.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 5090", 210.0),
    ("RTX 4090", 165.0),
    ("RTX 6000 Ada", 364.0),
    ("RTX A6000", 155.0),
    ("RTX 3090 Ti", 80.0),
    ("RTX 3090", 71.0),
];

/// The datasheet's peak of a card, if it is known.
pub(super) fn datasheet(card: &str) -> Option<f64> {
    let words: Vec<&str> = card.split([' ', '-', '_']).collect();
    // Cut-down cards under the same name.
    if words.iter().any(|word| ["Laptop", "Max", "D", "D2"].contains(word)) {
        return None;
    }
    let named = |name: &str| {
        let name: Vec<&str> = name.split(' ').collect();
        words.windows(name.len()).any(|part| part == name)
    };
    DATASHEET.iter().find(|(name, _)| named(name)).map(|(_, tflop_s)| *tflop_s)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use tunesmith_ops::RefKernels;

    #[test]
    fn cards_are_known_by_whole_words() {
        for (card, tflop_s) in [
            ("NVIDIA H200", 989.0),
            ("NVIDIA H100 80GB HBM3", 989.0),
            ("NVIDIA H100 PCIe", 756.0),
            ("NVIDIA H100 NVL", 835.0),
            ("NVIDIA A100-SXM4-80GB", 312.0),
            ("NVIDIA L40S", 362.0),
            ("NVIDIA L4", 121.0),
            ("NVIDIA GeForce RTX 4090", 165.0),
            ("NVIDIA GeForce RTX 3090", 71.0),
            ("NVIDIA GeForce RTX 3090 Ti", 80.0),
            ("NVIDIA RTX 6000 Ada Generation", 364.0),
        ] {
            assert_eq!(datasheet(card), Some(tflop_s), "{card}");
        }
        for card in [
            "NVIDIA GeForce RTX 4090 D",
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA GeForce RTX 4080",
            "NVIDIA A1000",
            "Fake GPU",
            "CPU",
        ] {
            assert_eq!(datasheet(card), None, "{card}");
        }
    }

    #[test]
    fn the_fastest_product_counts() {
        let peak = measure(&RefKernels, &[[1, 1, 1], [96, 64, 80]], Duration::ZERO).unwrap();
        assert!(peak.shape == [96, 64, 80] && peak.tflop_s > 0.0, "{peak:?}");
    }
}

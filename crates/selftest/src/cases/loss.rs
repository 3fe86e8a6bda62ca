//! The head with its cross-entropy.

use tunesmith_ops::Kernels;

use crate::draw::values;
use crate::lab::{Allowed, Case, Fault, Lab};
use crate::placed::{Placed, Rows, full, read_full};
use crate::reference::loss::cross_entropy;

const WEIGHT: f32 = 0.125;

pub(super) fn all<K: Kernels>(lab: &mut Lab<'_, K>) {
    let mut shapes =
        vec![(9, 32, 203, Rows::Aligned), (1, 8, 5, Rows::Aligned), (33, 24, 520, Rows::Aligned)];
    if lab.is_real() {
        shapes.push((65, 512, 32003, Rows::Aligned));
    }
    for (n, d, vocab, how) in shapes {
        let targets: Vec<u32> = (0..n).map(|i| (i * 7919 + vocab - 1) as u32 % vocab as u32).collect();
        // Logits of a few units.
        let spread = 4.0 / (d as f32).sqrt();
        lab.take(&Case {
            op: "linear_cross_entropy",
            shape: format!("[{n}, {d}] by {vocab}"),
            inputs: vec![values(1, n * d, 1.0), values(2, vocab * d, spread)],
            run: &|k, x| {
                let head = Placed::new(k, how, (vocab, d), Some(&x[1]))?;
                let mut dx = Placed::new(k, how, (n, d), Some(&x[0]))?;
                let mut losses = full(k, &vec![f32::NAN; n])?;
                k.linear_cross_entropy(dx.get_mut(), head.get(), &targets, Some(WEIGHT), &mut losses)?;
                let mut x = Placed::new(k, how, (n, d), Some(&x[0]))?;
                let mut alone = full(k, &vec![f32::NAN; n])?;
                k.linear_cross_entropy(x.get_mut(), head.get(), &targets, None, &mut alone)?;
                let (losses, alone) = (read_full(k, &losses)?, read_full(k, &alone)?);
                if losses.iter().zip(&alone).any(|(a, b)| a.to_bits() != b.to_bits()) {
                    return Err(Fault::Wrong("losses depend on whether a gradient is made".to_owned()));
                }
                Ok(vec![losses, dx.read(k)?])
            },
            want: &|x| cross_entropy(&x[0], &x[1], d, &targets, WEIGHT).into(),
            outputs: &[("losses", Allowed::FullOfStored), ("dx", Allowed::Few)],
            nan: (n == 9).then_some((0, 2 * d + 1)),
        });
    }
    lab.refused("linear_cross_entropy", "a target outside the vocabulary", |k| {
        let head = Placed::new(k, Rows::Aligned, (5, 8), Some(&values(1, 40, 1.0)))?;
        let mut x = Placed::new(k, Rows::Aligned, (1, 8), Some(&values(2, 8, 1.0)))?;
        let mut losses = full(k, &[0.0])?;
        Ok(k.linear_cross_entropy(x.get_mut(), head.get(), &[5], None, &mut losses))
    });
}

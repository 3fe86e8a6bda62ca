//! RMSNorm, forward and backward.

use tunesmith_ops::Kernels;

use crate::draw::values;
use crate::lab::{Allowed, Case, Fault, Lab};
use crate::placed::{Placed, Rows, flat, full, read_full};
use crate::reference::norms::{backward, forward};

const EPS: f32 = 1e-5;

pub(super) fn all<K: Kernels>(lab: &mut Lab<'_, K>) {
    let mut shapes =
        vec![(1, 8, Rows::Aligned), (7, 72, Rows::Aligned), (3, 37, Rows::Odd), (2, 1320, Rows::Aligned)];
    if lab.is_real() {
        shapes.extend([(300, 4096, Rows::Aligned), (65, 8192, Rows::Aligned)]);
    }
    for (rows, d, how) in shapes {
        let nan = |input| (rows == 7).then_some((input, 3 * d + 5));
        let w: Vec<f32> = values(2, d, 0.25).iter().map(|v| 1.0 + v).map(crate::draw::round).collect();
        lab.take(&Case {
            op: "rms_norm",
            shape: format!("[{rows}, {d}]"),
            inputs: vec![values(1, rows * d, 3.0), w.clone()],
            run: &|k, x| {
                let w = flat(k, &x[1])?;
                let x = Placed::new(k, how, (rows, d), Some(&x[0]))?;
                let mut y = Placed::new(k, Rows::Aligned, (rows, d), None)?;
                let mut rstd = full(k, &vec![f32::NAN; rows])?;
                k.rms_norm(x.get(), &w, EPS, y.get_mut(), &mut rstd)?;
                Ok(vec![y.read(k)?, read_full(k, &rstd)?])
            },
            want: &|x| forward(&x[0], &x[1], EPS).into(),
            outputs: &[("y", Allowed::Few), ("rstd", Allowed::Full)],
            nan: nan(0),
        });
        let x = values(1, rows * d, 3.0);
        let rstd: Vec<f32> = forward(&x, &w, EPS)[1].iter().map(|&r| r as f32).collect();
        lab.take(&Case {
            op: "rms_norm_backward",
            shape: format!("[{rows}, {d}]"),
            inputs: vec![values(3, rows * d, 1.0), x, w, rstd, values(4, rows * d, 1.0)],
            run: &|k, x| {
                let dy = Placed::new(k, Rows::Aligned, (rows, d), Some(&x[0]))?;
                let (w, rstd) = (flat(k, &x[2])?, full(k, &x[3])?);
                let mut dx = Placed::new(k, Rows::Aligned, (rows, d), Some(&x[4]))?;
                let mut alone = Placed::new(k, Rows::Aligned, (rows, d), Some(&x[4]))?;
                let x = Placed::new(k, how, (rows, d), Some(&x[1]))?;
                let mut y = Placed::new(k, how, (rows, d), None)?;
                k.rms_norm_backward(dy.get(), x.get(), &w, &rstd, dx.get_mut(), Some(y.get_mut()))?;
                k.rms_norm_backward(dy.get(), x.get(), &w, &rstd, alone.get_mut(), None)?;
                let (dx, alone) = (dx.read(k)?, alone.read(k)?);
                if dx.iter().zip(&alone).any(|(a, b)| a.to_bits() != b.to_bits()) {
                    return Err(Fault::Wrong("dx depends on whether y is made too".to_owned()));
                }
                Ok(vec![dx, y.read(k)?])
            },
            want: &|x| {
                let [y, _] = forward(&x[1], &x[2], EPS);
                vec![backward(&x[0], &x[1], &x[2], EPS, &x[4]), y]
            },
            outputs: &[("dx", Allowed::Few), ("y", Allowed::Few)],
            nan: nan(0),
        });
    }
}

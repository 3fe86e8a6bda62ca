//! What goes row by row or value by value.

use tunesmith_ops::{DropoutKey, Index, Kernels, Mat, RopeTable, RowNames};

use crate::draw::values;
use crate::lab::{Allowed, Case, Lab};
use crate::placed::{Placed, Rows, full};
use crate::reference::rows::{self as reference, Mask};
use crate::reference::wide;

/// A shape and how its rows lie.
type Shape = (usize, usize, Rows);

const SMALL: [Shape; 3] = [(9, 24, Rows::Aligned), (5, 13, Rows::Odd), (1, 1, Rows::Odd)];
const REAL: [Shape; 1] = [(300, 4160, Rows::Aligned)];

fn shapes<K: Kernels>(lab: &Lab<'_, K>) -> Vec<Shape> {
    SMALL.iter().chain(if lab.is_real() { &REAL[..] } else { &[] }).copied().collect()
}

/// Copies, sums, zeros, conversions.
pub(super) fn moves<K: Kernels>(lab: &mut Lab<'_, K>) {
    for (rows, cols, how) in shapes(lab) {
        let shape = format!("[{rows}, {cols}]");
        let nan = (rows == 9).then_some((0, 30));
        lab.take(&Case {
            op: "copy",
            shape: shape.clone(),
            inputs: vec![values(1, rows * cols, 1.0)],
            run: &|k, x| {
                let m = Placed::new(k, how, (rows, cols), Some(&x[0]))?;
                let mut out = Placed::new(k, Rows::Aligned, (rows, cols), None)?;
                k.copy(m.get(), out.get_mut())?;
                Ok(vec![out.read(k)?])
            },
            want: &|x| vec![wide(&x[0]).collect()],
            outputs: &[("the copy", Allowed::Exact)],
            nan,
        });
        lab.take(&Case {
            op: "add",
            shape: shape.clone(),
            inputs: vec![values(1, rows * cols, 1.0), values(2, rows * cols, 1.0)],
            run: &|k, x| {
                let m = Placed::new(k, Rows::Aligned, (rows, cols), Some(&x[0]))?;
                let mut out = Placed::new(k, how, (rows, cols), Some(&x[1]))?;
                k.add(m.get(), out.get_mut())?;
                Ok(vec![out.read(k)?])
            },
            want: &|x| vec![wide(&x[0]).zip(wide(&x[1])).map(|(a, b)| a + b).collect()],
            outputs: &[("the sum", Allowed::One)],
            nan,
        });
        lab.take(&Case {
            op: "clear",
            shape: shape.clone(),
            inputs: vec![values(1, rows * cols, 1.0)],
            run: &|k, x| {
                let mut out = Placed::new(k, how, (rows, cols), Some(&x[0]))?;
                k.clear(out.get_mut())?;
                Ok(vec![out.read(k)?])
            },
            want: &|x| vec![vec![0.0; x[0].len()]],
            outputs: &[("the matrix", Allowed::Exact)],
            nan: None,
        });
        lab.take(&Case {
            op: "cast",
            shape: format!("0.3 {shape}"),
            // Not what bf16 holds.
            inputs: vec![values(1, rows * cols, 1.0).iter().map(|v| v * 1.003).collect()],
            run: &|k, x| {
                let mut host = vec![f32::NAN; 3];
                host.extend_from_slice(&x[0]);
                let m = full(k, &host)?;
                let mut out = Placed::new(k, how, (rows, cols), None)?;
                k.cast(0.3, Mat { at: 3, ..Mat::new(&m, rows, cols, cols) }, out.get_mut())?;
                Ok(vec![out.read(k)?])
            },
            want: &|x| vec![wide(&x[0]).map(|v| v * f64::from(0.3_f32)).collect()],
            outputs: &[("the result", Allowed::One)],
            nan,
        });
    }
}

/// What takes its rows by number or by name.
pub(super) fn named<K: Kernels>(lab: &mut Lab<'_, K>) {
    for (rows, cols, how) in shapes(lab) {
        let inputs = || vec![values(1, rows * cols, 1.0)];
        // With one row twice, one left out, and the ends.
        let some: Vec<usize> = [rows - 1, 0, rows / 2, rows / 2].into_iter().collect();
        let index: Index = some.clone().into();
        lab.take(&Case {
            op: "gather_rows",
            shape: format!("{} of [{rows}, {cols}]", some.len()),
            inputs: inputs(),
            run: &|k, x| {
                let m = Placed::new(k, how, (rows, cols), Some(&x[0]))?;
                let mut out = Placed::new(k, Rows::Aligned, (index.len(), cols), None)?;
                k.gather_rows(m.get(), &index, out.get_mut())?;
                Ok(vec![out.read(k)?])
            },
            want: &|x| vec![reference::gather(&x[0], cols, &some)],
            outputs: &[("the rows", Allowed::Exact)],
            nan: None,
        });
        // Every second row, and then some.
        let spread: Vec<usize> = (0..rows).map(|r| 2 * r + usize::from(r > rows / 2)).collect();
        let (index, out_rows): (Index, usize) = (spread.clone().into(), 2 * rows + 3);
        lab.take(&Case {
            op: "scatter_rows",
            shape: format!("[{rows}, {cols}] among {out_rows}"),
            inputs: inputs(),
            run: &|k, x| {
                let m = Placed::new(k, how, (rows, cols), Some(&x[0]))?;
                let mut out = Placed::new(k, Rows::Aligned, (out_rows, cols), None)?;
                k.scatter_rows(m.get(), &index, out.get_mut())?;
                Ok(vec![out.read(k)?])
            },
            want: &|x| vec![reference::scatter(&x[0], cols, &spread, out_rows)],
            outputs: &[("the rows", Allowed::Exact)],
            nan: None,
        });
        let ids: Vec<u32> = [rows - 1, 0, rows - 1, rows / 2].map(|r| r as u32).into();
        lab.take(&Case {
            op: "embed",
            shape: format!("{} of [{rows}, {cols}]", ids.len()),
            inputs: inputs(),
            run: &|k, x| {
                let table = Placed::new(k, how, (rows, cols), Some(&x[0]))?;
                let mut out = Placed::new(k, Rows::Aligned, (ids.len(), cols), None)?;
                k.embed(table.get(), &ids, out.get_mut())?;
                Ok(vec![out.read(k)?])
            },
            want: &|x| {
                let rows: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
                vec![reference::gather(&x[0], cols, &rows)]
            },
            outputs: &[("the rows", Allowed::Exact)],
            nan: None,
        });
        let mask = Mask { seed: 0x0123_4567_89AB_CDEF, step: 3, site: 9, p: 0.25 };
        let names: Vec<[u32; 2]> = (0..rows as u32).map(|r| [r % 3, 7 * r]).collect();
        let row_names: RowNames = names.clone().into();
        lab.take(&Case {
            op: "dropout",
            shape: format!("[{rows}, {cols}], p {}", mask.p),
            inputs: inputs(),
            run: &|k, x| {
                let m = Placed::new(k, how, (rows, cols), Some(&x[0]))?;
                let mut out = Placed::new(k, Rows::Aligned, (rows, cols), None)?;
                let key = DropoutKey { seed: mask.seed, step: mask.step, site: mask.site };
                k.dropout(m.get(), key, mask.p, &row_names, out.get_mut())?;
                Ok(vec![out.read(k)?])
            },
            want: &|x| vec![reference::dropout(&x[0], cols, mask, &names)],
            outputs: &[("the rest", Allowed::One)],
            nan: (rows == 9).then_some((0, 30)),
        });
    }
    lab.refused("embed", "an id outside the table", |k| {
        let table = Placed::new(k, Rows::Aligned, (4, 8), Some(&values(1, 32, 1.0)))?;
        let mut out = Placed::new(k, Rows::Aligned, (1, 8), None)?;
        Ok(k.embed(table.get(), &[4], out.get_mut()))
    });
}

/// The rotary embedding and the activation.
pub(super) fn maps<K: Kernels>(lab: &mut Lab<'_, K>) {
    // Rows, heads and the size of a head.
    let mut ropes = vec![(5, 3, 8, Rows::Aligned), (7, 2, 10, Rows::Odd), (9, 3, 64, Rows::Aligned)];
    let mut swiglus = vec![(5, 40, Rows::Aligned), (3, 13, Rows::Odd)];
    if lab.is_real() {
        ropes.push((300, 40, 128, Rows::Aligned));
        swiglus.push((129, 14336, Rows::Aligned));
    }
    for (i, (rows, heads, dim, how)) in ropes.into_iter().enumerate() {
        let cols = heads * dim;
        let frequencies: Vec<f32> =
            (0..dim / 2).map(|i| 10_000_f64.powf(-2.0 * i as f64 / dim as f64) as f32).collect();
        let table = RopeTable::new(&frequencies, 4000);
        // The start of a document in the middle, and a far position at the end.
        let mut positions: Vec<usize> =
            (0..rows).map(|t| if t < rows / 2 { t } else { t - rows / 2 }).collect();
        positions[rows - 1] = 3999;
        let index: Index = positions.clone().into();
        for inverse in [false, true] {
            lab.take(&Case {
                op: "rope",
                shape: format!("[{rows}, {heads} x {dim}]{}", if inverse { ", backward" } else { "" }),
                inputs: vec![values(1, rows * cols, 1.0)],
                run: &|k, x| {
                    let mut x = Placed::new(k, how, (rows, cols), Some(&x[0]))?;
                    k.rope(x.get_mut(), &index, &table, inverse)?;
                    Ok(vec![x.read(k)?])
                },
                want: &|x| vec![reference::rope(&x[0], cols, &positions, &frequencies, inverse)],
                outputs: &[("the result", Allowed::One)],
                nan: (i == 0).then_some((0, 9)),
            });
        }
    }
    lab.refused("rope", "a position beyond the table", |k| {
        let mut x = Placed::new(k, Rows::Aligned, (1, 8), Some(&values(1, 8, 1.0)))?;
        let table = RopeTable::new(&[1.0, 0.5, 0.2, 0.1], 40);
        Ok(k.rope(x.get_mut(), &vec![40].into(), &table, false))
    });
    for (i, (rows, f, how)) in swiglus.into_iter().enumerate() {
        lab.take(&Case {
            op: "swiglu",
            shape: format!("[{rows}, 2 x {f}]"),
            inputs: vec![values(1, rows * 2 * f, 8.0)],
            run: &|k, x| {
                let gate_up = Placed::new(k, how, (rows, 2 * f), Some(&x[0]))?;
                let mut h = Placed::new(k, how, (rows, f), None)?;
                k.swiglu(gate_up.get(), h.get_mut())?;
                Ok(vec![h.read(k)?])
            },
            want: &|x| vec![reference::swiglu(&x[0], f)],
            outputs: &[("h", Allowed::Few)],
            nan: (i == 0).then_some((0, 1)),
        });
        lab.take(&Case {
            op: "swiglu_backward",
            shape: format!("[{rows}, 2 x {f}]"),
            inputs: vec![values(2, rows * f, 1.0), values(1, rows * 2 * f, 8.0)],
            run: &|k, x| {
                let dh = Placed::new(k, how, (rows, f), Some(&x[0]))?;
                let mut gate_up = Placed::new(k, how, (rows, 2 * f), Some(&x[1]))?;
                let mut h = Placed::new(k, how, (rows, f), None)?;
                k.swiglu_backward(dh.get(), gate_up.get_mut(), h.get_mut())?;
                Ok(vec![gate_up.read(k)?, h.read(k)?])
            },
            want: &|x| vec![reference::swiglu_backward(&x[0], &x[1], f), reference::swiglu(&x[1], f)],
            outputs: &[("d gate and d up", Allowed::Few), ("h", Allowed::Few)],
            nan: (i == 0).then_some((0, 1)),
        });
    }
}

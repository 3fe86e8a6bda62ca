//! Moving rows: exact, or rounded once.

#![allow(clippy::unwrap_used)]

#[path = "common/padded.rs"]
mod padded;

use half::bf16;
use padded::{Padded, ROWS, Shape, only_these_rows, random, same_bits};
use tunesmith_emulator::backends;
use tunesmith_emulator::check::{round_bf16, values};
use tunesmith_kernels::gpu::rows::{add, clear, copy, fill, gather, inverse, narrow, scatter, widen};
use tunesmith_kernels::gpu::{Driver, Slice};

/// One and several pieces per row, many rows per block, no vectors.
fn shapes() -> Vec<Shape> {
    let mut out: Vec<Shape> = ROWS.iter().map(|&rows| Shape::aligned(rows, 88)).collect();
    out.extend(
        [(40, 8), (600, 8), (5, 2048), (9, 2056), (2, 4160)].map(|(rows, cols)| Shape::aligned(rows, cols)),
    );
    out.extend(ROWS.iter().map(|&rows| Shape::odd(rows, 61)));
    out.extend([(1, 1), (300, 3), (5, 64), (3, 300)].map(|(rows, cols)| Shape::odd(rows, cols)));
    out
}

fn gathered<D: Driver>(d: &D) {
    for shape in shapes() {
        let table_shape = Shape { rows: 50, ..shape };
        let table = random(1, table_shape);
        let index: Vec<u32> = (0..shape.rows as u32).map(|t| t * 37 % 50).collect();
        let m = Padded::new(d, table_shape, &table);
        let mut out = Padded::poisoned(d, shape);
        let ids = Slice::from_host(d, &index).unwrap();
        gather(d, m.view(), &ids, out.view_mut()).unwrap();
        let expected: Vec<bf16> =
            index.iter().flat_map(|&i| table[i as usize * shape.cols..][..shape.cols].to_vec()).collect();
        same_bits(&format!("{shape:?}"), &out.read(d), &expected);
    }
}

#[test]
fn gather_takes_rows_exactly() {
    backends!(|d| gathered(&d));
}

fn scattered<D: Driver>(d: &D) {
    for shape in shapes() {
        let rows: Vec<usize> = (0..shape.rows).filter(|t| t % 3 != 1).collect();
        let from = Shape { rows: rows.len(), ..shape };
        let values = random(2, from);
        let m = Padded::new(d, from, &values);
        let mut out = Padded::poisoned(d, shape);
        let map = Slice::from_host(d, &inverse(&rows, shape.rows).unwrap()).unwrap();
        scatter(d, m.view(), &map, out.view_mut()).unwrap();
        let mut expected = vec![bf16::ZERO; shape.rows * shape.cols];
        for (i, row) in rows.iter().enumerate() {
            expected[row * shape.cols..][..shape.cols]
                .copy_from_slice(&values[i * shape.cols..][..shape.cols]);
        }
        same_bits(&format!("{shape:?}"), &out.read(d), &expected);
    }
    // Nothing to scatter is a matrix of zeros.
    let m = Slice::zeros(d, 0).unwrap();
    let none = tunesmith_kernels::gpu::View::new(&m, 0, 8, 8);
    let mut out = Padded::<D, bf16>::poisoned(d, Shape::aligned(3, 8));
    scatter(d, none, &Slice::from_host(d, &[-1; 3]).unwrap(), out.view_mut()).unwrap();
    assert!(out.read(d).iter().all(|v| v.to_bits() == 0));
}

#[test]
fn scatter_writes_rows_and_zeros() {
    backends!(|d| scattered(&d));
}

fn lost<D: Driver>(d: &D) {
    for shape in [Shape::aligned(9, 24), Shape::odd(9, 7)] {
        let m = Padded::new(d, shape, &random(3, shape));
        let clean = m.read(d);
        let mut out = Padded::poisoned(d, shape);
        let index = Slice::from_host(d, &[0, 1, 9, 3, 4, u32::MAX, 6, 7, 8]).unwrap();
        gather(d, m.view(), &index, out.view_mut()).unwrap();
        only_these_rows("gather", &out.read(d), &clean, shape.cols, &[2, 5]);
        let index = Slice::from_host(d, &[0, 1, 9, 3, 4, -2, 6, 7, 8]).unwrap();
        scatter(d, m.view(), &index, out.view_mut()).unwrap();
        only_these_rows("scatter", &out.read(d), &clean, shape.cols, &[2, 5]);
    }
}

#[test]
fn an_index_beyond_the_table_gives_nan() {
    backends!(|d| lost(&d));
}

fn copied<D: Driver>(d: &D) {
    for shape in shapes() {
        let mut values = random(4, shape);
        // Whatever the bits, NaN included.
        values[0] = bf16::from_bits(0xff81);
        let m = Padded::new(d, shape, &values);
        let mut out = Padded::poisoned(d, shape);
        copy(d, m.view(), out.view_mut()).unwrap();
        same_bits(&format!("copy {shape:?}"), &out.read(d), &values);
        // A matrix that fits vectors into one that does not.
        let mut out = Padded::poisoned(d, Shape { at: 5, ..shape });
        copy(d, m.view(), out.view_mut()).unwrap();
        same_bits(&format!("copy aside {shape:?}"), &out.read(d), &values);

        let mut out = Padded::poisoned(d, shape);
        fill(d, -2.5, out.view_mut()).unwrap();
        assert!(out.read(d).iter().all(|v| v.to_f32() == -2.5), "fill {shape:?}");
        clear(d, out.view_mut()).unwrap();
        assert!(out.read(d).iter().all(|v| v.to_bits() == 0), "clear {shape:?}");
    }
}

#[test]
fn copy_fill_and_clear_are_exact_and_stay_inside() {
    backends!(|d| copied(&d));
}

fn added<D: Driver>(d: &D) {
    for shape in shapes() {
        let (mut a, b) = (random(5, shape), random(6, shape));
        let last = a.len() - 1;
        a[last] = bf16::NEG_INFINITY;
        let m = Padded::new(d, shape, &a);
        let mut out = Padded::new(d, shape, &b);
        add(d, m.view(), out.view_mut()).unwrap();
        let expected: Vec<bf16> =
            a.iter().zip(&b).map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32())).collect();
        same_bits(&format!("{shape:?}"), &out.read(d), &expected);
    }
}

#[test]
fn add_rounds_once() {
    backends!(|d| added(&d));
}

fn cast<D: Driver>(d: &D) {
    for shape in shapes() {
        let full = values(7, shape.rows * shape.cols);
        let m = Padded::new(d, shape, &full);
        for alpha in [1.0, -1.7] {
            let mut out = Padded::poisoned(d, shape);
            narrow(d, alpha, m.view(), out.view_mut()).unwrap();
            let expected: Vec<bf16> = full.iter().map(|v| bf16::from_f32(alpha * v)).collect();
            same_bits(&format!("narrow {shape:?}"), &out.read(d), &expected);
        }
        let rounded: Vec<bf16> = full.iter().map(|&v| bf16::from_f32(v)).collect();
        let m = Padded::new(d, shape, &rounded);
        let mut out = Padded::<D, f32>::poisoned(d, shape);
        widen(d, m.view(), out.view_mut()).unwrap();
        let expected: Vec<f32> = full.iter().map(|&v| round_bf16(v)).collect();
        same_bits(&format!("widen {shape:?}"), &out.read(d), &expected);
    }
    // Ties, the largest values, what is not finite.
    let hard =
        [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NAN, -0.0, 1e-40];
    let shape = Shape::aligned(1, 8);
    let m = Padded::new(d, shape, &hard);
    let mut out = Padded::poisoned(d, shape);
    narrow(d, 1.0, m.view(), out.view_mut()).unwrap();
    for (out, value) in out.read(d).iter().zip(hard) {
        let expected = bf16::from_f32(value);
        assert!(
            out.to_bits() == expected.to_bits() || (out.is_nan() && value.is_nan()),
            "{value} gave {out}"
        );
    }
}

#[test]
fn casts_round_once_or_not_at_all() {
    backends!(|d| cast(&d));
}

fn refusals<D: Driver>(d: &D) {
    let m = Padded::<D, bf16>::poisoned(d, Shape::aligned(3, 16));
    let mut out = Padded::<D, bf16>::poisoned(d, Shape::aligned(4, 24));
    let ids = Slice::zeros(d, 3).unwrap();
    let error = gather(d, m.view(), &ids, out.view_mut()).unwrap_err().to_string();
    assert_eq!(error, "gather: 3 indices for 4 rows");
    let ids = Slice::zeros(d, 4).unwrap();
    let error = gather(d, m.view(), &ids, out.view_mut()).unwrap_err().to_string();
    assert_eq!(error, "gather: rows of 16 into rows of 24 columns");
    let map = Slice::zeros(d, 3).unwrap();
    let error = scatter(d, m.view(), &map, out.view_mut()).unwrap_err().to_string();
    assert_eq!(error, "scatter: an inverse of 3 rows for 4 rows");
    let error = copy(d, m.view(), out.view_mut()).unwrap_err().to_string();
    assert_eq!(error, "copy: m [3, 16] into out [4, 24]");
    assert_eq!(inverse(&[0, 5], 5).unwrap_err().to_string(), "inverse: row 5 of 5 rows");
    assert_eq!(inverse(&[2, 1, 2], 5).unwrap_err().to_string(), "inverse: row 2 comes twice");
}

#[test]
fn wrong_shapes_are_refused() {
    backends!(|d| refusals(&d));
}

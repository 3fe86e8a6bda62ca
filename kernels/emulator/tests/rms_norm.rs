//! RMSNorm against f64.

#![allow(clippy::unwrap_used)]

#[path = "common/padded.rs"]
mod padded;

use half::bf16;
use padded::{Padded, ROWS, Shape, only_these_rows, random, same_bits, wide};
use tunesmith_emulator::backends;
use tunesmith_emulator::check::{close, round_bf16, to_bf16, values};
use tunesmith_kernels::gpu::rms_norm::{rms_norm, rms_norm_backward};
use tunesmith_kernels::gpu::{Driver, Error, Slice};

const EPS: f32 = 1e-5;
/// Of an output that is rounded to bf16 more than once.
const TOLERANCE: f64 = 4e-3;

/// Every kernel at its edges: eight rows per block up to 256, 512 and 1024, one up to 2048, 8192 and 16384, then the
/// one for all the rest.
fn shapes() -> Vec<Shape> {
    let mut out: Vec<Shape> = ROWS.iter().map(|&rows| Shape::aligned(rows, 104)).collect();
    for (rows, d) in [(7, 8), (9, 256), (7, 264), (64, 512), (3, 520), (8, 1024)] {
        out.push(Shape::aligned(rows, d));
    }
    for (rows, d) in
        [(3, 1032), (2, 2048), (7, 2056), (1, 4096), (2, 8192), (1, 8200), (1, 16384), (1, 16392)]
    {
        out.push(Shape::aligned(rows, d));
    }
    out.extend(ROWS.iter().map(|&rows| Shape::odd(rows, 72)));
    out.extend([(2, 1), (3, 61), (7, 1001), (1, 3000)].map(|(rows, d)| Shape::odd(rows, d)));
    out
}

struct Case {
    shape: Shape,
    x: Vec<bf16>,
    w: Vec<bf16>,
    dy: Vec<bf16>,
    residual: Vec<bf16>,
}

impl Case {
    fn new(shape: Shape) -> Self {
        let w: Vec<f32> = values(2, shape.cols).iter().map(|v| 1.0 + 0.5 * v).collect();
        let x: Vec<f32> = values(1, shape.rows * shape.cols).iter().map(|v| 3.0 * v).collect();
        let (dy, residual) = (random(3, shape), random(4, shape));
        Self { shape, x: to_bf16(&x), w: to_bf16(&w), dy, residual }
    }

    fn forward<D: Driver>(&self, d: &D) -> (Vec<bf16>, Vec<f32>) {
        let x = Padded::new(d, self.shape, &self.x);
        let w = Slice::from_host(d, &self.w).unwrap();
        let mut y = Padded::poisoned(d, self.shape);
        let mut rstd = Slice::from_host(d, &vec![f32::NAN; self.shape.rows + 3]).unwrap();
        rms_norm(d, x.view(), &w, EPS, y.view_mut(), &mut rstd).unwrap();
        let rstd = rstd.to_host(d).unwrap();
        assert!(rstd[self.shape.rows..].iter().all(|v| v.is_nan()), "more rows than there are");
        (y.read(d), rstd[..self.shape.rows].to_vec())
    }

    fn backward<D: Driver>(&self, d: &D, rstd: &[f32], again: bool) -> (Vec<bf16>, Vec<bf16>) {
        let (dy, x) = (Padded::new(d, self.shape, &self.dy), Padded::new(d, self.shape, &self.x));
        let (w, rstd) = (Slice::from_host(d, &self.w).unwrap(), Slice::from_host(d, rstd).unwrap());
        let mut dx = Padded::new(d, self.shape, &self.residual);
        let mut y = Padded::poisoned(d, self.shape);
        let out = again.then(|| y.view_mut());
        rms_norm_backward(d, dy.view(), x.view(), &w, &rstd, dx.view_mut(), out).unwrap();
        (dx.read(d), y.read(d))
    }

    /// y from `rstd` in Hugging Face's order of rounding.
    fn rounded(&self, rstd: &[f32]) -> Vec<bf16> {
        let normal = |i: usize| round_bf16(self.x[i].to_f32() * rstd[i / self.shape.cols]);
        (0..self.x.len()).map(|i| bf16::from_f32(normal(i) * self.w[i % self.shape.cols].to_f32())).collect()
    }

    /// y, rstd and dx in f64.
    fn reference(&self) -> [Vec<f64>; 3] {
        let [mut y, mut rstds, mut dx] = [const { Vec::new() }; 3];
        let n = self.shape.cols;
        let w = wide(&self.w);
        for row in 0..self.shape.rows {
            let at = row * n..(row + 1) * n;
            let (x, dy) = (wide(&self.x[at.clone()]), wide(&self.dy[at.clone()]));
            let residual = wide(&self.residual[at]);
            let rstd = (x.iter().map(|v| v * v).sum::<f64>() / n as f64 + f64::from(EPS)).sqrt().recip();
            let normal: Vec<f64> = x.iter().map(|v| v * rstd).collect();
            let g: Vec<f64> = dy.iter().zip(&w).map(|(a, b)| a * b).collect();
            let mean = g.iter().zip(&normal).map(|(a, b)| a * b).sum::<f64>() / n as f64;
            rstds.push(rstd);
            for i in 0..n {
                y.push(normal[i] * w[i]);
                dx.push(residual[i] + rstd * (g[i] - normal[i] * mean));
            }
        }
        [y, rstds, dx]
    }
}

fn against_f64<D: Driver>(d: &D) {
    for shape in shapes() {
        let case = Case::new(shape);
        let [y_ref, rstd_ref, dx_ref] = case.reference();
        let (y, rstd) = case.forward(d);
        close(&format!("y of {shape:?}"), &y, &y_ref, TOLERANCE);
        close(&format!("rstd of {shape:?}"), &rstd, &rstd_ref, 1e-5);
        same_bits(&format!("order of rounding of {shape:?}"), &y, &case.rounded(&rstd));

        let (dx, again) = case.backward(d, &rstd, true);
        close(&format!("dx of {shape:?}"), &dx, &dx_ref, TOLERANCE);
        same_bits(&format!("y made again of {shape:?}"), &again, &y);
    }
}

#[test]
fn agrees_with_f64_at_every_width() {
    backends!(|d| against_f64(&d));
}

fn repeats<D: Driver>(d: &D) {
    for shape in [Shape::aligned(9, 520), Shape::aligned(3, 2056), Shape::odd(3, 333)] {
        let case = Case::new(shape);
        let (y, rstd) = case.forward(d);
        let (y2, rstd2) = case.forward(d);
        same_bits("y", &y, &y2);
        same_bits("rstd", &rstd, &rstd2);
        let (dx, _) = case.backward(d, &rstd, true);
        let (dx2, untouched) = case.backward(d, &rstd, false);
        same_bits("dx with and without y", &dx, &dx2);
        assert!(untouched.iter().all(|v| v.is_nan()), "y was written where none was asked for");
    }
}

#[test]
fn two_runs_give_equal_bits_with_and_without_y() {
    backends!(|d| repeats(&d));
}

fn not_finite<D: Driver>(d: &D) {
    for shape in [Shape::aligned(9, 264), Shape::aligned(9, 1048), Shape::odd(9, 61)] {
        let n = shape.cols;
        let clean = Case::new(shape);
        let (clean_y, clean_rstd) = clean.forward(d);
        let (clean_dx, _) = clean.backward(d, &clean_rstd, true);

        let mut case = Case::new(shape);
        case.x[2 * n + 5] = bf16::NAN;
        case.x[4 * n] = bf16::INFINITY;
        // The squares overflow: zeros would look sound.
        case.x[6 * n..7 * n].fill(bf16::from_f32(-3e38));
        let (y, rstd) = case.forward(d);
        only_these_rows("y", &y, &clean_y, n, &[2, 4, 6]);
        for row in [2, 4, 6] {
            assert!(rstd[row].is_nan() && y[row * n..(row + 1) * n].iter().all(|v| v.is_nan()), "row {row}");
        }
        let (dx, _) = case.backward(d, &rstd, true);
        only_these_rows("dx by x", &dx, &clean_dx, n, &[2, 4, 6]);

        let mut case = Case::new(shape);
        case.dy[3 * n + 1] = bf16::NEG_INFINITY;
        case.residual[8 * n - 1] = bf16::NAN;
        let (dx, _) = case.backward(d, &clean_rstd, true);
        only_these_rows("dx by dy", &dx, &clean_dx, n, &[3, 7]);
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row_and_shows() {
    backends!(|d| not_finite(&d));
}

fn mixed_alignment<D: Driver>(d: &D) {
    // One matrix that no vector access fits sends all of them down the other path.
    let (even, odd) = (Shape::aligned(5, 64), Shape::odd(5, 64));
    let case = Case::new(even);
    let [y_ref, ..] = case.reference();
    let x = Padded::new(d, even, &case.x);
    let w = Slice::from_host(d, &case.w).unwrap();
    let mut y = Padded::poisoned(d, odd);
    let mut rstd = Slice::uninit(d, 5).unwrap();
    rms_norm(d, x.view(), &w, EPS, y.view_mut(), &mut rstd).unwrap();
    close("y", &y.read(d), &y_ref, TOLERANCE);
}

#[test]
fn any_alignment_will_do() {
    backends!(|d| mixed_alignment(&d));
}

fn refusals<D: Driver>(d: &D) {
    let shape = Shape::aligned(3, 16);
    let (x, mut y) = (Padded::new(d, shape, &random(1, shape)), Padded::poisoned(d, shape));
    let (w, short) = (Slice::<D, bf16>::zeros(d, 16).unwrap(), Slice::<D, bf16>::zeros(d, 15).unwrap());
    let mut rstd = Slice::zeros(d, 3).unwrap();
    let text = |e: Result<(), Error>| e.unwrap_err().to_string();

    let error = text(rms_norm(d, x.view(), &short, EPS, y.view_mut(), &mut rstd));
    assert_eq!(error, "rms_norm: x [3, 16], w [15], rstd [3]");
    let mut few = Slice::zeros(d, 2).unwrap();
    let error = text(rms_norm(d, x.view(), &w, EPS, y.view_mut(), &mut few));
    assert_eq!(error, "rms_norm: x [3, 16], w [16], rstd [2]");
    let mut other = Padded::poisoned(d, Shape::aligned(4, 16));
    let error = text(rms_norm_backward(d, x.view(), x.view(), &w, &rstd, other.view_mut(), None));
    assert_eq!(error, "rms_norm_backward: x [3, 16], dx [4, 16]");
    let error =
        text(rms_norm_backward(d, x.view(), x.view(), &w, &rstd, y.view_mut(), Some(other.view_mut())));
    assert_eq!(error, "rms_norm_backward: x [3, 16], y [4, 16]");
}

#[test]
fn wrong_shapes_are_refused() {
    backends!(|d| refusals(&d));
}

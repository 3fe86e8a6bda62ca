//! SwiGLU against f64.

#![allow(clippy::unwrap_used)]

#[path = "common/padded.rs"]
mod padded;

use half::bf16;
use padded::{Padded, ROWS, Shape, only_these_rows, random, same_bits, wide};
use tunesmith_emulator::backends;
use tunesmith_emulator::check::{close, round_bf16, to_bf16, values};
use tunesmith_kernels::gpu::Driver;
use tunesmith_kernels::gpu::swiglu::{swiglu, swiglu_backward};

/// Of the forward, and of gradients.
const TOLERANCES: [f64; 2] = [2.5e-3, 4e-3];

/// Shapes of h: one and several pieces per row, several rows per block, no vectors.
fn shapes() -> Vec<Shape> {
    let mut out: Vec<Shape> = ROWS.iter().map(|&rows| Shape::aligned(rows, 136)).collect();
    out.extend([(3, 1376), (5, 2048), (2, 2056), (1, 14336)].map(|(rows, f)| Shape::aligned(rows, f)));
    out.extend(ROWS.iter().map(|&rows| Shape::odd(rows, 125)));
    out.extend([(3, 256), (3, 1001)].map(|(rows, f)| Shape::odd(rows, f)));
    out
}

struct Case {
    shape: Shape,
    gate_up: Vec<bf16>,
    dh: Vec<bf16>,
}

impl Case {
    fn new(shape: Shape) -> Self {
        let gate_up: Vec<f32> = values(6, 2 * shape.rows * shape.cols).iter().map(|v| 4.0 * v).collect();
        Self { shape, gate_up: to_bf16(&gate_up), dh: random(7, shape) }
    }

    fn both(&self) -> Shape {
        self.shape.with_cols(2 * self.shape.cols)
    }

    fn forward<D: Driver>(&self, d: &D) -> Vec<bf16> {
        let gate_up = Padded::new(d, self.both(), &self.gate_up);
        let mut h = Padded::poisoned(d, self.shape);
        swiglu(d, gate_up.view(), h.view_mut()).unwrap();
        h.read(d)
    }

    /// The gradient of `gate_up`, and h.
    fn backward<D: Driver>(&self, d: &D) -> (Vec<bf16>, Vec<bf16>) {
        let dh = Padded::new(d, self.shape, &self.dh);
        let mut gate_up = Padded::new(d, self.both(), &self.gate_up);
        let mut h = Padded::poisoned(d, self.shape);
        swiglu_backward(d, dh.view(), gate_up.view_mut(), h.view_mut()).unwrap();
        (gate_up.read(d), h.read(d))
    }

    /// h in Hugging Face's order of rounding, but for what f64 knows better than f32.
    fn rounded(&self) -> Vec<bf16> {
        let f = self.shape.cols;
        let row = |both: &[bf16]| -> Vec<bf16> {
            let (gate, up) = both.split_at(f);
            let act = gate.iter().map(|g| g.to_f64() / (1.0 + (-g.to_f64()).exp()));
            act.zip(up).map(|(a, u)| bf16::from_f32(round_bf16(a as f32) * u.to_f32())).collect()
        };
        self.gate_up.chunks(2 * f).flat_map(row).collect()
    }

    /// h, dgate and dup in f64.
    fn reference(&self) -> [Vec<f64>; 3] {
        let f = self.shape.cols;
        let [mut h, mut dgate, mut dup] = [const { Vec::new() }; 3];
        for (row, dh) in wide(&self.dh).chunks(f).enumerate() {
            let (gate, up) = self.gate_up[row * 2 * f..(row + 1) * 2 * f].split_at(f);
            for i in 0..f {
                let (gate, up) = (gate[i].to_f64(), up[i].to_f64());
                let s = 1.0 / (1.0 + (-gate).exp());
                h.push(gate * s * up);
                dgate.push(dh[i] * up * s * (1.0 + gate * (1.0 - s)));
                dup.push(dh[i] * gate * s);
            }
        }
        [h, dgate, dup]
    }
}

/// The two halves of the rows of `[gate | up]`.
fn halves(both: &[bf16], f: usize) -> [Vec<bf16>; 2] {
    let part = |at: usize| both.chunks(2 * f).flat_map(|row| row[at..at + f].to_vec()).collect();
    [part(0), part(f)]
}

fn against_f64<D: Driver>(d: &D) {
    for shape in shapes() {
        let case = Case::new(shape);
        let [h_ref, dgate_ref, dup_ref] = case.reference();
        let h = case.forward(d);
        close(&format!("h of {shape:?}"), &h, &h_ref, TOLERANCES[0]);
        let off = h.iter().zip(case.rounded()).filter(|(a, b)| **a != *b).count();
        assert!(
            off <= h.len() / 100,
            "{off} of {} values of {shape:?} were rounded in another order",
            h.len()
        );
        let (both, again) = case.backward(d);
        let [dgate, dup] = halves(&both, shape.cols);
        close(&format!("dgate of {shape:?}"), &dgate, &dgate_ref, TOLERANCES[1]);
        close(&format!("dup of {shape:?}"), &dup, &dup_ref, TOLERANCES[1]);
        same_bits("h made again", &again, &h);
        same_bits("two runs", &case.backward(d).0, &both);
    }
}

#[test]
fn agrees_with_f64() {
    backends!(|d| against_f64(&d));
}

fn extremes<D: Driver>(d: &D) {
    let gates = [0.0, -0.0, 10.0, -10.0, 50.0, -50.0, 80.0, -80.0, 1e4, -1e4, 3e38, -3e38];
    let shape = Shape::aligned(1, 16);
    let mut case = Case::new(shape);
    case.dh.fill(bf16::ONE);
    case.gate_up.fill(bf16::ONE);
    for (i, gate) in gates.into_iter().enumerate() {
        case.gate_up[i] = bf16::from_f32(gate);
    }
    let [h_ref, dgate_ref, dup_ref] = case.reference();
    let (h, (both, _)) = (case.forward(d), case.backward(d));
    let [dgate, dup] = halves(&both, 16);
    for (name, out, reference) in [("h", h, h_ref), ("dgate", dgate, dgate_ref), ("dup", dup, dup_ref)] {
        for (i, (out, reference)) in out.iter().zip(&reference).enumerate() {
            // Below the smallest normal number a GPU may give 0.
            let allowed = 1e-2 * reference.abs() + 1.2e-38;
            assert!((out.to_f64() - reference).abs() <= allowed, "{name} of {}: {out}", case.gate_up[i]);
        }
    }
}

#[test]
fn large_gates_neither_overflow_nor_lose_their_tails() {
    backends!(|d| extremes(&d));
}

fn not_finite<D: Driver>(d: &D) {
    for shape in [Shape::aligned(9, 64), Shape::odd(9, 61)] {
        let f = shape.cols;
        let clean = Case::new(shape);
        let (clean_h, (clean_both, _)) = (clean.forward(d), clean.backward(d));
        let mut case = Case::new(shape);
        case.gate_up[4 * f + 1] = bf16::NAN;
        case.gate_up[8 * f + 2] = bf16::NEG_INFINITY;
        case.gate_up[12 * f + 3] = bf16::INFINITY;
        case.gate_up[17 * f + 4] = bf16::NAN;
        let h = case.forward(d);
        only_these_rows("h", &h, &clean_h, f, &[2, 4, 6, 8]);
        assert!(h[4 * f + 2].is_nan(), "-inf · 0 is not a number");
        assert!(h[6 * f + 3].is_infinite(), "silu(inf) is inf");
        only_these_rows("gradient", &case.backward(d).0, &clean_both, 2 * f, &[2, 4, 6, 8]);
        let mut case = Case::new(shape);
        case.dh[5 * f] = bf16::NAN;
        only_these_rows("gradient by dh", &case.backward(d).0, &clean_both, 2 * f, &[5]);
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row_and_shows() {
    backends!(|d| not_finite(&d));
}

fn refusals<D: Driver>(d: &D) {
    let gate_up = Padded::<D, bf16>::poisoned(d, Shape::aligned(3, 32));
    let mut writable = Padded::<D, bf16>::poisoned(d, Shape::aligned(3, 32));
    let dh = Padded::<D, bf16>::poisoned(d, Shape::aligned(2, 16));
    let mut h = Padded::<D, bf16>::poisoned(d, Shape::aligned(3, 16));
    let mut narrow = Padded::<D, bf16>::poisoned(d, Shape::aligned(3, 15));
    let error = swiglu(d, gate_up.view(), narrow.view_mut()).unwrap_err().to_string();
    assert_eq!(error, "swiglu: gate_up [3, 32], h [3, 15]");
    let error = swiglu_backward(d, dh.view(), writable.view_mut(), h.view_mut()).unwrap_err().to_string();
    assert_eq!(error, "swiglu_backward: dh [2, 16], h [3, 16]");
}

#[test]
fn wrong_shapes_are_refused() {
    backends!(|d| refusals(&d));
}

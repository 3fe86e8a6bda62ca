//! Attention, forward and backward, against f64.

#[path = "attention/reference.rs"]
mod reference;

use reference::{Batch, Shape, backward, forward};
use tunesmith_emulator::check::{close, round_bf16, values};
use tunesmith_emulator::{Emulator, backends, skipped};
use tunesmith_kernels::gpu::attention::{self, Documents, Gradients, Heads, Inputs, Plan, Room};
use tunesmith_kernels::gpu::{Driver, Error, Slice, View, ViewMut, bf16};

/// What outputs and the columns beside matrices hold before a launch: a NaN that no kernel makes.
const POISON: u16 = 0x7fa5;
const FORWARD: f64 = 5e-3;
const BACKWARD: f64 = 1e-2;

/// As [`backends`], with one seed: for cases that take the emulator long.
macro_rules! one_seed {
    (|$d:ident| $run:expr) => {{
        if Emulator::available() {
            let $d = Emulator::new(7);
            $run;
        } else {
            skipped("no C++ compiler");
        }
        tunesmith_emulator::on_gpu!(|$d| $run);
    }};
}

/// A call's inputs, as bf16 holds them.
#[derive(Debug, Clone)]
struct Case {
    batch: Batch,
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_o: Vec<f32>,
}

impl Case {
    fn new(batch: Batch, heads: usize, kv_heads: usize, dim: usize, window: Option<usize>) -> Self {
        let (queries, keys) = (batch.queries() * heads * dim, batch.keys() * kv_heads * dim);
        let draw = |seed, len, size: f32| -> Vec<f32> {
            values(seed, len).iter().map(|v| round_bf16(v * size)).collect()
        };
        // Scores of a few units: a softmax that is neither flat nor a maximum.
        Self {
            q: draw(1, queries, 3.0),
            k: draw(2, keys, 2.0),
            v: draw(3, keys, 1.0),
            d_o: draw(4, queries, 1.0),
            shape: Shape { heads, kv_heads, dim, window },
            batch,
        }
    }

    fn heads(&self) -> Heads {
        let Shape { heads, kv_heads, dim, window } = self.shape;
        Heads { heads, kv_heads, head_dim: dim, window }
    }

    fn documents(&self) -> Documents<'_> {
        let b = &self.batch;
        Documents { cu_queries: &b.cu_queries, cu_keys: &b.cu_keys, positions: &b.positions }
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.dim
    }

    fn kv_width(&self) -> usize {
        self.shape.kv_heads * self.shape.dim
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| v.into()).collect()
}

/// A matrix on the device inside a larger one of poison.
struct Placed<D: Driver> {
    slice: Slice<D, bf16>,
    ld: usize,
}

/// Where in its row and slice a matrix begins.
const AT: usize = 24;

impl<D: Driver> Placed<D> {
    /// `parts` side by side, or poison where a part has no values.
    fn new(d: &D, rows: usize, parts: &[(usize, &[f32])]) -> Self {
        let ld = AT + parts.iter().map(|p| p.0).sum::<usize>() + 8;
        let mut host = vec![bf16::from_bits(POISON); rows * ld + 16];
        for row in 0..rows {
            let mut at = row * ld + AT;
            for &(width, values) in parts {
                for (to, &v) in host[at..at + width].iter_mut().zip(values.iter().skip(row * width)) {
                    *to = bf16::from_f32(v);
                }
                at += width;
            }
        }
        Self { slice: Slice::from_host(d, &host).unwrap(), ld }
    }

    fn view(&self, column: usize, rows: usize, cols: usize) -> View<'_, D, bf16> {
        View { at: AT + column, ..View::new(&self.slice, rows, cols, self.ld) }
    }

    fn view_mut(&mut self, rows: usize, cols: usize) -> ViewMut<'_, D, bf16> {
        let ld = self.ld;
        ViewMut { at: AT, ..ViewMut::new(&mut self.slice, rows, cols, ld) }
    }

    /// The matrix's values; asserts that all of them were written and nothing beside them.
    fn written(&self, d: &D, rows: usize, cols: usize) -> Vec<bf16> {
        let host = self.slice.to_host(d).unwrap();
        let mut out = Vec::new();
        for (i, v) in host.iter().enumerate() {
            let (row, column) = (i / self.ld, i % self.ld);
            if row < rows && (AT..AT + cols).contains(&column) {
                assert_ne!(v.to_bits(), POISON, "row {row}, column {} is not written", column - AT);
                out.push(*v);
            } else {
                assert_eq!(v.to_bits(), POISON, "row {row}, column {column} is outside, but written");
            }
        }
        out
    }
}

/// Columns of a dense matrix.
fn columns(x: &[bf16], width: usize, at: usize, cols: usize) -> Vec<bf16> {
    x.chunks_exact(width).flat_map(|row| row[at..at + cols].to_vec()).collect()
}

#[derive(Debug, Clone, PartialEq)]
struct Results {
    o: Vec<bf16>,
    lse: Vec<f32>,
    dq: Vec<bf16>,
    dk: Vec<bf16>,
    dv: Vec<bf16>,
}

/// The device's results, from one fused matrix of q, k and v into one of dq, dk and dv if `fused`.
fn run<D: Driver>(d: &D, case: &Case, plan: &Plan<D>, fused: bool) -> Result<Results, Error> {
    let (queries, keys) = (case.batch.queries(), case.batch.keys());
    let (width, kv) = (case.width(), case.kv_width());
    let qkv =
        Placed::new(d, keys, &[(width, if fused { &case.q } else { &[] }), (kv, &case.k), (kv, &case.v)]);
    let lone_q = Placed::new(d, queries, &[(width, &case.q)]);
    let q = if fused { qkv.view(0, queries, width) } else { lone_q.view(0, queries, width) };
    let (k, v) = (qkv.view(width, keys, kv), qkv.view(width + kv, keys, kv));
    let mut o = Placed::new(d, queries, &[(width, &[])]);
    let poison = f32::from_bits(0x7fa5_a5a5);
    let mut lse = Slice::from_host(d, &vec![poison; queries * case.shape.heads + 1])?;
    attention::forward(d, plan, case.heads(), q, k, v, o.view_mut(queries, width), &mut lse)?;

    let d_o = Placed::new(d, queries, &[(width, &case.d_o)]);
    let mut scratch = Slice::uninit(d, attention::backward_scratch(queries, case.shape.heads))?;
    let x = Inputs { q, k, v, o: o.view(0, queries, width), lse: &lse, d_o: d_o.view(0, queries, width) };
    let (dq, dkv) = if fused {
        let mut out = Placed::new(d, keys, &[(width + 2 * kv, &[])]);
        let gradients = Gradients::Fused(out.view_mut(keys, width + 2 * kv));
        attention::backward(d, plan, case.heads(), x, &mut scratch, gradients)?;
        let all = out.written(d, keys, width + 2 * kv);
        (columns(&all, width + 2 * kv, 0, width), columns(&all, width + 2 * kv, width, 2 * kv))
    } else {
        let mut dq = Placed::new(d, queries, &[(width, &[])]);
        let mut dkv = Placed::new(d, keys, &[(2 * kv, &[])]);
        let gradients = Gradients::Apart { dq: dq.view_mut(queries, width), dkv: dkv.view_mut(keys, 2 * kv) };
        attention::backward(d, plan, case.heads(), x, &mut scratch, gradients)?;
        (dq.written(d, queries, width), dkv.written(d, keys, 2 * kv))
    };
    let mut lse = lse.to_host(d)?;
    assert_eq!(lse.pop().unwrap().to_bits(), poison.to_bits(), "wrote past lse");
    assert!(lse.iter().all(|v| v.to_bits() != poison.to_bits()), "lse is not written whole");
    Ok(Results {
        o: o.written(d, queries, width),
        lse,
        dq,
        dk: columns(&dkv, 2 * kv, 0, kv),
        dv: columns(&dkv, 2 * kv, kv, kv),
    })
}

/// Results against the reference.
fn check<D: Driver>(d: &D, case: &Case, fused: bool) -> Results {
    let plan = Plan::new(d, case.documents()).unwrap();
    let out = run(d, case, &plan, fused).unwrap();
    let (q, k, v, d_o) = (wide(&case.q), wide(&case.k), wide(&case.v), wide(&case.d_o));
    let (o, lse) = forward(&case.batch, case.shape, &q, &k, &v);
    let [dq, dk, dv] = backward(&case.batch, case.shape, &q, &k, &v, &d_o);
    let what = |name: &str| format!("{name} of {:?}, {:?}", case.shape, case.batch.cu_keys);
    close(&what("o"), &out.o, &o, FORWARD);
    close(&what("lse"), &out.lse, &lse, 1e-3);
    close(&what("dq"), &out.dq, &dq, BACKWARD);
    close(&what("dk"), &out.dk, &dk, BACKWARD);
    close(&what("dv"), &out.dv, &dv, BACKWARD);
    out
}

/// The reference's own gradients against a difference quotient of its forward.
#[test]
fn the_reference_has_the_gradients_of_its_forward() {
    let batch = Batch::of(&[9, 1, 0, 14], |i, p| i != 0 || p % 3 == 1);
    let case = Case::new(batch, 4, 2, 8, Some(6));
    let x = [wide(&case.q), wide(&case.k), wide(&case.v)];
    let d_o = wide(&case.d_o);
    let along: Vec<Vec<f64>> = x.iter().zip(11..).map(|(x, seed)| wide(&values(seed, x.len()))).collect();
    let loss = |step: f64| -> f64 {
        let moved =
            |i: usize| -> Vec<f64> { x[i].iter().zip(&along[i]).map(|(x, a)| x + step * a).collect() };
        let (o, _) = forward(&case.batch, case.shape, &moved(0), &moved(1), &moved(2));
        o.iter().zip(&d_o).map(|(a, b)| a * b).sum()
    };
    let gradients = backward(&case.batch, case.shape, &x[0], &x[1], &x[2], &d_o);
    let exact: f64 =
        gradients.iter().zip(&along).map(|(g, a)| g.iter().zip(a).map(|(g, a)| g * a).sum::<f64>()).sum();
    let step = 1e-5;
    let quotient = (loss(step) - loss(-step)) / (2.0 * step);
    assert!((exact - quotient).abs() < 1e-7 * exact.abs(), "{exact} by formula, {quotient} by difference");
}

#[test]
fn packed_documents_of_awkward_lengths() {
    let case = Case::new(Batch::whole(&[1, 7, 0, 64, 65, 127, 1, 0]), 2, 1, 64, None);
    backends!(|d| {
        let first = check(&d, &case, true);
        let plan = Plan::new(&d, case.documents()).unwrap();
        assert!(run(&d, &case, &plan, true).unwrap() == first, "two runs differ");
    });
}

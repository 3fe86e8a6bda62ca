//! Attention, forward and backward, against f64.

// Helpers outside of test functions: a failure is the test's.
#![allow(clippy::unwrap_used)]

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
/// No rounded value is on the way to it.
const LSE: f64 = 1e-5;
const BACKWARD: f64 = 1e-2;

/// As [`backends`], with one seed: for cases that take the emulator long.
macro_rules! one_seed {
    (|$d:ident| $run:expr) => {{
        if Emulator::available() {
            let $d = Emulator::new(7);
            $run;
        } else {
            skipped(tunesmith_emulator::NEEDS);
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

    /// Small scores: every key that a query sees counts, so that one too many or too few shows.
    fn flat(mut self) -> Self {
        self.q.iter_mut().for_each(|v| *v = round_bf16(*v * 0.2));
        self
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
    close(&what("lse"), &out.lse, &lse, LSE);
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

#[test]
fn windows() {
    // Among them those whose edge falls on that of a tile or of a warp's rows: one key too many or too few.
    for window in [1, 2, 5, 31, 34, 63, 64, 79, 200] {
        let case = Case::new(Batch::whole(&[130, 65]), 2, 2, 32, Some(window)).flat();
        one_seed!(|d| check(&d, &case, false));
    }
    let case = Case::new(Batch::whole(&[3, 190]), 2, 1, 128, Some(33));
    backends!(|d| check(&d, &case, true));
}

/// Exactly the pairs that see each other meet. With one-hot rows, column c of each result is the weight of the one query
/// or key whose row has its 1 there: nothing where the pair is hidden, something where it is not.
#[test]
fn no_pair_too_many_and_none_too_few() {
    for (dim, window) in
        [32, 64, 128].into_iter().flat_map(|d| [1, 2, 15, 31, 47, 63, 64, 79, 190].map(|w| (d, w)))
    {
        let mut case = Case::new(Batch::whole(&[190]), 1, 1, dim, Some(window));
        for first in [0, 190 - dim] {
            for x in [&mut case.q, &mut case.k, &mut case.v, &mut case.d_o] {
                for (row, values) in x.chunks_exact_mut(dim).enumerate() {
                    values.fill(0.0);
                    if (first..first + dim).contains(&row) {
                        values[row - first] = 1.0;
                    }
                }
            }
            let sees = |query: usize, key: usize| key <= query && key + window > query;
            // Alone, a key has all the weight, and no gradient but that of its value.
            let moves = |query: usize, key: usize| sees(query, key) && query > 0 && window > 1;
            one_seed!(|d| {
                let plan = Plan::new(&d, case.documents()).unwrap();
                let out = run(&d, &case, &plan, true).unwrap();
                for i in 0..190 * dim {
                    let (row, one) = (i / dim, first + i % dim);
                    let what = format!("row {row} and {one}, {dim} wide, window {window}");
                    assert_eq!(out.o[i].to_f32() != 0.0, sees(row, one), "o: {what}");
                    assert_eq!(out.dv[i].to_f32() != 0.0, sees(one, row), "dv: {what}");
                    assert_eq!(out.dk[i].to_f32() != 0.0, moves(one, row), "dk: {what}");
                    if (first..first + dim).contains(&row) {
                        assert_eq!(out.dq[i].to_f32() != 0.0, moves(row, one), "dq: {what}");
                    }
                }
            });
        }
    }
}

#[test]
fn query_heads_share_key_heads() {
    for kv_heads in [8, 2, 1] {
        let case = Case::new(Batch::whole(&[37, 66]), 8, kv_heads, 32, None);
        backends!(|d| check(&d, &case, false));
    }
}

#[test]
fn tuned_head_sizes_over_several_tiles() {
    for dim in [64, 96, 128] {
        let case = Case::new(Batch::whole(&[130, 1, 263]), 2, 1, dim, None);
        one_seed!(|d| check(&d, &case, true));
        let case = Case::new(Batch::whole(&[20]), 4, 2, dim, None);
        backends!(|d| check(&d, &case, true));
    }
}

#[test]
fn other_head_sizes() {
    for dim in [8, 24, 40, 80, 112, 136, 192, 200, 256] {
        let case = Case::new(Batch::whole(&[5, 75]), 2, 1, dim, None);
        one_seed!(|d| check(&d, &case, true));
    }
    // Two parts of a tile, and a window that ends in one.
    for dim in [192, 256] {
        let case = Case::new(Batch::whole(&[140]), 1, 1, dim, Some(50));
        one_seed!(|d| check(&d, &case, false));
    }
}

#[test]
fn scores_of_fifty_and_more() {
    let mut case = Case::new(Batch::whole(&[65, 40]), 2, 1, 64, None);
    for x in [&mut case.q, &mut case.k] {
        x.iter_mut().for_each(|v| *v = round_bf16(*v * 3.0));
    }
    let (_, lse) = forward(&case.batch, case.shape, &wide(&case.q), &wide(&case.k), &wide(&case.v));
    let (low, high) = (lse.iter().copied().fold(0.0, f64::min), lse.iter().copied().fold(0.0, f64::max));
    assert!(low < -10.0 && high > 50.0, "log-sum-exp from {low} to {high} only");
    backends!(|d| check(&d, &case, false));
}

/// Scores whose powers are infinite before the maximum is subtracted, or once that of another row is.
#[test]
fn scores_far_below_zero() {
    let mut case = Case::new(Batch::whole(&[70]), 1, 1, 64, None);
    case.q.iter_mut().for_each(|v| *v = round_bf16(*v * 0.1 + 4.0));
    case.k.iter_mut().for_each(|v| *v = round_bf16(*v - 4.0));
    let (q, k, v) = (wide(&case.q), wide(&case.k), wide(&case.v));
    let (o, lse) = forward(&case.batch, case.shape, &q, &k, &v);
    assert!(lse.iter().all(|&v| v < -100.0));
    let [_, _, dv] = backward(&case.batch, case.shape, &q, &k, &v, &wide(&case.d_o));
    backends!(|d| {
        let plan = Plan::new(&d, case.documents()).unwrap();
        let out = run(&d, &case, &plan, false).unwrap();
        close("o", &out.o, &o, FORWARD);
        close("dv", &out.dv, &dv, BACKWARD);
        // What the keys have in common cancels out in dq, and leaves the roundings of dS: no test of its values.
        assert!(out.dq.iter().chain(&out.dk).all(|v| v.is_finite()));
    });
}

/// Scores that grow by steps smaller than what moves the subtracted maximum, and by larger ones, over many tiles.
#[test]
fn scores_that_grow_along_the_document() {
    for step in [0.02, 0.2, -0.2] {
        let mut case = Case::new(Batch::whole(&[250]), 1, 1, 32, None);
        case.q.fill(1.0);
        for (i, row) in case.k.chunks_exact_mut(32).enumerate() {
            row.iter_mut().for_each(|v| *v = round_bf16(*v * 0.25 + step * i as f32));
        }
        let (o, lse) = forward(&case.batch, case.shape, &wide(&case.q), &wide(&case.k), &wide(&case.v));
        one_seed!(|d| {
            let plan = Plan::new(&d, case.documents()).unwrap();
            let out = run(&d, &case, &plan, false).unwrap();
            close("o", &out.o, &o, FORWARD);
            close("lse", &out.lse, &lse, LSE);
        });
    }
}

#[test]
fn only_some_rows_ask() {
    // Every third, only the last, none, every one with a gap in the middle.
    let asks = |i, p| match i {
        0 => p % 3 == 1,
        1 => p == 69,
        2 => false,
        _ => !(20..60).contains(&p),
    };
    for window in [None, Some(9)] {
        let case = Case::new(Batch::of(&[135, 70, 10, 100], asks), 2, 1, 64, window);
        backends!(|d| check(&d, &case, false));
    }
    let case = Case::new(Batch::of(&[140], |_, p| p % 2 == 0), 2, 1, 256, Some(30));
    one_seed!(|d| check(&d, &case, false));
}

#[test]
fn queries_that_continue_a_document() {
    for past in [1, 62, 63, 64, 200] {
        let case = Case::new(Batch::of(&[past + 5], |_, p| p >= past), 2, 1, 64, None).flat();
        backends!(|d| check(&d, &case, false));
    }
}

#[test]
fn no_queries_or_no_keys() {
    backends!(|d| {
        let case = Case::new(Batch::of(&[70, 0, 3], |_, _| false), 2, 1, 64, None);
        let out = check(&d, &case, false);
        assert!(out.dk.iter().chain(&out.dv).all(|v| v.to_bits() == 0), "gradients of keys that nobody sees");
        check(&d, &Case::new(Batch::whole(&[]), 2, 1, 64, None), true);
        check(&d, &Case::new(Batch::whole(&[0, 0]), 2, 1, 64, None), true);
    });
}

/// Other tokens in one document, not-a-numbers among them, leave the others' results alone, bit for bit.
#[test]
fn documents_do_not_touch_each_other() {
    let case = Case::new(Batch::whole(&[30, 41, 68]), 2, 1, 64, Some(50));
    let mut other = case.clone();
    let (width, kv) = (case.width(), case.kv_width());
    for (x, width) in [(&mut other.q, width), (&mut other.k, kv), (&mut other.v, kv), (&mut other.d_o, width)]
    {
        for (i, v) in x[30 * width..71 * width].iter_mut().enumerate() {
            *v = if i % 7 == 0 { f32::NAN } else { -2.0 * *v };
        }
    }
    let outside = |x: &[bf16], width: usize| [&x[..30 * width], &x[71 * width..]].concat();
    backends!(|d| {
        let plan = Plan::new(&d, case.documents()).unwrap();
        let (a, b) = (run(&d, &case, &plan, true).unwrap(), run(&d, &other, &plan, true).unwrap());
        assert!(a.o != b.o);
        for (a, b, width) in
            [(&a.o, &b.o, width), (&a.dq, &b.dq, width), (&a.dk, &b.dk, kv), (&a.dv, &b.dv, kv)]
        {
            assert!(outside(a, width) == outside(b, width));
        }
        assert!(a.lse[..30 * 2] == b.lse[..30 * 2] && a.lse[71 * 2..] == b.lse[71 * 2..]);
    });
}

#[test]
fn a_query_without_a_number_keeps_it_to_itself() {
    let case = Case::new(Batch::whole(&[70]), 2, 1, 64, None);
    for (row, value) in [(0, f32::NAN), (33, f32::INFINITY), (69, f32::NAN)] {
        let mut other = case.clone();
        // One value of head 1.
        other.q[row * case.width() + 64 + 5] = value;
        backends!(|d| {
            let plan = Plan::new(&d, case.documents()).unwrap();
            let (a, b) = (run(&d, &case, &plan, false).unwrap(), run(&d, &other, &plan, false).unwrap());
            for (i, (a, b)) in a.o.iter().zip(&b.o).enumerate() {
                if (i / 128, i % 128 / 64) == (row, 1) {
                    assert!(b.is_nan(), "row {row} has {b} for its {value}");
                } else {
                    assert_eq!(a.to_bits(), b.to_bits(), "value {i}");
                }
            }
            for (i, (a, b)) in a.lse.iter().zip(&b.lse).enumerate() {
                assert!(if i == row * 2 + 1 { !b.is_finite() } else { a == b }, "lse {i}");
            }
            assert!(b.dq[row * 128 + 64..row * 128 + 128].iter().all(|v| v.is_nan()));
        });
    }
}

/// A plan in the memory of another one, larger and smaller, is the plan that is made anew.
#[test]
fn plans_in_the_memory_of_others() {
    let first = Case::new(Batch::whole(&[130, 20]), 2, 1, 32, None);
    let second = Case::new(Batch::of(&[7, 160, 0], |_, p| p % 5 == 0), 2, 1, 32, Some(40));
    let third = Case::new(Batch::whole(&[200, 100]), 2, 1, 32, None);
    one_seed!(|d| {
        let mut old = None;
        for case in [&first, &second, &third, &second, &first] {
            let room = Room { queries: 150, keys: 150, documents: 150 };
            let plan = Plan::in_memory_of(old.take(), &d, case.documents(), room).unwrap();
            assert_eq!((plan.queries(), plan.keys()), (case.batch.queries(), case.batch.keys()));
            let own = Plan::new(&d, case.documents()).unwrap();
            assert!(run(&d, case, &plan, false).unwrap() == run(&d, case, &own, false).unwrap());
            old = Some(plan);
        }
    });
}

/// A plan of fixed length gives the same bits, and takes one batch after the other.
#[test]
fn plans_of_fixed_length() {
    let first = Case::new(Batch::whole(&[130, 20]), 2, 1, 32, None);
    let second = Case::new(Batch::of(&[7, 160, 0], |_, p| p % 5 == 0), 2, 1, 32, Some(40));
    one_seed!(|d| {
        let mut plan = Plan::with_room(&d, Room { queries: 150, keys: 167, documents: 3 }).unwrap();
        for case in [&first, &second, &first] {
            plan.set(&d, case.documents()).unwrap();
            assert_eq!((plan.queries(), plan.keys()), (case.batch.queries(), case.batch.keys()));
            let own = Plan::new(&d, case.documents()).unwrap();
            assert!(run(&d, case, &plan, false).unwrap() == run(&d, case, &own, false).unwrap());
        }
        let many = Batch::whole(&[1; 150]);
        let many =
            Documents { cu_queries: &many.cu_queries, cu_keys: &many.cu_keys, positions: &many.positions };
        refused(plan.set(&d, many), "150 query tiles in a plan for 5");
    });
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, words: &str) {
    let said = result.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains(words), "said `{said}`, not `{words}`");
}

#[test]
fn documents_that_make_no_sense_are_refused() {
    let plan = |d: &Emulator, cu_queries: &[usize], cu_keys: &[usize], positions: &[usize]| {
        Plan::new(d, Documents { cu_queries, cu_keys, positions })
    };
    let d = Emulator::new(1);
    refused(plan(&d, &[], &[], &[]), "0 bounds of queries, 0 of keys");
    refused(plan(&d, &[0, 1], &[0, 1, 2], &[0]), "2 bounds of queries, 3 of keys");
    refused(plan(&d, &[0, 2, 1], &[0, 2, 3], &[0]), "query rows must ascend from 0");
    refused(plan(&d, &[0, 1], &[1, 3], &[0]), "key rows must ascend from 0");
    refused(plan(&d, &[0, 2], &[0, 2], &[0]), "1 positions for 2 queries");
    refused(plan(&d, &[0, 1, 3], &[0, 1, 3], &[0, 1, 1]), "document 1: position 1 after 1");
    refused(plan(&d, &[0, 1, 3], &[0, 1, 3], &[0, 0, 2]), "document 1: position 2 with 2 keys");
    refused(plan(&d, &[0, 0], &[0, 1 << 31], &[]), "2147483648 key rows are too many");
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let case = Case::new(Batch::whole(&[5]), 4, 2, 8, None);
    let right = case.heads();
    let d = Emulator::new(1);
    let plan = Plan::new(&d, case.documents()).unwrap();
    let x = Slice::from_host(&d, &[bf16::ZERO; 1024]).unwrap();
    let call =
        |h: Heads, q: (usize, usize, usize, usize), k: (usize, usize), o: (usize, usize), lse: usize| {
            let mut out = Slice::zeros(&d, 1024).unwrap();
            let mut lse = Slice::zeros(&d, lse).unwrap();
            let q = View { at: q.3, ..View::new(&x, q.0, q.1, q.2) };
            let k = View::new(&x, k.0, k.1, 32);
            attention::forward(&d, &plan, h, q, k, k, ViewMut::new(&mut out, o.0, o.1, 32), &mut lse)
        };
    let q = (5, 32, 32, 0);
    if Emulator::available() {
        call(right, q, (5, 16), (5, 32), 20).unwrap();
    }
    refused(
        call(Heads { kv_heads: 3, ..right }, q, (5, 16), (5, 32), 20),
        "4 query heads cannot be shared out among 3",
    );
    refused(
        call(Heads { head_dim: 12, ..right }, q, (5, 16), (5, 32), 20),
        "a head of 12 is no multiple of 8",
    );
    refused(call(Heads { head_dim: 264, ..right }, q, (5, 16), (5, 32), 20), "a head of 264 is no multiple");
    refused(call(Heads { window: Some(0), ..right }, q, (5, 16), (5, 32), 20), "a window of 0");
    refused(call(right, (4, 32, 32, 0), (5, 16), (5, 32), 20), "q [4, 32] must be [5, 32]");
    refused(call(right, q, (4, 16), (5, 32), 20), "k [4, 16] must be [5, 16]");
    refused(call(right, q, (5, 16), (5, 24), 20), "o [5, 24] must be [5, 32]");
    refused(call(right, q, (5, 16), (5, 32), 19), "19 values of lse for 5 queries of 4 heads");
    refused(call(right, (5, 32, 36, 0), (5, 16), (5, 32), 20), "must start at multiples of 8");
    refused(call(right, (5, 32, 32, 4), (5, 16), (5, 32), 20), "must start at multiples of 8");
    refused(call(right, (5, 32, 32, 896), (5, 16), (5, 32), 20), "is not inside its 1024 values");

    let back = |rows: usize, scratch: usize, fused: bool| {
        let (lse, mut scratch) = (Slice::zeros(&d, 20).unwrap(), Slice::zeros(&d, scratch).unwrap());
        let (mut a, mut b) = (Slice::zeros(&d, 1024).unwrap(), Slice::zeros(&d, 1024).unwrap());
        let (q, k) = (View::new(&x, 5, 32, 32), View::new(&x, 5, 16, 32));
        let out = if fused {
            Gradients::Fused(ViewMut::new(&mut a, rows, 64, 64))
        } else {
            Gradients::Apart { dq: ViewMut::new(&mut a, 5, 32, 32), dkv: ViewMut::new(&mut b, rows, 32, 32) }
        };
        attention::backward(
            &d,
            &plan,
            right,
            Inputs { q, k, v: k, o: q, lse: &lse, d_o: q },
            &mut scratch,
            out,
        )
    };
    refused(back(4, 40, false), "[dk | dv] [4, 32] must be [5, 32]");
    refused(back(4, 40, true), "[dq | dk | dv] [4, 64] must be [5, 64]");
    refused(back(5, 39, false), "39 of scratch for 40 of scratch");
}

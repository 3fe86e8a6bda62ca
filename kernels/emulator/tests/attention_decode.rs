//! Attention over a key/value cache against f64.

// Helpers outside of test functions: a failure is the test's.
#![allow(clippy::unwrap_used)]

use tunesmith_emulator::check::{close, round_bf16, values};
use tunesmith_emulator::{Emulator, backends};
use tunesmith_kernels::gpu::attention::Heads;
use tunesmith_kernels::gpu::attention_decode::{Context, Contexts, attention_decode, scratch};
use tunesmith_kernels::gpu::{Driver, Error, Limits, Slice, View, ViewMut, bf16};

const POISON: u16 = 0x7fa5;
/// One rounding, that of o.
const TOLERANCE: f64 = 2.5e-3;

#[derive(Debug, Clone)]
struct Case {
    h: Heads,
    contexts: Vec<Context>,
    rows: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    /// Sequences laid out backwards in a cache with rows between them.
    fn new(h: Heads, keys: &[usize]) -> Self {
        let mut rows = 3;
        let mut contexts: Vec<Context> = keys
            .iter()
            .rev()
            .map(|&keys| {
                rows += keys + 2;
                Context { start: rows - keys - 2, keys }
            })
            .collect();
        contexts.reverse();
        let draw = |seed, len, size: f32| -> Vec<f32> {
            values(seed, len).iter().map(|v| round_bf16(v * size)).collect()
        };
        let cache = rows * h.kv_heads * h.head_dim;
        Self {
            q: draw(1, keys.len() * h.heads * h.head_dim, 3.0),
            k: draw(2, cache, 2.0),
            v: draw(3, cache, 1.0),
            h,
            contexts,
            rows,
        }
    }

    fn reference(&self) -> Vec<f64> {
        let Heads { heads, kv_heads, head_dim: dim, window } = self.h;
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let mut out = Vec::new();
        for (query, context) in self.q.chunks_exact(heads * dim).zip(&self.contexts) {
            let seen = window.map_or(0, |w| context.keys.saturating_sub(w))..context.keys;
            for (h, query) in query.chunks_exact(dim).enumerate() {
                let at = |p: usize| ((context.start + p) * kv_heads + h * kv_heads / heads) * dim;
                let scores: Vec<f64> =
                    seen.clone().map(|p| dot(query, &self.k[at(p)..][..dim]) / (dim as f64).sqrt()).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let mut o = vec![0.0; dim];
                for (p, s) in seen.clone().zip(&scores) {
                    let values = &self.v[at(p)..][..dim];
                    o.iter_mut().zip(values).for_each(|(o, &v)| *o += (s - max).exp() / sum * f64::from(v));
                }
                out.extend(o);
            }
        }
        out
    }
}

/// Rows of `x` from value 8 on, `ld` apart, among poison.
fn place<D: Driver>(d: &D, x: &[f32], rows: usize, cols: usize, ld: usize) -> Slice<D, bf16> {
    let mut host = vec![bf16::from_bits(POISON); rows * ld + 8];
    for (i, &v) in x.iter().enumerate() {
        host[8 + i / cols * ld + i % cols] = bf16::from_f32(v);
    }
    Slice::from_host(d, &host).unwrap()
}

fn run<D: Driver>(d: &D, case: &Case) -> Vec<bf16> {
    let h = case.h;
    let (n, width, kv) = (case.contexts.len(), h.heads * h.head_dim, h.kv_heads * h.head_dim);
    let (ld, kv_ld) = (width + 16, kv + 8);
    let contexts = Contexts::new(d, &case.contexts).unwrap();
    let (q, mut o) = (place(d, &case.q, n, width, ld), place(d, &[], n, width, ld));
    let (k, v) = (place(d, &case.k, case.rows, kv, kv_ld), place(d, &case.v, case.rows, kv, kv_ld));
    let longest = case.contexts.iter().map(|c| c.keys).max().unwrap_or(0);
    let mut scratch = Slice::uninit(d, scratch(d.limits(), n, longest, h)).unwrap();
    let view = |slice, rows, cols, ld| View { at: 8, ..View::new(slice, rows, cols, ld) };
    let (q, k, v) = (view(&q, n, width, ld), view(&k, case.rows, kv, kv_ld), view(&v, case.rows, kv, kv_ld));
    let out = ViewMut { at: 8, ..ViewMut::new(&mut o, n, width, ld) };
    attention_decode(d, &contexts, h, q, k, v, &mut scratch, out).unwrap();
    let host = o.to_host(d).unwrap();
    let mut out = Vec::new();
    for (i, v) in host.iter().enumerate() {
        let inside = i >= 8 && (i - 8) % ld < width;
        assert_eq!(v.to_bits() != POISON, inside, "value {i}: {v}");
        out.extend(inside.then_some(*v));
    }
    out
}

fn check<D: Driver>(d: &D, case: &Case) {
    let out = run(d, case);
    close(&format!("o of {:?}, {:?}", case.h, case.contexts), &out, &case.reference(), TOLERANCE);
    assert!(out == run(d, case), "two runs differ");
}

fn heads(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Heads {
    Heads { heads, kv_heads, head_dim, window }
}

#[test]
fn contexts_of_awkward_lengths() {
    // Up to 127 keys are one share; with 700 the others end in their first, or have fewer shares.
    for keys in [&[1, 7, 16, 64, 65, 127][..], &[700, 1, 127, 128, 129, 300]] {
        let case = Case::new(heads(4, 2, 64, None), keys);
        backends!(|d| check(&d, &case));
    }
}

#[test]
fn head_sizes() {
    for dim in [8, 32, 40, 64, 80, 96, 128, 136, 192, 256] {
        let case = Case::new(heads(2, 1, dim, None), &[150, 33]);
        backends!(|d| check(&d, &case));
    }
}

#[test]
fn query_heads_share_key_heads() {
    for (all, kv_heads) in [(8, 8), (8, 2), (8, 1), (40, 2)] {
        let case = Case::new(heads(all, kv_heads, 32, None), &[140, 20]);
        backends!(|d| check(&d, &case));
    }
}

#[test]
fn windows() {
    for window in [1, 5, 64, 200, 1000] {
        let case = Case::new(heads(2, 1, 64, Some(window)), &[300, 64, 3, 201]);
        backends!(|d| check(&d, &case));
    }
}

#[test]
fn large_scores() {
    let mut case = Case::new(heads(2, 1, 64, None), &[400, 70]);
    case.q.iter_mut().for_each(|v| *v = round_bf16(*v * 10.0));
    backends!(|d| check(&d, &case));
    // All of them negative, beyond what a power of 2 can hold.
    case.q.iter_mut().for_each(|v| *v = round_bf16(*v * 0.1 + 10.0));
    case.k.iter_mut().for_each(|v| *v = round_bf16(*v - 4.0));
    backends!(|d| check(&d, &case));
}

/// Values that cancel out in pairs leave the small differences of their weights, which a rounded P would bury.
#[test]
fn weights_are_not_rounded() {
    let mut case = Case::new(heads(2, 1, 64, None), &[200, 64]);
    let wiggle = values(5, case.k.len());
    for row in (1..case.rows).step_by(2) {
        for i in row * 64..(row + 1) * 64 {
            case.k[i] = round_bf16(case.k[i - 64] + 0.05 * wiggle[i]);
            case.v[i] = -case.v[i - 64];
        }
    }
    backends!(|d| check(&d, &case));
}

/// What other sequences hold, not-a-numbers included, and what lies beyond a context and before a window, is not seen.
#[test]
fn sequences_do_not_touch_each_other() {
    let case = Case::new(heads(2, 1, 64, Some(200)), &[300, 50, 40]);
    let mut other = case.clone();
    let seen = [0, 2].map(|i| {
        let Context { start, keys } = case.contexts[i];
        start + keys.saturating_sub(200)..start + keys
    });
    for (i, (k, v)) in other.k.iter_mut().zip(&mut other.v).enumerate() {
        if !seen.iter().any(|seen| seen.contains(&(i / 64))) {
            (*k, *v) = (f32::NAN, f32::INFINITY);
        }
    }
    other.q[128 + 64 + 3] = f32::NAN;
    backends!(|d| {
        let (a, b) = (run(&d, &case), run(&d, &other));
        assert!(a[..128] == b[..128] && a[256..] == b[256..]);
        assert!(b[128..256].iter().all(|v| v.is_nan()));
    });
}

#[test]
fn a_query_head_without_a_number_keeps_it_to_itself() {
    for keys in [40, 600] {
        let case = Case::new(heads(4, 2, 64, None), &[keys, 30]);
        for value in [f32::NAN, f32::INFINITY] {
            let mut other = case.clone();
            other.q[64 + 9] = value;
            backends!(|d| {
                let (a, b) = (run(&d, &case), run(&d, &other));
                assert!(a[..64] == b[..64] && a[128..] == b[128..]);
                assert!(b[64..128].iter().all(|v| v.is_nan()));
            });
        }
    }
}

#[test]
fn no_queries() {
    backends!(|d| assert!(run(&d, &Case::new(heads(2, 1, 64, None), &[])).is_empty()));
}

#[test]
fn scratch_is_enough_for_any_smaller_batch() {
    let limits = Limits { multiprocessors: 132, shared_per_block: 0 };
    for h in [heads(32, 8, 128, None), heads(8, 8, 64, Some(512)), heads(64, 1, 256, None)] {
        let most = scratch(limits, 64, 8192, h);
        assert!(
            (0..=64).all(|n| [1, 200, 4096, 8192].iter().all(|&keys| scratch(limits, n, keys, h) <= most))
        );
    }
    assert_eq!(scratch(limits, 3, 128, heads(32, 8, 128, None)), 0);
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, words: &str) {
    let said = result.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(said.contains(words), "said `{said}`, not `{words}`");
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let d = Emulator::new(1);
    refused(Contexts::new(&d, &[Context { start: 0, keys: 0 }]), "query 0 has 0 keys");
    refused(
        Contexts::new(&d, &[Context { start: 1 << 31, keys: 1 }]),
        "query 0 has 1 keys from row 2147483648 on",
    );
    let mut contexts =
        Contexts::new(&d, &[Context { start: 2, keys: 200 }, Context { start: 0, keys: 1 }]).unwrap();
    refused(contexts.set(&d, &[Context { start: 0, keys: 1 }; 3]), "3 queries with room for 2");

    let x = Slice::from_host(&d, &vec![bf16::ZERO; 202 * 64]).unwrap();
    let call = |h: Heads, q: (usize, usize), k: (usize, usize), ld: usize, o: usize, len: usize| {
        let mut out = Slice::zeros(&d, 64 * 4).unwrap();
        let mut scratch = Slice::zeros(&d, len).unwrap();
        let (q, k) = (View::new(&x, q.0, q.1, 64), View::new(&x, k.0, k.1, ld));
        attention_decode(&d, &contexts, h, q, k, k, &mut scratch, ViewMut::new(&mut out, o, 64, 64))
    };
    let h = heads(4, 2, 16, None);
    if Emulator::available() {
        call(h, (2, 64), (202, 32), 64, 2, 2 * 4 * 2 * 18).unwrap();
    }
    refused(
        call(heads(4, 3, 16, None), (2, 64), (202, 32), 64, 2, 288),
        "4 query heads cannot be shared out among 3",
    );
    refused(call(h, (1, 64), (202, 32), 64, 2, 288), "q [1, 64] and o [2, 64] must be [2, 64]");
    refused(call(h, (2, 64), (202, 32), 64, 3, 288), "q [2, 64] and o [3, 64] must be [2, 64]");
    refused(call(h, (2, 64), (201, 32), 64, 2, 288), "k [201, 32] and v [201, 32] must have 202 rows of 32");
    refused(call(h, (2, 64), (202, 32), 36, 2, 288), "must start at multiples of 8");
    refused(call(h, (2, 64), (202, 32), 72, 2, 288), "is not inside its 12928 values");
    refused(call(h, (2, 64), (202, 32), 64, 2, 287), "287 values of scratch for 288");
}

//! Attention, forward and backward: heads of many sizes, key heads shared by many query heads, documents side by side,
//! windows, a few queries after a cache.

use tunesmith_ops::{Attention, AttentionGradients, Error, Kernels, Sequences};

use crate::check::Precision;
use crate::draw::{round, values};
use crate::lab::{Allowed, Case, Fault, Lab};
use crate::placed::{Placed, Rows, full, read_full};
use crate::reference::attention::Call;

/// Documents of these lengths, every position a query.
fn whole(lengths: &[usize]) -> Vec<(usize, Vec<usize>)> {
    lengths.iter().map(|&n| (n, (0..n).collect())).collect()
}

/// One document whose last `new` positions ask.
fn continuing(past: usize, new: usize) -> Vec<(usize, Vec<usize>)> {
    vec![(past + new, (past..past + new).collect())]
}

fn call(
    (heads, kv_heads, dim): (usize, usize, usize),
    window: Option<usize>,
    documents: Vec<(usize, Vec<usize>)>,
) -> Call {
    Call { heads, kv_heads, dim, window, documents }
}

/// The shapes of training: every row a query, but for the last block.
fn training(real: bool) -> Vec<Call> {
    let some = vec![(30, vec![3, 4, 29]), (6, vec![]), (11, vec![4])];
    let mut out = vec![
        call((4, 2, 64), None, whole(&[5, 1, 70, 12])),
        call((1, 1, 128), None, whole(&[65])),
        call((8, 1, 96), Some(9), whole(&[40, 3])),
        call((4, 1, 24), None, some),
        call((2, 2, 8), Some(1), whole(&[7])),
        call((2, 1, 256), None, whole(&[0, 17, 0, 3])),
        call((2, 1, 192), Some(5), whole(&[33])),
    ];
    if real {
        out.extend([
            call((32, 8, 128), None, whole(&[1, 200, 64, 129, 118])),
            call((8, 8, 64), Some(100), whole(&[300, 129])),
            call((8, 2, 128), None, vec![(300, (200..300).collect()), (129, vec![128])]),
        ]);
    }
    out
}

/// The shapes of generating.
fn generating(real: bool) -> Vec<Call> {
    let mut out = vec![
        call((8, 2, 64), Some(30), continuing(90, 1)),
        call((4, 2, 128), None, continuing(37, 3)),
        call((2, 1, 64), None, continuing(0, 1)),
        // More than the kernel for a few queries takes.
        call((2, 1, 64), None, continuing(20, 40)),
    ];
    if real {
        out.extend([
            call((32, 8, 128), None, continuing(1000, 1)),
            call((32, 8, 128), Some(256), continuing(700, 5)),
        ]);
    }
    out
}

pub(super) fn all<K: Kernels>(lab: &mut Lab<'_, K>) {
    let real = lab.is_real();
    for (i, call) in training(real).iter().enumerate() {
        forward(lab, call, true, size(i), i == 0);
    }
    for (i, call) in generating(real).iter().enumerate() {
        forward(lab, call, false, size(i), i < 2);
    }
    for (i, call) in training(real).iter().enumerate() {
        backward(lab, call, size(i), i == 0);
    }
}

/// Scores of a few units, or small ones: with those every key counts, so that one too many or too few shows.
fn size(i: usize) -> f32 {
    if i.is_multiple_of(2) { 3.0 } else { 0.5 }
}

fn words(call: &Call) -> String {
    let lengths: Vec<String> = call.documents.iter().map(|(n, _)| n.to_string()).collect();
    let mut text =
        format!("{} heads on {} of {}, {} tokens", call.heads, call.kv_heads, call.dim, lengths.join(" + "));
    if call.queries() < call.keys() {
        text = format!("{text}, {} ask", call.queries());
    }
    match call.window {
        Some(window) => format!("{text}, window {window}"),
        None => text,
    }
}

fn sequences(call: &Call) -> Result<Sequences, Error> {
    let lengths: Vec<usize> = call.documents.iter().map(|(n, _)| *n).collect();
    if let ([(keys, asks)], Some(first)) = (&call.documents[..], call.documents[0].1.first())
        && asks.len() == keys - first
    {
        return Ok(Sequences::continuing(*first, asks.len()));
    }
    let all = Sequences::whole(&lengths);
    if call.queries() == call.keys() {
        return Ok(all);
    }
    let starts = lengths.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n)));
    let rows: Vec<usize> = starts
        .zip(&call.documents)
        .flat_map(|(start, (_, asks))| asks.iter().map(move |p| start + p))
        .collect();
    all.select(&rows)
}

fn how<'a>(call: &Call, sequences: &'a Sequences) -> Attention<'a> {
    let Call { heads, kv_heads, dim, window, .. } = *call;
    Attention { sequences, heads, kv_heads, head_dim: dim, window }
}

/// q, k and v.
fn inputs(call: &Call, size: f32) -> Vec<Vec<f32>> {
    let (q, kv) = (call.queries() * call.heads * call.dim, call.keys() * call.kv_heads * call.dim);
    vec![values(1, q, size), values(2, kv, 2.0), values(3, kv, 1.0)]
}

/// k and v side by side, as a cache and the fused projection have them.
struct Pair<K: Kernels> {
    both: Placed<K>,
    width: usize,
}

impl<K: Kernels> Pair<K> {
    fn new(k: &K, call: &Call, keys: &[f32], vals: &[f32]) -> Result<Self, Fault> {
        let width = call.kv_heads * call.dim;
        let rows = keys.chunks_exact(width).zip(vals.chunks_exact(width));
        let host: Vec<f32> = rows.flat_map(|(k, v)| k.iter().chain(v)).copied().collect();
        Ok(Self { both: Placed::new(k, Rows::Aligned, (call.keys(), 2 * width), Some(&host))?, width })
    }

    fn keys(&self) -> tunesmith_ops::Mat<'_, K::Buf> {
        self.both.get().columns(0..self.width)
    }

    fn vals(&self) -> tunesmith_ops::Mat<'_, K::Buf> {
        self.both.get().columns(self.width..2 * self.width)
    }
}

fn forward<K: Kernels>(lab: &mut Lab<'_, K>, call: &Call, keeps_lse: bool, size: f32, nan: bool) {
    let (queries, width) = (call.queries(), call.heads * call.dim);
    let outputs = [("o", Allowed::Forward), ("lse", Allowed::Full)];
    lab.take(&Case {
        op: "attention",
        shape: words(call),
        inputs: inputs(call, size),
        run: &|k, x| {
            let sequences = sequences(call)?;
            let q = Placed::new(k, Rows::Aligned, (queries, width), Some(&x[0]))?;
            let kv = Pair::new(k, call, &x[1], &x[2])?;
            let mut o = Placed::new(k, Rows::Aligned, (queries, width), None)?;
            let mut lse = full(k, &vec![f32::NAN; queries * call.heads])?;
            let kept = keeps_lse.then_some(&mut lse);
            k.attention(how(call, &sequences), q.get(), kv.keys(), kv.vals(), o.get_mut(), kept)?;
            let mut out = vec![o.read(k)?];
            if keeps_lse {
                out.push(read_full(k, &lse)?);
            }
            Ok(out)
        },
        want: &|x| {
            let out = call.forward(&x[0], &x[1], &x[2]);
            if keeps_lse { vec![out.o, out.lse] } else { vec![out.o] }
        },
        outputs: if keeps_lse { &outputs } else { &outputs[..1] },
        // The last key, which the last query sees whatever the window.
        nan: nan.then_some((1, (call.keys() - 1) * call.kv_heads * call.dim + 1)),
    });
}

fn backward<K: Kernels>(lab: &mut Lab<'_, K>, call: &Call, size: f32, nan: bool) {
    let (queries, keys) = (call.queries(), call.keys());
    let (width, kv_width) = (call.heads * call.dim, call.kv_heads * call.dim);
    let mut given = inputs(call, size);
    let forward = call.forward(&given[0], &given[1], &given[2]);
    // What a forward leaves behind: o as the device stores it.
    let store = |v: f64| match lab.precision() {
        Precision::F32 => v as f32,
        Precision::Bf16 => round(v as f32),
    };
    given.push(forward.o.into_iter().map(store).collect());
    given.push(forward.lse.into_iter().map(|v| v as f32).collect());
    given.push(values(4, queries * width, 1.0));
    let is_whole = queries == keys;
    let outputs =
        [("dq", Allowed::Backward), ("dk and dv", Allowed::Backward), ("dq, dk and dv", Allowed::Backward)];
    lab.take(&Case {
        op: "attention_backward",
        shape: words(call),
        inputs: given,
        run: &|k, x| {
            let sequences = sequences(call)?;
            let how = how(call, &sequences);
            let placed = |values: &[f32]| Placed::new(k, Rows::Aligned, (queries, width), Some(values));
            let (q, o, d_o) = (placed(&x[0])?, placed(&x[3])?, placed(&x[5])?);
            let kv = Pair::new(k, call, &x[1], &x[2])?;
            let lse = full(k, &x[4])?;
            let mut dq = Placed::new(k, Rows::Aligned, (queries, width), None)?;
            let mut dkv = Placed::new(k, Rows::Aligned, (keys, 2 * kv_width), None)?;
            let apart = AttentionGradients::Apart { d_q: dq.get_mut(), d_kv: dkv.get_mut() };
            k.attention_backward(how, q.get(), kv.keys(), kv.vals(), o.get(), &lse, d_o.get(), apart)?;
            let mut out = vec![dq.read(k)?, dkv.read(k)?];
            if is_whole {
                let mut all = Placed::new(k, Rows::Aligned, (keys, width + 2 * kv_width), None)?;
                let fused = AttentionGradients::Fused(all.get_mut());
                k.attention_backward(how, q.get(), kv.keys(), kv.vals(), o.get(), &lse, d_o.get(), fused)?;
                out.push(all.read(k)?);
            }
            Ok(out)
        },
        want: &|x| {
            let [dq, dk, dv] = call.backward(&x[0], &x[1], &x[2], &x[5]);
            let beside = |parts: &[(&[f64], usize)]| -> Vec<f64> {
                let row =
                    |r: usize| parts.iter().flat_map(move |(part, width)| &part[r * width..(r + 1) * width]);
                (0..keys).flat_map(row).copied().collect()
            };
            let mut out = vec![dq.clone(), beside(&[(&dk, kv_width), (&dv, kv_width)])];
            if is_whole {
                out.push(beside(&[(&dq, width), (&dk, kv_width), (&dv, kv_width)]));
            }
            out
        },
        outputs: if is_whole { &outputs } else { &outputs[..2] },
        nan: nan.then_some((5, width + 1)),
    });
}

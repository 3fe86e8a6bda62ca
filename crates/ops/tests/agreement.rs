//! Every operation of [`Kernels`] on every backend that is there, against [`RefKernels`] on the same bf16-rounded
//! inputs: the emulator on x86-64 Linux with g++, and with feature `cuda` a GPU where one is.

#![allow(clippy::unwrap_used, missing_docs)]

use tunesmith_emulator::{backends, check};
use tunesmith_ops::{
    AdamW, Attention, AttentionGradients, DeviceKernels, DropoutKey, Flat, Index, Kernels, Mat, MatMut,
    RefKernels, Refresh, RopeTable, RowNames, Segment, Sequences,
};

/// One rounding to bf16, and two or three of them (research: 1.7e-3 a rounding in relative L2).
const ONE_ROUNDING: f64 = 2.5e-3;
const ROUNDINGS: f64 = 4e-3;

/// Numbers in [-1, 1) that bf16 holds exactly, the same for the same seed.
fn values(n: usize, seed: u64) -> Vec<f32> {
    check::values(seed, n).into_iter().map(check::round_bf16).collect()
}

fn close(what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    let want: Vec<f64> = want.iter().copied().map(f64::from).collect();
    check::close(what, got, &want, tolerance);
}

/// A matrix with rows `ld` apart on a backend.
struct M<K: Kernels> {
    buf: K::Buf,
    shape: (usize, usize, usize),
}

impl<K: Kernels> M<K> {
    fn new(k: &K, rows: usize, cols: usize, ld: usize, seed: u64) -> Self {
        Self::of(k, rows, cols, ld, &values(rows * cols, seed))
    }

    fn of(k: &K, rows: usize, cols: usize, ld: usize, host: &[f32]) -> Self {
        let mut buf = k.zeros(rows * ld).unwrap();
        k.write(host, MatMut::new(&mut buf, rows, cols, ld)).unwrap();
        Self { buf, shape: (rows, cols, ld) }
    }

    fn get(&self) -> Mat<'_, K::Buf> {
        let (rows, cols, ld) = self.shape;
        Mat::new(&self.buf, rows, cols, ld)
    }

    fn mutable(&mut self) -> MatMut<'_, K::Buf> {
        let (rows, cols, ld) = self.shape;
        MatMut::new(&mut self.buf, rows, cols, ld)
    }

    /// Everything, the columns between `cols` and `ld` included.
    fn all(&self, k: &K) -> Vec<f32> {
        let (rows, _, ld) = self.shape;
        k.read(Mat::new(&self.buf, rows, ld, ld)).unwrap()
    }
}

fn full<K: Kernels>(k: &K, host: &[f32]) -> K::Full {
    let mut out = k.zeros_full(host.len()).unwrap();
    k.write_full(host, &mut out, 0).unwrap();
    out
}

/// Runs `f` on a backend and on the reference, and compares what it returns.
macro_rules! agree {
    ($name:ident, $tolerance:expr, $f:ident $(, $arg:expr)*) => {
        #[test]
        fn $name() {
            let want: Vec<(&str, Vec<f32>)> = $f(&RefKernels $(, $arg)*);
            backends!(|d| {
                let got = $f(&DeviceKernels::new(d) $(, $arg)*);
                for ((what, got), (_, want)) in got.iter().zip(&want) {
                    close(what, got, want, $tolerance);
                }
            });
        }
    };
}

fn products<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let (m, n, depth) = (33, 40, 72);
    let (a, at) = (M::new(k, m, depth, 80, 1), M::new(k, depth, m, 40, 2));
    let (b, bt) = (M::new(k, depth, n, 48, 3), M::new(k, n, depth, 72, 4));
    let mut plain = M::new(k, m, n, 64, 5);
    k.gemm(0.5, a.get(), b.get(), 0.0, plain.mutable()).unwrap();
    let mut onto = M::new(k, m, n, n, 6);
    k.gemm(1.0, a.get(), bt.get().t(), 1.0, onto.mutable()).unwrap();
    let (kept, mut beside) = (M::new(k, m, n, 48, 9), M::new(k, m, n, 48, 10));
    k.gemm_onto(a.get(), b.get(), kept.get(), beside.mutable()).unwrap();
    let mut gradient = full(k, &values(n * m + 7, 7));
    let out = MatMut { at: 7, ..MatMut::new(&mut gradient, m, n, n) };
    k.gemm_full(2.0, at.get().t(), b.get(), 1.0, out).unwrap();
    let mut one = M::new(k, 1, n, n, 8);
    k.gemm(1.0, a.get().rows(3..4), b.get(), 0.0, one.mutable()).unwrap();
    vec![
        ("plain product", plain.all(k)),
        ("product onto C", onto.all(k)),
        ("product beside what it is added to", beside.all(k)),
        ("what it is added to", kept.all(k)),
        ("product into f32", k.read_full(&gradient).unwrap()),
        ("one row", one.all(k)),
    ]
}
agree!(products_agree, ONE_ROUNDING, products);

fn rows<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let m = M::new(k, 9, 24, 32, 1);
    let (some, wide): (Index, Index) = (vec![1, 4, 8].into(), vec![0, 3, 4, 5, 6, 7, 9, 10, 11].into());
    let mut gathered = M::new(k, 3, 24, 40, 2);
    k.gather_rows(m.get(), &some, gathered.mutable()).unwrap();
    let mut scattered = M::new(k, 12, 24, 32, 3);
    k.scatter_rows(m.get(), &wide, scattered.mutable()).unwrap();
    let (mut copied, mut added, mut cleared) =
        (M::new(k, 9, 24, 24, 4), M::new(k, 9, 24, 32, 5), M::new(k, 9, 24, 32, 6));
    k.copy(m.get(), copied.mutable()).unwrap();
    k.add(m.get(), added.mutable()).unwrap();
    k.clear(cleared.mutable().columns(3..19)).unwrap();
    let mut cast = M::new(k, 5, 12, 32, 7);
    let flat = full(k, &values(3 + 60, 8));
    k.cast(0.25, Mat { at: 3, ..Mat::new(&flat, 5, 12, 12) }, cast.mutable()).unwrap();
    let mut odd = M::new(k, 5, 3, 32, 9);
    k.cast(1.0, Mat { at: 2, ..Mat::new(&flat, 5, 3, 3) }, odd.mutable()).unwrap();
    let mut embedded = M::new(k, 4, 24, 24, 10);
    k.embed(m.get(), &[8, 0, 8, 3], embedded.mutable()).unwrap();
    let mut dropped = M::new(k, 9, 24, 24, 11);
    let names: RowNames = (0..9).map(|p| [2, p]).collect();
    let key = DropoutKey { seed: 5, step: 3, site: 9 };
    k.dropout(m.get(), key, 0.25, &names, dropped.mutable()).unwrap();
    vec![
        ("gather_rows", gathered.all(k)),
        ("scatter_rows", scattered.all(k)),
        ("copy", copied.all(k)),
        ("add", added.all(k)),
        ("clear", cleared.all(k)),
        ("cast", cast.all(k)),
        ("cast of an odd shape", odd.all(k)),
        ("embed", embedded.all(k)),
        ("dropout", dropped.all(k)),
    ]
}
agree!(row_operations_agree, ONE_ROUNDING, rows);

fn norms<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let (t, d) = (7, 72);
    let x = M::new(k, t, d, 80, 1);
    let w = M::new(k, 1, d, d, 2).buf;
    let mut rstd = full(k, &values(t, 3));
    let mut y = M::new(k, t, d, 136, 4);
    k.rms_norm(x.get(), &w, 1e-5, y.mutable(), &mut rstd).unwrap();
    let (dy, mut dx, mut again) = (M::new(k, t, d, d, 5), M::new(k, t, d, 136, 6), M::new(k, t, d, 136, 4));
    k.rms_norm_backward(dy.get(), x.get(), &w, &rstd, dx.mutable(), Some(again.mutable())).unwrap();
    let mut alone = M::new(k, t, d, 136, 6);
    k.rms_norm_backward(dy.get(), x.get(), &w, &rstd, alone.mutable(), None).unwrap();
    assert_eq!(again.all(k), y.all(k), "the backward makes other outputs than the forward");
    assert_eq!(alone.all(k), dx.all(k), "the gradient depends on whether outputs are made");
    vec![("y", y.all(k)), ("rstd", k.read_full(&rstd).unwrap()), ("dx", dx.all(k))]
}
agree!(norms_agree, ROUNDINGS, norms);

fn rope<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let table = RopeTable::new(&[1.0, 0.4, 0.1, 0.03], 40);
    let positions: Index = vec![0, 1, 2, 0, 39].into();
    let mut x = M::new(k, 5, 24, 40, 1);
    k.rope(x.mutable(), &positions, &table, false).unwrap();
    let forward = x.all(k);
    k.rope(x.mutable(), &positions, &table, true).unwrap();
    let beyond: Index = vec![0, 1, 2, 0, 40].into();
    let refused = k.rope(x.mutable(), &beyond, &table, false).unwrap_err().to_string();
    assert_eq!(refused, "Position 40 is beyond the 40 positions prepared for");
    vec![("rotated", forward), ("rotated back", x.all(k))]
}
agree!(rope_agrees, ROUNDINGS, rope);

fn swiglu<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let (t, f) = (5, 40);
    let scaled: Vec<f32> = values(t * 2 * f, 1).iter().map(|v| v * 8.0).collect();
    let mut gate_up = M::of(k, t, 2 * f, 144, &scaled);
    let (mut h, mut again) = (M::new(k, t, f, 104, 2), M::new(k, t, f, 104, 2));
    k.swiglu(gate_up.get(), h.mutable()).unwrap();
    let dh = M::new(k, t, f, f, 3);
    k.swiglu_backward(dh.get(), gate_up.mutable(), again.mutable()).unwrap();
    assert_eq!(h.all(k), again.all(k), "the backward makes another h than the forward");
    vec![("h", h.all(k)), ("d gate_up", gate_up.all(k))]
}
agree!(swiglu_agrees, ROUNDINGS, swiglu);

fn attention<K: Kernels>(
    k: &K,
    how: (usize, usize, usize, Option<usize>),
    sequences: &Sequences,
) -> Vec<(&'static str, Vec<f32>)> {
    let (heads, kv_heads, head_dim, window) = how;
    let how = Attention { sequences, heads, kv_heads, head_dim, window };
    let (queries, keys) = (sequences.queries(), sequences.keys());
    let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let (q, kv) =
        (M::new(k, queries, q_width, q_width + 8, 1), M::new(k, keys, 2 * kv_width, 2 * kv_width, 2));
    let (keys_, values_) = (kv.get().columns(0..kv_width), kv.get().columns(kv_width..2 * kv_width));
    let mut o = M::new(k, queries, q_width, q_width + 64, 3);
    let mut lse = full(k, &values(queries * heads, 4));
    k.attention(how, q.get(), keys_, values_, o.mutable(), Some(&mut lse)).unwrap();
    let mut alone = M::new(k, queries, q_width, q_width + 64, 3);
    k.attention(how, q.get(), keys_, values_, alone.mutable(), None).unwrap();
    let d_o = M::new(k, queries, q_width, q_width, 5);
    let (mut dq, mut dkv) =
        (M::new(k, queries, q_width, q_width, 6), M::new(k, keys, 2 * kv_width, 2 * kv_width + 8, 7));
    let apart = AttentionGradients::Apart { d_q: dq.mutable(), d_kv: dkv.mutable() };
    k.attention_backward(how, q.get(), keys_, values_, o.get(), &lse, d_o.get(), apart).unwrap();
    let all = q_width + 2 * kv_width;
    let mut dqkv = M::new(k, queries, all, all + 64, 8);
    if queries == keys {
        let fused = AttentionGradients::Fused(dqkv.mutable());
        k.attention_backward(how, q.get(), keys_, values_, o.get(), &lse, d_o.get(), fused).unwrap();
    }
    vec![
        ("o", o.all(k)),
        ("o without the log-sum-exp", alone.all(k)),
        ("lse", k.read_full(&lse).unwrap()),
        ("dq", dq.all(k)),
        ("dk and dv", dkv.all(k)),
        ("dq, dk and dv", dqkv.all(k)),
    ]
}
agree!(attention_agrees, 1e-2, attention, (4, 2, 16, None), &Sequences::whole(&[5, 1, 70, 12]));
agree!(windowed_attention_agrees, 1e-2, attention, (2, 2, 64, Some(9)), &Sequences::whole(&[40, 3]));
agree!(
    attention_of_some_rows_agrees,
    1e-2,
    attention,
    (4, 1, 24, None),
    &Sequences::whole(&[30, 6, 11]).select(&[3, 4, 29, 40]).unwrap()
);
agree!(attention_over_a_cache_agrees, 1e-2, attention, (4, 2, 16, None), &Sequences::continuing(37, 3));
agree!(
    attention_of_one_new_token_agrees,
    1e-2,
    attention,
    (8, 2, 64, Some(30)),
    &Sequences::continuing(90, 1)
);

fn loss<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let (n, d, vocab) = (9, 32, 203);
    let head = M::new(k, vocab, d, d, 1);
    let targets = [0, 202, 7, 7, 100, 3, 50, 1, 9];
    let mut x = M::new(k, n, d, d, 2);
    let mut losses = full(k, &values(n, 3));
    k.linear_cross_entropy(x.mutable(), head.get(), &targets, Some(0.125), &mut losses).unwrap();
    let mut plain = full(k, &values(n, 3));
    let mut again = M::new(k, n, d, d, 2);
    k.linear_cross_entropy(again.mutable(), head.get(), &targets, None, &mut plain).unwrap();
    assert_eq!(k.read_full(&plain).unwrap(), k.read_full(&losses).unwrap());
    let refused = k.linear_cross_entropy(again.mutable(), head.get(), &[203; 9], None, &mut plain);
    let refused = refused.unwrap_err().to_string();
    assert_eq!(refused, "Token id 203 at position 0 is outside the model's vocabulary of 203");
    vec![("losses", k.read_full(&losses).unwrap()), ("dx", x.all(k))]
}
agree!(loss_agrees, ROUNDINGS, loss);

fn optimizer<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let n = 1003;
    let g = full(k, &values(n, 1));
    let (mut p, mut m, mut v) = (full(k, &values(n, 2)), full(k, &vec![0.0; n]), full(k, &vec![0.0; n]));
    for step in 1..=5 {
        let how =
            AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.5 };
        k.adamw(how, &mut p, &g, &mut m, &mut v).unwrap();
    }
    let norm = k.norm(&g).unwrap();
    let mut bad = values(n, 1);
    bad[n - 1] = f32::NAN;
    assert!(!k.norm(&full(k, &bad)).unwrap().is_finite());
    let read = |x| k.read_full(x).unwrap();
    vec![("p", read(&p)), ("m", read(&m)), ("v", read(&v)), ("norm", vec![norm as f32])]
}
agree!(optimizer_agrees, 1e-6, optimizer);

/// Parameters, moments, two buffers with copies, and a guard.
struct Trained<K: Kernels> {
    flat: [K::Full; 3],
    to: [K::Buf; 2],
    copies: K::Copies,
    guard: K::Guard,
    steps: u64,
}

impl<K: Kernels> Trained<K> {
    fn new(k: &K, n: usize) -> Self {
        let to = [k.zeros(400).unwrap(), k.zeros(640).unwrap()];
        let segment =
            |start, rows, cols, to, at, ld, factor| Segment { start, rows, cols, to, at, ld, factor };
        let segments = [
            segment(4, 8, 32, 0, 8, 40, 1.0),
            segment(300, 30, 5, 1, 16, 20, 2.5),
            segment(501, 1, 7, 0, 0, 7, 0.5),
        ];
        let copies = k.copies(n, &[&to[0], &to[1]], &segments).unwrap();
        let flat = [full(k, &values(n, 2)), full(k, &vec![0.0; n]), full(k, &vec![0.0; n])];
        Self { flat, to, copies, guard: k.guard().unwrap(), steps: 0 }
    }

    /// One update; norm, factor, and whether it took place.
    fn update(&mut self, k: &K, g: &[f32], max_norm: Option<f64>) -> Vec<f64> {
        self.steps += 1;
        let step = AdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            step: self.steps,
            grad_scale: 1.0,
        };
        let g = full(k, g);
        let [p, m, v] = &mut self.flat;
        let [a, b] = &mut self.to;
        let refresh = Refresh { copies: &self.copies, to: &mut [a, b] };
        let later =
            k.clip_and_update(step, max_norm, &mut self.guard, Flat { p, g: &g, m, v }, refresh).unwrap();
        k.wait(later).unwrap()
    }

    fn all(&self, k: &K) -> Vec<(&'static str, Vec<f32>)> {
        let [p, m, v] = self.flat.each_ref().map(|x| k.read_full(x).unwrap());
        let [a, b] = self.to.each_ref();
        let read = |buf, n| k.read(Mat::new(buf, 1, n, n)).unwrap();
        vec![("p", p), ("m", m), ("v", v), ("first copies", read(a, 400)), ("second copies", read(b, 640))]
    }
}

fn clipped_updates<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let n = 1003;
    let mut trained = Trained::new(k, n);
    let results: Vec<f32> = [Some(0.5), None, Some(1e6)]
        .into_iter()
        .enumerate()
        .flat_map(|(i, max_norm)| trained.update(k, &values(n, 10 + i as u64), max_norm))
        .map(|v| v as f32)
        .collect();
    assert!(results[1] < 0.1 && results[4] == 1.0 && results[7] == 1.0, "{results:?}");
    let mut all = trained.all(k);
    all.push(("norm, factor, flag", results));
    all
}
agree!(clipped_updates_agree, ONE_ROUNDING, clipped_updates);

/// A loss or a gradient that is not finite stops its own update and all later ones, bit for bit, until the guard is
/// cleared; then all goes on as if it had not been.
fn a_bad_step<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let n = 1003;
    let good = values(n, 1);
    let mut bad = good.clone();
    bad[n - 1] = f32::NAN;
    let losses = full(k, &[1.0, f32::INFINITY, 2.0]);
    for spoil in 0..3 {
        let mut trained = Trained::new(k, n);
        trained.update(k, &good, Some(1.0));
        k.watch(&losses, 1, &mut trained.guard).unwrap();
        assert_eq!(trained.update(k, &good, None)[2], 1.0, "the first loss is finite");
        let before = trained.all(k);
        match spoil {
            0 => {}
            1 => k.watch(&losses, 2, &mut trained.guard).unwrap(),
            _ => {
                let results = trained.update(k, &bad, Some(1.0));
                assert!(!results[0].is_finite() && results[2] == 0.0, "{results:?}");
            }
        }
        for _ in 0..2 {
            let results = trained.update(k, &good, Some(1.0));
            assert!(results[0].is_finite());
            assert_eq!((results[2] == 1.0, trained.all(k) == before), (spoil == 0, spoil != 0), "{spoil}");
        }
        if spoil > 0 {
            k.clear_guard(&mut trained.guard).unwrap();
            trained.steps = 2;
            assert_eq!(trained.update(k, &good, Some(1.0))[2], 1.0);
            let mut never = Trained::new(k, n);
            never.update(k, &good, Some(1.0));
            never.update(k, &good, None);
            never.update(k, &good, Some(1.0));
            assert!(trained.all(k) == never.all(k), "{spoil}: not as if it had never been");
        }
    }
    Vec::new()
}
agree!(a_bad_step_changes_nothing, 0.0, a_bad_step);

fn late_reads<K: Kernels>(k: &K) -> Vec<(&'static str, Vec<f32>)> {
    let mut x = full(k, &values(50, 4));
    let first = k.read_later(&x, 3..40).unwrap();
    k.write_full(&values(50, 5), &mut x, 0).unwrap();
    let second = k.read_later(&x, 0..50).unwrap();
    k.clear_full(&mut x).unwrap();
    let wait = |later| k.wait(later).unwrap().iter().map(|&v| v as f32).collect::<Vec<f32>>();
    assert_eq!(wait(second), values(50, 5));
    assert_eq!(wait(first), values(50, 4)[3..40]);
    assert_eq!(wait(k.read_later(&x, 9..9).unwrap()), [0.0; 0]);
    k.read_later(&x, 9..51).unwrap_err();
    Vec::new()
}
agree!(late_reads_are_of_their_time, 0.0, late_reads);

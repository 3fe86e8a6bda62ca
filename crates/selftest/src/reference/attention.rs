//! Attention, a query at a time.

use super::{dot, wide};

/// What a call is about.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
    pub(crate) window: Option<usize>,
    /// Keys of each document, and the positions among them that ask.
    pub(crate) documents: Vec<(usize, Vec<usize>)>,
}

/// o and the log-sum-exp of each query and head.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) o: Vec<f64>,
    pub(crate) lse: Vec<f64>,
}

impl Call {
    pub(crate) fn queries(&self) -> usize {
        self.documents.iter().map(|(_, asks)| asks.len()).sum()
    }

    pub(crate) fn keys(&self) -> usize {
        self.documents.iter().map(|(keys, _)| keys).sum()
    }

    /// Each query row with the key rows that it sees: those of its document up to its own, as far back as the window.
    fn sights(&self) -> Vec<(usize, Vec<usize>)> {
        let (mut out, mut first) = (Vec::new(), 0);
        for (keys, asks) in &self.documents {
            for &position in asks {
                let sees = |p: &usize| *p <= position && self.window.is_none_or(|w| position - p < w);
                let rows = (0..*keys).filter(sees).map(|p| first + p).collect();
                out.push((out.len(), rows));
            }
            first += keys;
        }
        out
    }

    fn head<'x>(&self, x: &'x [f32], row: usize, heads: usize, head: usize) -> &'x [f32] {
        &x[(row * heads + head) * self.dim..][..self.dim]
    }

    /// Softmax weights of one query and head over what it sees, and their log-sum-exp.
    fn weights(&self, q: &[f32], k: &[f32], kv: usize, seen: &[usize]) -> (Vec<f64>, f64) {
        let root = (self.dim as f64).sqrt();
        let score = |&row: &usize| dot(wide(q), wide(self.head(k, row, self.kv_heads, kv))) / root;
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let max = scores.iter().fold(f64::NEG_INFINITY, |m, &s| if s > m || s.is_nan() { s } else { m });
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        (scores.iter().map(|s| (s - max).exp() / sum).collect(), max + sum.ln())
    }

    /// softmax(q kᵀ / √dim) v over what each query sees. Query head h reads key head h / (heads / `kv_heads`).
    pub(crate) fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Output {
        let (mut o, mut lse) = (Vec::new(), Vec::new());
        for (row, seen) in self.sights() {
            for h in 0..self.heads {
                let kv = h * self.kv_heads / self.heads;
                let (weights, log_sum) = self.weights(self.head(q, row, self.heads, h), k, kv, &seen);
                lse.push(log_sum);
                let mut out = vec![0.0; self.dim];
                for (w, &key) in weights.iter().zip(&seen) {
                    let value = self.head(v, key, self.kv_heads, kv);
                    out.iter_mut().zip(wide(value)).for_each(|(o, v)| *o += w * v);
                }
                o.extend(out);
            }
        }
        Output { o, lse }
    }

    /// Gradients of Σ o `d_o` by q, k and v: `dv = w d_o; ds = w (d_o·v - Σ w d_o·v); dq = ds k / √dim; dk = ds q / √dim`.
    pub(crate) fn backward(&self, q: &[f32], k: &[f32], v: &[f32], d_o: &[f32]) -> [Vec<f64>; 3] {
        let root = (self.dim as f64).sqrt();
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for (row, seen) in self.sights() {
            for h in 0..self.heads {
                let kv = h * self.kv_heads / self.heads;
                let (query, d_out) = (self.head(q, row, self.heads, h), self.head(d_o, row, self.heads, h));
                let (weights, _) = self.weights(query, k, kv, &seen);
                let pull = |&key: &usize| dot(wide(d_out), wide(self.head(v, key, self.kv_heads, kv)));
                let pulls: Vec<f64> = seen.iter().map(pull).collect();
                let mean = dot(weights.iter().copied(), pulls.iter().copied());
                for ((w, pull), &key) in weights.iter().zip(&pulls).zip(&seen) {
                    let ds = w * (pull - mean) / root;
                    let (at_q, at_k) =
                        ((row * self.heads + h) * self.dim, (key * self.kv_heads + kv) * self.dim);
                    for i in 0..self.dim {
                        dq[at_q + i] += ds * f64::from(k[at_k + i]);
                        dk[at_k + i] += ds * f64::from(query[i]);
                        dv[at_k + i] += w * f64::from(d_out[i]);
                    }
                }
            }
        }
        [dq, dk, dv]
    }
}

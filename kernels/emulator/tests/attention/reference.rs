//! Attention in f64, written from its formulas: scores of whole rows, no tiles.

/// Documents laid end to end, and which of their positions ask.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) cu_queries: Vec<usize>,
    pub(crate) cu_keys: Vec<usize>,
    pub(crate) positions: Vec<usize>,
}

impl Batch {
    /// Documents of a number of keys each, with the queries at the positions that `asks(document, position)` names.
    pub(crate) fn of(lengths: &[usize], asks: impl Fn(usize, usize) -> bool) -> Self {
        let (mut cu_queries, mut cu_keys, mut positions) = (vec![0], vec![0], vec![]);
        for (i, &length) in lengths.iter().enumerate() {
            positions.extend((0..length).filter(|&p| asks(i, p)));
            cu_queries.push(positions.len());
            cu_keys.push(cu_keys[i] + length);
        }
        Self { cu_queries, cu_keys, positions }
    }

    /// Every position asks.
    pub(crate) fn whole(lengths: &[usize]) -> Self {
        Self::of(lengths, |_, _| true)
    }

    pub(crate) fn queries(&self) -> usize {
        self.positions.len()
    }

    pub(crate) fn keys(&self) -> usize {
        *self.cu_keys.last().unwrap()
    }

    /// The query row, its document's first key row, and the positions that it sees.
    fn rows(
        &self,
        window: Option<usize>,
    ) -> impl Iterator<Item = (usize, usize, std::ops::RangeInclusive<usize>)> {
        (0..self.cu_keys.len() - 1).flat_map(move |i| {
            (self.cu_queries[i]..self.cu_queries[i + 1]).map(move |row| {
                let p = self.positions[row];
                let first = window.map_or(0, |w| (p + 1).saturating_sub(w));
                (row, self.cu_keys[i], first..=p)
            })
        })
    }
}

/// The shape of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
    pub(crate) window: Option<usize>,
}

/// Row-major `[rows, heads * dim]`.
pub(crate) type Matrix = Vec<f64>;

fn head(x: &[f64], row: usize, heads: usize, head: usize, dim: usize) -> &[f64] {
    &x[(row * heads + head) * dim..][..dim]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// o and lse.
pub(crate) fn forward(b: &Batch, s: Shape, q: &[f64], k: &[f64], v: &[f64]) -> (Matrix, Vec<f64>) {
    let mut o = vec![0.0; b.queries() * s.heads * s.dim];
    let mut lse = vec![0.0; b.queries() * s.heads];
    for (row, base, seen) in b.rows(s.window) {
        for h in 0..s.heads {
            let kv = h / (s.heads / s.kv_heads);
            let scores: Vec<f64> = seen
                .clone()
                .map(|p| {
                    let key = head(k, base + p, s.kv_heads, kv, s.dim);
                    dot(head(q, row, s.heads, h, s.dim), key) / (s.dim as f64).sqrt()
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
            lse[row * s.heads + h] = max + sum.ln();
            let out = &mut o[(row * s.heads + h) * s.dim..][..s.dim];
            for (score, p) in scores.iter().zip(seen.clone()) {
                let weight = (score - max).exp() / sum;
                let value = head(v, base + p, s.kv_heads, kv, s.dim);
                out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
            }
        }
    }
    (o, lse)
}

/// dq, dk and dv of Σ o ∘ `d_o`.
pub(crate) fn backward(b: &Batch, s: Shape, q: &[f64], k: &[f64], v: &[f64], d_o: &[f64]) -> [Matrix; 3] {
    let (o, lse) = forward(b, s, q, k, v);
    let scale = 1.0 / (s.dim as f64).sqrt();
    let mut dq = vec![0.0; q.len()];
    let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
    for (row, base, seen) in b.rows(s.window) {
        for h in 0..s.heads {
            let kv = h / (s.heads / s.kv_heads);
            let (query, grad) = (head(q, row, s.heads, h, s.dim), head(d_o, row, s.heads, h, s.dim));
            let delta = dot(head(&o, row, s.heads, h, s.dim), grad);
            for p in seen.clone() {
                let key = head(k, base + p, s.kv_heads, kv, s.dim);
                let value = head(v, base + p, s.kv_heads, kv, s.dim);
                let weight = (dot(query, key) * scale - lse[row * s.heads + h]).exp();
                let ds = weight * (dot(grad, value) - delta) * scale;
                let (at_q, at_k) = ((row * s.heads + h) * s.dim, ((base + p) * s.kv_heads + kv) * s.dim);
                for i in 0..s.dim {
                    dq[at_q + i] += ds * key[i];
                    dk[at_k + i] += ds * query[i];
                    dv[at_k + i] += weight * grad[i];
                }
            }
        }
    }
    [dq, dk, dv]
}

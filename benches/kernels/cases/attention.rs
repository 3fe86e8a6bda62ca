//! Attention over packed documents of one length, and of one new token each over what a cache holds of them.

use tunesmith_kernels::gpu::attention::{
    Documents, Gradients, Heads, Inputs, Plan, backward, backward_scratch, forward,
};
use tunesmith_kernels::gpu::attention_decode::{Context, Contexts, attention_decode, scratch};
use tunesmith_kernels::gpu::{Driver, Result, Slice, View, ViewMut, bf16};

use super::{Case, Make, Sizes, Work, case, out, random, streaming, view};

/// Name and maker of every case.
pub(super) fn all<D: Driver>() -> Vec<(&'static str, Make<D>)> {
    vec![
        ("attention", |d, s| attend(d, s, None)),
        ("attention backward", |d, s| attend_backward(d, s, None)),
        ("attention, window of a quarter", |d, s| attend(d, s, Some(s.document / 4))),
        ("attention backward, window of a quarter", |d, s| attend_backward(d, s, Some(s.document / 4))),
        ("attention decode", decode),
    ]
}

/// What a layer keeps of its attention.
struct Saved<D: Driver> {
    plan: Plan<D>,
    qkv: Slice<D, bf16>,
    o: Slice<D, bf16>,
    lse: Slice<D, f32>,
}

/// The measures of the matrices.
#[derive(Clone, Copy)]
struct Shape {
    h: Heads,
    tokens: usize,
    /// Columns of q and of k.
    q: usize,
    k: usize,
    /// Distance between rows of q, k and v, and of o.
    ld: usize,
    ld_o: usize,
    /// Multiplications and additions of the forward.
    flops: usize,
}

impl Shape {
    fn new(s: &Sizes, window: Option<usize>) -> Self {
        let (q, k) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let h = Heads { heads: s.heads, kv_heads: s.kv_heads, head_dim: s.head_dim, window };
        // Two products over every pair of a query and a key that it sees.
        let pairs: usize =
            (0..s.tokens).map(|t| (t % s.document + 1).min(window.unwrap_or(usize::MAX))).sum();
        Self { h, tokens: s.tokens, q, k, ld: s.qkv(), ld_o: q + s.rank, flops: 4 * pairs * q }
    }

    fn inputs<'a, D: Driver>(&self, qkv: &'a Slice<D, bf16>) -> [View<'a, D, bf16>; 3] {
        let Self { tokens: rows, q, k, ld, .. } = *self;
        [(0, q), (q, k), (q + k, k)].map(|(at, cols)| View { slice: qkv, at, rows, cols, ld })
    }

    fn save<D: Driver>(&self, d: &D, s: &Sizes) -> Result<Saved<D>> {
        let mut ends: Vec<usize> = (0..s.tokens).step_by(s.document).collect();
        ends.push(s.tokens);
        let positions: Vec<usize> = (0..s.tokens).map(|t| t % s.document).collect();
        let documents = Documents { cu_queries: &ends, cu_keys: &ends, positions: &positions };
        let mut saved = Saved {
            plan: Plan::new(d, documents)?,
            qkv: random(d, s.tokens * self.ld)?,
            o: Slice::zeros(d, s.tokens * self.ld_o)?,
            lse: Slice::uninit(d, s.tokens * s.heads)?,
        };
        self.forward(d, &mut saved)?;
        Ok(saved)
    }

    fn forward<D: Driver>(&self, d: &D, Saved { plan, qkv, o, lse }: &mut Saved<D>) -> Result<()> {
        let [q, k, v] = self.inputs(qkv);
        forward(d, plan, self.h, q, k, v, ViewMut::new(o, self.tokens, self.q, self.ld_o), lse)
    }
}

fn attend<D: Driver>(d: &D, s: &Sizes, window: Option<usize>) -> Result<Case<D>> {
    let shape = Shape::new(s, window);
    let bytes = 2 * shape.tokens * (shape.ld + shape.q);
    case(s, Work::Flops(shape.flops), bytes, || shape.save(d, s), move |d, saved| shape.forward(d, saved))
}

fn attend_backward<D: Driver>(d: &D, s: &Sizes, window: Option<usize>) -> Result<Case<D>> {
    let shape = Shape::new(s, window);
    let Shape { h, tokens, q: cols, ld, .. } = shape;
    let make = || {
        let gradients = (random(d, tokens * cols)?, Slice::<D, bf16>::uninit(d, tokens * (ld + s.rank))?);
        let scratch = Slice::<D, f32>::uninit(d, backward_scratch(tokens, h.heads))?;
        Ok((shape.save(d, s)?, gradients, scratch))
    };
    let (bytes, beside) = (4 * tokens * (ld + cols), s.rank);
    // Five products where the forward has two; the kernels make seven of them.
    case(s, Work::Flops(shape.flops / 2 * 5), bytes, make, move |d, (saved, (d_o, dqkv), scratch)| {
        let [q, k, v] = shape.inputs(&saved.qkv);
        let o = View::new(&saved.o, tokens, cols, shape.ld_o);
        let x = Inputs { q, k, v, o, lse: &saved.lse, d_o: View::new(d_o, tokens, cols, cols) };
        let out = Gradients::Fused(ViewMut::new(dqkv, tokens, ld, ld + beside));
        backward(d, &saved.plan, h, x, scratch, out)
    })
}

fn decode<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Shape { h, tokens, q: cols, k: kv, .. } = Shape::new(s, None);
    let starts = (0..tokens).step_by(s.document);
    let contexts: Vec<Context> =
        starts.map(|start| Context { start, keys: s.document.min(tokens - start) }).collect();
    let queries = contexts.len();
    let make = || {
        let partials = Slice::<D, f32>::uninit(d, scratch(d.limits(), queries, s.document, h))?;
        let (k, v) = (random(d, tokens * kv)?, random(d, tokens * kv)?);
        let o = Slice::<D, bf16>::uninit(d, queries * cols)?;
        Ok((Contexts::new(d, &contexts)?, random(d, queries * cols)?, k, v, partials, o))
    };
    streaming(s, 4 * tokens * kv, make, move |d, (contexts, q, k, v, partials, o)| {
        let (q, k, v) = (view(q, queries, cols, cols), view(k, tokens, kv, kv), view(v, tokens, kv, kv));
        attention_decode(d, contexts, h, q, k, v, partials, out(o, queries, cols, cols))
    })
}

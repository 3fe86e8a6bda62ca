//! The kernels that go over rows once, which memory bounds.

use tunesmith_kernels::gpu::{Driver, Result, Slice, bf16, dropout, rms_norm, rope, rows, swiglu};

use super::{Case, Make, Sizes, out, random, streaming, view};

/// Name and maker of every case.
pub(super) fn all<D: Driver>() -> Vec<(&'static str, Make<D>)> {
    vec![
        ("embedding", embedding),
        ("rms_norm", norm),
        ("rms_norm backward", norm_backward),
        ("rope", rotate),
        ("swiglu", activate),
        ("swiglu backward", activate_backward),
        ("dropout", drop_out),
        ("rows copy", copy),
        ("rows add", add),
    ]
}

fn embedding<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, vocab, .. } = *s;
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocab) as u32).collect();
    let make = || {
        Ok((random(d, vocab * dim)?, Slice::from_host(d, &ids)?, Slice::<D, bf16>::uninit(d, tokens * dim)?))
    };
    streaming(s, 4 * tokens * dim, make, move |d, (table, ids, x)| {
        rows::gather(d, view(table, vocab, dim, dim), ids, out(x, tokens, dim, dim))
    })
}

fn norm<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, rank, .. } = *s;
    let make = || {
        let y = Slice::<D, bf16>::uninit(d, tokens * (dim + rank))?;
        Ok((random(d, tokens * dim)?, random(d, dim)?, y, Slice::<D, f32>::uninit(d, tokens)?))
    };
    streaming(s, 4 * tokens * dim, make, move |d, (x, w, y, rstd)| {
        rms_norm::rms_norm(d, view(x, tokens, dim, dim), w, 1e-5, out(y, tokens, dim, dim + rank), rstd)
    })
}

fn norm_backward<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, rank, .. } = *s;
    let rstd = vec![1.7_f32; tokens];
    let make = || {
        let (dy, x, dx) = (random(d, tokens * dim)?, random(d, tokens * dim)?, random(d, tokens * dim)?);
        let y = Slice::<D, bf16>::uninit(d, tokens * (dim + rank))?;
        Ok((dy, x, random(d, dim)?, Slice::from_host(d, &rstd)?, dx, y))
    };
    streaming(s, 10 * tokens * dim, make, move |d, (dy, x, w, rstd, dx, y)| {
        let (dy, x) = (view(dy, tokens, dim, dim), view(x, tokens, dim, dim));
        let y = out(y, tokens, dim, dim + rank);
        rms_norm::rms_norm_backward(d, dy, x, w, rstd, out(dx, tokens, dim, dim), Some(y))
    })
}

fn rotate<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let (tokens, half, ld) = (s.tokens, s.head_dim / 2, s.qkv());
    let cols = (s.heads + s.kv_heads) * s.head_dim;
    let positions: Vec<i32> = (0..tokens).map(|t| (t % 2048) as i32).collect();
    let largest = tokens.min(2048) - 1;
    let angles = (largest + 1) * half;
    let cos: Vec<f32> = (0..angles).map(|i| (i as f32).cos()).collect();
    let sin: Vec<f32> = (0..angles).map(|i| (i as f32).sin()).collect();
    let make = || {
        let (cos, sin) = (Slice::from_host(d, &cos)?, Slice::from_host(d, &sin)?);
        Ok((random(d, tokens * ld)?, Slice::from_host(d, &positions)?, cos, sin))
    };
    streaming(s, 4 * tokens * cols, make, move |d, (x, positions, cos, sin)| {
        rope::rope(d, out(x, tokens, cols, ld), positions, largest, rope::Table { cos, sin, half }, false)
    })
}

fn activate<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, ffn, rank, .. } = *s;
    let make = || Ok((random(d, tokens * 2 * ffn)?, Slice::<D, bf16>::uninit(d, tokens * (ffn + rank))?));
    streaming(s, 6 * tokens * ffn, make, move |d, (gate_up, h)| {
        swiglu::swiglu(d, view(gate_up, tokens, 2 * ffn, 2 * ffn), out(h, tokens, ffn, ffn + rank))
    })
}

fn activate_backward<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, ffn, rank, .. } = *s;
    let make = || {
        let h = Slice::<D, bf16>::uninit(d, tokens * (ffn + rank))?;
        Ok((random(d, tokens * ffn)?, random(d, tokens * (2 * ffn + rank))?, h))
    };
    streaming(s, 12 * tokens * ffn, make, move |d, (dh, gate_up, h)| {
        let gate_up = out(gate_up, tokens, 2 * ffn, 2 * ffn + rank);
        swiglu::swiglu_backward(d, view(dh, tokens, ffn, ffn), gate_up, out(h, tokens, ffn, ffn + rank))
    })
}

fn drop_out<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, .. } = *s;
    let names: Vec<u32> = (0..2 * tokens as u32).collect();
    let key = dropout::Key { seed: 1, step: 2, site: 3 };
    let make = || {
        let y = Slice::<D, bf16>::uninit(d, tokens * dim)?;
        Ok((random(d, tokens * dim)?, Slice::from_host(d, &names)?, y))
    };
    streaming(s, 4 * tokens * dim, make, move |d, (x, names, y)| {
        dropout::dropout(d, view(x, tokens, dim, dim), key, 0.1, names, out(y, tokens, dim, dim))
    })
}

/// Our own kernel's copy.
pub(crate) fn copy<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, .. } = *s;
    let make = || Ok((random(d, tokens * dim)?, Slice::<D, bf16>::uninit(d, tokens * dim)?));
    streaming(s, 4 * tokens * dim, make, move |d, (x, y)| {
        rows::copy(d, view(x, tokens, dim, dim), out(y, tokens, dim, dim))
    })
}

fn add<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, .. } = *s;
    let make = || Ok((random(d, tokens * dim)?, random(d, tokens * dim)?));
    streaming(s, 6 * tokens * dim, make, move |d, (x, y)| {
        rows::add(d, view(x, tokens, dim, dim), out(y, tokens, dim, dim))
    })
}

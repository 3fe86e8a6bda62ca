//! What happens once per batch or per weight: loss, norm, optimizer, NF4.

use tunesmith_kernels::cpu::AdamW;
use tunesmith_kernels::gpu::adamw::{Buffers, Copies, Refresh, Scale, Segment, adamw};
use tunesmith_kernels::gpu::cross_entropy::{cross_entropy, linear_cross_entropy};
use tunesmith_kernels::gpu::nf4::{Nf4, Nf4Scales, nf4_dequantize};
use tunesmith_kernels::gpu::norm::{OUT, PARTIALS, norm};
use tunesmith_kernels::gpu::{Driver, Result, Slice, bf16};

use super::{Case, Make, Sizes, Work, case, out, random, streaming, view};

/// Name and maker of every case.
pub(super) fn all<D: Driver>() -> Vec<(&'static str, Make<D>)> {
    vec![
        ("cross entropy", loss),
        ("linear + cross entropy", linear_loss),
        ("norm", gradient_norm),
        ("adamw + copies", update),
        ("nf4", dequantize),
    ]
}

fn targets<D: Driver>(d: &D, rows: usize, vocab: usize) -> Result<Slice<D, u32>> {
    let targets: Vec<u32> = (0..rows).map(|i| (i * 7919 % vocab) as u32).collect();
    Slice::from_host(d, &targets)
}

fn loss<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { chunk, vocab, .. } = *s;
    let make = || {
        let losses = Slice::<D, f32>::uninit(d, chunk)?;
        Ok((random(d, chunk * vocab)?, targets(d, chunk, vocab)?, losses))
    };
    streaming(s, 4 * chunk * vocab, make, move |d, (logits, targets, losses)| {
        cross_entropy(d, out(logits, chunk, vocab, vocab), targets, Some(1e-4), losses, 0)
    })
}

fn linear_loss<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { tokens, dim, chunk, vocab, .. } = *s;
    let make = || {
        let scratch = Slice::<D, bf16>::uninit(d, chunk * vocab.next_multiple_of(8))?;
        let losses = Slice::<D, f32>::uninit(d, tokens)?;
        Ok((random(d, tokens * dim)?, random(d, vocab * dim)?, targets(d, tokens, vocab)?, losses, scratch))
    };
    let work = Work::Flops(4 * tokens * dim * vocab);
    case(s, work, 2 * tokens * dim, make, move |d, (x, head, targets, losses, scratch)| {
        let head = view(head, vocab, dim, dim);
        linear_cross_entropy(d, out(x, tokens, dim, dim), head, targets, Some(1.0), losses, scratch)
    })
}

fn gradient_norm<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let values = vec![1e-3_f32; s.trained];
    let make = || {
        let (partials, out) = (Slice::<D, f64>::uninit(d, PARTIALS)?, Slice::<D, f32>::uninit(d, OUT)?);
        Ok((Slice::from_host(d, &values)?, partials, out))
    };
    streaming(s, 4 * s.trained, make, move |d, (x, partials, out)| norm(d, x, Some(1.0), partials, out))
}

fn update<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let Sizes { trained: n, rank, dim, .. } = *s;
    let values = vec![1e-3_f32; n];
    let step =
        AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 10, grad_scale: 1.0 };
    let segments: Vec<Segment> = (0..n / (rank * dim))
        .map(|i| {
            let start = i * rank * dim;
            Segment { start, rows: rank, cols: dim, to: 0, at: start, ld: dim, factor: 1.0 }
        })
        .collect();
    let make = || {
        let one = || Slice::from_host(d, &values);
        let low = Slice::<D, bf16>::uninit(d, n)?;
        let copies = Copies::new(d, n, &[&low], &segments)?;
        Ok(([one()?, one()?, one()?], one()?, low, copies))
    };
    // p, g, m and v are read, p, m and v written, and the copies.
    streaming(s, 30 * n, make, move |d, ([p, m, v], g, low, copies)| {
        let refresh = Refresh { copies, to: &mut [low] };
        adamw(d, step, Scale::Host(1.0), Buffers { p, g, m, v }, Some(refresh))
    })
}

fn dequantize<D: Driver>(d: &D, s: &Sizes) -> Result<Case<D>> {
    let (rows, cols, ld) = (2 * s.ffn, s.dim, s.dim + s.rank);
    let (values, blocks) = (rows * cols, (rows * cols).div_ceil(64));
    let bytes: Vec<u8> = (0..values.div_ceil(2)).map(|i| ((i * 31) ^ (i >> 8)) as u8).collect();
    let map: Vec<f32> = (0..256).map(|i| i as f32 / 256.0).collect();
    let nested = vec![0.5_f32; blocks.div_ceil(256)];
    let make = || {
        let (packed, codes) = (Slice::from_host(d, &bytes)?, Slice::from_host(d, &bytes[..blocks])?);
        let (map, nested) = (Slice::from_host(d, &map)?, Slice::from_host(d, &nested)?);
        Ok((packed, codes, map, nested, Slice::<D, bf16>::uninit(d, rows * ld)?))
    };
    let traffic = 2 * values + values / 2 + blocks + 4 * nested.len();
    streaming(s, traffic, make, move |d, (packed, codes, map, nested_absmax, w)| {
        let scales = Nf4Scales::Double { codes, map, nested_absmax, offset: 0.1 };
        nf4_dequantize(d, &Nf4 { packed, scales }, out(w, rows, cols, ld))
    })
}

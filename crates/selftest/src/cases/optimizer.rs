//! The norm of the gradients and AdamW, over flat f32 buffers.

use tunesmith_ops::{AdamW, Flat, Kernels, Refresh, Segment};

use crate::draw::values;
use crate::lab::{Allowed, Case, Lab};
use crate::placed::{Placed, Rows, exact_full};
use crate::reference::optimizer::{State, norm};

const STEPS: usize = 5;

fn how(step: usize) -> AdamW {
    AdamW {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        step: step as u64 + 1,
        grad_scale: 0.5,
    }
}

pub(super) fn all<K: Kernels>(lab: &mut Lab<'_, K>) {
    let mut lengths = vec![1003, 1];
    if lab.is_real() {
        lengths.push((1 << 20) + 3);
    }
    for n in lengths {
        // More digits than bf16 has.
        let drawn = |seed, size| values(seed, n, size).iter().map(|v| v * 1.000_1).collect::<Vec<f32>>();
        let nan = n == 1003;
        lab.take(&Case {
            op: "norm",
            shape: format!("[{n}]"),
            inputs: vec![drawn(1, 1.0)],
            run: &|k, x| Ok(vec![vec![k.norm(&exact_full(k, &x[0])?)? as f32]]),
            want: &|x| vec![vec![norm(&x[0])]],
            outputs: &[("the norm", Allowed::F32)],
            nan: nan.then_some((0, n - 1)),
        });
        let mut inputs = vec![drawn(2, 1.0)];
        inputs.extend((0..STEPS as u64).map(|step| drawn(3 + step, 0.1)));
        lab.take(&Case {
            op: "adamw",
            shape: format!("[{n}], {STEPS} steps"),
            inputs,
            run: &|k, x| {
                let (mut p, mut m, mut v) = (exact_full(k, &x[0])?, k.zeros_full(n)?, k.zeros_full(n)?);
                for (step, g) in x[1..].iter().enumerate() {
                    k.adamw(how(step), &mut p, &exact_full(k, g)?, &mut m, &mut v)?;
                }
                Ok(vec![k.read_full(&p)?, k.read_full(&m)?, k.read_full(&v)?])
            },
            want: &|x| {
                let mut state = State::new(&x[0]);
                for (step, g) in x[1..].iter().enumerate() {
                    state.step(how(step), g);
                }
                vec![state.p, state.m, state.v]
            },
            outputs: &[("p", Allowed::F32), ("m", Allowed::F32), ("v", Allowed::F32)],
            nan: nan.then_some((1, n - 1)),
        });
    }
    updates(lab);
    later(lab);
}

/// Norm that gradients are clipped to: those of the first steps are larger.
const MAX_NORM: f64 = 0.4;
/// Columns of both copies: A of 8 ranks, B of 24 outputs with a factor.
const COPIES: [(usize, usize); 2] = [(8, 24), (24, 8)];
const FACTOR: f32 = 2.0;

/// Where the copied matrices lie in the parameters.
fn starts() -> [usize; 2] {
    [5, 5 + 8 * 24 + 3]
}

/// A whole update: norm, clipping, AdamW, copies; and the guard that keeps bad ones out.
fn updates<K: Kernels>(lab: &mut Lab<'_, K>) {
    let n = 1003;
    let drawn = |seed, size| values(seed, n, size).iter().map(|v| v * 1.000_1).collect::<Vec<f32>>();
    // Norms of about 1.8, 0.9 and 0.2.
    let inputs = vec![drawn(1, 1.0), drawn(2, 0.1), drawn(3, 0.05), drawn(4, 0.01), vec![3.0, 2.0, 1.0]];
    lab.take(&Case {
        op: "clip_and_update",
        shape: format!("[{n}], 3 steps, norm {MAX_NORM}"),
        inputs: inputs.clone(),
        run: &|k, x| update(k, x, false),
        want: &|x| wanted(x, false),
        outputs: &[
            ("p", Allowed::F32),
            ("m", Allowed::F32),
            ("v", Allowed::F32),
            ("the copy of A", Allowed::One),
            ("the copy of B", Allowed::One),
            ("norm, factor and whether it took place", Allowed::F32),
        ],
        nan: None,
    });
    // A gradient that is not finite changes nothing, and neither does any later one.
    let mut bad = inputs.clone();
    bad[2][n - 1] = f32::INFINITY;
    lab.take(&Case {
        op: "clip_and_update",
        shape: format!("[{n}], the 2nd of 3 steps not finite"),
        inputs: bad,
        run: &|k, x| Ok(update(k, x, false)?.drain(..5).collect()),
        want: &|x| {
            let first = [x[0].clone(), x[1].clone(), x[4].clone()];
            wanted(&first, false).drain(..5).collect()
        },
        outputs: &[
            ("p", Allowed::F32),
            ("m", Allowed::F32),
            ("v", Allowed::F32),
            ("the copy of A", Allowed::One),
            ("the copy of B", Allowed::One),
        ],
        nan: None,
    });
    // Nor does one after a loss that is not finite, until the guard is cleared.
    let mut lost = inputs;
    lost[4][1] = f32::NAN;
    lab.take(&Case {
        op: "watch",
        shape: "a NaN among the losses, then a new start".to_owned(),
        inputs: lost,
        run: &|k, x| {
            let told = update(k, x, true)?.pop().unwrap_or_default();
            Ok(vec![told.into_iter().skip(2).step_by(3).collect()])
        },
        want: &|x| {
            let told = wanted(x, true).pop().unwrap_or_default();
            vec![told.into_iter().skip(2).step_by(3).collect()]
        },
        outputs: &[("which updates took place", Allowed::Exact)],
        nan: None,
    });
}

/// Updates with each gradient of `x[1..]` but the last list, which is losses: `guarded` has the guard watch those first,
/// takes the first update under it and the others after it is cleared. p, m, v, both copies, and what became of each
/// update.
fn update<K: Kernels>(k: &K, x: &[Vec<f32>], guarded: bool) -> Result<Vec<Vec<f32>>, crate::lab::Fault> {
    let n = x[0].len();
    let (mut p, mut m, mut v) = (exact_full(k, &x[0])?, k.zeros_full(n)?, k.zeros_full(n)?);
    let mut to = [
        Placed::new(k, Rows::Aligned, COPIES[0], Some(&vec![0.0; 8 * 24]))?,
        Placed::new(k, Rows::Aligned, COPIES[1], Some(&vec![0.0; 24 * 8]))?,
    ];
    let segments: Vec<Segment> = (0..2)
        .map(|i| {
            let ((rows, cols), place) = (COPIES[i], to[i].get());
            let factor = if i == 0 { 1.0 } else { FACTOR };
            Segment { start: starts()[i], rows, cols, to: i, at: place.at, ld: place.ld, factor }
        })
        .collect();
    let table = k.copies(n, &[to[0].get().buf, to[1].get().buf], &segments)?;
    let mut guard = k.guard()?;
    let (gradients, losses) = (&x[1..x.len() - 1], exact_full(k, &x[x.len() - 1])?);
    k.watch(&losses, if guarded { x[x.len() - 1].len() } else { 1 }, &mut guard)?;
    let mut became = Vec::new();
    for (step, g) in gradients.iter().enumerate() {
        if guarded && step == 1 {
            k.clear_guard(&mut guard)?;
        }
        let g = exact_full(k, g)?;
        let flat = Flat { p: &mut p, g: &g, m: &mut m, v: &mut v };
        let [a, b] = &mut to;
        let (a, b) = (a.get_mut(), b.get_mut());
        let refresh = Refresh { copies: &table, to: &mut [a.buf, b.buf] };
        let how = AdamW { grad_scale: 1.0, ..how(step) };
        became.push(k.clip_and_update(how, Some(MAX_NORM), &mut guard, flat, refresh)?);
    }
    let mut out = vec![k.read_full(&p)?, k.read_full(&m)?, k.read_full(&v)?, to[0].read(k)?, to[1].read(k)?];
    let mut told = Vec::new();
    for later in became {
        told.extend(k.wait(later)?.into_iter().map(|v| v as f32));
    }
    out.push(told);
    Ok(out)
}

/// The same in f64.
fn wanted(x: &[Vec<f32>], guarded: bool) -> Vec<Vec<f64>> {
    let (mut state, mut told) = (State::new(&x[0]), Vec::new());
    for (step, g) in x[1..x.len() - 1].iter().enumerate() {
        let norm = norm(g);
        let factor = (MAX_NORM / (norm + 1e-6)).min(1.0);
        let takes = !(guarded && step == 0);
        if takes {
            state.step(AdamW { grad_scale: factor as f32, ..how(step) }, g);
        }
        told.extend([norm, factor, f64::from(u8::from(takes))]);
    }
    let copies = (0..2).map(|i| {
        let ((rows, cols), factor) = (COPIES[i], if i == 0 { 1.0 } else { f64::from(FACTOR) });
        // Those that no update made are as they were.
        state.p[starts()[i]..][..rows * cols].iter().map(|p| p * factor).collect()
    });
    let copies: Vec<Vec<f64>> = copies.collect();
    let mut out = vec![state.p, state.m, state.v];
    out.extend(copies);
    out.push(told);
    out
}

/// Values that are read while later work overwrites them.
fn later<K: Kernels>(lab: &mut Lab<'_, K>) {
    let (n, range) = (1003, 7..900);
    lab.take(&Case {
        op: "read_later",
        shape: format!("{} of [{n}]", range.len()),
        inputs: vec![values(1, n, 1.0).iter().map(|v| v * 1.000_1).collect()],
        run: &|k, x| {
            let mut buf = exact_full(k, &x[0])?;
            let later = k.read_later(&buf, range.clone())?;
            k.clear_full(&mut buf)?;
            Ok(vec![k.wait(later)?.into_iter().map(|v| v as f32).collect()])
        },
        want: &|x| vec![x[0][range.clone()].iter().map(|&v| f64::from(v)).collect()],
        outputs: &[("the values", Allowed::Exact)],
        nan: None,
    });
}

//! The norm of the gradients and AdamW, over flat f32 buffers.

use tunesmith_ops::{AdamW, Kernels};

use crate::draw::values;
use crate::lab::{Allowed, Case, Lab};
use crate::placed::exact_full;
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
}

//! The norm of all gradients, and AdamW.

use tunesmith_ops::AdamW;

use super::{dot, wide};

/// √(Σ x²).
pub(crate) fn norm(x: &[f32]) -> f64 {
    dot(wide(x), wide(x)).sqrt()
}

/// Parameters and both moments.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) p: Vec<f64>,
    pub(crate) m: Vec<f64>,
    pub(crate) v: Vec<f64>,
}

impl State {
    /// These parameters before the first step.
    pub(crate) fn new(p: &[f32]) -> Self {
        Self { p: wide(p).collect(), m: vec![0.0; p.len()], v: vec![0.0; p.len()] }
    }

    /// One step as `torch.optim.AdamW` documents it: the decay apart from the gradient, both moments corrected for
    /// having begun at zero.
    pub(crate) fn step(&mut self, how: AdamW, g: &[f32]) {
        let t = i32::try_from(how.step).unwrap_or(i32::MAX);
        for (i, g) in wide(g).enumerate() {
            let g = g * f64::from(how.grad_scale);
            self.p[i] -= how.lr * how.weight_decay * self.p[i];
            self.m[i] = how.beta1 * self.m[i] + (1.0 - how.beta1) * g;
            self.v[i] = how.beta2 * self.v[i] + (1.0 - how.beta2) * g * g;
            let m_hat = self.m[i] / (1.0 - how.beta1.powi(t));
            let v_hat = self.v[i] / (1.0 - how.beta2.powi(t));
            self.p[i] -= how.lr * m_hat / (v_hat.sqrt() + how.eps);
        }
    }
}

//! RMSNorm.

use super::{dot, wide};

/// y = x rstd w and rstd = 1 / √(mean x² + eps).
pub(crate) fn forward(x: &[f32], w: &[f32], eps: f32) -> [Vec<f64>; 2] {
    let (mut y, mut rstds) = (Vec::with_capacity(x.len()), Vec::new());
    for row in x.chunks_exact(w.len()) {
        let mean = dot(wide(row), wide(row)) / w.len() as f64;
        let rstd = 1.0 / (mean + f64::from(eps)).sqrt();
        rstds.push(rstd);
        y.extend(wide(row).zip(wide(w)).map(|(x, w)| x * rstd * w));
    }
    [y, rstds]
}

/// dx + rstd (g - x̂ mean(g x̂)), g = dy w, x̂ = x rstd.
pub(crate) fn backward(dy: &[f32], x: &[f32], w: &[f32], eps: f32, dx: &[f32]) -> Vec<f64> {
    let d = w.len();
    let [_, rstds] = forward(x, w, eps);
    let mut out = Vec::with_capacity(x.len());
    for (t, rstd) in rstds.into_iter().enumerate() {
        let (dy, x, dx) = (&dy[t * d..][..d], &x[t * d..][..d], &dx[t * d..][..d]);
        let g: Vec<f64> = wide(dy).zip(wide(w)).map(|(dy, w)| dy * w).collect();
        let hat: Vec<f64> = wide(x).map(|x| x * rstd).collect();
        let mean = dot(g.iter().copied(), hat.iter().copied()) / d as f64;
        out.extend((0..d).map(|i| f64::from(dx[i]) + rstd * (g[i] - hat[i] * mean)));
    }
    out
}

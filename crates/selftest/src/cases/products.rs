//! `gemm`, `gemm_onto`, `gemm_full`: transposes, factors, leading dimensions.

use tunesmith_ops::{Kernels, MatMut};

use crate::draw::values;
use crate::lab::{Allowed, Case, Fault, Lab};
use crate::placed::{Placed, Rows, exact_full};
use crate::reference::products::{Factor, places, product};

/// m, n, k, whether A and B are stored transposed, alpha and beta.
type Shape = (usize, usize, usize, bool, bool, f32, f32);

const SMALL: [Shape; 6] = [
    (1, 1, 1, false, false, 1.0, 0.0),
    (7, 65, 24, false, true, 0.5, 1.0),
    (64, 40, 127, true, false, 1.0, 0.0),
    (65, 8, 16, true, true, -2.0, 0.25),
    (33, 48, 72, false, false, 1.0, 1.0),
    (1, 136, 96, false, true, 1.0, 0.0),
];

/// Those of a block of a 7B model: forward and backward of a frozen matrix with its update beside it, one token.
const REAL: [Shape; 4] = [
    (300, 6144, 4160, false, true, 1.0, 0.0),
    (300, 4096, 6208, false, false, 1.0, 0.0),
    (129, 4096, 4160, false, true, 1.0, 1.0),
    (1, 4096, 4160, false, true, 1.0, 0.0),
];

/// Those of LoRA's gradients: A and B of 64 padded ranks.
const REAL_FULL: [Shape; 2] =
    [(4096, 64, 300, true, false, 2.0, 1.0), (64, 4096, 300, true, false, 1.0, 1.0)];

pub(super) fn all<K: Kernels>(lab: &mut Lab<'_, K>) {
    let real = lab.is_real();
    let with = |more: &[Shape]| -> Vec<Shape> {
        SMALL.iter().chain(if real { more } else { &[] }).copied().collect()
    };
    for (i, shape) in with(&REAL).into_iter().enumerate() {
        gemm(lab, shape, i < 2);
    }
    for (i, shape) in with(&REAL[2..3]).into_iter().enumerate() {
        gemm_onto(lab, shape, i < 2);
    }
    for (i, shape) in with(&REAL_FULL).into_iter().enumerate() {
        gemm_full(lab, shape, i < 2);
    }
}

fn words(shape: Shape) -> String {
    let (m, n, k, ta, tb, alpha, beta) = shape;
    let stored = |rows, cols, t| if t { format!("[{cols}, {rows}]ᵀ") } else { format!("[{rows}, {cols}]") };
    let mut text = format!("{} x {}", stored(m, k, ta), stored(k, n, tb));
    if alpha != 1.0 {
        text = format!("{alpha} {text}");
    }
    if beta != 0.0 {
        text = format!("{text} + {beta} C");
    }
    text
}

/// A, B and C. Where C is not to be read it holds NaN.
fn inputs((m, n, k, .., beta): Shape) -> Vec<Vec<f32>> {
    let c = if beta == 0.0 { vec![f32::NAN; m * n] } else { values(3, m * n, 1.0) };
    vec![values(1, m * k, 1.0), values(2, k * n, 1.0), c]
}

/// How A and B are stored.
fn stored((m, n, k, ta, tb, ..): Shape) -> [(usize, usize); 2] {
    [if ta { (k, m) } else { (m, k) }, if tb { (n, k) } else { (k, n) }]
}

fn want(shape: Shape, x: &[Vec<f32>]) -> Vec<f64> {
    let (m, n, k, ta, tb, alpha, beta) = shape;
    let [a, b] = stored(shape);
    let factors = (
        Factor { values: &x[0], cols: a.1, transposed: ta },
        Factor { values: &x[1], cols: b.1, transposed: tb },
    );
    product((alpha, beta), factors, &x[2], (n, k), &places((m, n, k)))
}

/// The values of a whole product at the places that are compared.
fn picked((m, n, k, ..): Shape, whole: &[f32]) -> Vec<f32> {
    places((m, n, k)).into_iter().map(|(i, j)| whole[i * n + j]).collect()
}

/// A and B on the device, handed over as the product reads them.
fn with_factors<K: Kernels>(
    k: &K,
    shape: Shape,
    x: &[Vec<f32>],
    run: impl FnOnce(tunesmith_ops::Mat<'_, K::Buf>, tunesmith_ops::Mat<'_, K::Buf>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let [a, b] = stored(shape);
    let a = Placed::new(k, Rows::Aligned, a, Some(&x[0]))?;
    let b = Placed::new(k, Rows::Aligned, b, Some(&x[1]))?;
    run(if shape.3 { a.get().t() } else { a.get() }, if shape.4 { b.get().t() } else { b.get() })
}

fn gemm<K: Kernels>(lab: &mut Lab<'_, K>, shape: Shape, nan: bool) {
    let (m, n, .., alpha, beta) = shape;
    lab.take(&Case {
        op: "gemm",
        shape: words(shape),
        inputs: inputs(shape),
        run: &|k, x| {
            let mut c = Placed::new(k, Rows::Aligned, (m, n), Some(&x[2]))?;
            with_factors(k, shape, x, |a, b| Ok(k.gemm(alpha, a, b, beta, c.get_mut())?))?;
            Ok(vec![picked(shape, &c.read(k)?)])
        },
        want: &|x| vec![want(shape, x)],
        outputs: &[("the product", Allowed::One)],
        nan: nan.then_some((0, 0)),
    });
}

fn gemm_onto<K: Kernels>(lab: &mut Lab<'_, K>, shape: Shape, nan: bool) {
    let (m, n, k, ta, tb, ..) = shape;
    // It knows no factors: what is added is added as it is.
    let shape = (m, n, k, ta, tb, 1.0, 1.0);
    lab.take(&Case {
        op: "gemm_onto",
        shape: words(shape).replace("1 C", "D"),
        inputs: inputs(shape),
        run: &|k, x| {
            let onto = Placed::new(k, Rows::Aligned, (m, n), Some(&x[2]))?;
            let mut out = Placed::new(k, Rows::Aligned, (m, n), None)?;
            with_factors(k, shape, x, |a, b| Ok(k.gemm_onto(a, b, onto.get(), out.get_mut())?))?;
            if onto.read(k)?.iter().zip(&x[2]).any(|(a, b)| a != b) {
                return Err(Fault::Wrong("what is added to was changed".to_owned()));
            }
            Ok(vec![picked(shape, &out.read(k)?)])
        },
        want: &|x| vec![want(shape, x)],
        outputs: &[("the sum", Allowed::One)],
        nan: nan.then_some((1, 0)),
    });
}

/// Rows of the f32 result that lie before it, and values between its rows: gradients of a model lie side by side.
const BEFORE: usize = 7;
const BETWEEN: usize = 4;

fn gemm_full<K: Kernels>(lab: &mut Lab<'_, K>, shape: Shape, nan: bool) {
    let (m, n, .., alpha, beta) = shape;
    let ld = n + BETWEEN;
    lab.take(&Case {
        op: "gemm_full",
        shape: words(shape),
        inputs: inputs(shape),
        run: &|k, x| {
            let mut host = vec![f32::NAN; BEFORE + m * ld];
            for (i, row) in x[2].chunks_exact(n).enumerate() {
                host[BEFORE + i * ld..][..n].copy_from_slice(row);
            }
            let mut c = exact_full(k, &host)?;
            let out = MatMut { at: BEFORE, ..MatMut::new(&mut c, m, n, ld) };
            with_factors(k, shape, x, |a, b| Ok(k.gemm_full(alpha, a, b, beta, out)?))?;
            let all = k.read_full(&c)?;
            let is_inside = |at: usize| at >= BEFORE && (at - BEFORE) % ld < n;
            if all.iter().enumerate().any(|(at, v)| !is_inside(at) && !v.is_nan()) {
                return Err(Fault::Wrong(format!("it wrote outside of a [{m}, {n}] matrix")));
            }
            let inside = all.iter().enumerate().filter(|(at, _)| is_inside(*at));
            Ok(vec![picked(shape, &inside.map(|(_, v)| *v).collect::<Vec<_>>())])
        },
        want: &|x| vec![want(shape, x)],
        outputs: &[("the product", Allowed::Full)],
        nan: nan.then_some((0, 0)),
    });
}

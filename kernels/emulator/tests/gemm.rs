//! The matrix product against sums in f64.

#![allow(clippy::unwrap_used)]

use half::bf16;
use tunesmith_emulator::backends;
use tunesmith_emulator::check::{Value, close, values, values_bf16};
use tunesmith_kernels::gpu::gemm::{Factor, Output, gemm, gemm_onto};
use tunesmith_kernels::gpu::{Driver, Error, Slice, View, ViewMut};

/// A shape, and whether A and B are stored transposed.
type Case = (usize, usize, usize, bool, bool);

const CASES: [Case; 6] = [
    (1, 1, 1, false, false),
    (7, 65, 24, false, true),
    (64, 40, 127, true, false),
    (65, 8, 16, true, true),
    (127, 72, 48, false, false),
    (16, 128, 96, false, true),
];

/// Columns that lie between the rows of every matrix.
const GAP: usize = 8;

/// A number that C starts from.
trait Start: Output + Value {
    fn of(v: f32) -> Self;
    /// What no arithmetic gives, to be found unchanged outside C.
    const MARK: Self;
}

impl Start for bf16 {
    fn of(v: f32) -> Self {
        bf16::from_f32(v)
    }
    const MARK: Self = bf16::from_bits(0x7fa5);
}

impl Start for f32 {
    fn of(v: f32) -> Self {
        v
    }
    const MARK: Self = f32::from_bits(0x7fa5_a5a5);
}

fn product<D: Driver, T: Start>(d: &D, case: Case, alpha: f32, beta: f32, tolerance: f64) {
    let (m, n, k, a_transposed, b_transposed) = case;
    let (a_rows, a_cols) = if a_transposed { (k, m) } else { (m, k) };
    let (b_rows, b_cols) = if b_transposed { (n, k) } else { (k, n) };
    let (lda, ldb, ldc) = (a_cols + GAP, b_cols + GAP, n + GAP);
    let mut a = values_bf16(1, a_rows * lda);
    let mut b = values_bf16(2, b_rows * ldb);
    // What lies between the rows is not part of the product.
    for (matrix, cols, ld) in [(&mut a, a_cols, lda), (&mut b, b_cols, ldb)] {
        matrix.chunks_mut(ld).for_each(|row| row[cols..].fill(bf16::NAN));
    }
    let mut c = vec![T::MARK; m * ldc];
    let start = values(3, m * n);
    for (i, row) in c.chunks_mut(ldc).enumerate() {
        // With beta 0 what C holds must not count, whatever it is.
        let value = |j: usize| if beta == 0.0 { T::of(f32::NAN) } else { T::of(start[i * n + j]) };
        row[..n].iter_mut().enumerate().for_each(|(j, v)| *v = value(j));
    }

    let mut reference = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let at = |t: usize| {
                let a = if a_transposed { a[t * lda + i] } else { a[i * lda + t] };
                let b = if b_transposed { b[j * ldb + t] } else { b[t * ldb + j] };
                a.to_f64() * b.to_f64()
            };
            let sum: f64 = (0..k).map(at).sum();
            let old = if beta == 0.0 { 0.0 } else { f64::from(beta) * c[i * ldc + j].wide() };
            reference[i * n + j] = f64::from(alpha) * sum + old;
        }
    }

    let run = || {
        let (a, b) = (Slice::from_host(d, &a).unwrap(), Slice::from_host(d, &b).unwrap());
        let mut out = Slice::from_host(d, &c).unwrap();
        let factor = |view, transposed| {
            let factor = Factor::new(view);
            if transposed { factor.t() } else { factor }
        };
        let a = factor(View::new(&a, a_rows, a_cols, lda), a_transposed);
        let b = factor(View::new(&b, b_rows, b_cols, ldb), b_transposed);
        gemm(d, alpha, a, b, beta, ViewMut::new(&mut out, m, n, ldc)).unwrap();
        out.to_host(d).unwrap()
    };
    let out = run();
    let inside: Vec<T> = out.chunks(ldc).flat_map(|row| row[..n].iter().copied()).collect();
    close(&format!("{case:?}, alpha {alpha}, beta {beta}"), &inside, &reference, tolerance);
    for row in out.chunks(ldc) {
        let mark = [T::MARK; GAP];
        assert_eq!(bytes(&row[n..]), bytes(&mark), "{case:?}: what lies between the rows of C has changed");
    }
    assert_eq!(bytes(&out), bytes(&run()), "{case:?}: two runs differ");
}

fn bytes<T: Start>(values: &[T]) -> Vec<u64> {
    values.iter().map(|v| v.wide().to_bits()).collect()
}

#[test]
fn agrees_with_f64() {
    backends!(|d| {
        for case in CASES {
            for (alpha, beta) in [(1.0, 0.0), (1.0, 1.0), (0.5, -2.0)] {
                product::<_, bf16>(&d, case, alpha, beta, 2.5e-3);
                product::<_, f32>(&d, case, alpha, beta, 1e-3);
            }
        }
    });
}

fn not_finite<D: Driver>(d: &D) {
    let (m, n, k) = (8, 16, 24);
    let mut a = values_bf16(4, m * k);
    a[3 * k + 5] = bf16::INFINITY;
    let a = Slice::from_host(d, &a).unwrap();
    let b = Slice::from_host(d, &values_bf16(5, k * n)).unwrap();
    let mut c = Slice::<D, bf16>::uninit(d, m * n).unwrap();
    let (a, b) = (View::new(&a, m, k, k), View::new(&b, k, n, n));
    gemm(d, 1.0, Factor::new(a), Factor::new(b), 0.0, ViewMut::new(&mut c, m, n, n)).unwrap();
    for (i, v) in c.to_host(d).unwrap().iter().enumerate() {
        assert_eq!(v.is_finite(), i / n != 3, "value {i} is {v}");
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row_and_shows() {
    backends!(|d| not_finite(&d));
}

fn refusals<D: Driver>(d: &D) {
    let a = Slice::<D, bf16>::zeros(d, 64).unwrap();
    let mut c = Slice::<D, f32>::zeros(d, 64).unwrap();
    let mut refused = |(m, k), (depth, n), ldc, words: &str| {
        let (x, y) = (Factor::new(View::new(&a, m, k, k)), Factor::new(View::new(&a, depth, n, n)));
        let error = gemm(d, 1.0, x, y, 0.0, ViewMut::new(&mut c, m, n, ldc)).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused((8, 8), (4, 8), 8, "[8, 8] x [4, 8] into [8, 8]");
    refused((9, 8), (8, 8), 8, "a [9, 8] at 0 (ld 8) is not inside its 64 values");
    refused((8, 8), (8, 8), 9, "c [8, 8] at 0 (ld 9) is not inside its 64 values");
}

#[test]
fn wrong_shapes_are_refused() {
    backends!(|d| refusals(&d));
}

fn beside<D: Driver, T: Start>(d: &D) {
    let (m, n, k, ld) = (33, 40, 24, 48);
    let a = Slice::from_host(d, &values_bf16(1, m * k)).unwrap();
    let b = Slice::from_host(d, &values_bf16(2, k * n)).unwrap();
    let factors = || (Factor::new(View::new(&a, m, k, k)), Factor::new(View::new(&b, k, n, n)));
    let host: Vec<T> = values(3, m * ld).iter().map(|&v| T::of(v)).collect();

    let mut in_place = Slice::from_host(d, &host).unwrap();
    let (fa, fb) = factors();
    gemm(d, 1.0, fa, fb, 1.0, ViewMut::new(&mut in_place, m, n, ld)).unwrap();

    let (onto, marks) = (Slice::from_host(d, &host).unwrap(), vec![T::MARK; m * ld]);
    let mut out = Slice::from_host(d, &marks).unwrap();
    let (fa, fb) = factors();
    gemm_onto(d, fa, fb, View::new(&onto, m, n, ld), ViewMut::new(&mut out, m, n, ld)).unwrap();

    let bits = |v: &[T]| bytemuck::cast_slice::<T, u8>(v).to_vec();
    assert_eq!(bits(&onto.to_host(d).unwrap()), bits(&host), "what is added to has changed");
    let (out, in_place) = (out.to_host(d).unwrap(), in_place.to_host(d).unwrap());
    for (i, (got, want)) in out.chunks(ld).zip(in_place.chunks(ld)).enumerate() {
        assert_eq!(bits(&got[..n]), bits(&want[..n]), "row {i} differs from the product in place");
        assert_eq!(bits(&got[n..]), bits(&marks[..ld - n]), "row {i} goes on beyond its end");
    }

    let (fa, fb) = factors();
    let mut unused = Slice::from_host(d, &host).unwrap();
    let refused = gemm_onto(d, fa, fb, View::new(&onto, m, n, ld - 1), ViewMut::new(&mut unused, m, n, ld))
        .unwrap_err();
    let refused = refused.to_string();
    assert_eq!(refused, "gemm_onto: [33, 40] (ld 47) added to [33, 40] (ld 48)");
}

#[test]
fn a_product_beside_what_it_is_added_to_is_the_one_in_place() {
    backends!(|d| {
        beside::<_, bf16>(&d);
        beside::<_, f32>(&d);
    });
}

//! The CPU kernels against plain f64 loops, on awkward shapes.

#![allow(missing_docs)]

use tunesmith_kernels::cpu::{self, MatMut, MatRef};

/// A small deterministic generator, uniform in [-1, 1).
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn reference(
    m: usize,
    n: usize,
    k: usize,
    at: impl Fn(usize, usize) -> f32,
    bt: impl Fn(usize, usize) -> f32,
) -> Vec<f64> {
    let mut c = vec![0f64; m * n];
    for i in 0..m {
        for p in 0..k {
            for j in 0..n {
                c[i * n + j] += f64::from(at(i, p)) * f64::from(bt(p, j));
            }
        }
    }
    c
}

#[test]
fn gemm_equals_f64_for_every_layout_and_awkward_shape() {
    let sizes = [1, 2, 7, 13, 14, 15, 31, 33, 64, 65, 127, 257];
    let mut tried = 0;
    for (x, &m) in sizes.iter().enumerate() {
        for (y, &n) in sizes.iter().enumerate() {
            let k = sizes[(x * 5 + y * 7) % sizes.len()] * if (x + y) % 5 == 0 { 3 } else { 1 };
            for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                let (lda, ldb, ldc) = (if ta { m } else { k } + 3, if tb { k } else { n } + 5, n + 2);
                let a = values(if ta { k } else { m } * lda, 1);
                let b = values(if tb { n } else { k } * ldb, 2);
                let before = values(m * ldc, 3);
                let want = reference(
                    m,
                    n,
                    k,
                    |i, p| if ta { a[p * lda + i] } else { a[i * lda + p] },
                    |p, j| if tb { b[j * ldb + p] } else { b[p * ldb + j] },
                );
                let am = if ta { MatRef::new(&a, k, m, lda).t() } else { MatRef::new(&a, m, k, lda) };
                let bm = if tb { MatRef::new(&b, n, k, ldb).t() } else { MatRef::new(&b, k, n, ldb) };
                for (alpha, beta) in [(1.0f32, 0.0f32), (0.5, 1.0), (2.0, -0.25)] {
                    let mut c = before.clone();
                    if beta == 0.0 {
                        c.fill(f32::NAN);
                    }
                    let mut serial = c.clone();
                    cpu::gemm(alpha, am, bm, beta, MatMut::new(&mut c, m, n, ldc));
                    cpu::gemm_serial(alpha, am, bm, beta, MatMut::new(&mut serial, m, n, ldc));
                    for i in 0..m {
                        for j in 0..ldc {
                            let (got, at) = (c[i * ldc + j], i * ldc + j);
                            assert_eq!(got.to_bits(), serial[at].to_bits(), "threads change the bits");
                            if j >= n {
                                assert!(
                                    beta == 0.0 && got.is_nan() || got == before[at],
                                    "wrote past column {n}"
                                );
                                continue;
                            }
                            let old = if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(before[at]) };
                            let w = f64::from(alpha) * want[i * n + j] + old;
                            assert!(
                                (f64::from(got) - w).abs() < 2e-6 * (k as f64).sqrt() + 1e-6 * w.abs(),
                                "[{m},{k}]x[{k},{n}] ta={ta} tb={tb} at ({i},{j}): {got} != {w}"
                            );
                        }
                    }
                    tried += 1;
                }
            }
        }
    }
    assert_eq!(tried, 144 * 12);
}

#[test]
fn a_row_of_c_does_not_depend_on_the_other_rows() {
    let (n, k) = (96, 300);
    let (a, b) = (values(200 * k, 4), values(n * k, 5));
    let b = MatRef::new(&b, n, k, k).t();
    let mut whole = vec![0f32; 200 * n];
    cpu::gemm(1.0, MatRef::new(&a, 200, k, k), b, 0.0, MatMut::new(&mut whole, 200, n, n));
    for rows in [2usize, 5, 50, 199] {
        let mut part = vec![0f32; rows * n];
        let at = 200 - rows;
        cpu::gemm(1.0, MatRef::new(&a[at * k..], rows, k, k), b, 0.0, MatMut::new(&mut part, rows, n, n));
        assert_eq!(part, whole[at * n..]);
    }
}

#[test]
fn gemm_carries_nan_and_leaves_empty_products_alone() {
    let mut a = values(20 * 8, 6);
    a[3 * 8 + 2] = f32::NAN;
    let b = values(8 * 5, 7);
    let mut c = vec![0f32; 100];
    cpu::gemm(1.0, MatRef::new(&a, 20, 8, 8), MatRef::new(&b, 8, 5, 5), 0.0, MatMut::new(&mut c, 20, 5, 5));
    for (i, row) in c.chunks(5).enumerate() {
        assert!(row.iter().all(|v| v.is_nan() == (i == 3)));
    }
    let mut c = vec![7f32; 6];
    cpu::gemm(1.0, MatRef::new(&[], 2, 0, 0), MatRef::new(&[], 0, 3, 3), 1.0, MatMut::new(&mut c, 2, 3, 3));
    assert_eq!(c, [7.0; 6]);
}

#[test]
fn exp_is_close_to_f64_and_keeps_its_edges() {
    let mut x: Vec<f32> = (-8700..=8870).map(|i| i as f32 * 0.01).collect();
    x.extend([0.0, -0.0, 1e-8, -1e-8]);
    let want: Vec<f64> = x.iter().map(|&v| f64::from(v).exp()).collect();
    let mut y = x.clone();
    cpu::exp_shifted_sum(&mut y, 0.0);
    for ((x, y), w) in x.iter().zip(&y).zip(want) {
        assert!((f64::from(*y) - w).abs() <= 2e-7 * w, "exp({x}) = {y}, not {w}");
    }
    let mut edges = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 200.0, -200.0];
    cpu::exp_shifted_sum(&mut edges, 0.0);
    assert!(edges[0].is_nan() && edges[1] == f32::INFINITY && edges[3] == f32::INFINITY);
    assert_eq!((edges[2], edges[4]), (0.0, 0.0));
}

#[test]
fn max_value_finds_the_maximum_and_never_hides_a_nan() {
    for n in [1usize, 5, 31, 32, 33, 200] {
        let mut x = values(n, n as u64);
        let want = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(cpu::max_value(&x), want);
        x[n / 2] = f32::NEG_INFINITY;
        assert!(!cpu::max_value(&x).is_nan());
        x[n / 2] = f32::NAN;
        assert!(cpu::max_value(&x).is_nan());
    }
}

#[test]
fn rms_norm_backward_matches_finite_differences() {
    let d = 45;
    let (x, w, dy) = (values(d, 8), values(d, 9), values(d, 10));
    let loss = |x: &[f32]| -> f64 {
        let ms = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / d as f64;
        let r = 1.0 / (ms + 1e-5).sqrt();
        (0..d).map(|i| f64::from(x[i]) * r * f64::from(w[i]) * f64::from(dy[i])).sum()
    };
    let mut y = vec![0f32; d];
    let rstd = cpu::rms_norm_row(&x, &w, 1e-5, &mut y);
    let carry = values(d, 11);
    let mut dx = carry.clone();
    cpu::rms_norm_backward_row(&dy, &x, &w, rstd, &mut dx);
    for i in 0..d {
        let h = 1e-3;
        let (mut hi, mut lo) = (x.clone(), x.clone());
        hi[i] += h;
        lo[i] -= h;
        let want = (loss(&hi) - loss(&lo)) / f64::from(hi[i] - lo[i]);
        assert!((f64::from(dx[i] - carry[i]) - want).abs() < 1e-3, "{i}");
    }
}

#[test]
fn rms_norm_shows_an_overflow_instead_of_giving_zeros() {
    let w = [1.0f32; 40];
    for big in [1e25f32, f32::INFINITY, f32::NAN] {
        let (mut x, mut y) = ([0.5f32; 40], [0f32; 40]);
        x[7] = big;
        assert!(cpu::rms_norm_row(&x, &w, 1e-5, &mut y).is_nan());
        assert!(y.iter().all(|v| v.is_nan()));
    }
}

#[test]
fn swiglu_backward_matches_finite_differences_and_remakes_h() {
    let f = 37;
    let scale = |v: Vec<f32>| v.into_iter().map(|x| 6.0 * x).collect::<Vec<_>>();
    let (g, u, dh) = (scale(values(f, 12)), values(f, 13), values(f, 14));
    let h64 = |g: f64, u: f64| g / (1.0 + (-g).exp()) * u;
    let (mut h, mut again, mut dg, mut du) = (vec![0f32; f], vec![0f32; f], g.clone(), u.clone());
    cpu::swiglu_row(&g, &u, &mut h);
    cpu::swiglu_backward_row(&dh, &mut dg, &mut du, &mut again);
    assert_eq!(h, again);
    for i in 0..f {
        let (g, u, d) = (f64::from(g[i]), f64::from(u[i]), f64::from(dh[i]));
        assert!((f64::from(h[i]) - h64(g, u)).abs() < 2e-6);
        let e = 1e-5;
        assert!((f64::from(dg[i]) - d * (h64(g + e, u) - h64(g - e, u)) / (2.0 * e)).abs() < 1e-5);
        assert!((f64::from(du[i]) - d * (h64(g, u + e) - h64(g, u - e)) / (2.0 * e)).abs() < 1e-5);
    }
}

#[test]
fn cross_entropy_gives_loss_and_gradient_even_for_large_logits() {
    let v = 77;
    let z: Vec<f32> = values(v, 15).iter().map(|x| 50.0 * x).collect();
    let max = z.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = z.iter().map(|&z| f64::from(z - max).exp()).sum();
    for target in [0, 40, 76] {
        let mut dz = z.clone();
        let loss = cpu::cross_entropy_row(&mut dz, target, 0.25);
        let want = sum.ln() + f64::from(max) - f64::from(z[target]);
        assert!((f64::from(loss) - want).abs() < 1e-5 * want.max(1.0));
        for (j, (&z, &dz)) in z.iter().zip(&dz).enumerate() {
            let p = f64::from(z - max).exp() / sum - f64::from(u8::from(j == target));
            assert!((f64::from(dz) - 0.25 * p).abs() < 1e-6);
        }
    }
}

#[test]
fn rope_backward_undoes_rope() {
    let (half, heads) = (12, 3);
    let x = values(2 * half * heads, 16);
    let (cos, sin): (Vec<f32>, Vec<f32>) = (0..half).map(|i| ((i as f32).cos(), (i as f32).sin())).unzip();
    let mut y = x.clone();
    cpu::rope_row(&mut y, &cos, &sin, 1.0);
    assert!((y[1] - (x[1] * cos[1] - x[1 + half] * sin[1])).abs() < 1e-6);
    cpu::rope_row(&mut y, &cos, &sin, -1.0);
    assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn adamw_follows_the_f64_formula_for_20_steps() {
    let n = 67;
    let (mut p, mut m, mut v) = (values(n, 17), vec![0f32; n], vec![0f32; n]);
    let (mut p64, mut m64, mut v64): (Vec<f64>, Vec<f64>, Vec<f64>) =
        (p.iter().map(|&x| x.into()).collect(), vec![0.0; n], vec![0.0; n]);
    for step in 1..=20u64 {
        let g = values(n, 100 + step);
        let c = cpu::AdamW {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.5,
        };
        cpu::adamw(c, &mut p, &g, &mut m, &mut v);
        for i in 0..n {
            let g = f64::from(g[i]) * 0.5;
            p64[i] *= 1.0 - 0.01 * 0.1;
            m64[i] = 0.9 * m64[i] + 0.1 * g;
            v64[i] = 0.999 * v64[i] + 0.001 * g * g;
            let (mh, vh) =
                (m64[i] / (1.0 - 0.9f64.powi(step as i32)), v64[i] / (1.0 - 0.999f64.powi(step as i32)));
            p64[i] -= 0.01 * mh / (vh.sqrt() + 1e-8);
            assert!((f64::from(p[i]) - p64[i]).abs() < 1e-6);
        }
    }
}

#[test]
fn wide_products_cut_into_strips_have_the_same_bits() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for (m, n, k) in [(19, 2100, 70), (33, 4999, 600), (2, 9000, 65)] {
        let (a, b, before) = (values(m * k, 21), values(n * k, 22), values(m * (n + 3), 23));
        for beta in [0.0, 1.0, 0.5] {
            let (mut c, mut serial) = (before.clone(), before.clone());
            let (am, bm) = (MatRef::new(&a, m, k, k), MatRef::new(&b, n, k, k).t());
            pool.install(|| cpu::gemm(0.5, am, bm, beta, MatMut::new(&mut c, m, n, n + 3)));
            cpu::gemm_serial(0.5, am, bm, beta, MatMut::new(&mut serial, m, n, n + 3));
            assert!(c == serial, "[{m}, {k}] x [{k}, {n}], beta {beta}");
        }
        let want = reference(m, n, k, |i, p| a[i * k + p], |p, j| b[j * k + p]);
        let mut c = vec![f32::NAN; m * n];
        pool.install(|| {
            cpu::gemm(
                1.0,
                MatRef::new(&a, m, k, k),
                MatRef::new(&b, n, k, k).t(),
                0.0,
                MatMut::new(&mut c, m, n, n),
            );
        });
        assert!(c.iter().zip(&want).all(|(c, w)| (f64::from(*c) - w).abs() < 2e-6 * k as f64));
    }
}

/// The tests of this file once more on the lower instruction sets, each in a process of its own: the level is chosen
/// once per process, and a machine would otherwise test its best one alone.
#[test]
fn every_lower_instruction_set_passes_these_tests() {
    if std::env::var_os("TUNESMITH_SIMD").is_some() {
        return;
    }
    for (name, level) in [("baseline", cpu::Level::Baseline), ("avx2", cpu::Level::Avx2)] {
        if level >= cpu::level() {
            continue;
        }
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .env("TUNESMITH_SIMD", name)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(" passed"), "with {name}:\n{said}");
    }
}

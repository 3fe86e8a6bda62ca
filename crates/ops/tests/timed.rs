//! [`Timed`]: the results of the kernels that it wraps, and every operation counted once.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use tunesmith_ops::{Kernels, Mat, MatMut, Phase, RefKernels, Timed};

const N: usize = 24;

/// A little of a step; gives what the last product made.
fn work<K: Kernels>(k: &K) -> Vec<f32> {
    let values: Vec<f32> = (0..N * N).map(|i| (i % 7) as f32 - 3.0).collect();
    let (mut a, mut b, mut c) = (k.zeros(N * N).unwrap(), k.zeros(N * N).unwrap(), k.zeros(N * N).unwrap());
    k.write(&values, MatMut::new(&mut a, N, N, N)).unwrap();
    let ids: Vec<u32> = (0..N as u32).rev().collect();
    k.embed(Mat::new(&a, N, N, N), &ids, MatMut::new(&mut b, N, N, N)).unwrap();
    k.gemm(1.0, Mat::new(&a, N, N, N), Mat::new(&b, N, N, N).t(), 0.0, MatMut::new(&mut c, N, N, N)).unwrap();
    // Rank 2.
    let (thin, tall) = (Mat::new(&a, N, 2, N), Mat::new(&b, N, 2, N).t());
    k.gemm(0.5, thin, tall, 1.0, MatMut::new(&mut c, N, N, N)).unwrap();
    let mut losses = k.zeros_full(N).unwrap();
    let x = MatMut::new(&mut b, N, N, N);
    k.linear_cross_entropy(x, Mat::new(&a, N, N, N), &ids, Some(1.0), &mut losses).unwrap();
    k.add(Mat::new(&b, N, N, N), MatMut::new(&mut c, N, N, N)).unwrap();
    k.norm(&losses).unwrap();
    k.clear_full(&mut losses).unwrap();
    k.read(Mat::new(&c, N, N, N)).unwrap()
}

#[test]
fn every_operation_is_counted_once_in_its_part_of_the_step() {
    let timed = Timed::new(RefKernels);
    let want = work(&RefKernels);
    assert_eq!(work(&timed), want, "before it is told to");
    timed.start().unwrap();
    for _ in 0..3 {
        assert_eq!(work(&timed), want);
    }
    let times = timed.stop().unwrap();
    let mut found: Vec<_> = times.ops.iter().map(|o| (o.phase, o.op, o.calls)).collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            (Phase::Forward, "embed", 3),
            (Phase::Forward, "gemm", 3),
            (Phase::Forward, "gemm, skinny", 3),
            (Phase::Head, "linear_cross_entropy", 3),
            (Phase::Backward, "add", 3),
            (Phase::Update, "clear_full", 3),
            (Phase::Update, "norm", 3),
            (Phase::Update, "read", 3),
            (Phase::Update, "write", 3),
        ]
    );
    assert!(times.ops.is_sorted_by(|a, b| a.time >= b.time));
    assert!(times.ops.iter().map(|o| o.time).sum::<Duration>() <= times.total, "{times:?}");
    // What is not timed is not counted.
    work(&timed);
    assert!(timed.stop().unwrap().ops.is_empty());
    timed.start().unwrap();
    timed.norm(&vec![1.0; 4]).unwrap();
    assert_eq!(timed.stop().unwrap().ops.len(), 1);
}

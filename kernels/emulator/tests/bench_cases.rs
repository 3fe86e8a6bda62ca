//! The cases of the kernel bench, small: every call that it makes is right, seen without a GPU.

#![allow(missing_docs)]

#[path = "../../../benches/kernels/cases/mod.rs"]
mod cases;

use tunesmith_emulator::backends;
use tunesmith_kernels::gpu::Driver;

use cases::{Sizes, Work};

const SMALL: Sizes = Sizes {
    tokens: 24,
    dim: 64,
    ffn: 96,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    vocab: 72,
    rank: 16,
    chunk: 8,
    document: 10,
    trained: 16 * 64 * 3,
    square: 16,
    beyond_cache: 0,
};

#[test]
fn every_case_of_the_bench_runs() {
    backends!(|d| run(&d));
}

fn run<D: Driver>(d: &D) {
    let mut all = cases::all::<D>();
    all.extend([("copy", cases::copy as cases::Make<D>), ("square", cases::square)]);
    for (name, make) in all {
        let mut case = make(d, &SMALL).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(matches!(case.work, Work::Bytes(n) | Work::Flops(n) if n > 0), "{name}");
        for i in 0..2 {
            (case.run)(d, i % case.sets).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        d.synchronize().unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

//! The emulator against kernels whose answer is known, and against kernels that are broken on purpose.

#![allow(unsafe_code)]

use tunesmith_emulator::check::{close, values};
use tunesmith_emulator::{Emulator, SEEDS, skipped};
use tunesmith_kernels::gpu::{Arg, Driver, Error, Launch};

/// Runs `kernel` on an output of `len` floats followed by `inputs`, then by `rest`.
fn run(
    d: &Emulator,
    (kernel, grid, threads, shared): (&'static str, u32, u32, u32),
    len: usize,
    inputs: &[&[f32]],
    rest: &[Arg],
) -> Result<Vec<f32>, Error> {
    let out = d.alloc(len * 4)?;
    let mut args = vec![Arg::Address(d.address(&out))];
    let mut kept = Vec::new();
    for input in inputs {
        let mut memory = d.alloc(input.len() * 4)?;
        let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
        d.upload(&bytes, &mut memory, 0)?;
        args.push(Arg::Address(d.address(&memory)));
        kept.push(memory);
    }
    args.extend_from_slice(rest);
    // SAFETY: a kernel that leaves its memory is what the emulator is here to catch.
    unsafe { d.launch(&Launch { kernel, grid: [grid, 1, 1], threads, shared, args: &args })? };
    let mut bytes = vec![0; len * 4];
    d.download(&out, 0, &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn each_seed(test: impl Fn(&Emulator)) {
    if Emulator::available() {
        SEEDS.iter().for_each(|&seed| test(&Emulator::new(seed)));
    } else {
        skipped("no C++ compiler");
    }
}

#[test]
fn barriers_and_shuffles() {
    each_seed(|d| {
        for (rows, n, threads) in [(1, 1, 32), (3, 100, 128), (2, 5000, 1024)] {
            let x = values(7, rows * n);
            let launch = ("smoke_row_sum", rows as u32, threads, 128);
            let out = run(d, launch, rows, &[&x], &[Arg::I32(n as i32)]).unwrap();
            let sums: Vec<f64> = x.chunks(n).map(|row| row.iter().map(|&v| f64::from(v)).sum()).collect();
            close("sum", &out, &sums, 1e-5);
        }
    });
}

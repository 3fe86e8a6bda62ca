//! The emulator against kernels whose answer is known, and against kernels that are broken on purpose.

#![allow(unsafe_code)]

use tunesmith_emulator::check::{close, relative_l2, round_bf16, values};
use tunesmith_emulator::{Emulator, SEEDS, skipped};
use tunesmith_kernels::gpu::{Arg, Driver, Error, Launch};

/// What a kernel of `broken/` is run on: `(out, inputs .., n)`.
#[derive(Clone, Copy)]
struct Case {
    grid: u32,
    threads: u32,
    shared: u32,
    /// Values of the output.
    len: usize,
    n: i32,
}

fn run(
    d: &Emulator,
    kernel: &'static str,
    case: Case,
    inputs: &[&[f32]],
    n: bool,
) -> Result<Vec<f32>, Error> {
    let Case { grid, threads, shared, len, .. } = case;
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
    if n {
        args.push(Arg::I32(case.n));
    }
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
        skipped(tunesmith_emulator::NEEDS);
    }
}

/// The right kernel is right on every seed.
fn passes(kernel: &'static str, case: Case, x: &[f32], reference: &[f64]) {
    each_seed(|d| match run(d, kernel, case, &[x], true) {
        Ok(out) => close(kernel, &out, reference, 1e-6),
        Err(error) => panic!("{error}"),
    });
}

/// The broken kernel ends in a fault with these words or, where single accesses are not watched, in a wrong number or in
/// a fault with the other words, on some seed.
fn caught(kernel: &'static str, case: Case, x: &[f32], reference: &[f64], watched: &str, otherwise: &str) {
    if !Emulator::available() {
        return skipped(tunesmith_emulator::NEEDS);
    }
    let outcome = |d: &Emulator| match run(d, kernel, case, &[x], true) {
        Ok(out) if relative_l2(&out, reference) <= 1e-6 => RIGHT.to_owned(),
        Ok(_) => WRONG.to_owned(),
        Err(Error::Fault { fault, .. }) => fault,
        Err(other) => panic!("{other}"),
    };
    let seen = SEEDS.map(|seed| outcome(&Emulator::new(seed)));
    assert!(seen.iter().all(|one| one.contains(watched)), "{kernel}: {seen:?} where \"{watched}\" is due");
    let seen = SEEDS.map(|seed| outcome(&Emulator::unwatched(seed)));
    assert!(
        seen.iter().any(|one| one.contains(otherwise)),
        "{kernel}: {seen:?} where \"{otherwise}\" is due"
    );
}

fn wide(values: impl IntoIterator<Item = f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

const WRONG: &str = "a wrong number";
const RIGHT: &str = "the right numbers";
const RACE: &str = "with nothing in between to order the two";
const OUTSIDE: &str = "memory that is not its own";

#[test]
fn barriers() {
    let x = values(1, 256);
    let case = Case { grid: 1, threads: 256, shared: 1024, len: 256, n: 256 };
    let reversed = wide(x.iter().rev().copied());
    passes("reverse_right", case, &x, &reversed);
    caught("reverse_no_barrier", case, &x, &reversed, RACE, WRONG);
    caught("reverse_half_skips", case, &x, &reversed, RACE, WRONG);
    caught(
        "reverse_two_barriers",
        case,
        &x,
        &reversed,
        "reached a barrier while others wait at another one",
        "another one",
    );
    caught("reverse_warp_at_barrier", case, &x, &reversed, "waits for ever", "waits for ever");
    caught("reverse_past_shared", case, &x, &reversed, "shared memory", "shared memory");
    caught("reverse_before_shared", case, &x, &reversed, "shared memory", "shared memory");

    let sum: f64 = wide(x.iter().copied()).iter().sum();
    passes("tree_right", case, &x, &[sum; 256]);
    caught("tree_race", case, &x, &[sum; 256], RACE, WRONG);

    let short = Case { n: 200, len: 200, ..case };
    passes("early_return_right", short, &x[..200], &wide(x[..200].iter().map(|v| v + x[0])));

    let tiles = values(2, 1024);
    let rotated = wide((0..1024).map(|i| tiles[i / 256 * 256 + (i % 256 + 1) % 256]));
    passes("rotate_right", Case { len: 1024, ..case }, &tiles, &rotated);
    caught("rotate_overwrites", Case { len: 1024, ..case }, &tiles, &rotated, RACE, WRONG);

    let warp = Case { grid: 1, threads: 32, shared: 128, len: 32, n: 32 };
    let sum: f64 = wide(x[..24].iter().copied()).iter().sum();
    passes("partial_right", warp, &x, &[sum; 32]);
    let pairs = wide((0..256).map(|i| x[i] + x[i ^ 1]));
    passes("neighbours_right", case, &x, &pairs);
    caught("neighbours_unordered", case, &x, &pairs, RACE, RIGHT);
    caught("partial_uninitialised", warp, &x, &[sum; 32], WRONG, WRONG);
}

#[test]
fn bounds() {
    for n in [100, 101, 103] {
        let x = values(3, n);
        let case = Case { grid: 1, threads: 128, shared: 0, len: n, n: n as i32 };
        let twice = wide(x.iter().map(|v| 2.0 * v));
        passes("twice_right", case, &x, &twice);
        caught("twice_one_more", case, &x, &twice, OUTSIDE, OUTSIDE);
    }
    for n in [30, 31, 127] {
        let x = values(4, 3 * n);
        let case = Case { grid: 3, threads: 64, shared: 128, len: 3, n: n as i32 };
        let sums: Vec<f64> = x.chunks(n).map(|row| wide(row.iter().copied()).iter().sum()).collect();
        passes("row_right", case, &x, &sums);
        caught("row_mask_short", case, &x, &sums, WRONG, WRONG);
        caught("row_tail", case, &x, &sums, OUTSIDE, WRONG);
    }
    let x = values(5, 64);
    let case = Case { grid: 1, threads: 32, shared: 0, len: 64, n: 64 };
    let same = wide(x.iter().copied());
    passes("pairs_right", case, &x, &same);
    caught("pairs_unaligned", case, &x, &same, "is not a multiple of 8", "is not a multiple of 8");
    caught(
        "division_by_zero",
        Case { len: 32, ..case },
        &x,
        &same[..32],
        "divided an integer by zero",
        "divided an integer by zero",
    );
    caught("null_pointer", Case { len: 32, ..case }, &x, &same[..32], OUTSIDE, OUTSIDE);
    passes("blocks_right", Case { grid: 2, ..case }, &x, &same);
    caught("blocks_overlap", Case { grid: 3, ..case }, &x, &same, "of another block has written", RIGHT);
}

#[test]
fn warps() {
    let x = values(6, 512);
    let case = Case { grid: 1, threads: 32, shared: 0, len: 20, n: 20 };
    let sum: f64 = wide(x[..20].iter().copied()).iter().sum();
    passes("lanes_right", case, &x[..20], &[sum; 20]);
    caught("lanes_divergent", case, &x[..20], &[sum; 20], "waits for ever", "waits for ever");
    caught("lanes_left", case, &x[..20], &[sum; 20], "__shfl_xor_sync", "__shfl_xor_sync");
    caught(
        "lanes_mismatch",
        case,
        &x[..20],
        &[sum; 20],
        "while other lanes of its warp wait in",
        "while other lanes",
    );

    for width in [8, 16, 32] {
        let case = Case { len: 128, n: width, ..case };
        let width = width as usize;
        let reference = wide((0..32).flat_map(|lane| {
            let (first, last) = (lane / width * width, lane / width * width + width - 1);
            let up = if lane < first + 2 { lane } else { lane - 2 };
            let down = if lane + 2 > last { lane } else { lane + 2 };
            [first + 3, up, down, lane ^ 5].map(|source| x[source])
        }));
        passes("shuffles", case, &x, &reference);
    }
    for n in [-64, 0, 64] {
        let count = x[..32].iter().filter(|&&v| v < n as f32 / 32.0).count();
        let row = [count as f64, f64::from(u8::from(count > 0)), f64::from(u8::from(count == 32))];
        passes("votes", Case { len: 96, n, ..case }, &x, &row.repeat(32));
    }
}

#[test]
fn asynchronous_copies() {
    let x = values(7, 1024);
    let case = Case { grid: 1, threads: 64, shared: 1024, len: 1024, n: 1024 };
    let swapped = wide((0..1024).map(|i| x[i ^ 4]));
    passes("copy_right", case, &x, &swapped);
    for kernel in ["copy_no_wait", "copy_short_wait", "copy_no_commit"] {
        caught(
            kernel,
            case,
            &x,
            &swapped,
            "ended without a wait for the copy",
            "ended without a wait for the copy",
        );
    }
    caught("copy_no_barrier", case, &x, &swapped, RACE, WRONG);
    caught("copy_too_early", case, &x, &swapped, RACE, WRONG);
    let case = Case { grid: 1, threads: 32, shared: 512, len: 128, n: 100 };
    let padded = wide((0..128).map(|i| if i < 100 { x[i] } else { 0.0 }));
    passes("copy_zeros_right", case, &x[..100], &padded);
}

#[test]
fn tensor_cores() {
    let a: Vec<f32> = values(8, 256).into_iter().map(round_bf16).collect();
    let b: Vec<f32> = values(9, 128).into_iter().map(round_bf16).collect();
    let mut c = vec![1.0; 128];
    for (i, row) in c.chunks_mut(8).enumerate() {
        for (j, sum) in row.iter_mut().enumerate() {
            *sum += (0..16).map(|k| f64::from(a[i * 16 + k]) * f64::from(b[k * 8 + j])).sum::<f64>();
        }
    }
    let case = Case { grid: 1, threads: 32, shared: 1024, len: 128, n: 0 };
    each_seed(|d| {
        for kernel in ["mma_fragments", "mma_ldmatrix"] {
            let out = run(d, kernel, case, &[&a, &b], false).unwrap();
            close(kernel, &out, &c, 1e-6);
        }
    });
}

#[test]
fn launches() {
    each_seed(|d| {
        let case = Case { grid: 1, threads: 128, shared: 0, len: 8, n: 8 };
        let x = values(10, 8);
        let refused = |kernel, case, n, words: &str| {
            let error = run(d, kernel, case, &[&x], n).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused("twice_right", case, false, "was given 2 arguments but takes 3");
        refused("twice_rihgt", case, true, "there is no kernel of this name");
        refused("twice_right", Case { threads: 160, ..case }, true, "160 threads per block");
        refused("twice_right", Case { shared: 300_000, ..case }, true, "shared memory");
        refused("twice_right", Case { grid: 0, ..case }, true, "a grid of 0 x 1 x 1 blocks");
        let args = [Arg::Address(0), Arg::Address(0), Arg::I64(1)];
        let launch = Launch { kernel: "twice_right", grid: [1, 1, 1], threads: 32, shared: 0, args: &args };
        // SAFETY: the emulator refuses it.
        let error = unsafe { d.launch(&launch) }.unwrap_err().to_string();
        assert!(
            error.contains("argument 2 is a 64-bit integer but the kernel takes a 32-bit integer"),
            "{error}"
        );
        // After all this the emulator is as good as new.
        let out = run(d, "twice_right", case, &[&x], true).unwrap();
        close("twice_right", &out, &wide(x.iter().map(|v| 2.0 * v)), 1e-6);
    });
}

/// Prints what collectives cost: `cargo test -p tunesmith-emulator -- --ignored --nocapture cost`.
#[test]
#[ignore = "measures, proves nothing"]
fn cost() {
    each_seed(|d| {
        let time = |kernel, threads, n: i32| {
            let case = Case { grid: 1, threads, shared: 2048, len: 1, n };
            let start = std::time::Instant::now();
            run(d, kernel, case, &[&[0.0]], true).unwrap();
            start.elapsed() / n as u32
        };
        for threads in [32, 128, 256, 1024] {
            println!("{threads} threads: {:?} per barrier", time("many_barriers", threads, 10_000));
        }
        println!("4 warps: {:?} per ldmatrix and 8 mma of each", time("many_products", 128, 1000));
    });
}

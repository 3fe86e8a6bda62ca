//! Random weights against Philox as its paper has it, and against what their distribution promises.

#![allow(clippy::unwrap_used)]

#[path = "common/padded.rs"]
mod padded;
#[path = "common/philox.rs"]
mod philox;

use half::bf16;
use padded::{Padded, ROWS, Shape, same_bits};
use philox::philox;
use tunesmith_emulator::backends;
use tunesmith_kernels::gpu::Driver;
use tunesmith_kernels::gpu::fill::{Key, SPREAD, fill_random};

fn expected(key: Key, std: f32, i: u64) -> f32 {
    let counter = [(i / 4) as u32, ((i / 4) >> 32) as u32, key.tensor, 0xf111];
    let word = philox(counter, [key.seed as u32, (key.seed >> 32) as u32])[(i % 4) as usize];
    let sum: i32 = word.to_le_bytes().into_iter().map(i32::from).sum();
    (sum - 510) as f32 * (std / SPREAD)
}

const KEY: Key = Key { seed: 0x0123_4567_89ab_cdef, tensor: 77 };

fn run<D: Driver>(d: &D, shape: Shape, key: Key, std: f32) -> Vec<bf16> {
    let mut out = Padded::poisoned(d, shape);
    fill_random(d, key, std, out.view_mut()).unwrap();
    out.read(d)
}

fn bit_equal<D: Driver>(d: &D) {
    let mut shapes: Vec<Shape> = ROWS.iter().map(|&rows| Shape::aligned(rows, 72)).collect();
    shapes.extend([(2, 2056), (40, 8)].map(|(rows, cols)| Shape::aligned(rows, cols)));
    shapes.extend(ROWS.iter().map(|&rows| Shape::odd(rows, 37)));
    shapes.extend([(3, 64), (2, 301)].map(|(rows, cols)| Shape::odd(rows, cols)));
    for (i, shape) in shapes.into_iter().enumerate() {
        let (key, std) = ([KEY, Key { seed: 3, tensor: 0 }][i % 2], [0.02, 1.0, 0.0][i % 3]);
        let out = run(d, shape, key, std);
        let want: Vec<bf16> = (0..out.len()).map(|i| bf16::from_f32(expected(key, std, i as u64))).collect();
        same_bits(&format!("{shape:?}, std {std}"), &out, &want);
        same_bits("two runs", &run(d, shape, key, std), &out);
    }
}

#[test]
fn the_values_are_what_their_names_give() {
    backends!(|d| bit_equal(&d));
}

fn named<D: Driver>(d: &D) {
    let shape = Shape::aligned(6, 64);
    let all = run(d, shape, KEY, 0.02);
    for other in
        [Key { tensor: 78, ..KEY }, Key { seed: 1, ..KEY }, Key { seed: KEY.seed ^ (1 << 40), ..KEY }]
    {
        assert_ne!(run(d, shape, other, 0.02), all, "{other:?} has the values of {KEY:?}");
    }
    // Values go by their number, whatever the shape.
    same_bits("reshaped", &run(d, Shape::odd(24, 16), KEY, 0.02), &all);
}

#[test]
fn values_go_with_their_names() {
    backends!(|d| named(&d));
}

#[test]
fn they_are_symmetric_with_the_deviation_that_was_asked_for() {
    assert!((f64::from(SPREAD).powi(2) - 21_845.0).abs() < 0.01);
    let values: Vec<f64> = (0..400_000).map(|i| f64::from(expected(KEY, 0.02, i))).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|v| v * v).sum::<f64>() / n).sqrt();
    let skew = values.iter().map(|v| (v / 0.02).powi(3)).sum::<f64>() / n;
    assert!(mean.abs() < 1e-4 && (deviation / 0.02 - 1.0).abs() < 5e-3 && skew.abs() < 0.02);
    let largest = values.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
    assert!((0.06..0.0701).contains(&largest), "{largest}");
}

fn refusals<D: Driver>(d: &D) {
    let mut out = Padded::<D, bf16>::poisoned(d, Shape::aligned(3, 16));
    let text = fill_random(d, KEY, f32::NAN, out.view_mut()).unwrap_err().to_string();
    assert_eq!(text, "fill_random: a standard deviation of NaN");
    let mut view = out.view_mut();
    view.rows = 9;
    assert!(fill_random(d, KEY, 1.0, view).unwrap_err().to_string().contains("is not inside"));
}

#[test]
fn what_makes_no_sense_is_refused() {
    backends!(|d| refusals(&d));
}

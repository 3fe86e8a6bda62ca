//! Dropout against Philox as its paper has it.

#![allow(clippy::unwrap_used)]

#[path = "common/padded.rs"]
mod padded;
#[path = "common/philox.rs"]
mod philox;

use half::bf16;
use padded::{Padded, ROWS, Shape, random, same_bits};
use philox::philox;
use tunesmith_emulator::backends;
use tunesmith_kernels::gpu::dropout::{Key, dropout};
use tunesmith_kernels::gpu::{Driver, Slice};

#[test]
fn the_reference_gives_the_published_known_answers() {
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

/// The factor of column `col` of the row that is called `name`: what the CPU backend's `DropoutKey::mask_row` gives.
fn factor(key: Key, name: [u32; 2], p: f32, col: usize) -> f32 {
    let step = key.step.wrapping_add(1).wrapping_mul(0x9e37_79b9);
    let words = [key.seed as u32, (key.seed >> 32) as u32 ^ step];
    let word = philox([(col / 4) as u32, key.site, name[0], name[1]], words)[col % 4];
    if (word >> 8) as f32 / 16_777_216.0 < p { 0.0 } else { 1.0 / (1.0 - p) }
}

const KEY: Key = Key { seed: 0x0123_4567_89ab_cdef, step: u32::MAX, site: 77 };

fn run<D: Driver>(d: &D, shape: Shape, m: &[bf16], key: Key, p: f32, names: &[[u32; 2]]) -> Vec<bf16> {
    let m = Padded::new(d, shape, m);
    let mut out = Padded::poisoned(d, shape);
    let names = Slice::from_host(d, names.as_flattened()).unwrap();
    dropout(d, m.view(), key, p, &names, out.view_mut()).unwrap();
    out.read(d)
}

fn names(rows: usize) -> Vec<[u32; 2]> {
    (0..rows as u32).map(|t| [t / 5, t.wrapping_mul(0x9e37_79b9)]).collect()
}

fn bit_equal<D: Driver>(d: &D) {
    let mut shapes: Vec<Shape> = ROWS.iter().map(|&rows| Shape::aligned(rows, 72)).collect();
    shapes.extend([(2, 2056), (40, 8)].map(|(rows, cols)| Shape::aligned(rows, cols)));
    shapes.extend(ROWS.iter().map(|&rows| Shape::odd(rows, 37)));
    shapes.extend([(3, 64), (2, 301)].map(|(rows, cols)| Shape::odd(rows, cols)));
    let keys = [KEY, Key { seed: 3, step: 5, site: 0 }];
    for (i, shape) in shapes.into_iter().enumerate() {
        let (key, p) = (keys[i % 2], [0.3, 0.05, 0.999, 0.5, 0.0][i % 5]);
        let (m, names) = (random(8, shape), names(shape.rows));
        let out = run(d, shape, &m, key, p, &names);
        let expected: Vec<bf16> = (0..m.len())
            .map(|j| factor(key, names[j / shape.cols], p, j % shape.cols) * m[j].to_f32())
            .map(bf16::from_f32)
            .collect();
        same_bits(&format!("{shape:?}, p {p}"), &out, &expected);
        same_bits("two runs", &run(d, shape, &m, key, p, &names), &out);
    }
}

#[test]
fn the_mask_is_the_cpu_backends_bit_by_bit() {
    backends!(|d| bit_equal(&d));
}

fn named<D: Driver>(d: &D) {
    // A row's mask goes with its name, wherever the row is.
    let (many, one) = (Shape::aligned(6, 64), Shape::odd(1, 64));
    let (m, names) = (vec![bf16::ONE; 6 * 64], names(6));
    let all = run(d, many, &m, KEY, 0.5, &names);
    for row in 0..6 {
        let alone = run(d, one, &m[..64], KEY, 0.5, &names[row..=row]);
        same_bits(&format!("row {row}"), &alone, &all[row * 64..(row + 1) * 64]);
    }
    for other in [Key { site: 78, ..KEY }, Key { step: 0, ..KEY }, Key { seed: 1, ..KEY }] {
        assert_ne!(run(d, many, &m, other, 0.5, &names), all, "{other:?} has the mask of {KEY:?}");
    }
}

#[test]
fn a_mask_goes_with_its_names() {
    backends!(|d| named(&d));
}

fn not_finite<D: Driver>(d: &D) {
    let shape = Shape::aligned(2, 64);
    let (mut m, names) = (random(9, shape), names(2));
    m[..64].fill(bf16::INFINITY);
    let out = run(d, shape, &m, KEY, 0.5, &names);
    let clean = run(d, shape, &random(9, shape), KEY, 0.5, &names);
    assert!(out[..64].iter().all(|v| !v.is_finite()), "a mask of 0 hides an infinity");
    same_bits("the other row", &out[64..], &clean[64..]);
}

#[test]
fn a_dropped_infinity_shows() {
    backends!(|d| not_finite(&d));
}

fn refusals<D: Driver>(d: &D) {
    let m = Padded::<D, bf16>::poisoned(d, Shape::aligned(3, 16));
    let mut out = Padded::<D, bf16>::poisoned(d, Shape::aligned(3, 16));
    let (names, few) = (Slice::zeros(d, 6).unwrap(), Slice::zeros(d, 5).unwrap());
    let mut run = |p, names| dropout(d, m.view(), KEY, p, names, out.view_mut()).unwrap_err().to_string();
    assert_eq!(run(0.5, &few), "dropout: 2 names for 3 rows");
    assert_eq!(run(1.0, &names), "dropout: a probability of 1 is not in [0, 1)");
    assert_eq!(run(f32::NAN, &names), "dropout: a probability of NaN is not in [0, 1)");
}

#[test]
fn wrong_shapes_and_probabilities_are_refused() {
    backends!(|d| refusals(&d));
}

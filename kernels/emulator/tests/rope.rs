//! Rotary position embedding against f64.

#![allow(clippy::unwrap_used)]

#[path = "common/padded.rs"]
mod padded;

use half::bf16;
use padded::{Padded, ROWS, Shape, only_these_rows, random, same_bits, wide};
use tunesmith_emulator::backends;
use tunesmith_emulator::check::close;
use tunesmith_kernels::gpu::rope::{Table, rope};
use tunesmith_kernels::gpu::{Driver, Slice};

/// Of an output that is rounded to bf16 once.
const TOLERANCE: f64 = 2.5e-3;
const POSITIONS: usize = 300;

/// Heads and their size: vectors of eight, halves that are no multiple of eight, more work per row than a block has
/// threads.
const HEADS: [(usize, usize); 11] = [
    (1, 2),
    (3, 24),
    (5, 64),
    (6, 80),
    (4, 96),
    (40, 128),
    (1, 256),
    (7, 16),
    (136, 128),
    (100, 24),
    (2, 120),
];

struct Case {
    shape: Shape,
    half: usize,
    x: Vec<bf16>,
    positions: Vec<i32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Case {
    fn new(shape: Shape, head_dim: usize) -> Self {
        let half = head_dim / 2;
        let angle = |i: usize| {
            let (position, frequency) = ((i / half) as f32, 1e4f32.powf(-((i % half) as f32) / half as f32));
            position * frequency
        };
        let (cos, sin) = (0..POSITIONS * half).map(|i| (angle(i).cos(), angle(i).sin())).unzip();
        // Several documents in a row, and positions in no order.
        let positions =
            (0..shape.rows).map(|t| if t < 20 { t % 6 } else { t * 131 % POSITIONS } as i32).collect();
        Self { shape, half, x: random(5, shape), positions, cos, sin }
    }

    fn run<D: Driver>(&self, d: &D, x: &[bf16], inverse: bool) -> Vec<bf16> {
        let mut x = Padded::new(d, self.shape, x);
        let positions = Slice::from_host(d, &self.positions).unwrap();
        let (cos, sin) = (Slice::from_host(d, &self.cos).unwrap(), Slice::from_host(d, &self.sin).unwrap());
        let table = Table { cos: &cos, sin: &sin, half: self.half };
        rope(d, x.view_mut(), &positions, POSITIONS - 1, table, inverse).unwrap();
        x.read(d)
    }

    fn reference(&self, x: &[f64], inverse: bool) -> Vec<f64> {
        let (half, sign) = (self.half, if inverse { -1.0 } else { 1.0 });
        let mut out = x.to_vec();
        for (row, values) in out.chunks_mut(self.shape.cols).enumerate() {
            for head in values.chunks_mut(2 * half) {
                for i in 0..half {
                    let at = self.positions[row] as usize * half + i;
                    let (cos, sin) = (f64::from(self.cos[at]), sign * f64::from(self.sin[at]));
                    let (a, b) = (head[i], head[i + half]);
                    (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
                }
            }
        }
        out
    }
}

fn against_f64<D: Driver>(d: &D) {
    let mut cases: Vec<Case> = ROWS.iter().map(|&rows| Case::new(Shape::aligned(rows, 3 * 64), 64)).collect();
    cases.extend(HEADS.map(|(heads, dim)| Case::new(Shape::aligned(5, heads * dim), dim)));
    cases.extend(ROWS.map(|rows| Case::new(Shape::odd(rows, 2 * 32), 32)));
    for case in cases {
        let x = wide(&case.x);
        for inverse in [false, true] {
            let out = case.run(d, &case.x, inverse);
            let what = format!("{:?}, half {}, inverse {inverse}", case.shape, case.half);
            close(&what, &out, &case.reference(&x, inverse), TOLERANCE);
        }
        let turned = case.run(d, &case.x, false);
        close("there and back", &case.run(d, &turned, true), &x, 4e-3);
        same_bits("two runs", &case.run(d, &case.x, false), &turned);
    }
}

#[test]
fn agrees_with_f64_and_turns_back() {
    backends!(|d| against_f64(&d));
}

fn not_finite<D: Driver>(d: &D) {
    for shape in [Shape::aligned(9, 5 * 64), Shape::odd(9, 3 * 64)] {
        let clean = Case::new(shape, 64);
        let out = clean.run(d, &clean.x, false);
        let mut x = clean.x.clone();
        x[2 * shape.cols + 3] = bf16::NAN;
        x[7 * shape.cols + 40] = bf16::INFINITY;
        only_these_rows("x", &clean.run(d, &x, false), &out, shape.cols, &[2, 7]);

        // The launcher knows the largest position only from its caller.
        let mut lost = Case::new(shape, 64);
        lost.positions[1] = POSITIONS as i32;
        lost.positions[4] = i32::MIN;
        let spoilt = lost.run(d, &lost.x, false);
        only_these_rows("positions", &spoilt, &out, shape.cols, &[1, 4]);
        for row in [1, 4] {
            assert!(spoilt[row * shape.cols..(row + 1) * shape.cols].iter().all(|v| v.is_nan()), "row {row}");
        }
    }
}

#[test]
fn what_is_not_finite_or_has_no_position_stays_in_its_row() {
    backends!(|d| not_finite(&d));
}

fn refusals<D: Driver>(d: &D) {
    let shape = Shape::aligned(3, 128);
    let mut x = Padded::new(d, shape, &random(1, shape));
    let (cos, sin) = (Slice::zeros(d, 10 * 32).unwrap(), Slice::zeros(d, 10 * 32).unwrap());
    let (few, short) = (Slice::zeros(d, 2).unwrap(), Slice::zeros(d, 9 * 32).unwrap());
    let positions = Slice::zeros(d, 3).unwrap();
    let table = Table { cos: &cos, sin: &sin, half: 32 };
    let mut run = |positions, largest, table| {
        rope(d, x.view_mut(), positions, largest, table, false).unwrap_err().to_string()
    };

    assert_eq!(run(&positions, 10, table), "rope: position 10 with a table of 10 positions");
    assert_eq!(run(&few, 9, table), "rope: 2 positions for 3 rows");
    assert_eq!(run(&positions, 0, Table { half: 40, ..table }), "rope: 128 columns are not heads of 80");
    let error = run(&positions, 0, Table { sin: &short, ..table });
    assert_eq!(error, "rope: a table of 320 cosines and 288 sines, 32 per position");
}

#[test]
fn wrong_shapes_and_positions_beyond_the_table_are_refused() {
    backends!(|d| refusals(&d));
}

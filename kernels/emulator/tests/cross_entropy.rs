//! Cross-entropy and its gradient against f64.

#![allow(clippy::unwrap_used, unsafe_code)]

#[path = "common/padded.rs"]
mod padded;

use std::time::Duration;

use half::bf16;
use padded::{Cell, Padded, ROWS, Shape, only_these_rows, random, same_bits, wide};
use tunesmith_emulator::check::{close, to_bf16, values, values_bf16};
use tunesmith_emulator::{Emulator, backends};
use tunesmith_kernels::gpu::cross_entropy::{cross_entropy, linear_cross_entropy};
use tunesmith_kernels::gpu::{Driver, Gemm, Launch, Limits, Result, Slice, View, ViewMut};

/// Of a loss, absolute.
const LOSS: f64 = 1e-4;
/// Of the gradient.
const TOLERANCE: f64 = 4e-3;
const WEIGHT: f32 = 0.037;

/// A device whose blocks may ask for less shared memory.
#[derive(Debug)]
struct Small<D: 'static>(&'static D, u32);

impl<D: Driver> Driver for Small<D> {
    type Memory = D::Memory;

    fn alloc(&self, bytes: usize) -> Result<D::Memory> {
        self.0.alloc(bytes)
    }
    fn address(&self, memory: &D::Memory) -> u64 {
        self.0.address(memory)
    }
    fn upload(&self, from: &[u8], to: &mut D::Memory, at: usize) -> Result<()> {
        self.0.upload(from, to, at)
    }
    fn download(&self, from: &D::Memory, at: usize, to: &mut [u8]) -> Result<()> {
        self.0.download(from, at, to)
    }
    fn clear(&self, memory: &mut D::Memory, at: usize, bytes: usize) -> Result<()> {
        self.0.clear(memory, at, bytes)
    }
    fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        assert!(launch.shared <= self.1, "{launch:?} asks for more shared memory than {}", self.1);
        // SAFETY: the caller's promise.
        unsafe { self.0.launch(launch) }
    }
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.0.gemm(gemm) }
    }
    fn limits(&self) -> Limits {
        Limits { shared_per_block: self.1, ..self.0.limits() }
    }

    type Mark = D::Mark;

    fn mark(&self) -> Result<D::Mark> {
        self.0.mark()
    }
    fn between(&self, start: &D::Mark, end: &D::Mark) -> Result<Duration> {
        self.0.between(start, end)
    }

    type Download = D::Download;
    fn download_later(&self, from: &D::Memory, at: usize, bytes: usize) -> Result<D::Download> {
        self.0.download_later(from, at, bytes)
    }
    fn wait(&self, download: D::Download, to: &mut [u8]) -> Result<()> {
        self.0.wait(download, to)
    }

    fn name(&self) -> String {
        self.0.name()
    }
}

struct Case {
    shape: Shape,
    logits: Vec<bf16>,
    targets: Vec<u32>,
}

impl Case {
    fn new(shape: Shape, scale: f32) -> Self {
        let logits = values(1, shape.rows * shape.cols).iter().map(|v| scale * v).collect::<Vec<_>>();
        let picks = values(2, shape.rows);
        // The first and the last value are targets wherever there are rows enough.
        let target = |(i, v): (usize, &f32)| match i {
            1 => 0,
            2 => shape.cols as u32 - 1,
            _ => ((v.abs() * shape.cols as f32) as u32).min(shape.cols as u32 - 1),
        };
        let targets = picks.iter().enumerate().map(target).collect();
        Self { shape, logits: to_bf16(&logits), targets }
    }

    /// Losses, and what the logits are then.
    fn run<D: Driver>(&self, d: &D, weight: Option<f32>) -> (Vec<f32>, Vec<bf16>) {
        // Targets and losses start where `at` says.
        let at = 2;
        let mut targets = vec![u32::MAX; at];
        targets.extend(&self.targets);
        let targets = Slice::from_host(d, &targets).unwrap();
        let mut losses = Slice::from_host(d, &vec![f32::POISON; at + self.shape.rows + 3]).unwrap();
        let mut logits = Padded::new(d, self.shape, &self.logits);
        cross_entropy(d, logits.view_mut(), &targets, weight, &mut losses, at).unwrap();
        let losses = losses.to_host(d).unwrap();
        let (before, losses) = losses.split_at(at);
        let (losses, after) = losses.split_at(self.shape.rows);
        same_bits("losses around", &[before, after].concat(), &[f32::POISON; 5]);
        (losses.to_vec(), logits.read(d))
    }

    /// Losses and gradient in f64.
    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let (mut losses, mut gradient) = (Vec::new(), Vec::new());
        for (row, &target) in wide(&self.logits).chunks(self.shape.cols).zip(&self.targets) {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|z| (z - max).exp()).sum();
            losses.push(max - row[target as usize] + sum.ln());
            for (i, z) in row.iter().enumerate() {
                let hit = if i == target as usize { 1.0 } else { 0.0 };
                gradient.push(((z - max).exp() / sum - hit) * f64::from(WEIGHT));
            }
        }
        (losses, gradient)
    }
}

#[track_caller]
fn losses_close(what: &str, losses: &[f32], reference: &[f64]) {
    assert_eq!(losses.len(), reference.len());
    for (row, (&loss, right)) in losses.iter().zip(reference).enumerate() {
        let error = (f64::from(loss) - right).abs();
        assert!(error <= LOSS, "{what}: the loss of row {row} is {loss}, {right} is right");
    }
}

fn shapes() -> Vec<Shape> {
    let mut out: Vec<Shape> = ROWS.iter().map(|&rows| Shape::aligned(rows, 96)).collect();
    out.extend(ROWS.iter().map(|&rows| Shape::odd(rows, 61)));
    for cols in [1, 7, 64, 203, 1000] {
        out.extend([Shape::aligned(5, cols), Shape::odd(5, cols)]);
    }
    // Every row of 211 or 1005 is aligned, and not a multiple of eight long.
    out.extend([211, 1005].map(|cols| Shape { gap: 16 - cols % 8, ..Shape::aligned(4, cols) }));
    // More than the threads of a block take at once.
    out.extend([Shape::aligned(1, 33_000), Shape::aligned(1, 66_000), Shape::odd(1, 33_001)]);
    out
}

fn against_f64<D: Driver>(d: &D) {
    for shape in shapes() {
        for scale in [3.0, 50.0] {
            let case = Case::new(shape, scale);
            let what = format!("{shape:?} scaled by {scale}");
            let (loss, gradient) = case.reference();
            let (losses, dz) = case.run(d, Some(WEIGHT));
            losses_close(&what, &losses, &loss);
            close(&what, &dz, &gradient, TOLERANCE);
            let (alone, untouched) = case.run(d, None);
            same_bits(&what, &alone, &losses);
            same_bits(&what, &untouched, &case.logits);
        }
    }
}

#[test]
fn agrees_with_f64_and_leaves_logits_alone_without_weight() {
    backends!(|d| against_f64(&d));
}

/// A short table of logits that are far apart: nothing over- or underflows into a wrong number.
fn extremes<D: Driver>(d: &D) {
    let shape = Shape::aligned(4, 16);
    let mut case = Case::new(shape, 1.0);
    case.logits[..16].fill(bf16::MAX);
    case.logits[16..32].fill(bf16::MIN);
    case.logits[32..48].fill(bf16::NEG_INFINITY);
    case.logits[35] = bf16::MIN;
    case.logits[48..56].fill(bf16::NEG_INFINITY);
    case.targets = vec![3, 15, 3, 12];
    let (loss, gradient) = case.reference();
    let (losses, dz) = case.run(d, Some(WEIGHT));
    losses_close("extremes", &losses, &loss);
    close("extremes", &dz, &gradient, TOLERANCE);
    // What has no probability has an infinite loss.
    case.targets[3] = 2;
    assert_eq!(case.run(d, Some(WEIGHT)).0[3], f32::INFINITY);
}

#[test]
fn extreme_logits_are_no_trouble() {
    backends!(|d| extremes(&d));
}

fn little_room<D: Driver>(d: D) {
    // The driver of the test lives as long as the test.
    let d: &'static D = Box::leak(Box::new(d));
    for shape in [Shape::aligned(3, 1003), Shape::aligned(1, 20_000)] {
        let case = Case::new(shape, 10.0);
        let (losses, dz) = case.run(d, Some(WEIGHT));
        // No value of a row fits, some do, all but the last eight do.
        for room in [128, 128 + 16 * 70, 128 + 16 * (shape.cols as u32 / 8 - 1)] {
            let (again, dz_again) = case.run(&Small(d, room), Some(WEIGHT));
            same_bits(&format!("losses of {shape:?} in {room} bytes"), &again, &losses);
            same_bits(&format!("gradient of {shape:?} in {room} bytes"), &dz_again, &dz);
        }
    }
}

#[test]
fn what_shared_memory_does_not_hold_is_read_again() {
    backends!(|d| little_room(d));
}

fn repeats<D: Driver>(d: &D) {
    for shape in [Shape::aligned(3, 5000), Shape::odd(3, 1201)] {
        let case = Case::new(shape, 5.0);
        let (losses, dz) = case.run(d, Some(WEIGHT));
        let (again, dz_again) = case.run(d, Some(WEIGHT));
        same_bits("losses", &losses, &again);
        same_bits("gradient", &dz, &dz_again);
    }
}

#[test]
fn two_runs_give_equal_bits() {
    backends!(|d| repeats(&d));
}

fn not_finite<D: Driver>(d: &D) {
    for shape in [Shape::aligned(11, 264), Shape::aligned(11, 261), Shape::odd(11, 77)] {
        let n = shape.cols;
        let clean = Case::new(shape, 4.0);
        let (clean_losses, clean_dz) = clean.run(d, Some(WEIGHT));
        let mut case = Case::new(shape, 4.0);
        case.logits[2 * n + 5] = bf16::NAN;
        case.logits[5 * n - 1] = bf16::INFINITY;
        case.logits[6 * n] = bf16::INFINITY;
        case.targets[6] = 0;
        case.logits[8 * n..9 * n].fill(bf16::NEG_INFINITY);
        // No such class.
        case.targets[9] = n as u32;
        case.targets[10] = u32::MAX;
        let spoilt = [2, 4, 6, 8, 9, 10];
        let (losses, dz) = case.run(d, Some(WEIGHT));
        only_these_rows("gradient", &dz, &clean_dz, n, &spoilt);
        for row in 0..shape.rows {
            if spoilt.contains(&row) {
                let all = dz[row * n..(row + 1) * n].iter().all(|v| v.is_nan());
                assert!(losses[row].is_nan() && all, "row {row} of {shape:?}");
            } else {
                same_bits("loss", &losses[row..=row], &clean_losses[row..=row]);
            }
        }
        same_bits("losses alone", &case.run(d, None).0, &losses);
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row_and_shows() {
    backends!(|d| not_finite(&d));
}

/// x, head and targets of a linear layer with a loss.
struct Linear {
    shape: Shape,
    vocab: usize,
    x: Vec<bf16>,
    head: Vec<bf16>,
    targets: Vec<u32>,
}

impl Linear {
    fn new(shape: Shape, vocab: usize) -> Self {
        let head = values_bf16(5, vocab * shape.cols);
        let targets = Case::new(shape.with_cols(vocab), 1.0).targets;
        Self { shape, vocab, x: random(4, shape), head, targets }
    }

    /// Losses and what x is then, with a scratch for `rows` rows of logits.
    fn run<D: Driver>(&self, d: &D, weight: Option<f32>, rows: usize) -> (Vec<f32>, Vec<bf16>) {
        let mut x = Padded::new(d, self.shape, &self.x);
        let head = Padded::new(d, Shape::aligned(self.vocab, self.shape.cols), &self.head);
        let targets = Slice::from_host(d, &self.targets).unwrap();
        let mut losses = Slice::from_host(d, &vec![f32::POISON; self.shape.rows]).unwrap();
        let mut scratch = Slice::uninit(d, rows * self.vocab.next_multiple_of(8)).unwrap();
        linear_cross_entropy(d, x.view_mut(), head.view(), &targets, weight, &mut losses, &mut scratch)
            .unwrap();
        (losses.to_host(d).unwrap(), x.read(d))
    }

    /// Losses and the gradient by x in f64 of logits rounded to bf16.
    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let (x, head) = (wide(&self.x), wide(&self.head));
        let dm = self.shape.cols;
        let logit = |i: usize, j: usize| {
            let sum: f64 = (0..dm).map(|k| x[i * dm + k] * head[j * dm + k]).sum();
            bf16::from_f64(sum)
        };
        let shape = self.shape.with_cols(self.vocab);
        let logits = (0..shape.rows * shape.cols).map(|i| logit(i / shape.cols, i % shape.cols)).collect();
        let (losses, dz) = Case { shape, logits, targets: self.targets.clone() }.reference();
        let mut dx = vec![0.0; x.len()];
        for i in 0..shape.rows {
            for j in 0..self.vocab {
                let dz = dz[i * self.vocab + j];
                (0..dm).for_each(|k| dx[i * dm + k] += dz * head[j * dm + k]);
            }
        }
        (losses, dx)
    }
}

fn linear<D: Driver>(d: &D) {
    for (shape, vocab) in [(Shape::aligned(23, 24), 203), (Shape::odd(7, 13), 64), (Shape::aligned(1, 8), 1)]
    {
        let case = Linear::new(shape, vocab);
        let (loss, dx_ref) = case.reference();
        for rows in [1, 5, 100] {
            let (losses, dx) = case.run(d, Some(WEIGHT), rows);
            // A logit at the edge of a rounding may round either way.
            close("losses", &losses, &loss, 1e-3);
            close("dx", &dx, &dx_ref, TOLERANCE);
            let (alone, untouched) = case.run(d, None, rows);
            same_bits("losses without weight", &alone, &losses);
            same_bits("x without weight", &untouched, &case.x);
        }
    }
}

#[test]
fn linear_layer_and_loss_agree_with_f64() {
    backends!(|d| linear(&d));
}

#[test]
fn chunks_do_not_change_a_bit() {
    // On a GPU the library may multiply chunks of another size in another order.
    if !Emulator::available() {
        return tunesmith_emulator::skipped(tunesmith_emulator::NEEDS);
    }
    let d = Emulator::new(1);
    let case = Linear::new(Shape::aligned(23, 24), 203);
    let (losses, dx) = case.run(&d, Some(WEIGHT), 23);
    for rows in [1, 4, 22, 40] {
        let (again, dx_again) = case.run(&d, Some(WEIGHT), rows);
        same_bits("losses", &again, &losses);
        same_bits("dx", &dx_again, &dx);
    }
}

fn refusals<D: Driver>(d: &D) {
    let shape = Shape { at: 0, gap: 0, ..Shape::aligned(3, 16) };
    let mut m = Padded::new(d, shape, &random(1, shape));
    let head = Padded::new(d, Shape::aligned(9, 16), &values_bf16(2, 9 * 16));
    let (three, four) = (Slice::zeros(d, 3).unwrap(), Slice::zeros(d, 4).unwrap());
    let mut losses = Slice::zeros(d, 3).unwrap();
    let text = |e: Result<()>| e.unwrap_err().to_string();

    let error = text(cross_entropy(d, m.view_mut(), &three, None, &mut losses, 1));
    assert_eq!(error, "cross_entropy: 3 rows from 1 on, targets [3], losses [3]");
    let error = text(cross_entropy(d, m.view_mut(), &four, None, &mut losses, 1));
    assert_eq!(error, "cross_entropy: 3 rows from 1 on, targets [4], losses [3]");
    let error = text(cross_entropy(d, m.view_mut(), &four, None, &mut losses, usize::MAX));
    assert!(error.starts_with("cross_entropy: 3 rows from 18446744073709551615 on"), "{error}");
    let none = ViewMut::new(&mut m.slice, 3, 0, 16);
    let error = text(cross_entropy(d, none, &three, None, &mut losses, 0));
    assert_eq!(error, "cross_entropy: rows of no logits have no loss");
    let long = ViewMut::new(&mut m.slice, 3, 17, 17);
    let error = text(cross_entropy(d, long, &three, None, &mut losses, 0));
    assert_eq!(error, "cross_entropy: logits [3, 17] at 0 (ld 17) is not inside its 48 values");
    let nothing = ViewMut::new(&mut m.slice, 0, 16, 16);
    cross_entropy(d, nothing, &three, None, &mut losses, 3).unwrap();

    let mut scratch = Slice::zeros(d, 15).unwrap();
    let error =
        text(linear_cross_entropy(d, m.view_mut(), head.view(), &three, None, &mut losses, &mut scratch));
    assert_eq!(error, "linear_cross_entropy: a scratch of 15 values for rows of 16");
    let narrow = View { cols: 15, ..head.view() };
    let error = text(linear_cross_entropy(d, m.view_mut(), narrow, &three, None, &mut losses, &mut scratch));
    assert_eq!(error, "linear_cross_entropy: x [3, 16], head [9, 15]");
    let mut few = Slice::zeros(d, 2).unwrap();
    let error =
        text(linear_cross_entropy(d, m.view_mut(), head.view(), &three, None, &mut few, &mut scratch));
    assert_eq!(error, "linear_cross_entropy: 3 rows, targets [3], losses [2]");
}

#[test]
fn wrong_shapes_are_refused() {
    backends!(|d| refusals(&d));
}

//! AdamW and its bf16 copies against f64.

#![allow(clippy::unwrap_used)]

use half::bf16;
use tunesmith_emulator::backends;
use tunesmith_emulator::check::{close, values};
use tunesmith_kernels::cpu::{self, AdamW};
use tunesmith_kernels::gpu::adamw::{Buffers, Copies, Refresh, Scale, Segment, adamw, update};
use tunesmith_kernels::gpu::norm::{OUT, PARTIALS, norm};
use tunesmith_kernels::gpu::{Driver, Error, Slice};

const STEP: AdamW =
    AdamW { lr: 3e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.05, step: 3, grad_scale: 0.7 };

/// p, g, m and v on the device.
struct State<D: Driver> {
    p: Slice<D, f32>,
    g: Slice<D, f32>,
    m: Slice<D, f32>,
    v: Slice<D, f32>,
}

impl<D: Driver> State<D> {
    fn new(d: &D, n: usize) -> Self {
        Self::with_gradient(d, &values(2, n))
    }

    fn with_gradient(d: &D, g: &[f32]) -> Self {
        let slice = |values: Vec<f32>| Slice::from_host(d, &values).unwrap();
        let n = g.len();
        let small = |seed| values(seed, n).iter().map(|v| 1e-2 * v).collect();
        let v = values(4, n).iter().map(|v| 1e-3 * v * v).collect();
        Self { p: slice(values(1, n)), g: slice(g.to_vec()), m: slice(small(3)), v: slice(v) }
    }

    fn buffers(&mut self) -> Buffers<'_, D> {
        Buffers { p: &mut self.p, g: &self.g, m: &mut self.m, v: &mut self.v }
    }

    /// The bits of p, m and v.
    fn bits(&self, d: &D) -> [Vec<u32>; 3] {
        [&self.p, &self.m, &self.v].map(|s| s.to_host(d).unwrap().iter().map(|v| v.to_bits()).collect())
    }
}

fn against_f64<D: Driver>(d: &D) {
    for n in [1, 3, 4, 1023, 4097] {
        let start = values(1, n);
        let slice = |values: &[f32]| Slice::from_host(d, values).unwrap();
        let (mut p, mut m, mut v) = (slice(&start), slice(&vec![0.0; n]), slice(&vec![0.0; n]));
        let (mut p_cpu, mut m_cpu, mut v_cpu) = (start.clone(), vec![0.0; n], vec![0.0; n]);
        let mut p_ref: Vec<f64> = start.iter().map(|&v| v.into()).collect();
        let (mut m_ref, mut v_ref) = (vec![0.0_f64; n], vec![0.0_f64; n]);
        for step in 1..=20 {
            let g = values(100 + step, n);
            let c = AdamW { step, lr: 1e-2 / step as f64, ..STEP };
            update(d, c, &mut p, &slice(&g), &mut m, &mut v).unwrap();
            cpu::adamw(c, &mut p_cpu, &g, &mut m_cpu, &mut v_cpu);
            let (root1, root2) = (1.0 - c.beta1.powf(step as f64), 1.0 - c.beta2.powf(step as f64));
            for i in 0..n {
                let g = f64::from(g[i]) * f64::from(c.grad_scale);
                p_ref[i] *= 1.0 - c.lr * c.weight_decay;
                m_ref[i] = c.beta1 * m_ref[i] + (1.0 - c.beta1) * g;
                v_ref[i] = c.beta2 * v_ref[i] + (1.0 - c.beta2) * g * g;
                p_ref[i] -= c.lr * (m_ref[i] / root1) / ((v_ref[i] / root2).sqrt() + c.eps);
            }
        }
        for (what, out, reference, cpu) in
            [("p", &p, &p_ref, &p_cpu), ("m", &m, &m_ref, &m_cpu), ("v", &v, &v_ref, &v_cpu)]
        {
            let out = out.to_host(d).unwrap();
            close(&format!("{what} of {n} after 20 steps"), &out, reference, 1e-6);
            let cpu: Vec<f64> = cpu.iter().map(|&v| v.into()).collect();
            close(&format!("{what} of {n} against the CPU's"), &out, &cpu, 1e-6);
        }
    }
}

#[test]
fn agrees_with_f64_over_20_steps() {
    backends!(|d| against_f64(&d));
}

/// Segments at every kind of place: whole quads and not, within a block and over several, and gaps.
fn layout() -> (usize, [usize; 2], Vec<Segment>) {
    let segment = |start, (rows, cols), to, at, ld, factor| Segment { start, rows, cols, to, at, ld, factor };
    let mut out = vec![
        segment(0, (5, 64), 0, 16, 72, 2.0),
        // Starts within a quad, ends within one.
        segment(321, (3, 5), 1, 3, 7, 1.0),
        segment(336, (4, 5), 1, 40, 8, 0.5),
        // Whole quads over three blocks, of 1024 values each.
        segment(500, (40, 60), 0, 1000, 64, 1.0),
        // Of odd width over three blocks, and side by side with the next in one matrix.
        segment(2900, (61, 37), 1, 500, 100, 16.0 / 7.0),
        segment(5161, (61, 16), 1, 560, 100, 1.0),
        // Whole quads but for where the copy lies.
        segment(6200, (3, 8), 0, 5001, 12, 1.0),
        segment(6224, (1, 16), 0, 5100, 0, 3.0),
    ];
    // The first is in the same quad as the next ones.
    out.extend((0..9).map(|i| segment(6240 + i, (1, 1), 0, 5200 + 3 * i, 1, 1.0 + i as f32)));
    // One without values is none.
    out.push(segment(6250, (0, 4), 7, 0, 4, 1.0));
    out.push(segment(7169, (11, 1), 0, 5300, 5, 1.0));
    out.reverse();
    (7182, [5400, 7000], out)
}

const AROUND: bf16 = bf16::from_bits(0x4b4b);

/// The bits of the two slices of copies after one update.
fn copies<D: Driver>(d: &D, state: &mut State<D>, scale: Scale<'_, D>) -> [Vec<bf16>; 2] {
    let (n, lengths, segments) = layout();
    let mut to = lengths.map(|len| Slice::from_host(d, &vec![AROUND; len]).unwrap());
    let table = Copies::new(d, n, &[&to[0], &to[1]], &segments).unwrap();
    let mut borrowed: Vec<&mut Slice<D, bf16>> = to.iter_mut().collect();
    let refresh = Refresh { copies: &table, to: &mut borrowed };
    adamw(d, STEP, scale, state.buffers(), Some(refresh)).unwrap();
    to.map(|to| to.to_host(d).unwrap())
}

fn rounds_once<D: Driver>(d: &D) {
    let (n, lengths, segments) = layout();
    let (mut plain, mut state, mut again) = (State::new(d, n), State::new(d, n), State::new(d, n));
    adamw(d, STEP, Scale::Host(0.3), plain.buffers(), None).unwrap();
    let out = copies(d, &mut state, Scale::Host(0.3));
    assert_eq!(state.bits(d), plain.bits(d), "the update with copies");
    assert_eq!(out, copies(d, &mut again, Scale::Host(0.3)), "a second run");

    let p = state.p.to_host(d).unwrap();
    let mut right = lengths.map(|len| vec![AROUND; len]);
    for s in segments {
        for i in 0..s.rows * s.cols {
            right[s.to][s.at + i / s.cols * s.ld + i % s.cols] = bf16::from_f32(s.factor * p[s.start + i]);
        }
    }
    for (slice, (out, right)) in out.iter().zip(&right).enumerate() {
        let wrong = out.iter().zip(right).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!(wrong, None, "where a copy in slice {slice} differs");
    }
}

#[test]
fn copies_are_rounded_once_and_nothing_else_is_written() {
    backends!(|d| rounds_once(&d));
}

/// What `norm` makes of a gradient.
fn norm_of<D: Driver>(d: &D, g: &Slice<D, f32>, limit: f32) -> Slice<D, f32> {
    let (mut partials, mut out) = (Slice::uninit(d, PARTIALS).unwrap(), Slice::uninit(d, OUT).unwrap());
    norm(d, g, Some(limit), &mut partials, &mut out).unwrap();
    out
}

fn skips<D: Driver>(d: &D) {
    let (n, lengths, _) = layout();
    for (bad, at) in [(f32::NAN, n - 1), (f32::INFINITY, 5), (3e38, 0)] {
        let mut g = values(2, n);
        g[at] = bad;
        if bad.is_finite() {
            // Finite all of them, and their norm is not.
            g[at + 1] = bad;
        }
        let mut state = State::with_gradient(d, &g);
        let before = state.bits(d);
        let scale = norm_of(d, &state.g, 1.0);
        let out = copies(d, &mut state, Scale::Device(&scale));
        assert_eq!(state.bits(d), before, "an update with {bad} in the gradient");
        assert_eq!(out, lengths.map(|len| vec![AROUND; len]), "copies of an update that did not take place");
    }
}

#[test]
fn a_norm_that_is_not_finite_skips_the_update() {
    backends!(|d| skips(&d));
}

fn same_scale<D: Driver>(d: &D) {
    let (n, ..) = layout();
    let before = State::new(d, n).bits(d);
    for limit in [0.25, 1e6] {
        let (mut host, mut device) = (State::new(d, n), State::new(d, n));
        let scale = norm_of(d, &device.g, limit);
        let factor = scale.to_host(d).unwrap()[1];
        assert_eq!(factor < 1.0, limit < 1.0, "the clip factor {factor}");
        let by_host = copies(d, &mut host, Scale::Host(factor));
        let by_device = copies(d, &mut device, Scale::Device(&scale));
        assert_eq!(host.bits(d), device.bits(d), "p, m and v");
        assert_eq!(by_host, by_device, "copies");
        assert_ne!(host.bits(d), before, "an update that did not take place");
    }
}

#[test]
fn a_scale_on_the_device_is_one_on_the_host() {
    backends!(|d| same_scale(&d));
}

fn not_finite<D: Driver>(d: &D) {
    let n = 2051;
    let (mut clean, mut g) = (State::new(d, n), values(2, n));
    update(d, STEP, &mut clean.p, &clean.g, &mut clean.m, &mut clean.v).unwrap();
    (g[6], g[1500], g[n - 1]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let mut state = State::with_gradient(d, &g);
    update(d, STEP, &mut state.p, &state.g, &mut state.m, &mut state.v).unwrap();
    for (clean, out) in clean.bits(d).iter().zip(&state.bits(d)) {
        for i in 0..n {
            if g[i].is_finite() {
                assert_eq!(out[i], clean[i], "value {i}");
            } else {
                assert!(!f32::from_bits(out[i]).is_finite(), "value {i} hides {}", g[i]);
            }
        }
    }
}

#[test]
fn what_is_not_finite_shows_where_it_is() {
    backends!(|d| not_finite(&d));
}

fn refusals<D: Driver>(d: &D) {
    let text = |e: Result<(), Error>| e.unwrap_err().to_string();
    let (mut state, long) = (State::new(d, 8), Slice::zeros(d, 9).unwrap());
    let error = text(update(d, STEP, &mut state.p, &long, &mut state.m, &mut state.v));
    assert_eq!(error, "adamw: 8 parameters, 9 gradients, moments of 8 and 8");
    let short = Slice::zeros(d, 2).unwrap();
    let error = text(adamw(d, STEP, Scale::Device(&short), state.buffers(), None));
    assert_eq!(error, "adamw: a norm of 2 values, not 3");

    let [mut to, mut other] = [16, 15].map(|len| Slice::<D, bf16>::zeros(d, len).unwrap());
    let segment = Segment { start: 0, rows: 2, cols: 4, to: 0, at: 0, ld: 12, factor: 1.0 };
    let table = Copies::new(d, 8, &[&to], &[segment]).unwrap();
    for slices in [&mut [&mut other] as &mut [_], &mut []] {
        let refresh = Refresh { copies: &table, to: slices };
        let error = text(adamw(d, STEP, Scale::Host(1.0), state.buffers(), Some(refresh)));
        assert_eq!(error, "adamw: the copies were laid out for other slices");
    }
    let refresh = Refresh { copies: &table, to: &mut [&mut to] };
    let error = text(adamw(d, STEP, Scale::Host(1.0), State::new(d, 9).buffers(), Some(refresh)));
    assert_eq!(error, "adamw: copies of 8 parameters, where there are 9");
    let refresh = Refresh { copies: &table, to: &mut [&mut to] };
    adamw(d, STEP, Scale::Host(1.0), state.buffers(), Some(refresh)).unwrap();

    let refused = |segments: &[Segment], end: &str| {
        let error = Copies::new(d, 8, &[&to], segments).unwrap_err().to_string();
        assert!(error.ends_with(end), "{error}");
    };
    refused(&[Segment { start: 1, ..segment }], "is not inside 8 parameters");
    refused(&[Segment { rows: usize::MAX, ..segment }], "is not inside 8 parameters");
    refused(&[Segment { ld: 13, ..segment }], "is not inside its 16 values");
    refused(&[Segment { ld: 3, ..segment }], "is not inside its 16 values");
    refused(&[Segment { at: 1, ..segment }], "is not inside its 16 values");
    refused(&[Segment { ld: usize::MAX, ..segment }], "is not inside its 16 values");
    refused(&[Segment { to: 1, ..segment }], "is not inside its 0 values");
    let row = Segment { rows: 1, ..segment };
    refused(&[row, Segment { start: 3, at: 8, ..row }], "overlaps the segment before it");
    refused(&[row, Segment { start: 4, at: 3, ..row }], "overlap");
}

#[test]
fn wrong_shapes_are_refused() {
    backends!(|d| refusals(&d));
}

fn overlaps<D: Driver>(d: &D) {
    let to = Slice::<D, bf16>::zeros(d, 64).unwrap();
    let (mut refused, mut taken) = (0, 0);
    let numbers = values(7, 6 * 400);
    for draw in numbers.chunks_exact(6) {
        let draw: Vec<usize> = draw.iter().map(|v| ((v + 1.0) * 500.0) as usize).collect();
        let a = Segment {
            start: 0,
            rows: 1 + draw[0] % 4,
            cols: 1 + draw[1] % 6,
            to: 0,
            at: draw[2] % 20,
            ld: 8,
            factor: 1.0,
        };
        let (rows, cols) = (1 + draw[3] % 4, 1 + draw[4] % 6);
        let b = Segment { start: 100, rows, cols, at: draw[5] % 20, ..a };
        let cells = |s: &Segment| {
            let s = *s;
            (0..s.rows * s.cols).map(move |i| s.at + i / s.cols * s.ld + i % s.cols)
        };
        let overlap = cells(&a).any(|cell| cells(&b).any(|other| other == cell));
        assert_eq!(Copies::new(d, 200, &[&to], &[a, b]).is_err(), overlap, "{a:?} {b:?}");
        if overlap { refused += 1 } else { taken += 1 }
    }
    assert!(refused > 50 && taken > 50, "{refused} overlaps, {taken} others");
}

#[test]
fn copies_that_overlap_are_refused_and_no_others() {
    backends!(|d| overlaps(&d));
}

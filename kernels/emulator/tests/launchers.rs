//! What launchers refuse, what they do not launch, and which kernel they choose: on a device of paper.

#![allow(clippy::unwrap_used, unsafe_code)]

use std::sync::Mutex;
use std::time::Duration;

use tunesmith_kernels::gpu::dropout::{Key, dropout};
use tunesmith_kernels::gpu::rms_norm::{rms_norm, rms_norm_backward};
use tunesmith_kernels::gpu::rope::{Table, rope};
use tunesmith_kernels::gpu::rows::{add, clear, copy, fill, gather, narrow, scatter, widen};
use tunesmith_kernels::gpu::swiglu::{swiglu, swiglu_backward};
use tunesmith_kernels::gpu::{Driver, Element, Gemm, Launch, Limits, Result, Slice, View, ViewMut};

/// Has any amount of memory and none of it, and writes down what it is asked to run.
#[derive(Debug, Default)]
struct Paper(Mutex<Vec<String>>);

impl Paper {
    /// What was launched since the last call.
    fn launched(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Driver for Paper {
    type Memory = ();

    fn alloc(&self, _bytes: usize) -> Result<()> {
        Ok(())
    }
    fn address(&self, (): &()) -> u64 {
        256
    }
    fn upload(&self, _from: &[u8], (): &mut (), _at: usize) -> Result<()> {
        Ok(())
    }
    fn download(&self, (): &(), _at: usize, _to: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn clear(&self, (): &mut (), _at: usize, _bytes: usize) -> Result<()> {
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        assert!(launch.grid.iter().all(|&n| n > 0), "{launch:?} has no blocks");
        assert!(launch.threads > 0 && launch.threads.is_multiple_of(32), "{launch:?} has odd threads");
        self.0.lock().unwrap().push(launch.kernel.to_owned());
        Ok(())
    }
    unsafe fn gemm(&self, _gemm: &Gemm) -> Result<()> {
        Ok(())
    }
    fn limits(&self) -> Limits {
        Limits { multiprocessors: 1, shared_per_block: 48 << 10 }
    }

    type Mark = ();

    fn mark(&self) -> Result<()> {
        Ok(())
    }
    fn between(&self, (): &(), (): &()) -> Result<Duration> {
        Ok(Duration::ZERO)
    }

    type Download = ();
    fn download_later(&self, (): &(), _at: usize, _bytes: usize) -> Result<()> {
        Ok(())
    }
    fn wait(&self, (): (), _to: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        "paper".to_owned()
    }
}

/// Where one matrix lies.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    len: usize,
    at: usize,
    rows: usize,
    cols: usize,
    ld: usize,
}

impl Place {
    fn new(rows: usize, cols: usize) -> Self {
        Self { len: 16 + rows * (cols + 8), at: 16, rows, cols, ld: cols + 8 }
    }

    fn slice<T: Element>(self) -> Slice<Paper, T> {
        Slice::uninit(&Paper::default(), self.len).unwrap()
    }

    fn of<T>(self, slice: &Slice<Paper, T>) -> View<'_, Paper, T> {
        View { slice, at: self.at, rows: self.rows, cols: self.cols, ld: self.ld }
    }

    fn of_mut<T>(self, slice: &mut Slice<Paper, T>) -> ViewMut<'_, Paper, T> {
        ViewMut { slice, at: self.at, rows: self.rows, cols: self.cols, ld: self.ld }
    }
}

/// A launcher with its matrices: their names, and columns per column of the first.
struct Launcher {
    name: &'static str,
    matrices: &'static [(&'static str, usize)],
    /// Kernels for vectors and for anything.
    kernels: [&'static str; 2],
    /// Runs it; everything that is not a matrix fits.
    run: fn(&Paper, &[Place]) -> Result<()>,
}

const KEY: Key = Key { seed: 1, step: 2, site: 3 };

/// A slice of `len` values, for what is not a matrix.
fn flat<T: Element>(len: usize) -> Slice<Paper, T> {
    Slice::uninit(&Paper::default(), len).unwrap()
}

const LAUNCHERS: &[Launcher] = &[
    Launcher {
        name: "gather",
        matrices: &[("m", 1), ("out", 1)],
        kernels: ["rows_gather_8", "rows_gather_1"],
        run: |d, p| gather(d, p[0].of(&p[0].slice()), &flat(p[1].rows), p[1].of_mut(&mut p[1].slice())),
    },
    Launcher {
        name: "scatter",
        matrices: &[("m", 1), ("out", 1)],
        kernels: ["rows_scatter_8", "rows_scatter_1"],
        run: |d, p| scatter(d, p[0].of(&p[0].slice()), &flat(p[1].rows), p[1].of_mut(&mut p[1].slice())),
    },
    Launcher {
        name: "copy",
        matrices: &[("m", 1), ("out", 1)],
        kernels: ["rows_copy_8", "rows_copy_1"],
        run: |d, p| copy(d, p[0].of(&p[0].slice()), p[1].of_mut(&mut p[1].slice())),
    },
    Launcher {
        name: "add",
        matrices: &[("m", 1), ("out", 1)],
        kernels: ["rows_add_8", "rows_add_1"],
        run: |d, p| add(d, p[0].of(&p[0].slice()), p[1].of_mut(&mut p[1].slice())),
    },
    Launcher {
        name: "narrow",
        matrices: &[("m", 1), ("out", 1)],
        kernels: ["rows_narrow_8", "rows_narrow_1"],
        run: |d, p| narrow(d, 1.0, p[0].of(&p[0].slice()), p[1].of_mut(&mut p[1].slice())),
    },
    Launcher {
        name: "widen",
        matrices: &[("m", 1), ("out", 1)],
        kernels: ["rows_widen_8", "rows_widen_1"],
        run: |d, p| widen(d, p[0].of(&p[0].slice()), p[1].of_mut(&mut p[1].slice())),
    },
    Launcher {
        name: "fill",
        matrices: &[("out", 1)],
        kernels: ["rows_fill_8", "rows_fill_1"],
        run: |d, p| fill(d, 1.0, p[0].of_mut(&mut p[0].slice())),
    },
    Launcher {
        name: "fill",
        matrices: &[("out", 1)],
        kernels: ["rows_fill_8", "rows_fill_1"],
        run: |d, p| clear(d, p[0].of_mut(&mut p[0].slice())),
    },
    Launcher {
        name: "dropout",
        matrices: &[("m", 1), ("out", 1)],
        kernels: ["dropout_8", "dropout_1"],
        run: |d, p| {
            let names = flat(2 * p[0].rows);
            dropout(d, p[0].of(&p[0].slice()), KEY, 0.5, &names, p[1].of_mut(&mut p[1].slice()))
        },
    },
    Launcher {
        name: "swiglu",
        matrices: &[("h", 1), ("gate_up", 2)],
        kernels: ["swiglu_8", "swiglu_1"],
        run: |d, p| swiglu(d, p[1].of(&p[1].slice()), p[0].of_mut(&mut p[0].slice())),
    },
    Launcher {
        name: "swiglu_backward",
        matrices: &[("h", 1), ("gate_up", 2), ("dh", 1)],
        kernels: ["swiglu_backward_8", "swiglu_backward_1"],
        run: |d, p| {
            let (mut h, mut gate_up) = (p[0].slice(), p[1].slice());
            swiglu_backward(d, p[2].of(&p[2].slice()), p[1].of_mut(&mut gate_up), p[0].of_mut(&mut h))
        },
    },
    Launcher {
        name: "rms_norm",
        matrices: &[("x", 1), ("y", 1)],
        kernels: ["rms_norm_warp_1", "rms_norm_any"],
        run: |d, p| {
            let (x, w, mut y, mut rstd) = (p[0].slice(), flat(p[0].cols), p[1].slice(), flat(p[0].rows));
            rms_norm(d, p[0].of(&x), &w, 1e-5, p[1].of_mut(&mut y), &mut rstd)
        },
    },
    Launcher {
        name: "rms_norm_backward",
        matrices: &[("x", 1), ("dy", 1), ("dx", 1), ("y", 1)],
        kernels: ["rms_norm_backward_warp_1", "rms_norm_backward_any"],
        run: |d, p| {
            let (x, dy, w, rstd) = (p[0].slice(), p[1].slice(), flat(p[0].cols), flat(p[0].rows));
            let (mut dx, mut y) = (p[2].slice(), p[3].slice());
            let y = p[3].of_mut(&mut y);
            rms_norm_backward(d, p[1].of(&dy), p[0].of(&x), &w, &rstd, p[2].of_mut(&mut dx), Some(y))
        },
    },
    Launcher {
        name: "rope",
        matrices: &[("x", 1)],
        kernels: ["rope_8", "rope_1"],
        run: |d, p| {
            let (cos, sin) = (flat(10 * 8), flat(10 * 8));
            let table = Table { cos: &cos, sin: &sin, half: 8 };
            rope(d, p[0].of_mut(&mut p[0].slice()), &flat(p[0].rows), 9, table, false)
        },
    },
];

/// Runs `test` for each launcher and each of its matrices, with places that all fit `[rows, cols]`.
fn each_matrix(rows: usize, cols: usize, test: impl Fn(&Launcher, usize, &[Place])) {
    for launcher in LAUNCHERS {
        let places: Vec<Place> =
            launcher.matrices.iter().map(|&(_, times)| Place::new(rows, times * cols)).collect();
        (0..places.len()).for_each(|i| test(launcher, i, &places));
    }
}

/// The refusal of a launch in which one matrix lies elsewhere.
fn refusal(launcher: &Launcher, places: &[Place], i: usize, place: Place) -> String {
    let d = Paper::default();
    let mut places = places.to_vec();
    places[i] = place;
    let result = (launcher.run)(&d, &places);
    assert_eq!(d.launched(), [""; 0], "{} ran on {places:?}", launcher.name);
    let text = result.unwrap_err().to_string();
    assert!(text.starts_with(&format!("{}: ", launcher.name)), "{text}");
    text
}

#[test]
fn a_matrix_beyond_its_slice_is_refused() {
    each_matrix(3, 64, |launcher, i, places| {
        let (name, fine) = (launcher.matrices[i].0, places[i]);
        let Place { len, at, rows, cols, ld } = fine;
        let last = at + (rows - 1) * ld + cols;
        let cases = [
            Place { len: last - 1, ..fine },
            Place { at: len, ..fine },
            Place { at: usize::MAX, ..fine },
            Place { ld: len, ..fine },
            Place { ld: usize::MAX, ..fine },
            // Rows that overlap.
            Place { ld: cols - 1, ..fine },
        ];
        for place in cases {
            let Place { len, at, ld, .. } = place;
            let expected = format!(
                "{}: {name} [{rows}, {cols}] at {at} (ld {ld}) is not inside its {len} values",
                launcher.name
            );
            assert_eq!(refusal(launcher, places, i, place), expected);
        }
    });
}

#[test]
fn a_matrix_of_another_shape_is_refused() {
    each_matrix(3, 64, |launcher, i, places| {
        if places.len() == 1 {
            return;
        }
        let fine = places[i];
        refusal(launcher, places, i, Place { cols: fine.cols - 16, ..fine });
        // A gather and its inverse take as many rows as there are.
        if !["gather", "scatter"].contains(&launcher.name) {
            refusal(launcher, places, i, Place { rows: 2, ..fine });
        }
    });
}

#[test]
fn more_than_a_kernel_can_count_is_refused() {
    each_matrix(5 << 30, 16, |launcher, i, places| {
        let text = refusal(launcher, places, i, places[i]);
        assert!(text.ends_with("more than a kernel can count"), "{text}");
    });
}

#[test]
fn nothing_is_launched_for_nothing() {
    for (rows, cols) in [(0, 64), (3, 0)] {
        each_matrix(rows, cols, |launcher, _, places| {
            let d = Paper::default();
            let result = (launcher.run)(&d, places);
            assert!(result.is_ok(), "{} of [{rows}, {cols}]: {result:?}", launcher.name);
            assert_eq!(d.launched(), [""; 0], "{} of [{rows}, {cols}]", launcher.name);
        });
    }
}

#[test]
fn vectors_are_used_only_where_every_matrix_is_aligned() {
    let chosen = |launcher: &Launcher, places: &[Place]| {
        let d = Paper::default();
        (launcher.run)(&d, places).unwrap();
        d.launched()
    };
    each_matrix(3, 64, |launcher, i, places| {
        let [wide, any] = launcher.kernels;
        assert_eq!(chosen(launcher, places), [wide]);
        for (at, ld) in [(15, 0), (16, 1), (1, 2), (16, 3)] {
            let mut moved = places.to_vec();
            moved[i].at = at;
            moved[i].ld += ld;
            moved[i].len += 2 * ld;
            assert_eq!(chosen(launcher, &moved), [any], "{} of {moved:?}", launcher.name);
        }
        // The distance of rows does not count where there is one.
        let single: Vec<Place> = places.iter().map(|p| Place { rows: 1, ld: 1, ..*p }).collect();
        assert_eq!(chosen(launcher, &single), [wide], "{}", launcher.name);
    });
    // Four f32 are 16 bytes, four bf16 are not.
    for launcher in LAUNCHERS {
        let mut places = vec![Place::new(3, 64); launcher.matrices.len()];
        if ["narrow", "widen"].contains(&launcher.name) {
            let full = usize::from(launcher.name == "widen");
            places[full] = Place { len: 400, at: 20, ld: 68, ..places[full] };
            assert_eq!(chosen(launcher, &places), [launcher.kernels[0]]);
            places.reverse();
            assert_eq!(chosen(launcher, &places), [launcher.kernels[1]]);
        }
    }
}

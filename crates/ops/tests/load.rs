//! Stored values straight into a matrix, against reading them whole, converting and writing them; and random weights on
//! every backend.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io;
use std::sync::Mutex;

use tunesmith_emulator::{backends, check};
use tunesmith_ops::{DeviceKernels, Error, FillKey, Kernels, Mat, MatMut, RefKernels, Stored, StoredType};

const TYPES: [StoredType; 3] = [StoredType::F32, StoredType::F16, StoredType::Bf16];

/// bf16 of the tests themselves: f16 and bf16 by their definition, to the nearest and ties to even.
fn f16_bits(v: f32) -> u16 {
    // Normal and in range: all that the tests use.
    let bits = v.to_bits();
    let (sign, exponent, mantissa) =
        (bits >> 16 & 0x8000, (bits >> 23 & 0xff) as i32 - 112, bits & 0x7f_ffff);
    assert!((1..31).contains(&exponent), "{v} is no normal f16");
    let kept = (exponent as u32) << 10 | mantissa >> 13;
    let rest = mantissa & 0x1fff;
    let up = rest > 0x1000 || (rest == 0x1000 && kept & 1 == 1);
    (sign | (kept + u32::from(up))) as u16
}

fn f16_value(bits: u16) -> f32 {
    let (sign, exponent, mantissa) =
        (u32::from(bits >> 15), u32::from(bits >> 10 & 31), u32::from(bits & 0x3ff));
    f32::from_bits(sign << 31 | (exponent + 112) << 23 | mantissa << 13)
}

/// Values as a file of type `of` holds them, and what they are then.
fn file(of: StoredType, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    match of {
        StoredType::F32 => (values.iter().flat_map(|v| v.to_le_bytes()).collect(), values.to_vec()),
        StoredType::F16 => {
            let bits: Vec<u16> = values.iter().map(|&v| f16_bits(v)).collect();
            (
                bits.iter().flat_map(|b| b.to_le_bytes()).collect(),
                bits.iter().map(|&b| f16_value(b)).collect(),
            )
        }
        StoredType::Bf16 => {
            let rounded: Vec<f32> = values.iter().map(|&v| check::round_bf16(v)).collect();
            (rounded.iter().flat_map(|v| v.to_le_bytes()[2..].to_vec()).collect(), rounded)
        }
    }
}

/// Values away from zero, so that every one is a normal f16.
fn values(n: usize, seed: u64) -> Vec<f32> {
    check::values(seed, n).into_iter().map(|v| v + 0.001_f32.copysign(v)).collect()
}

fn read_from(bytes: &[u8]) -> impl Fn(usize, &mut [u8]) -> io::Result<()> + Sync + '_ {
    |at, out| {
        let from = bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }
}

/// Loads into a matrix with gaps of ones, and gives the whole buffer.
fn loaded<K: Kernels>(
    k: &K,
    of: StoredType,
    bytes: &[u8],
    (rows, cols, gap): (usize, usize, usize),
) -> Result<Vec<f32>, Error> {
    let (ld, at) = (cols + gap, 5);
    let len = at + rows * ld;
    let mut buf = k.zeros(len).unwrap();
    k.write(&vec![1.0; len], MatMut::new(&mut buf, 1, len, len)).unwrap();
    let largest = Mutex::new(0);
    let inner = read_from(bytes);
    let read = |at: usize, out: &mut [u8]| {
        let mut largest = largest.lock().unwrap();
        *largest = out.len().max(*largest);
        drop(largest);
        inner(at, out)
    };
    let mut told = 0;
    let out = MatMut { buf: &mut buf, at, rows, cols, ld };
    k.load(Stored { of, read: &read }, out, &mut |bytes| told += bytes)?;
    assert_eq!(told, bytes.len(), "told of other bytes than there are");
    // What is held at a time has a bound that the size of the matrix does not move, but for a single long row.
    let largest = *largest.lock().unwrap();
    assert!(largest <= (512 << 10).max(cols * of.bytes()), "{largest} bytes were read at a time");
    Ok(k.read(Mat::new(&buf, 1, len, len)).unwrap())
}

/// The same by the long way.
fn written<K: Kernels>(k: &K, values: &[f32], (rows, cols, gap): (usize, usize, usize)) -> Vec<f32> {
    let (ld, at) = (cols + gap, 5);
    let len = at + rows * ld;
    let mut buf = k.zeros(len).unwrap();
    k.write(&vec![1.0; len], MatMut::new(&mut buf, 1, len, len)).unwrap();
    k.write(values, MatMut { buf: &mut buf, at, rows, cols, ld }).unwrap();
    k.read(Mat::new(&buf, 1, len, len)).unwrap()
}

fn same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len());
    let at = got.iter().zip(want).position(|(g, w)| g.to_bits() != w.to_bits());
    assert_eq!(at, None, "{what}: differs");
}

const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 0),
    (1, 300_001, 7),
    (3, 5, 0),
    (7, 37, 3),
    (64, 64, 64),
    (2, 5000, 1),
    (300, 701, 0),
    (1031, 257, 16),
];

fn as_written<K: Kernels>(k: &K) {
    for shape in SHAPES {
        for of in TYPES {
            let (bytes, exact) = file(of, &values(shape.0 * shape.1, 3));
            let got = loaded(k, of, &bytes, shape).unwrap();
            same(&got, &written(k, &exact, shape), &format!("{of:?} {shape:?}"));
        }
    }
}

#[test]
fn loading_is_reading_converting_and_writing() {
    as_written(&RefKernels);
    backends!(|d| as_written(&DeviceKernels::new(d)));
}

#[test]
fn a_long_matrix_is_loaded_whole() {
    // More than the CPU takes between two words about it, and no multiple of it.
    let shape = (4_101, 2_111, 9);
    for of in TYPES {
        let (bytes, exact) = file(of, &values(shape.0 * shape.1, 4));
        same(&loaded(&RefKernels, of, &bytes, shape).unwrap(), &written(&RefKernels, &exact, shape), "long");
    }
}

fn not_finite_is_named<K: Kernels>(k: &K) {
    let shape = (1031, 257, 16);
    let n = shape.0 * shape.1;
    for of in TYPES {
        let (clean, _) = file(of, &values(n, 5));
        for (i, at) in [0, 1, n / 2, 131_071, 131_072, n - 1].into_iter().enumerate() {
            let mut bytes = clean.clone();
            let bad: [&[u8]; 3] = match of {
                StoredType::F32 => [&[0, 0, 0xc0, 0x7f], &[0, 0, 0x80, 0x7f], &[1, 0, 0x80, 0xff]],
                StoredType::F16 => [&[0, 0x7e], &[0, 0x7c], &[0, 0xfc]],
                StoredType::Bf16 => [&[0xc0, 0x7f], &[0x80, 0x7f], &[0x80, 0xff]],
            };
            let size = of.bytes();
            bytes[at * size..][..size].copy_from_slice(bad[i % 3]);
            // Of two, the first.
            bytes[(n - 1) * size..][..size].copy_from_slice(bad[0]);
            match loaded(k, of, &bytes, shape) {
                Err(Error::ValueNotFinite { index }) => assert_eq!(index, at, "{of:?}"),
                other => panic!("{of:?}, value {at}: {:?}", other.map(|_| "taken")),
            }
        }
        // A file that ends early.
        let short = &clean[..clean.len() - 1];
        assert!(
            matches!(loaded(k, of, short, shape), Err(Error::Read(e)) if e.kind() == io::ErrorKind::UnexpectedEof)
        );
    }
}

#[test]
fn the_first_value_that_is_not_finite_is_named() {
    not_finite_is_named(&RefKernels);
    backends!(|d| not_finite_is_named(&DeviceKernels::new(d)));
}

#[test]
fn what_bf16_cannot_hold_is_named_where_bf16_is_stored() {
    let mut stored = values(5000, 6);
    (stored[4097], stored[4999]) = (-3.4e38, f32::MAX);
    let (bytes, _) = file(StoredType::F32, &stored);
    let shape = (50, 100, 4);
    same(
        &loaded(&RefKernels, StoredType::F32, &bytes, shape).unwrap(),
        &written(&RefKernels, &stored, shape),
        "f32",
    );
    backends!(|d| {
        let error = loaded(&DeviceKernels::new(d), StoredType::F32, &bytes, shape).unwrap_err();
        assert_eq!(error.to_string(), "value 4097 is -3.4e38, which is more than bf16 can hold");
    });
}

#[test]
fn a_matrix_outside_its_buffer_is_refused() {
    fn refused<K: Kernels>(k: &K) {
        let mut buf = k.zeros(20).unwrap();
        let read = |_: usize, _: &mut [u8]| Ok(());
        let out = MatMut { buf: &mut buf, at: 1, rows: 4, cols: 5, ld: 5 };
        let stored = Stored { of: StoredType::Bf16, read: &read };
        assert!(k.load(stored, out, &mut |_| ()).is_err());
    }
    refused(&RefKernels);
    backends!(|d| refused(&DeviceKernels::new(d)));
}

fn filled<K: Kernels>(k: &K, key: FillKey, (rows, cols, gap): (usize, usize, usize)) -> Vec<f32> {
    let ld = cols + gap;
    let mut buf = k.zeros(rows * ld).unwrap();
    k.fill_random(key, 0.02, MatMut::new(&mut buf, rows, cols, ld)).unwrap();
    k.read(Mat::new(&buf, rows, ld, ld)).unwrap()
}

#[test]
fn random_weights_are_the_same_on_every_backend() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let key = FillKey { seed: 0xfeed_0000_0007 + i as u64, tensor: i as u32 };
        let want: Vec<f32> = filled(&RefKernels, key, shape).into_iter().map(check::round_bf16).collect();
        let drawn = want.iter().filter(|v| **v != 0.0).count();
        assert!(shape.0 * shape.1 < 100 || drawn > shape.0 * shape.1 * 9 / 10);
        backends!(|d| same(&filled(&DeviceKernels::new(d), key, shape), &want, &format!("{shape:?}")));
    }
}

#[test]
fn random_values_go_by_their_number() {
    let key = FillKey { seed: 9, tensor: 4 };
    let mut all = vec![0.0; 50];
    key.values(1.0, 0, &mut all);
    for (from, to) in [(0, 3), (1, 9), (3, 4), (6, 50), (7, 7)] {
        let mut part = vec![0.0; to - from];
        key.values(1.0, from as u64, &mut part);
        assert_eq!(part, all[from..to]);
    }
    let other = FillKey { tensor: 5, ..key };
    let mut values = vec![0.0; 50];
    other.values(1.0, 0, &mut values);
    assert_ne!(values, all);
}

#[test]
fn marks_tell_the_time_between_them() {
    fn marked<K: Kernels>(k: &K) {
        let start = k.mark().unwrap();
        let buf = k.zeros(1000).unwrap();
        assert_eq!(k.read(Mat::new(&buf, 1, 1000, 1000)).unwrap().len(), 1000);
        let end = k.mark().unwrap();
        let took = k.between(&start, &end).unwrap();
        assert!(took.as_secs() < 600, "{took:?}");
    }
    marked(&RefKernels);
    backends!(|d| marked(&DeviceKernels::new(d)));
}

//! Weights from a file in the page cache to their place: read whole and written, as it once was, against straight from the
//! file, into the CPU's f32 and into staging memory as for a GPU. `cargo bench --bench loading` prints stored bytes a second.

#![allow(
    missing_docs,
    clippy::expect_used,
    unsafe_code,
    reason = "a bench has nobody to return an error to; a device's trait has unsafe methods"
)]

use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tunesmith_kernels::gpu::{Driver, Error, Fill, Gemm, Launch, Limits, Result, Rows};
use tunesmith_kernels::stored::first_not_finite;
use tunesmith_model::TensorFile;
use tunesmith_ops::{DeviceKernels, Kernels, MatMut, RefKernels, Stored, StoredType};

/// A linear of a 7B model four times over, with room for an adapter beside it.
const ROWS: usize = 16_384;
const COLS: usize = 4096;
const LD: usize = COLS + 64;
/// Bytes of staging memory that are filled at a time: those of the CUDA driver.
const PIECE: usize = 8 << 20;

/// A device that takes what it is given and keeps nothing: what is left is the host's part.
#[derive(Debug)]
struct Sink(Mutex<Vec<u8>>);

impl Driver for Sink {
    type Memory = ();
    type Mark = Instant;
    type Download = ();

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
        Err(Error::Device { call: launch.kernel.into(), text: "nothing runs here".into() })
    }
    unsafe fn gemm(&self, _gemm: &Gemm) -> Result<()> {
        Err(Error::Device { call: "gemm".into(), text: "nothing runs here".into() })
    }
    fn limits(&self) -> Limits {
        Limits { multiprocessors: 1, shared_per_block: 0 }
    }
    fn upload_rows(&self, (): &mut (), rows: Rows, fill: &mut Fill<'_>) -> Result<()> {
        let mut staged = self.0.lock().expect("staging memory");
        for piece in rows.pieces(PIECE) {
            if fill(piece.from, &mut staged[..piece.len()]).is_break() {
                break;
            }
        }
        Ok(())
    }
    fn download_later(&self, (): &(), _at: usize, _bytes: usize) -> Result<()> {
        Ok(())
    }
    fn wait(&self, (): (), _to: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn mark(&self) -> Result<Instant> {
        Ok(Instant::now())
    }
    fn between(&self, start: &Instant, end: &Instant) -> Result<Duration> {
        Ok(end.duration_since(*start))
    }
    fn name(&self) -> String {
        "sink".to_owned()
    }
}

/// A file of one tensor `w`.
fn file(of: StoredType) -> (tempfile::TempDir, TensorFile) {
    let name = match of {
        StoredType::F32 => "F32",
        StoredType::F16 => "F16",
        StoredType::Bf16 => "BF16",
    };
    let size = ROWS * COLS * of.bytes();
    let header = format!(r#"{{"w":{{"dtype":"{name}","shape":[{ROWS},{COLS}],"data_offsets":[0,{size}]}}}}"#);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    // Finite in every type: the upper byte of a value is small.
    bytes.extend(
        (0..size).map(|i| if (i + 1) % of.bytes() == 0 { 0x38 + (i >> 12 & 3) as u8 } else { i as u8 }),
    );
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("w.safetensors");
    fs::write(&path, bytes).expect("room on the disk");
    let opened = TensorFile::open(&path).expect("the file");
    (dir, opened)
}

fn straight<K: Kernels>(k: &K, file: &TensorFile, out: MatMut<'_, K::Buf>) {
    let tensor = file.stored("w", &[ROWS, COLS]).expect("the tensor");
    let read = |at: usize, bytes: &mut [u8]| tensor.read(at, bytes);
    k.load(Stored { of: tensor.of, read: &read }, out, &mut |_| ()).expect("finite values");
}

fn loading(c: &mut Criterion) {
    for of in [StoredType::Bf16, StoredType::F16, StoredType::F32] {
        let (_dir, file) = file(of);
        let mut group = c.benchmark_group(format!("{of:?}"));
        group.sample_size(10).throughput(Throughput::Bytes((ROWS * COLS * of.bytes()) as u64));
        let mut buf = RefKernels.zeros(ROWS * LD).expect("memory");
        group.bench_function("whole, then written", |b| {
            b.iter(|| {
                let values = file.read_f32("w").expect("the tensor");
                assert_eq!(first_not_finite(&values), None);
                RefKernels.write(&values, MatMut::new(&mut buf, ROWS, COLS, LD)).expect("room");
            });
        });
        group.bench_function("straight to the CPU", |b| {
            b.iter(|| straight(&RefKernels, &file, MatMut::new(&mut buf, ROWS, COLS, LD)));
        });
        drop(buf);
        let device = DeviceKernels::new(Sink(Mutex::new(vec![0; PIECE])));
        let mut buf = device.zeros(ROWS * LD).expect("no memory is needed");
        group.bench_function("straight to staging memory", |b| {
            b.iter(|| straight(&device, &file, MatMut::new(&mut buf, ROWS, COLS, LD)));
        });
        group.finish();
    }
}

criterion_group!(benches, loading);
criterion_main!(benches);

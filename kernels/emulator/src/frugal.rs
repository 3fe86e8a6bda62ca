//! A device that can be told to give no more memory, and tells what it was asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tunesmith_kernels::gpu::{DeviceMemory, Driver, Error, Gemm, Launch, Limits, Result};

/// Another device, of which no memory can be had once it is closed: for tests that something takes all of its memory at
/// its start.
#[derive(Debug)]
pub struct Frugal<D> {
    inner: D,
    record: Arc<Record>,
}

/// What a [`Frugal`] was asked, and whether it is closed.
#[derive(Debug, Default)]
pub struct Record {
    closed: AtomicBool,
    tuning: AtomicBool,
    tuned: AtomicUsize,
}

impl Record {
    /// No more memory from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether algorithms would be tried out now, and the products that were queued while they were.
    pub fn tuning(&self) -> (bool, usize) {
        (self.tuning.load(Ordering::SeqCst), self.tuned.load(Ordering::SeqCst))
    }
}

impl<D> Frugal<D> {
    /// `inner`, and the record of it.
    pub fn new(inner: D) -> (Self, Arc<Record>) {
        let record = Arc::default();
        (Self { inner, record: Arc::clone(&record) }, record)
    }
}

impl<D: Driver> Driver for Frugal<D> {
    type Memory = D::Memory;

    fn alloc(&self, bytes: usize) -> Result<D::Memory> {
        if self.record.closed.load(Ordering::SeqCst) {
            let text = format!("{bytes} bytes are asked for where none should be any more");
            return Err(Error::Device { call: "alloc".to_owned(), text });
        }
        self.inner.alloc(bytes)
    }
    fn address(&self, memory: &D::Memory) -> u64 {
        self.inner.address(memory)
    }
    fn upload(&self, from: &[u8], to: &mut D::Memory, at: usize) -> Result<()> {
        self.inner.upload(from, to, at)
    }
    fn download(&self, from: &D::Memory, at: usize, to: &mut [u8]) -> Result<()> {
        self.inner.download(from, at, to)
    }
    fn clear(&self, memory: &mut D::Memory, at: usize, bytes: usize) -> Result<()> {
        self.inner.clear(memory, at, bytes)
    }
    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.inner.launch(launch) }
    }
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        if self.record.tuning.load(Ordering::SeqCst) {
            self.record.tuned.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.gemm(gemm) }
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    type Download = D::Download;

    fn download_later(&self, from: &D::Memory, at: usize, bytes: usize) -> Result<D::Download> {
        self.inner.download_later(from, at, bytes)
    }
    fn wait(&self, download: D::Download, to: &mut [u8]) -> Result<()> {
        self.inner.wait(download, to)
    }
    fn tune(&self, on: bool) {
        self.record.tuning.store(on, Ordering::SeqCst);
        self.inner.tune(on);
    }

    type Mark = D::Mark;

    fn mark(&self) -> Result<D::Mark> {
        self.inner.mark()
    }
    fn between(&self, start: &D::Mark, end: &D::Mark) -> Result<Duration> {
        self.inner.between(start, end)
    }
    fn name(&self) -> String {
        self.inner.name()
    }
    fn device_memory(&self) -> Result<Option<DeviceMemory>> {
        self.inner.device_memory()
    }
}

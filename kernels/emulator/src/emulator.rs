//! The emulator as a [`Driver`].

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tunesmith_kernels::gpu::{DeviceMemory, Driver, Error, Gemm, Launch, Limits, Result};

use crate::gemm::gemm;
use crate::memory::{Heap, Memory};
use crate::native::{self, Fault};

/// A device whose kernels run on the calling thread, in an order drawn by a seed.
#[derive(Debug)]
pub struct Emulator {
    heap: Arc<Heap>,
    seed: u64,
    watch: bool,
    launches: AtomicU64,
}

impl Emulator {
    /// An emulator whose threads and blocks run in the order of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { heap: Arc::default(), seed, watch: true, launches: AtomicU64::new(0) }
    }

    /// An emulator with room for so many bytes, which it counts: see [`Driver::device_memory`].
    pub fn with_memory(seed: u64, bytes: u64) -> Self {
        Self { heap: Arc::new(Heap::limited(bytes)), ..Self::new(seed) }
    }

    /// An emulator that does not watch single accesses: what a kernel does wrong shows by its numbers, if at all, or by
    /// a guard. For the emulator's own tests.
    #[doc(hidden)]
    pub fn unwatched(seed: u64) -> Self {
        Self { watch: false, ..Self::new(seed) }
    }

    /// Whether the kernels could be compiled on this machine.
    pub const fn available() -> bool {
        native::AVAILABLE
    }

    /// The name of every kernel, with the bytes of each of its parameters: for a stand-in of the driver, which is asked.
    pub fn kernels() -> Vec<(String, Vec<usize>)> {
        native::kernels()
    }

    fn words(&self, fault: &Fault) -> String {
        let mut out = fault.text.clone();
        if let Some(address) = fault.address {
            out = format!("{out}: {}", self.heap.describe(address));
        }
        match fault.pc.and_then(line_of).or_else(|| fault.place.clone()) {
            Some(place) => format!("{out} ({place})"),
            None => out,
        }
    }
}

/// The line of a kernel's file that code came from, by the debug information and `addr2line`, if both are there.
fn line_of(pc: u64) -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let found =
        Command::new("addr2line").arg("-i").arg("-e").arg(program).arg(format!("{pc:#x}")).output().ok()?;
    // The innermost call comes first; helpers of the shared headers say less than the line that called them.
    let text = String::from_utf8_lossy(&found.stdout);
    let line = text.lines().find(|line| line.contains(".cu:"))?;
    Some(line.rsplit('/').next()?.split_whitespace().next()?.to_owned())
}

fn outside(call: &str, at: usize, bytes: usize) -> Error {
    Error::Refused { call: call.to_owned(), text: format!("{bytes} bytes at {at} are not inside the block") }
}

impl Driver for Emulator {
    type Memory = Memory;

    fn alloc(&self, bytes: usize) -> Result<Memory> {
        self.heap.alloc(bytes).ok_or_else(|| {
            let memory = self.heap.memory();
            let (free, total) = memory.map_or((0, 0), |m| (m.free as usize, m.total as usize));
            let held = memory.map_or(0, |m| m.used as usize);
            Error::OutOfMemory { bytes, free, total, held }
        })
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.address()
    }

    fn upload(&self, from: &[u8], to: &mut Memory, at: usize) -> Result<()> {
        let to = to.span(at, from.len()).ok_or_else(|| outside("upload", at, from.len()))?;
        // SAFETY: the span is inside a live block that is borrowed mutably.
        unsafe { to.copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    fn download(&self, from: &Memory, at: usize, to: &mut [u8]) -> Result<()> {
        let from = from.span(at, to.len()).ok_or_else(|| outside("download", at, to.len()))?;
        // SAFETY: the span is inside a live block, and no kernel runs beside the thread that launched it.
        unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn clear(&self, memory: &mut Memory, at: usize, bytes: usize) -> Result<()> {
        let from = memory.span(at, bytes).ok_or_else(|| outside("clear", at, bytes))?;
        // SAFETY: the span is inside a live block that is borrowed mutably.
        unsafe { from.write_bytes(0, bytes) };
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let count = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ count.wrapping_mul(0xd1b5_4a32_d192_ed03);
        // SAFETY: the caller's promise, and the blocks are those of this emulator, alive.
        let result = unsafe { native::launch(launch, &self.heap.regions(), seed, self.watch) };
        let fault = match result {
            Err(fault) => self.words(&fault),
            Ok(()) => match self.heap.overwritten() {
                Some(place) => format!("wrote to memory that is not its own: {place}"),
                None => return Ok(()),
            },
        };
        Err(Error::Fault { kernel: launch.kernel.to_owned(), fault })
    }

    unsafe fn gemm(&self, call: &Gemm) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { gemm(&self.heap, call) }
    }

    fn limits(&self) -> Limits {
        Limits { multiprocessors: 132, shared_per_block: 227 * 1024 }
    }

    // --- loading and timing ---

    type Mark = Instant;

    fn mark(&self) -> Result<Instant> {
        Ok(Instant::now())
    }

    fn between(&self, start: &Instant, end: &Instant) -> Result<Duration> {
        Ok(end.duration_since(*start))
    }

    fn name(&self) -> String {
        "emulator".to_owned()
    }

    // Memory.

    fn device_memory(&self) -> Result<Option<DeviceMemory>> {
        Ok(self.heap.memory())
    }

    /// Work is done when a call returns, so the bytes are there at once.
    type Download = Vec<u8>;

    fn download_later(&self, from: &Memory, at: usize, bytes: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.download(from, at, &mut out)?;
        Ok(out)
    }

    fn wait(&self, download: Vec<u8>, to: &mut [u8]) -> Result<()> {
        if download.len() != to.len() {
            return Err(outside("wait", 0, to.len()));
        }
        to.copy_from_slice(&download);
        Ok(())
    }
}

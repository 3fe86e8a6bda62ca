//! What launchers ask of a device, and nothing above it: memory, launches, matrix products.

use std::fmt::Debug;
use std::time::Duration;

use super::error::Result;
use super::pieces::{Fill, Rows};

/// Bytes that [`Driver::upload_rows`] stages at a time where a device says nothing else.
const PIECE: usize = 4096;

/// A device that runs the kernels of `cuda/*.cu`: a GPU through the CUDA driver, or the emulator of the tests.
///
/// All work goes to one queue in the order of the calls. Nothing but [`Driver::download`], [`Driver::wait`] and
/// [`Driver::synchronize`] waits for it, so an error of a launch may surface at a later call.
pub trait Driver: Send + Sync + Debug + 'static {
    /// A block of device memory. Dropped, it is freed after the work that was queued before.
    type Memory: Send + Sync + Debug;

    /// At least `bytes` bytes at a 256-byte aligned address, contents undefined.
    fn alloc(&self, bytes: usize) -> Result<Self::Memory>;
    /// The device address of a block.
    fn address(&self, memory: &Self::Memory) -> u64;
    /// Copies host bytes to `at`. The host bytes may be reused when this returns.
    fn upload(&self, from: &[u8], to: &mut Self::Memory, at: usize) -> Result<()>;
    /// Copies device bytes from `at` to the host, after all queued work.
    fn download(&self, from: &Self::Memory, at: usize, to: &mut [u8]) -> Result<()>;
    /// Sets `bytes` bytes from `at` on to zero.
    fn clear(&self, memory: &mut Self::Memory, at: usize, bytes: usize) -> Result<()>;
    /// Waits for all queued work and reports what failed in it.
    fn synchronize(&self) -> Result<()>;

    /// Queues a kernel.
    ///
    /// # Safety
    /// The kernel must exist with exactly these arguments, and every address among them must be that of memory
    /// which the kernel stays inside of and which nobody frees or writes from the host meanwhile.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;
    /// Queues C = alpha · op(A) · op(B) + beta · D, where D may be C.
    ///
    /// # Safety
    /// The matrices must lie inside live device memory, and C must overlap neither A nor B, nor a part of D.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()>;

    /// What the device can do.
    fn limits(&self) -> Limits;

    // --- loading and timing ---

    /// A point in the queue, with its time.
    type Mark: Send + Sync + Debug;

    /// Writes rows from staging memory that `fill` fills, piece by piece and in order; a piece for which it says stop is
    /// not written, nor any after it. Page-locked memory where the device has it, so that bytes go straight from where
    /// they were read to the device, and the next piece is filled meanwhile.
    fn upload_rows(&self, to: &mut Self::Memory, rows: Rows, fill: &mut Fill<'_>) -> Result<()> {
        let mut staged = [0; PIECE];
        for piece in rows.pieces(PIECE) {
            let staged = &mut staged[..piece.len()];
            if fill(piece.from, staged).is_break() {
                break;
            }
            for (i, row) in staged.chunks(piece.to.bytes).enumerate() {
                self.upload(row, to, piece.to.at + i * piece.to.pitch)?;
            }
        }
        Ok(())
    }
    /// Marks the point that the queue has come to.
    fn mark(&self) -> Result<Self::Mark>;
    /// The time from one mark to a later one, waiting for that.
    fn between(&self, start: &Self::Mark, end: &Self::Mark) -> Result<Duration>;
    /// What the device calls itself.
    fn name(&self) -> String;

    // Memory.

    /// The device's memory as it is after all queued work; nothing where nobody counts it.
    fn device_memory(&self) -> Result<Option<DeviceMemory>> {
        Ok(None)
    }

    // Reading without waiting, and the choice of algorithms.

    /// Bytes on their way to the host. Dropped, nobody waits for them.
    type Download: Send + Debug;
    /// Queues a copy of device bytes from `at` to the host and returns at once: what is there when the work queued
    /// before is done.
    fn download_later(&self, from: &Self::Memory, at: usize, bytes: usize) -> Result<Self::Download>;
    /// Waits for a copy, and for nothing that was queued after it. `to` has as many bytes as were asked for.
    fn wait(&self, download: Self::Download, to: &mut [u8]) -> Result<()>;
    /// Whether the first product of each shape tries out algorithms, where there are several.
    fn tune(&self, on: bool) {
        let _ = on;
    }
}

/// The memory of a device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What the device has.
    pub total: u64,
    /// What this process could still take: neither its own nor anybody else's.
    pub free: u64,
    /// What this process holds in blocks.
    pub used: u64,
    /// The most that it ever held in blocks.
    pub peak: u64,
}

/// The numbers of a device that launchers choose by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one block may ask for, in bytes.
    pub shared_per_block: u32,
}

/// One kernel launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks. No dimension may be 0: launchers return before that.
    pub grid: [u32; 3],
    /// Threads of a block, all in x.
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    /// Arguments, in the order of the kernel's parameters.
    pub args: &'a [Arg],
}

/// A kernel argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// A device address.
    Address(u64),
    /// `int`.
    I32(i32),
    /// `unsigned` or `uint32_t`.
    U32(u32),
    /// `int64_t`.
    I64(i64),
    /// `float`.
    F32(f32),
}

/// One matrix of a product: row-major as stored, element `(i, j)` at `address + (i * ld + j) * size`.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// Device address of the first element.
    pub address: u64,
    /// Distance between stored rows, in elements.
    pub ld: usize,
    /// Whether the product reads the transpose of what is stored.
    pub transposed: bool,
}

/// A matrix product with bf16 operands, summed in f32: C `[m, n]` = alpha · op(A) `[m, k]` · op(B) `[k, n]` + beta · D.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of D; with 0, D is not read.
    pub beta: f32,
    /// bf16.
    pub a: Operand,
    /// bf16.
    pub b: Operand,
    /// Never transposed; bf16, or f32 with `full`.
    pub c: Operand,
    /// Address of D, which has C's shape, type and leading dimension: that of C to add in place.
    pub addend: u64,
    /// Whether C and D are f32.
    pub full: bool,
}

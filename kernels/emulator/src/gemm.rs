//! What stands in for cuBLASLt: bf16 operands widened, f32 sums, one rounding at the end.

use half::bf16;
use tunesmith_kernels::cpu::{self, MatMut, MatRef};
use tunesmith_kernels::gpu::{Error, Gemm, Operand, Result};

use crate::memory::Heap;

/// C = alpha · op(A) · op(B) + beta · D.
///
/// # Safety
/// Nobody may write the matrices meanwhile, or read C. D must be C or apart from it.
pub(crate) unsafe fn gemm(heap: &Heap, call: &Gemm) -> Result<()> {
    let &Gemm { m, n, k, alpha, beta, .. } = call;
    let stored = |o: &Operand, rows, cols| if o.transposed { (cols, rows) } else { (rows, cols) };
    inside(heap, "A", &call.a, stored(&call.a, m, k), 2)?;
    inside(heap, "B", &call.b, stored(&call.b, k, n), 2)?;
    let size = if call.full { 4 } else { 2 };
    inside(heap, "C", &call.c, (m, n), size)?;
    if beta != 0.0 {
        inside(heap, "D", &Operand { address: call.addend, ..call.c }, (m, n), size)?;
    }

    // SAFETY: both were found inside a live block, and nobody writes them.
    let a = unsafe { widen(&call.a, stored(&call.a, m, k)) };
    // SAFETY: as above.
    let b = unsafe { widen(&call.b, stored(&call.b, k, n)) };
    let view = |o: &Operand, data, (rows, cols): (usize, usize)| {
        let view = MatRef::new(data, rows, cols, cols.max(1));
        if o.transposed { view.t() } else { view }
    };
    let mut sums = vec![0.0; m * n];
    if k > 0 {
        let (a, b) = (view(&call.a, &a, stored(&call.a, m, k)), view(&call.b, &b, stored(&call.b, k, n)));
        cpu::gemm(alpha, a, b, 0.0, MatMut::new(&mut sums, m, n, n));
    }
    for i in 0..m {
        for j in 0..n {
            let (sum, at) = (sums[i * n + j], i * call.c.ld + j);
            if call.full {
                let c = (call.c.address as usize as *mut f32).wrapping_add(at);
                let d = (call.addend as usize as *const f32).wrapping_add(at);
                // SAFETY: C and D were found inside live blocks, and nobody else uses C.
                unsafe { c.write_unaligned(if beta == 0.0 { sum } else { sum + beta * d.read_unaligned() }) };
            } else {
                let c = (call.c.address as usize as *mut bf16).wrapping_add(at);
                let d = (call.addend as usize as *const bf16).wrapping_add(at);
                // SAFETY: as above.
                let old = if beta == 0.0 { 0.0 } else { beta * unsafe { d.read_unaligned() }.to_f32() };
                // SAFETY: as above.
                unsafe { c.write_unaligned(bf16::from_f32(sum + old)) };
            }
        }
    }
    Ok(())
}

fn inside(heap: &Heap, name: &str, o: &Operand, (rows, cols): (usize, usize), size: usize) -> Result<()> {
    if rows == 0 || cols == 0 {
        return Ok(());
    }
    let bytes = ((rows - 1) * o.ld + cols) * size;
    let there = heap.bytes_at(o.address);
    if bytes <= there && (rows == 1 || cols <= o.ld) && o.address.is_multiple_of(size as u64) {
        return Ok(());
    }
    let fault =
        format!("{name} [{rows}, {cols}] (ld {}) takes {bytes} bytes where its buffer has {there}", o.ld);
    Err(Error::Fault { kernel: "gemm".to_owned(), fault })
}

/// The values of a stored matrix, without what lies between its rows.
///
/// # Safety
/// The matrix must lie in live memory that nobody writes.
unsafe fn widen(o: &Operand, (rows, cols): (usize, usize)) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * cols);
    for i in 0..rows {
        let row = (o.address as usize as *const bf16).wrapping_add(i * o.ld);
        // SAFETY: the caller's promise.
        out.extend((0..cols).map(|j| unsafe { row.add(j).read() }.to_f32()));
    }
    out
}

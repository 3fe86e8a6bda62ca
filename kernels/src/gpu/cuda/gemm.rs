//! Matrix products through cuBLASLt, whose matrices are column-major: of the row-major C = op(A) op(B) it computes the
//! transpose, op(B)ᵀ op(A)ᵀ, where a stored row-major matrix already is its own column-major transpose.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulAlgoGetHeuristic,
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t as Desc, cublasLtMatmulHeuristicResult_t,
    cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t as Pref, cublasLtMatrixLayout_t,
    cublasLtReductionScheme_t, cublasStatus_t, cudaDataType,
};
use cudarc::driver::sys::{CUdeviceptr, cuMemsetD2D8Async, cuMemsetD8Async};

use super::device::Context;
use super::event::Event;
use super::status::Named;
use crate::gpu::driver::{Gemm, Operand};
use crate::gpu::error::{Error, Result};

/// Candidates that are tried per shape.
const CANDIDATES: usize = 8;
/// Shapes remembered. Batches of ever new lengths would otherwise fill the memory of a long run; the shapes of a fixed
/// token budget are a few dozen, and never come near it.
const SHAPES: usize = 8192;
/// Timed runs of each candidate.
const RUNS: usize = 3;

/// The cuBLASLt handle, its workspace, and the algorithm chosen for each shape so far.
#[derive(Debug)]
pub(super) struct Products {
    handle: cublasLtHandle_t,
    workspace: CUdeviceptr,
    workspace_bytes: usize,
    plans: RwLock<HashMap<Shape, Plan>>,
    trials: AtomicBool,
}

// SAFETY: a cuBLASLt handle may be used from any thread; all that uses the workspace is queued on one stream.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

/// All that the choice of an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    a: Stored,
    b: Stored,
    c: Stored,
    full: bool,
    /// Whether C is read.
    adds: bool,
}

/// A row-major matrix as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stored {
    rows: usize,
    cols: usize,
    ld: usize,
    transposed: bool,
    /// Bytes that the address is a multiple of, up to 256.
    aligned: u32,
}

impl Stored {
    /// An operand that the product reads as `[rows, cols]`.
    fn new(operand: &Operand, rows: usize, cols: usize) -> Self {
        let (rows, cols) = if operand.transposed { (cols, rows) } else { (rows, cols) };
        let aligned = 1 << operand.address.trailing_zeros().min(8);
        // The distance between rows means nothing where there is only one, and may then be anything.
        Self { rows, cols, ld: operand.ld.max(cols), transposed: operand.transposed, aligned }
    }

    fn layout(&self, of: cudaDataType) -> Result<Layout> {
        let created = lt::create_matrix_layout(of, self.cols as u64, self.rows as u64, self.ld as i64);
        created.map(Layout).named("cublasLtMatrixLayoutCreate")
    }
}

impl Shape {
    fn of(gemm: &Gemm) -> Self {
        let &Gemm { m, n, k, full, .. } = gemm;
        let (a, b) = (Stored::new(&gemm.a, m, k), Stored::new(&gemm.b, k, n));
        let adds = gemm.beta != 0.0;
        let mut c = Stored::new(&gemm.c, m, n);
        if adds {
            c.aligned = c.aligned.min(Stored::new(&Operand { address: gemm.addend, ..gemm.c }, m, n).aligned);
        }
        Self { m, n, k, a, b, c, full, adds }
    }

    fn size(&self) -> usize {
        if self.full { 4 } else { 2 }
    }
}

impl Products {
    /// `hopper`: the device is of that generation or newer, where the fastest kernels want more workspace.
    pub(super) fn new(context: &Context, hopper: bool) -> Result<Self> {
        let workspace_bytes = if hopper { 32 << 20 } else { 4 << 20 };
        let handle = lt::create_handle().named("cublasLtCreate")?;
        let (plans, trials) = (RwLock::default(), AtomicBool::new(false));
        // Made before what may fail, so that the handle is given back.
        let mut new = Self { handle, workspace: 0, workspace_bytes, plans, trials };
        new.workspace = context.alloc(workspace_bytes)?;
        Ok(new)
    }

    /// To be called once, at the end.
    pub(super) fn give_back_workspace(&mut self, context: &Context) {
        // SAFETY: from `alloc`, and no product is queued any more. A failure leaves nothing to do.
        let _ = unsafe { context.free(self.workspace) };
    }

    pub(super) fn set_trials(&self, on: bool) {
        self.trials.store(on, Ordering::Relaxed);
    }

    /// Queues a product.
    ///
    /// # Safety
    /// As for [`Driver::gemm`](crate::gpu::Driver::gemm).
    pub(super) unsafe fn queue(&self, context: &Context, gemm: &Gemm) -> Result<()> {
        if gemm.k == 0 {
            // SAFETY: passed on to the caller.
            return unsafe { self.scale(context, gemm) };
        }
        let shape = Shape::of(gemm);
        if let Some(plan) = self.plans.read().unwrap_or_else(PoisonError::into_inner).get(&shape) {
            // SAFETY: the plan was made for this shape; the caller vouches for the addresses.
            return unsafe { self.run(context, plan, &plan.algorithm, gemm, gemm.c.address) }
                .named_with(|| text(gemm));
        }
        // Locked while candidates are tried, so that a shape has one choice whichever thread asks first.
        let mut plans = self.plans.write().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= SHAPES && !plans.contains_key(&shape) {
            plans.clear();
        }
        let plan = match plans.entry(shape) {
            Entry::Occupied(found) => found.into_mut(),
            // SAFETY: passed on to the caller.
            Entry::Vacant(place) => place.insert(unsafe { self.plan(context, gemm, &shape)? }),
        };
        // SAFETY: as above.
        unsafe { self.run(context, plan, &plan.algorithm, gemm, gemm.c.address) }.named_with(|| text(gemm))
    }

    /// C = beta · D: a product of no depth.
    unsafe fn scale(&self, context: &Context, gemm: &Gemm) -> Result<()> {
        let (size, stream) = (if gemm.full { 4 } else { 2 }, context.stream);
        if gemm.beta == 1.0 && gemm.addend == gemm.c.address {
            return Ok(());
        }
        if gemm.beta == 0.0 {
            let (width, pitch) = (gemm.n * size, gemm.c.ld.max(gemm.n) * size);
            // SAFETY: C lies in live memory.
            return unsafe { cuMemsetD2D8Async(gemm.c.address, pitch, 0, width, gemm.m, stream) }
                .result()
                .named("cuMemsetD2D8Async");
        }
        // As the product of two matrices of zeros, which may be the same ones.
        let depth = 8;
        let bytes = gemm.m.max(gemm.n) * depth * 2;
        let address = context.alloc(bytes)?;
        let zeros = Operand { address, ld: depth, transposed: false };
        let gemm = Gemm { k: depth, a: zeros, b: Operand { transposed: true, ..zeros }, ..*gemm };
        // SAFETY: the zeros live until they are freed behind the product.
        unsafe {
            cuMemsetD8Async(address, 0, bytes, stream).result().named("cuMemsetD8Async")?;
            let queued = self.queue(context, &gemm);
            context.free(address)?;
            queued
        }
    }

    /// Chooses an algorithm for a shape.
    unsafe fn plan(&self, context: &Context, gemm: &Gemm, shape: &Shape) -> Result<Plan> {
        let mut plan = Plan::new(shape)?;
        let candidates = self.candidates(&plan, shape).named_with(|| text(gemm))?;
        plan.algorithm = *candidates.first().ok_or_else(|| Error::Refused {
            call: text(gemm),
            text: "cuBLASLt has no algorithm for this shape".into(),
        })?;
        if candidates.len() > 1 && self.trials.load(Ordering::Relaxed) {
            // SAFETY: passed on to the caller.
            plan.algorithm = unsafe { self.fastest(context, &plan, &candidates, gemm, shape)? };
        }
        Ok(plan)
    }

    /// What cuBLASLt proposes for a shape, the most promising first.
    fn candidates(
        &self,
        plan: &Plan,
        shape: &Shape,
    ) -> std::result::Result<Vec<cublasLtMatmulAlgo_t>, lt::CublasError> {
        let preference = Preference(lt::create_matmul_pref()?);
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(self.workspace_bytes as u64))?;
        // Sums that were split are added up in f32 and in a fixed order, never in C.
        let reduction = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction)?;
        // Unless told, cuBLASLt takes every address for a multiple of 256.
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &shape.b.aligned)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &shape.a.aligned)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &shape.c.aligned)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &shape.c.aligned)?;

        let mut found = [const { MaybeUninit::<cublasLtMatmulHeuristicResult_t>::uninit() }; CANDIDATES];
        let mut count = 0;
        // SAFETY: the descriptors live, and there is room for as many results as are asked for.
        let status = unsafe {
            let (a, b, c) = (plan.a.0, plan.b.0, plan.c.0);
            let (room, out) = (CANDIDATES as i32, found.as_mut_ptr().cast());
            let query = cublasLtMatmulAlgoGetHeuristic;
            query(self.handle, plan.desc.0, b, a, c, c, preference.0, room, out, &raw mut count)
        };
        if status != cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            status.result()?;
        }
        let found = found.iter().take(count.max(0) as usize);
        // SAFETY: that many results were written.
        let found = found.map(|result| unsafe { result.assume_init_ref() });
        let usable = |result: &&cublasLtMatmulHeuristicResult_t| {
            result.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS
                && result.workspaceSize <= self.workspace_bytes
        };
        Ok(found.filter(usable).map(|result| result.algo).collect())
    }

    /// Runs every candidate on the real operands, and returns the fastest. C is as before unless it is only written.
    unsafe fn fastest(
        &self,
        context: &Context,
        plan: &Plan,
        candidates: &[cublasLtMatmulAlgo_t],
        gemm: &Gemm,
        shape: &Shape,
    ) -> Result<cublasLtMatmulAlgo_t> {
        if !shape.adds {
            // SAFETY: passed on to the caller; the product itself writes all of C afterwards.
            let best = unsafe { self.race(context, plan, candidates, gemm, gemm.c.address)? };
            return Ok(candidates[best]);
        }
        context.apart_from_peak(|| {
            let bytes = ((shape.m - 1) * shape.c.ld + shape.n) * shape.size();
            let out = match context.alloc(bytes) {
                Ok(out) => out,
                // Without room to try, cuBLASLt's own order has to do.
                Err(Error::OutOfMemory { .. }) => return Ok(candidates[0]),
                Err(e) => return Err(e),
            };
            // SAFETY: as above; `out` has the extent of C and is freed behind the last run.
            unsafe {
                let best = self.race(context, plan, candidates, gemm, out);
                context.free(out)?;
                Ok(candidates[best?])
            }
        })
    }

    /// The index of the fastest candidate; of those within two hundredths of it, the first.
    unsafe fn race(
        &self,
        context: &Context,
        plan: &Plan,
        candidates: &[cublasLtMatmulAlgo_t],
        gemm: &Gemm,
        out: CUdeviceptr,
    ) -> Result<usize> {
        let (start, end) = (Event::timed()?, Event::timed()?);
        let mut best = vec![Duration::MAX; candidates.len()];
        // In rounds, so that a change of clock speed meets all of them; the first only warms up.
        for round in 0..=RUNS {
            for (algorithm, best) in candidates.iter().zip(&mut best) {
                start.record(context.stream)?;
                // SAFETY: passed on to the caller.
                let queued = unsafe { self.run(context, plan, algorithm, gemm, out) };
                end.record(context.stream)?;
                end.wait()?;
                if queued.is_ok() && round > 0 {
                    *best = (*best).min(end.since(&start)?);
                }
            }
        }
        let fastest = best.iter().min().copied().unwrap_or(Duration::MAX);
        if fastest == Duration::MAX {
            return Ok(0);
        }
        Ok(best.iter().position(|time| time.as_secs_f64() <= fastest.as_secs_f64() * 1.02).unwrap_or(0))
    }

    /// Queues one run with D at `out`, which has C's layout.
    unsafe fn run(
        &self,
        context: &Context,
        plan: &Plan,
        algorithm: &cublasLtMatmulAlgo_t,
        gemm: &Gemm,
        out: CUdeviceptr,
    ) -> std::result::Result<(), lt::CublasError> {
        let (alpha, beta) = (&raw const gemm.alpha, &raw const gemm.beta);
        let at = |address: CUdeviceptr| address as *const c_void;
        // SAFETY: the plan's descriptors live, the factors are read at once, and the caller vouches for the addresses.
        unsafe {
            lt::matmul(
                self.handle,
                plan.desc.0,
                alpha.cast(),
                beta.cast(),
                at(gemm.b.address),
                plan.b.0,
                at(gemm.a.address),
                plan.a.0,
                at(gemm.addend),
                plan.c.0,
                out as *mut c_void,
                plan.c.0,
                algorithm,
                self.workspace as *mut c_void,
                self.workspace_bytes,
                context.stream.cast(),
            )
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // A failure leaves nothing to do.
        // SAFETY: created here, and nothing runs any more.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// The descriptors of a product and the algorithm to use.
#[derive(Debug)]
struct Plan {
    desc: Description,
    a: Layout,
    b: Layout,
    c: Layout,
    algorithm: cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(shape: &Shape) -> Result<Self> {
        let of = cudaDataType::CUDA_R_16BF;
        let out = if shape.full { cudaDataType::CUDA_R_32F } else { of };
        let desc = lt::create_matmul_desc(cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)
            .map(Description)
            .named("cublasLtMatmulDescCreate")?;
        desc.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, shape.b.transposed)?;
        desc.set(Desc::CUBLASLT_MATMUL_DESC_TRANSB, shape.a.transposed)?;
        let (a, b, c) = (shape.a.layout(of)?, shape.b.layout(of)?, shape.c.layout(out)?);
        Ok(Self { desc, a, b, c, algorithm: cublasLtMatmulAlgo_t { data: [0; 8] } })
    }
}

#[derive(Debug)]
struct Description(cublasLtMatmulDesc_t);

impl Description {
    fn set(&self, which: Desc, transposed: bool) -> Result<()> {
        // CUBLAS_OP_N and CUBLAS_OP_T of `cublasOperation_t`, which is an int.
        let op = i32::from(transposed);
        // SAFETY: both attributes are operations.
        unsafe { lt::set_matmul_desc_attribute(self.0, which, (&raw const op).cast(), size_of_val(&op)) }
            .named("cublasLtMatmulDescSetAttribute")
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created here. A failure leaves nothing to do.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

#[derive(Debug)]
struct Layout(cublasLtMatrixLayout_t);

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

struct Preference(cublasLtMatmulPreference_t);

impl Preference {
    fn set<T>(&self, which: Pref, value: &T) -> std::result::Result<(), lt::CublasError> {
        // SAFETY: each attribute is set with a value of its own type above.
        unsafe {
            lt::set_matmul_pref_attribute(self.0, which, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

fn text(gemm: &Gemm) -> String {
    let Gemm { m, n, k, .. } = gemm;
    format!("the product [{m}, {k}] x [{k}, {n}]")
}

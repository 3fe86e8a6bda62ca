//! What a device has to be able to do.

use crate::{
    AdamW, DeviceMemory, DropoutKey, Error, FillKey, Index, Mat, MatMut, RopeTable, RowNames, Sequences,
    Storage, Stored,
};
use std::ops::Range;
use std::time::Duration;
use tunesmith_kernels::gpu::adamw::Segment;

/// The numbers of an attention call beside its tensors.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Which query sees which keys.
    pub sequences: &'a Sequences,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Keys a query sees, itself included; `None` for all before it.
    pub window: Option<usize>,
}

/// Where [`Kernels::attention_backward`] writes.
#[derive(Debug)]
pub enum AttentionGradients<'a, B> {
    /// In matrices of their own, as when only some rows are queries.
    Apart {
        /// `[queries, heads * head_dim]`
        d_q: MatMut<'a, B>,
        /// dk beside dv, `[keys, 2 * kv_heads * head_dim]`
        d_kv: MatMut<'a, B>,
    },
    /// dq, dk and dv side by side, `[rows, (heads + 2 * kv_heads) * head_dim]`, where every row is query and key.
    Fused(MatMut<'a, B>),
}

/// The flat buffers of all trained parameters, each `[n]` f32.
#[derive(Debug)]
pub struct Flat<'a, F> {
    /// Parameters.
    pub p: &'a mut F,
    /// Gradients.
    pub g: &'a F,
    /// First moments.
    pub m: &'a mut F,
    /// Second moments.
    pub v: &'a mut F,
}

/// The copies of parameters that an update makes anew: `to` is the buffers that the table was made for, in the same order.
#[derive(Debug)]
pub struct Refresh<'a, 'b, K: Kernels + ?Sized> {
    /// The table, of [`Kernels::copies`].
    pub copies: &'a K::Copies,
    /// What is written.
    pub to: &'a mut [&'b mut K::Buf],
}

/// What became of an update, as [`Kernels::wait`] gives it: the norm before clipping, the clip factor, and 1 if the update
/// took place, else 0.
pub const UPDATE_RESULTS: usize = 3;

/// The mathematics of the training step on one device.
///
/// `Buf` holds activations and frozen weights in the device's storage type, `Full` holds f32: LoRA parameters,
/// gradients, moments, and per-row statistics. Every output is written whole; sums run in f32 or better, in an
/// order that does not depend on the number of threads.
pub trait Kernels: Send + Sync {
    /// Flat storage of activations and frozen weights.
    type Buf: Send + Sync + std::fmt::Debug;
    /// Flat storage of f32 values.
    type Full: Send + Sync + std::fmt::Debug;

    /// A buffer of zeros.
    fn zeros(&self, len: usize) -> Result<Self::Buf, Error>;
    /// An f32 buffer of zeros.
    fn zeros_full(&self, len: usize) -> Result<Self::Full, Error>;
    /// Writes host values into a matrix, row by row (`[rows, cols]`, row-major).
    fn write(&self, values: &[f32], out: MatMut<'_, Self::Buf>) -> Result<(), Error>;
    /// Copies a matrix to the host, `[rows, cols]` row-major.
    fn read(&self, m: Mat<'_, Self::Buf>) -> Result<Vec<f32>, Error>;
    /// Writes host values at `at`.
    fn write_full(&self, values: &[f32], out: &mut Self::Full, at: usize) -> Result<(), Error>;
    /// Copies the whole buffer to the host.
    fn read_full(&self, buf: &Self::Full) -> Result<Vec<f32>, Error>;
    /// out = 0.
    fn clear_full(&self, out: &mut Self::Full) -> Result<(), Error>;

    /// Ranks of a LoRA group are padded to a multiple of this in the augmented buffers.
    fn rank_padding(&self) -> usize {
        self.storage().rank_padding
    }

    /// c = alpha · a · b + beta · c. With `beta` 0, c is not read.
    fn gemm(
        &self,
        alpha: f32,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        beta: f32,
        c: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error>;
    /// out = a · b + onto, which is kept: how the residual stream goes on.
    fn gemm_onto(
        &self,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        onto: Mat<'_, Self::Buf>,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error>;
    /// [`Kernels::gemm`] into f32: LoRA gradients.
    fn gemm_full(
        &self,
        alpha: f32,
        a: Mat<'_, Self::Buf>,
        b: Mat<'_, Self::Buf>,
        beta: f32,
        c: MatMut<'_, Self::Full>,
    ) -> Result<(), Error>;
    /// out = alpha · m, from f32 to the storage type.
    fn cast(&self, alpha: f32, m: Mat<'_, Self::Full>, out: MatMut<'_, Self::Buf>) -> Result<(), Error>;

    /// out = 0.
    fn clear(&self, out: MatMut<'_, Self::Buf>) -> Result<(), Error>;
    /// out = m.
    fn copy(&self, m: Mat<'_, Self::Buf>, out: MatMut<'_, Self::Buf>) -> Result<(), Error>;
    /// out += m.
    fn add(&self, m: Mat<'_, Self::Buf>, out: MatMut<'_, Self::Buf>) -> Result<(), Error>;
    /// out\[i\] = m\[rows\[i\]\].
    fn gather_rows(
        &self,
        m: Mat<'_, Self::Buf>,
        rows: &Index,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error>;
    /// out\[rows\[i\]\] = m\[i\], and zero in every other row.
    fn scatter_rows(
        &self,
        m: Mat<'_, Self::Buf>,
        rows: &Index,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error>;
    /// Row `i` of `out` is `m`'s times the dropout mask of `rows[i]`.
    fn dropout(
        &self,
        m: Mat<'_, Self::Buf>,
        key: DropoutKey,
        p: f32,
        rows: &RowNames,
        out: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error>;

    /// out\[t\] = table\[ids\[t\]\].
    fn embed(&self, table: Mat<'_, Self::Buf>, ids: &[u32], out: MatMut<'_, Self::Buf>) -> Result<(), Error>;

    /// y = x · rstd · w, rstd = 1 / √(mean(x²) + eps).
    ///
    /// # Shapes
    /// - x, y: `[t, d]`, w: `[d]`, rstd: `[t]`
    fn rms_norm(
        &self,
        x: Mat<'_, Self::Buf>,
        w: &Self::Buf,
        eps: f32,
        y: MatMut<'_, Self::Buf>,
        rstd: &mut Self::Full,
    ) -> Result<(), Error>;
    /// dx += gradient of [`Kernels::rms_norm`] by x; what is in `dx` before is the residual's gradient. With `y`, also
    /// makes the forward's output again: it costs less to make than to keep.
    fn rms_norm_backward(
        &self,
        dy: Mat<'_, Self::Buf>,
        x: Mat<'_, Self::Buf>,
        w: &Self::Buf,
        rstd: &Self::Full,
        dx: MatMut<'_, Self::Buf>,
        y: Option<MatMut<'_, Self::Buf>>,
    ) -> Result<(), Error>;

    /// Rotates every head of every row in place, row `t` by `positions[t]`; `inverse` rotates back, which is
    /// the backward.
    ///
    /// # Shapes
    /// - x: `[t, heads * head_dim]`
    fn rope(
        &self,
        x: MatMut<'_, Self::Buf>,
        positions: &Index,
        table: &RopeTable,
        inverse: bool,
    ) -> Result<(), Error>;

    /// o = softmax(q kᵀ / √`head_dim`, causal, per document, within the window) v, and the log-sum-exp of each row for
    /// the backward, where one will follow.
    ///
    /// # Shapes
    /// - q, o: `[queries, heads * head_dim]`, k, v: `[keys, kv_heads * head_dim]`, lse: `[queries * heads]`
    fn attention(
        &self,
        how: Attention<'_>,
        q: Mat<'_, Self::Buf>,
        k: Mat<'_, Self::Buf>,
        v: Mat<'_, Self::Buf>,
        o: MatMut<'_, Self::Buf>,
        lse: Option<&mut Self::Full>,
    ) -> Result<(), Error>;
    /// Gradients of [`Kernels::attention`] by q, k and v.
    fn attention_backward(
        &self,
        how: Attention<'_>,
        q: Mat<'_, Self::Buf>,
        k: Mat<'_, Self::Buf>,
        v: Mat<'_, Self::Buf>,
        o: Mat<'_, Self::Buf>,
        lse: &Self::Full,
        d_o: Mat<'_, Self::Buf>,
        out: AttentionGradients<'_, Self::Buf>,
    ) -> Result<(), Error>;

    /// h = silu(gate) · up.
    ///
    /// # Shapes
    /// - `gate_up`: `[t, 2 f]`, gate first; h: `[t, f]`
    fn swiglu(&self, gate_up: Mat<'_, Self::Buf>, h: MatMut<'_, Self::Buf>) -> Result<(), Error>;
    /// Turns `gate_up` into its own gradient and makes `h` again.
    fn swiglu_backward(
        &self,
        dh: Mat<'_, Self::Buf>,
        gate_up: MatMut<'_, Self::Buf>,
        h: MatMut<'_, Self::Buf>,
    ) -> Result<(), Error>;

    /// `losses[i]` = cross-entropy of row `i` of `x · headᵀ` against `targets[i]`, without ever holding all
    /// logits. With `weight`, x becomes `weight` times its own gradient; without, x is left undefined.
    ///
    /// # Shapes
    /// - x: `[n, d]`, head: `[vocab_size, d]`, targets: `[n]`, losses: `[n]` or longer
    fn linear_cross_entropy(
        &self,
        x: MatMut<'_, Self::Buf>,
        head: Mat<'_, Self::Buf>,
        targets: &[u32],
        weight: Option<f32>,
        losses: &mut Self::Full,
    ) -> Result<(), Error>;

    /// √(Σ x²); not finite if any value is not.
    fn norm(&self, x: &Self::Full) -> Result<f64, Error>;
    /// One AdamW update of the flat buffers.
    fn adamw(
        &self,
        step: AdamW,
        p: &mut Self::Full,
        g: &Self::Full,
        m: &mut Self::Full,
        v: &mut Self::Full,
    ) -> Result<(), Error>;

    // --- loading, random weights, timing ---

    /// Reads a matrix from where it is stored, `[rows, cols]`, straight into its place, and checks its values on the way.
    /// `told` hears of stored bytes as they are done, on this thread. Host memory is bounded, whatever the size.
    ///
    /// # Errors
    /// [`Error::ValueNotFinite`] or [`Error::ValueTooLarge`] of the first value that cannot be taken; [`Error::Read`].
    fn load(
        &self,
        from: Stored<'_>,
        out: MatMut<'_, Self::Buf>,
        told: &mut dyn FnMut(usize),
    ) -> Result<(), Error>;
    /// out = random values of standard deviation `std`, as [`FillKey::values`] has them, rounded to the storage type.
    fn fill_random(&self, key: FillKey, std: f32, out: MatMut<'_, Self::Buf>) -> Result<(), Error>;

    /// A point in the device's work, with its time.
    type Mark: Send + Sync + std::fmt::Debug;
    /// Marks the point that the work has come to.
    fn mark(&self) -> Result<Self::Mark, Error>;
    /// The time that the device took from one mark to a later one; waits for that.
    fn between(&self, start: &Self::Mark, end: &Self::Mark) -> Result<Duration, Error>;
    /// What the device calls itself.
    fn name(&self) -> String;

    // Memory.

    /// How `Buf` is laid out, and what calls need beside their operands.
    fn storage(&self) -> Storage;
    /// The device's memory as it is after all queued work; nothing where there is none of its own, as on the CPU.
    fn memory(&self) -> Result<Option<DeviceMemory>, Error>;

    // A training step that never waits for the device, and allocates nothing after its first.

    /// Values on their way to the host.
    type Later: Send + std::fmt::Debug;
    /// Whether every loss and gradient so far was finite, kept on the device: once one was not, no update takes place
    /// until [`Kernels::clear_guard`]. So parameters and moments stay those before a bad step, however late the host hears
    /// of it.
    type Guard: Send + Sync + std::fmt::Debug;
    /// Which trained parameters have copies in the storage type, and where.
    type Copies: Send + Sync + std::fmt::Debug;

    /// Rows of a batch are best a multiple of this.
    fn row_padding(&self) -> usize {
        self.storage().row_padding
    }
    /// Micro-batches that may be queued before the results of the oldest are read: 0 where work is done when a call
    /// returns.
    fn ahead(&self) -> usize;
    /// Batches of up to so many rows will come: what is kept for a batch is made that large at once.
    fn reserve(&self, rows: usize) {
        let _ = rows;
    }
    /// Whether the first product of each shape tries out algorithms, where there are several: for a warm-up at the shapes
    /// that come back most often. It takes time, and the last bits of a product may then differ from process to process.
    fn tune(&self, on: bool) {
        let _ = on;
    }

    /// Queues a copy of values to the host and returns at once. What is written to them by later work does not show in it.
    fn read_later(&self, buf: &Self::Full, range: Range<usize>) -> Result<Self::Later, Error>;
    /// Waits for such values, and for nothing that was queued after them. They are as they were, widened to f64.
    fn wait(&self, later: Self::Later) -> Result<Vec<f64>, Error>;

    /// A guard that has seen nothing yet.
    fn guard(&self) -> Result<Self::Guard, Error>;
    /// Makes it as good as new.
    fn clear_guard(&self, guard: &mut Self::Guard) -> Result<(), Error>;
    /// Trips the guard where one of the first `n` losses is not finite.
    fn watch(&self, losses: &Self::Full, n: usize, guard: &mut Self::Guard) -> Result<(), Error>;

    /// Makes one copy of a matrix of the parameters, in the buffer that it belongs to.
    fn copy_segment(&self, parameters: &Self::Full, s: &Segment, to: &mut Self::Buf) -> Result<(), Error> {
        let m = Mat { at: s.start, ..Mat::new(parameters, s.rows, s.cols, s.cols) };
        self.cast(s.factor, m, MatMut { buf: to, at: s.at, rows: s.rows, cols: s.cols, ld: s.ld })
    }
    /// A table of the copies that `n` parameters have in the buffers `to`. Segments and their copies may not overlap.
    fn copies(&self, n: usize, to: &[&Self::Buf], segments: &[Segment]) -> Result<Self::Copies, Error>;
    /// One AdamW update of the flat buffers and of the copies, with the gradient clipped to a norm of `max_norm` as
    /// `torch.nn.utils.clip_grad_norm_` does: times `min(1, max_norm / (norm + 1e-6))`.
    ///
    /// A norm that is not finite trips the guard. Where the guard is tripped nothing is written: parameters, moments and
    /// copies keep their bits. What became of it comes as [`UPDATE_RESULTS`] values.
    fn clip_and_update(
        &self,
        step: AdamW,
        max_norm: Option<f64>,
        guard: &mut Self::Guard,
        flat: Flat<'_, Self::Full>,
        refresh: Refresh<'_, '_, Self>,
    ) -> Result<Self::Later, Error>;
}

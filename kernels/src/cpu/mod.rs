//! Kernels for the CPU, in f32.

mod attention;
mod gemm;
mod memory;
mod micro;
mod nf4;
mod pack;
mod row;
pub(crate) mod simd;

pub use attention::{BackwardInputs, Document, GradientsMut, Heads, HeadsRef, attention, attention_backward};
pub use gemm::{MatMut, MatRef, gemm, gemm_serial};
pub use memory::zeroed;
pub use nf4::{NF4_BLOCK, NF4_CODE, NF4_NESTED_BLOCK, Nf4, Nf4Scales, nf4_dynamic_map};
pub use row::{
    AdamW, adamw, add_assign, cross_entropy_row, dot, exp_shifted_sum, max_value, mul_assign,
    rms_norm_backward_row, rms_norm_row, rms_norm_scale_row, rope_row, scale, sum_squares,
    swiglu_backward_row, swiglu_row,
};
pub use simd::{Level, level};

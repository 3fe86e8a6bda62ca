//! One AdamW update of flat f32 buffers (`adamw.cu`).

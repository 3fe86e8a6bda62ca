//! SwiGLU, forward and backward (`swiglu.cu`).

//! Norm of the gradients and the clip factor (`norm.cu`).

//! The CUDA driver as a [`Driver`](super::Driver): device set-up, memory, launches, cuBLASLt.

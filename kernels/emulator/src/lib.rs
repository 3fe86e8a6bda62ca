//! Runs the CUDA kernels of tunesmith on the CPU, for tests.

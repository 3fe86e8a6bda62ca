//! Dropout by counter-based random numbers (`dropout.cu`).

//! NF4 dequantisation (`nf4.cu`).

//! Causal attention over packed documents, forward and backward (`attention.cu`).

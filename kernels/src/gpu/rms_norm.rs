//! RMSNorm, forward and backward (`rms_norm.cu`).

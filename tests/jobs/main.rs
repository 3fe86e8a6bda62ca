//! Jobs over the built program: killed, starved, lied to, and held to the run that nobody touched.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what went wrong by failing")]

mod faults;
mod kit;
mod power;
mod soak;

//! Jobs over the built program: killed, starved, lied to, and held to the run that nobody touched.

#![cfg(target_os = "linux")]

mod faults;
mod kit;
mod power;
mod soak;

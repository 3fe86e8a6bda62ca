//! Records from files, directories, patterns, compressed streams and the network.
#![allow(clippy::unwrap_used, clippy::unreadable_literal, unreachable_pub)]

mod bad_input;
#[path = "../common/mod.rs"]
mod common;
mod formats;
mod fuzz;
mod kit;
mod network;
mod packed;
mod parquet_types;
mod places;
mod server;

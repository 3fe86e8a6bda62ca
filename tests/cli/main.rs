//! The built binary from the outside: what it prints, where, and the code it exits with.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod adapter;
mod bench;
mod check;
mod checkpoints;
mod config;
mod generate;
mod jobs;
mod keys;
mod plan;
mod quote;
mod selftest;
mod support;
mod tables;
mod train;
mod usage;
mod verbs;

//! The built binary from the outside: what it prints, where, and the code it exits with.

mod config;
mod jobs;
mod support;
mod usage;

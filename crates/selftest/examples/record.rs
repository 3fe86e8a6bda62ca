//! Prints `src/recorded.rs`: the losses that a selftest compares with, by the CPU in f32. To write them again after the
//! fine-tune has changed (and for no other reason):
//!
//! `cargo run --release --package tunesmith-selftest --example record > crates/selftest/src/recorded.rs`

#![allow(clippy::print_stdout, reason = "that is what it is for")]

use tunesmith_ops::RefKernels;
use tunesmith_selftest::{Error, STEPS, record};

fn main() -> Result<(), Error> {
    let taken = record(RefKernels, STEPS)?;
    println!("//! Loss and gradient norm of each step, by the CPU in f32. Written by");
    println!(
        "//! `cargo run --release --package tunesmith-selftest --example record > crates/selftest/src/recorded.rs`."
    );
    println!();
    println!("#![allow(clippy::unreadable_literal, reason = \"as they are printed\")]");
    println!();
    println!("/// Loss in nats and norm before clipping.");
    println!("pub(crate) const RECORDED: [(f64, f64); {STEPS}] = [");
    for (loss, norm) in taken {
        println!("    ({loss:.8}, {norm:.8}),");
    }
    println!("];");
    Ok(())
}

//! The supervisor against a worker that follows the protocol and misbehaves on demand. Both are this very program,
//! started again, so that they can be killed.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bench;
mod ends;
mod fake;
mod restarts;
mod wishes;

/// Where the processes of the tests begin. As a test it does nothing.
#[test]
fn entry() {
    match std::env::var("TUNESMITH_TEST_ROLE").as_deref() {
        Ok("worker") => fake::worker(),
        Ok("supervisor") => fake::supervisor(),
        _ => {}
    }
}

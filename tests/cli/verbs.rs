//! The verbs on jobs, on jobs that the store is told about: no worker is needed to see what they print.

mod create;
mod doctor;
mod kit;
mod read;
mod requests;
mod retry;
#[cfg(unix)]
mod whole;

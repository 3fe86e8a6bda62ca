//! Jobs: their directories, their store, their states and their supervisor.
//!
//! A job is a directory ([`dir`]); a worker process turns it into an adapter. Nothing in here knows a tensor.

pub mod dir;
mod error;
pub mod failpoint;
pub mod state;
pub mod store;
mod submit;
pub mod supervisor;

pub use error::Error;
pub use state::{Answer, Desired, State, Status};
pub use store::Store;
pub use submit::{Submitted, register, submit, submit_with};

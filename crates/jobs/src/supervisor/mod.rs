//! The supervisor: starts workers, watches them, and says what follows when they end.

mod lock;

pub use lock::running;

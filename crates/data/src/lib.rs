//! Rows, chat templates, tokens, loss masks and splits. Knows no tensors.

mod example;

pub use example::Example;

//! Backends to try the checks on.

#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod broken;
#[path = "../../../../tests/common/rounded.rs"]
pub(crate) mod rounded;

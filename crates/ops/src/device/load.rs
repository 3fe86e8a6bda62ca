//! Stored weights through staging memory to the device.

use std::ops::ControlFlow;

use rayon::prelude::*;
use tunesmith_kernels::gpu::{Driver, Slice, bf16};

use super::views::view_mut;
use crate::stored::TASK;
use crate::{Error, MatMut, Stored};

/// Reads, converts and checks on all threads, a piece of staging memory at a time, while the piece before is on its way.
pub(super) fn load<D: Driver>(
    d: &D,
    from: Stored<'_>,
    out: MatMut<'_, Slice<D, bf16>>,
    told: &mut dyn FnMut(usize),
) -> Result<(), Error> {
    let mut failed = None;
    let fill = &mut |at: usize, bytes: &mut [u8]| {
        let (first, count) = (at / 2, bytes.len() / 2);
        let tasks = bytes.par_chunks_mut(TASK * 2).enumerate();
        let results = tasks.map(|(i, bytes)| from.narrow(first + i * TASK, bytes));
        // The first in the order of the values, whichever thread comes first.
        failed = results.find_map_first(Result::err);
        if failed.is_some() {
            return ControlFlow::Break(());
        }
        told(count * from.of.bytes());
        ControlFlow::Continue(())
    };
    view_mut(out).fill_with(d, fill)?;
    failed.map_or(Ok(()), Err)
}

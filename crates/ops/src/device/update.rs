//! The update of a step, with what the host learns of it only later.

use tunesmith_kernels::gpu::adamw::{self, Buffers, Refresh, Scale};
use tunesmith_kernels::gpu::{Driver, Later, Slice, norm};

use crate::kernels::{Flat, UPDATE_RESULTS};
use crate::{AdamW, Error};

/// Whether all was finite so far, and the memory of a norm: all of it stays on the device from step to step.
#[derive(Debug)]
pub struct Guard<D: Driver> {
    fine: Slice<D, f32>,
    partials: Slice<D, f64>,
    /// Norm, clip factor, and whether the update takes place.
    results: Slice<D, f32>,
}

const _: () = assert!(norm::OUT == UPDATE_RESULTS);

impl<D: Driver> Guard<D> {
    pub(super) fn new(d: &D) -> Result<Self, Error> {
        Ok(Self {
            fine: Slice::from_host(d, &[1.0; norm::GUARD])?,
            partials: Slice::zeros(d, norm::PARTIALS)?,
            results: Slice::zeros(d, norm::OUT)?,
        })
    }

    pub(super) fn clear(&mut self, d: &D) -> Result<(), Error> {
        Ok(self.fine.write(d, 0, &[1.0; norm::GUARD])?)
    }

    pub(super) fn watch(&mut self, d: &D, losses: &Slice<D, f32>, n: usize) -> Result<(), Error> {
        Ok(norm::watch(d, losses, n, &mut self.fine)?)
    }

    pub(super) fn clip_and_update(
        &mut self,
        d: &D,
        step: AdamW,
        max_norm: Option<f64>,
        flat: Flat<'_, Slice<D, f32>>,
        refresh: Refresh<'_, '_, D>,
    ) -> Result<Later<D, f32>, Error> {
        let Self { fine, partials, results } = self;
        let Flat { p, g, m, v } = flat;
        // A limit that f32 has no number for is the least that it has.
        let max_norm = max_norm.map(|limit| (limit as f32).max(f32::MIN_POSITIVE));
        norm::guarded(d, g, max_norm, fine, partials, results)?;
        adamw::adamw(d, step, Scale::Device(results), Buffers { p, g, m, v }, Some(refresh))?;
        Ok(results.read_later(d, 0..norm::OUT)?)
    }
}

//! A plan tried on the device before the first step.

use tunesmith_model::Decoder;
use tunesmith_ops::Kernels;

use super::{Plan, Request, plan};
use crate::{Error, Trainer};

/// How often a plan is made anew when memory runs out all the same.
const ATTEMPTS: usize = 4;
/// Part of a plan's activations by which the next one's room is smaller.
const SMALLER: u64 = 6;

/// A plan as it was tried.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// From 1.
    pub number: usize,
    /// Most bytes that were held at a time, once a forward and a backward went through; nothing on the CPU.
    pub measured: Option<u64>,
    /// Why the plan did not hold.
    pub failed: Option<&'a Error>,
}

/// A trainer that goes by `first`, or on a device by the first plan of a few that really fits: one forward, backward and
/// evaluation of the largest micro-batch are run, and when memory runs out a smaller plan is made. `tell` hears of every try.
///
/// # Errors
/// No LoRA parameters; memory that runs out again and again; a device fault; what `tell` says.
pub fn settle<K: Kernels, E: From<Error>>(
    decoder: Decoder<K>,
    request: &Request<'_>,
    lora_dropout: f32,
    first: Plan,
    tell: &mut dyn FnMut(Attempt<'_>) -> Result<(), E>,
) -> Result<(Trainer<K>, Plan), E> {
    let device = request.footprint.storage().is_device();
    let lengths = request.lengths;
    let mut trainer = Trainer::bare(decoder, request.config, lora_dropout, lengths)?;
    let (mut current, mut budget) = (first, request.budget);
    for number in 1.. {
        let mut tried = trainer.recut(current.cut.clone(), lengths);
        if device && tried.is_ok() {
            tried = trainer.warm_up().map_err(|error| error.with_micro_batch(current.cut.capacity));
        }
        let failed = match tried {
            Ok(()) => {
                let memory = trainer.decoder().kernels().memory().map_err(Error::from)?;
                // The peak may be that of a plan which did not hold; what is held now stays until the end.
                let most =
                    |memory: tunesmith_ops::DeviceMemory| if number > 1 { memory.used } else { memory.peak };
                let measured = memory.filter(|_| device).map(most);
                tell(Attempt { plan: &current, number, measured, failed: None })?;
                return Ok((trainer, current));
            }
            Err(error @ Error::Memory { .. }) if device && number < ATTEMPTS => error,
            Err(error) => return Err(error.into()),
        };
        tell(Attempt { plan: &current, number, measured: None, failed: Some(&failed) })?;
        // What it took was not there: a sixth less of what can be made smaller.
        let variable = current.items.activations + current.items.shared;
        budget.bytes = budget.bytes.min(current.items.needed()).saturating_sub((variable / SMALLER).max(1));
        current = match plan(&Request { budget, ..*request }) {
            Ok(smaller) if smaller.cut != current.cut => smaller,
            // Nothing smaller is left: what the device said has the numbers.
            _ => return Err(failed.into()),
        };
    }
    Err(Error::Observer("a plan was neither taken nor refused".into()).into())
}

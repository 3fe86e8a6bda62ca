//! Memory planning: how many tokens a micro-batch has and what each layer keeps, so that a run fits and is as fast as it can
//! be then.
//!
//! Everything is reckoned before anything is allocated, from the sizes of model, adapter and rows
//! ([`tunesmith_model::Footprint`]): [`plan`] says what fits into a [`Budget`], or how much is missing. On a device
//! [`settle`] then runs one forward and backward at that size before the first step, and plans again if it does not go
//! through.

mod budget;
mod cost;
mod keep;
mod lengths;
mod settle;
mod shortage;
mod size;

use serde::Serialize;
use tunesmith_model::{Footprint, Keep};

pub use budget::{Budget, CONTEXT};
pub use lengths::Lengths;
pub use settle::{Attempt, settle};
pub use shortage::Shortage;
pub use size::{Bytes, rounded};

use crate::{Recompute, TrainConfig};
use cost::Cost;
use keep::Chosen;

/// Tokens of a micro-batch on the CPU when its size is left to us: enough rows to keep the matrix products busy, few enough
/// to keep the activations small.
const CPU_TOKENS: usize = 2048;
/// Tokens of a micro-batch on a device when its size is left to us, at most: from there on nothing is gained.
const DEVICE_TOKENS: usize = 32_768;
/// Sizes of micro-batches that are looked at lie this much apart, at least.
const STEP: f64 = 1.02;
/// And are multiples of this, except for the smallest and the largest.
const ROUND: usize = 128;

/// How a step's rows are put into micro-batches, and what the layers keep of them. A step's loss and gradient do not depend
/// on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MicroBatches {
    /// Rows of each, where that was given.
    pub rows: Option<usize>,
    /// Otherwise tokens that rows are packed into; a longer row is one by itself.
    pub tokens: usize,
    /// Tokens that there is room for.
    pub capacity: usize,
    /// What each layer keeps.
    pub keep: Vec<Keep>,
}

impl MicroBatches {
    /// Room for nothing.
    pub(crate) fn none() -> Self {
        Self { rows: None, tokens: 0, capacity: 0, keep: Vec::new() }
    }

    /// Micro-batches as they are without a plan, and on the CPU: of the rows that the settings say, or of 2,048 tokens;
    /// `divisor` times smaller, but never of less than a row.
    pub fn usual(config: &TrainConfig, lengths: &Lengths, layers: usize, divisor: usize) -> Self {
        let rows = rows_of(config, divisor);
        let tokens = CPU_TOKENS / divisor.max(1);
        let capacity = match rows {
            Some(rows) => lengths.largest(rows),
            None => lengths.longest().max(tokens.min(lengths.largest(config.batch_size))),
        };
        let keep = vec![fixed(config.recompute).unwrap_or_default(); layers];
        Self { rows, tokens, capacity, keep }
    }
}

/// Rows of a micro-batch, when they are given.
fn rows_of(config: &TrainConfig, divisor: usize) -> Option<usize> {
    let rows = config.micro_batch_size.min(config.batch_size.max(1)) / divisor.max(1);
    (config.micro_batch_size > 0).then_some(rows.max(1))
}

/// What every layer keeps, when that is given.
fn fixed(recompute: Recompute) -> Option<Keep> {
    match recompute {
        Recompute::Auto => None,
        Recompute::None => Some(Keep::All),
        Recompute::Mlp => Some(Keep::NoMlp),
        Recompute::Min2 => Some(Keep::Residuals),
        Recompute::Min => Some(Keep::Input),
    }
}

/// The word of a mode, as in `train.recompute`.
pub fn word(keep: Keep) -> &'static str {
    match keep {
        Keep::All => "none",
        Keep::NoMlp => "mlp",
        Keep::Residuals => "min2",
        Keep::Input => "min",
    }
}

/// What a micro-batch is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// So many rows each.
    Rows(usize),
    /// Tokens, as many as are good.
    Tokens,
}

/// What is to be planned.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The model with its adapter.
    pub footprint: &'a Footprint,
    /// All rows.
    pub lengths: &'a Lengths,
    /// The user's wishes.
    pub config: &'a TrainConfig,
    /// Whether inputs are dropped.
    pub dropout: bool,
    /// How much smaller than usual micro-batches are to be made, since memory ran out before.
    pub divisor: usize,
    /// Bytes of the largest cache that texts are generated with before and after the training; it is gone meanwhile.
    pub generation: u64,
    /// What there is.
    pub budget: Budget,
}

/// Bytes of a run by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Items {
    /// Frozen weights with what LoRA adds to them.
    pub weights: u64,
    /// LoRA parameters, gradients, moments.
    pub states: u64,
    /// What the layers keep for the backward.
    pub activations: u64,
    /// Buffers that all layers share.
    pub shared: u64,
    /// Logits of one chunk of rows.
    pub logits: u64,
    /// Lists and sums of the kernels.
    pub scratch: u64,
    /// The largest cache of generated texts, which is there when activations are not.
    pub generation: u64,
    /// What is left free on purpose.
    pub reserve: u64,
}

impl Items {
    /// The most that is there at a time, without the reserve.
    pub fn peak(&self) -> u64 {
        let training = self.activations + self.shared + self.states;
        self.weights + training.max(self.generation + self.states / 4) + self.logits + self.scratch
    }

    /// Whether the largest cache of generated texts takes more than the training.
    pub fn generation_is_largest(&self) -> bool {
        self.generation + self.states / 4 > self.activations + self.shared + self.states
    }

    /// What a device has to have free.
    pub fn needed(&self) -> u64 {
        self.peak() + self.reserve
    }
}

/// A way to run that fits.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// How steps are cut.
    pub cut: MicroBatches,
    /// Where the bytes go.
    pub items: Items,
    /// Micro-batches of a typical step.
    pub micro_batches: usize,
    /// Share of computation added by what is computed again.
    pub extra_compute: f64,
    /// How much longer a step takes than its tokens would in one endless batch with nothing computed again, by the cost
    /// model.
    pub slowdown: f64,
    /// Why it is so, in a sentence.
    pub why: String,
}

/// The fastest way that fits, by the cost model.
///
/// # Errors
/// What is missing, in numbers.
pub fn plan(request: &Request<'_>) -> Result<Plan, Box<Shortage>> {
    let planner = Planner::new(request);
    let most = planner.most();
    let found = planner.search(most, planner.room());
    let found = match found {
        Some(found) if request.divisor > 1 && planner.on_device() => planner.smaller(found, most),
        found => found,
    };
    // Texts that are generated beside it may take more than the training itself.
    let fits = |plan: &Plan| plan.items.needed() <= request.budget.bytes;
    found.map(|found| planner.plan(found)).filter(fits).ok_or_else(|| Box::new(planner.shortage()))
}

/// A size of micro-batches with what the layers keep.
struct Found {
    tokens: usize,
    chosen: Chosen,
    micro_batches: usize,
    slowdown: f64,
}

struct Planner<'a> {
    request: &'a Request<'a>,
    wish: Wish,
    cost: Cost,
    usual: MicroBatches,
}

impl<'a> Planner<'a> {
    fn new(request: &'a Request<'a>) -> Self {
        let Request { footprint, lengths, config, divisor, .. } = *request;
        let cost = Cost::new(footprint, lengths, config.batch_size);
        let wish = rows_of(config, divisor).map_or(Wish::Tokens, Wish::Rows);
        let usual = MicroBatches::usual(config, lengths, footprint.layers(), divisor);
        Self { request, wish, cost, usual }
    }

    fn on_device(&self) -> bool {
        self.request.footprint.storage().is_device()
    }

    /// The largest micro-batch that is of any use.
    fn most(&self) -> usize {
        let Request { lengths, config, .. } = self.request;
        if self.wish == Wish::Tokens && self.on_device() {
            lengths.longest().max(lengths.largest(config.batch_size).min(DEVICE_TOKENS))
        } else {
            self.usual.capacity
        }
    }

    /// The smallest that is possible.
    fn least(&self) -> usize {
        if self.wish == Wish::Tokens { self.request.lengths.longest() } else { self.usual.capacity }
    }

    /// Bytes for activations, before what depends on the size of a micro-batch.
    fn room(&self) -> u64 {
        let Items { weights, states, reserve, .. } = self.items(0, &[]);
        self.request.budget.bytes.saturating_sub(weights + states + reserve)
    }

    /// Bytes of so many tokens, filled up to what the device takes rows in.
    fn items(&self, tokens: usize, keep: &[Keep]) -> Items {
        let Request { footprint, lengths, dropout, generation, budget, .. } = *self.request;
        let multiple = footprint.storage().row_padding;
        let tokens = tokens.next_multiple_of(multiple);
        let calls = footprint.calls(tokens, lengths.longest().max(multiple), dropout);
        let kept = keep.iter().map(|&keep| footprint.kept(tokens, keep)).sum();
        let least = keep.iter().copied().max().unwrap_or_default();
        Items {
            weights: footprint.weights().total(),
            states: footprint.parameters() + footprint.states() + footprint.copies(),
            activations: kept,
            shared: if tokens == 0 { 0 } else { footprint.shared(tokens, least, dropout) },
            logits: if tokens == 0 { 0 } else { footprint.storage().logits_bytes(&calls) },
            scratch: if tokens == 0 { 0 } else { footprint.storage().call_bytes(&calls) },
            generation,
            reserve: budget.reserve,
        }
    }

    /// What the layers keep of so many tokens, if it fits into `room`.
    fn keep(&self, tokens: usize, room: u64) -> Option<Chosen> {
        let Request { footprint, dropout, config, .. } = *self.request;
        let Items { logits, scratch, .. } = self.items(tokens, &[]);
        let tokens = tokens.next_multiple_of(footprint.storage().row_padding);
        let room = room.checked_sub(logits + scratch)?;
        match fixed(config.recompute) {
            None => keep::choose(footprint, tokens, dropout, room, self.cost.keys()),
            Some(keep) => {
                let keep = vec![keep; footprint.layers()];
                let again = keep::again(footprint, &keep, self.cost.keys());
                (footprint.training(tokens, &keep, dropout) <= room).then_some(Chosen { keep, again })
            }
        }
    }

    fn found(&self, tokens: usize, room: u64) -> Option<Found> {
        let chosen = self.keep(tokens, room)?;
        let micro_batches = self.cost.micro_batches(self.wish, tokens);
        let slowdown = self.cost.slowdown(micro_batches, chosen.again);
        Some(Found { tokens, chosen, micro_batches, slowdown })
    }

    /// The fastest of the sizes up to `most`; of equally fast ones the largest, which larger steps gain by.
    fn search(&self, most: usize, room: u64) -> Option<Found> {
        // On the CPU what was always done, where it fits.
        if !self.on_device()
            && let Some(found) = self.found(self.usual.capacity, room)
            && found.chosen.keep == self.usual.keep
        {
            return Some(found);
        }
        let mut best: Option<Found> = None;
        for tokens in sizes(self.least(), most.max(self.least())) {
            let Some(found) = self.found(tokens, room) else { break };
            if best.as_ref().is_none_or(|known| found.slowdown <= known.slowdown) {
                best = Some(found);
            }
        }
        best
    }

    /// What fits into a part of the room as much smaller as micro-batches are to be, or the smallest that fits at all.
    fn smaller(&self, found: Found, most: usize) -> Option<Found> {
        let divisor = self.request.divisor;
        let tokens =
            if self.wish == Wish::Tokens { (found.tokens / divisor).max(self.least()) } else { most };
        self.search(tokens, self.room() / divisor as u64).or_else(|| self.tightest(self.room()))
    }

    /// The least memory that is possible.
    fn tightest(&self, room: u64) -> Option<Found> {
        // Of what fits, the best at the smallest size takes all the room; less of it is taken step by step.
        let tokens = self.least();
        let (mut low, mut high) = (0, room);
        self.found(tokens, high)?;
        while high - low > high / 64 {
            let middle = low.midpoint(high);
            if self.found(tokens, middle).is_some() { high = middle } else { low = middle }
        }
        self.found(tokens, high)
    }

    fn plan(&self, found: Found) -> Plan {
        let Found { tokens, chosen, micro_batches, slowdown } = found;
        let usual = !self.on_device() && tokens == self.usual.capacity;
        let cut = MicroBatches {
            rows: self.usual.rows,
            tokens: if usual { self.usual.tokens } else { tokens },
            capacity: tokens,
            keep: chosen.keep,
        };
        let items = self.items(tokens, &cut.keep);
        let extra_compute = self.cost.share(chosen.again);
        let why = self.why(&cut);
        Plan { cut, items, micro_batches, extra_compute, slowdown, why }
    }

    fn why(&self, cut: &MicroBatches) -> String {
        let Request { lengths, config, .. } = self.request;
        let again = cut.keep.iter().filter(|keep| **keep != Keep::All).count();
        let longest = lengths.longest();
        let size = match self.wish {
            Wish::Rows(rows) => format!("micro-batches of {rows} rows, as `train.micro_batch_size` says"),
            Wish::Tokens if cut.capacity >= lengths.largest(config.batch_size) => {
                "the largest step is one micro-batch".to_owned()
            }
            Wish::Tokens if cut.capacity == longest => "micro-batches as large as the longest row".to_owned(),
            Wish::Tokens if cut.capacity == self.most() => {
                "micro-batches from which on more tokens gain nothing".to_owned()
            }
            Wish::Tokens => "the micro-batches that make steps fastest".to_owned(),
        };
        let kept = match (fixed(config.recompute), again) {
            (Some(_), _) => "`train.recompute` says what layers keep".to_owned(),
            (None, 0) => "nothing has to be computed again".to_owned(),
            (None, n) => format!("{n} of {} layers compute a part again to fit", cut.keep.len()),
        };
        format!("{size}; {kept}")
    }

    /// What the tightest way would take, which is too much.
    fn shortage(&self) -> Shortage {
        let Request { config, budget, lengths, .. } = self.request;
        let items = |tokens| {
            // Of a model of few layers the mode that keeps least need not take least: what is computed again needs a place.
            let modes =
                keep::KEEPS.into_iter().filter(|&k| fixed(config.recompute).is_none_or(|given| given == k));
            let all = modes.map(|keep| self.items(tokens, &vec![keep; self.request.footprint.layers()]));
            all.min_by_key(Items::needed).unwrap_or_else(|| self.items(tokens, &[]))
        };
        let tokens = self.least();
        // The longest row that would fit.
        let (mut fits, mut not) = (0, tokens);
        while not - fits > 1 {
            let middle = fits.midpoint(not);
            if items(middle).needed() <= budget.bytes { fits = middle } else { not = middle }
        }
        Shortage {
            items: items(tokens),
            available: budget.bytes,
            tokens,
            rows: match self.wish {
                Wish::Rows(rows) => Some(rows),
                Wish::Tokens => None,
            },
            longest: lengths.longest(),
            fits: (fits > 0).then_some(fits),
            recompute_given: fixed(config.recompute).is_some_and(|keep| keep != Keep::Input),
        }
    }
}

/// Sizes from `least` to `most`, both among them, each a little larger than the one before.
fn sizes(least: usize, most: usize) -> Vec<usize> {
    let mut out = vec![least];
    let mut at = least;
    loop {
        at = ((at as f64 * STEP) as usize + 1).next_multiple_of(ROUND);
        if at >= most {
            break;
        }
        out.push(at);
    }
    if most > least {
        out.push(most);
    }
    out
}

#[cfg(test)]
mod tests;

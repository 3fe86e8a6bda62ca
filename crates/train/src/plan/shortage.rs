//! What is missing where nothing fits.

use std::fmt;

use super::{Items, rounded};

/// Memory that a run needs and that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Where the bytes of the tightest way would go.
    pub items: Items,
    /// What there is.
    pub available: u64,
    /// Tokens of its micro-batch.
    pub tokens: usize,
    /// Rows of a micro-batch, where they are given.
    pub rows: Option<usize>,
    /// Tokens of the longest row.
    pub longest: usize,
    /// The largest micro-batch that would fit; nothing where the model alone is too large.
    pub fits: Option<usize>,
    /// Whether the settings fix what is computed again, and it is not everything.
    pub recompute_given: bool,
}

impl std::error::Error for Shortage {}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { items, available, tokens, .. } = self;
        write!(
            f,
            "Not enough memory: {} ({} bytes) are needed and {} ({available} bytes) can be had; the model takes {}",
            rounded(items.needed()),
            items.needed(),
            rounded(*available),
            rounded(items.weights),
        )?;
        if items.generation_is_largest() {
            write!(f, ", the cache of the longest preview {}", rounded(items.generation))?;
        } else {
            let batch = rounded(items.peak() - items.weights - items.states);
            let states = rounded(items.states);
            write!(f, ", the adapter's training states {states}, a micro-batch of {tokens} tokens {batch}")?;
        }
        if items.reserve > 0 {
            write!(f, ", and {} are left free for the driver", rounded(items.reserve))?;
        }
        Ok(())
    }
}

impl Shortage {
    /// What may help, most likely first.
    pub fn advice(&self) -> String {
        let mut ways = Vec::new();
        if self.recompute_given {
            ways.push("set `train.recompute = \"auto\"`".to_owned());
        }
        if self.rows.is_some_and(|rows| rows > 1) {
            ways.push("leave `train.micro_batch_size` out".to_owned());
        }
        if self.items.generation_is_largest() {
            ways.push("set a smaller `preview.max_new_tokens`".to_owned());
        }
        match self.fits {
            Some(fits) if fits < self.longest => {
                ways.push(format!("set `data.max_seq_length = {fits}`, which would fit"));
            }
            Some(_) => {}
            None => ways.push("take a smaller base model".to_owned()),
        }
        ways.push("free memory that other programs hold".to_owned());
        ways.push(format!("take a device with {} free", rounded(self.items.needed())));
        let last = ways.pop().unwrap_or_default();
        format!("{}, or {last}", ways.join(", "))
    }
}

//! The tokenised unit of training.

use std::borrow::Cow;

use crate::error::Error;
use crate::source::Place;

/// One document, ready to train on: a rendered prompt and completion as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids of the whole document, `[T]`.
    pub ids: Vec<u32>,
    /// `[T]`: `trained[t]` says that predicting `ids[t]` from `ids[..t]` counts in the loss.
    /// The first token of a document has nothing to be predicted from and is never trained.
    pub trained: Vec<bool>,
    /// Where the row stands in its source: what errors and events name.
    pub place: Place,
}

impl Example {
    /// How many tokens of this example count in the loss.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|&&t| t).count()
    }
}

/// Tokenised examples by number, wherever they are kept.
pub trait Examples {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens of example `i`.
    fn tokens(&self, i: usize) -> usize;

    /// Tokens of example `i` that count in the loss.
    fn trained_tokens(&self, i: usize) -> usize;

    /// Example `i`.
    ///
    /// # Errors
    /// A store that cannot be read.
    fn get(&self, i: usize) -> Result<Cow<'_, Example>, Error>;
}

/// Lists in memory.
impl<T: AsRef<[Example]> + ?Sized> Examples for T {
    fn len(&self) -> usize {
        self.as_ref().len()
    }

    fn tokens(&self, i: usize) -> usize {
        self.as_ref()[i].ids.len()
    }

    fn trained_tokens(&self, i: usize) -> usize {
        self.as_ref()[i].trained_tokens()
    }

    fn get(&self, i: usize) -> Result<Cow<'_, Example>, Error> {
        Ok(Cow::Borrowed(&self.as_ref()[i]))
    }
}

//! The tokenised unit of training.

/// One document, ready to train on: a rendered prompt and completion as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids of the whole document, `[T]`.
    pub ids: Vec<u32>,
    /// `[T]`: `trained[t]` says that predicting `ids[t]` from `ids[..t]` counts in the loss.
    /// The first token of a document has nothing to be predicted from and is never trained.
    pub trained: Vec<bool>,
    /// One-based line of the source file this row came from: what errors and events name.
    pub line: usize,
}

impl Example {
    /// How many tokens of this example count in the loss.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|&&t| t).count()
    }
}

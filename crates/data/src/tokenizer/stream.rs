//! Decoding one id after the other.

use super::TextTokenizer;
use crate::error::Error;

/// Streaming decoder: see [`TextTokenizer::stream`].
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a TextTokenizer,
    skip_special_tokens: bool,
    /// The last ids that gave text, and those read since.
    ids: Vec<u32>,
    /// What `ids[..read]` decodes to.
    shown: String,
    read: usize,
}

impl<'a> DecodeStream<'a> {
    /// Ids after which incomplete bytes are given out as they are: no character needs more.
    const PATIENCE: usize = 16;

    pub(super) fn new(tokenizer: &'a TextTokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, ids: Vec::new(), shown: String::new(), read: 0 }
    }

    /// Takes the next id; returns the text that is now certain: `None` while a character is incomplete.
    ///
    /// # Errors
    /// [`Error::Decode`] for an id outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, Error> {
        self.ids.push(id);
        let waiting = self.ids.len() - self.read <= Self::PATIENCE;
        self.advance(waiting)
    }

    /// What is left at the end: bytes that never became a character, as U+FFFD.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn finish(mut self) -> Result<Option<String>, Error> {
        self.advance(false)
    }

    fn advance(&mut self, wait: bool) -> Result<Option<String>, Error> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        if text.len() <= self.shown.len() || (wait && text.ends_with('\u{FFFD}')) {
            return Ok(None);
        }
        let fresh = text.get(self.shown.len()..).unwrap_or_default().to_owned();
        // The ids just shown stay as context: decoders treat the first token of a text differently.
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        self.shown = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        Ok(Some(fresh))
    }
}

//! The loop: read the prompt, choose a token, read it, choose the next.

use tunesmith_model::Decoder;
use tunesmith_ops::Kernels;

use crate::{Error, Sampling};

/// Tokens of a prompt that are read in one pass.
pub const PROMPT_CHUNK: usize = 512;

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// Token ids of the rendered prompt.
    pub prompt: &'a [u32],
    /// Tokens of the reply at most.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end the reply; they are not part of it.
    pub stop_ids: &'a [u32],
}

/// Why a reply ended (the words of the OpenAI API).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model gave a stop token.
    Stop,
    /// `max_new_tokens` or the model's context was reached.
    Length,
    /// Whoever took the tokens wanted no more.
    Cancelled,
}

impl FinishReason {
    /// `stop`, `length` or `cancelled`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A finished reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its tokens, without the stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Continues a prompt. `on_token` gets each token as it is chosen and returns whether to go on.
///
/// # Errors
/// An empty prompt or one beyond the model's context, a setting out of range, output that is not a number, or a
/// device fault.
pub fn generate<K: Kernels>(
    decoder: &mut Decoder<K>,
    request: &Request<'_>,
    on_token: &mut dyn FnMut(u32) -> bool,
) -> Result<Reply, Error> {
    request.sampling.check()?;
    if request.prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let limit = decoder.config().max_position_embeddings;
    let tokens = request.prompt.len();
    if tokens >= limit {
        return Err(Error::PromptTooLong { tokens, limit });
    }
    let room = request.max_new_tokens.min(limit - tokens);
    let mut ids = Vec::with_capacity(room);
    if room == 0 {
        return Ok(Reply { ids, finish_reason: FinishReason::Length });
    }
    // The last token of a reply is never read.
    let mut cache = decoder.cache(tokens + room - 1, PROMPT_CHUNK)?;
    let mut logits = decoder.decode(&mut cache, request.prompt)?;
    loop {
        let id = request.sampling.choose(&logits, tokens + ids.len())?;
        if request.stop_ids.contains(&id) {
            return Ok(Reply { ids, finish_reason: FinishReason::Stop });
        }
        ids.push(id);
        if !on_token(id) {
            return Ok(Reply { ids, finish_reason: FinishReason::Cancelled });
        }
        if ids.len() == room {
            return Ok(Reply { ids, finish_reason: FinishReason::Length });
        }
        logits = decoder.decode(&mut cache, &[id])?;
    }
}

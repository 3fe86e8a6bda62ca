/// What can go wrong while generating.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing to continue.
    #[error("The prompt is empty; there is nothing to continue")]
    EmptyPrompt,
    /// A prompt that leaves no room for a reply.
    #[error("The prompt has {tokens} tokens, and the model's context ends at {limit}; shorten the prompt")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// `max_position_embeddings` of the model.
        limit: usize,
    },
    /// A sampling setting out of range.
    #[error("`{name}` is {value}; it must be {allowed}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// Logits that are NaN, or none that is finite.
    #[error(
        "The model's output is not a number after {tokens} tokens; the weights or the adapter are damaged"
    )]
    NotFinite {
        /// Tokens of prompt and reply so far.
        tokens: usize,
    },
    /// The model could not do what it was asked.
    #[error(transparent)]
    Model(#[from] tunesmith_model::Error),
}

/// What can stop a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing to learn from.
    #[error(
        "None of the {examples} training rows has a token that counts in the loss; nothing can be learned from them"
    )]
    NoTrainedTokens {
        /// Rows there are.
        examples: usize,
    },
    /// A setting that no run can have.
    #[error("`train.{key}` is {value}; it must be {allowed}")]
    Setting {
        /// The key of the `[train]` table.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// No adapter to train.
    #[error(
        "The model has no LoRA parameters to train; `lora.target_modules` must name at least one linear layer"
    )]
    NoAdapter,
    /// A loss that is NaN or infinite.
    #[error("The loss is not finite at step {step}, in the rows of line {}; the adapter before this step is kept", in_words(.lines))]
    LossNotFinite {
        /// Optimizer step, from 1.
        step: usize,
        /// Lines of the training file.
        lines: Vec<usize>,
    },
    /// A gradient that is NaN or infinite.
    #[error("The gradient is not finite at step {step}, whose rows are those of line {}; the adapter before this step is kept, and a lower `train.learning_rate` may help", in_words(.lines))]
    GradientNotFinite {
        /// Optimizer step, from 1.
        step: usize,
        /// Lines of the training file.
        lines: Vec<usize>,
    },
    /// An evaluation loss that is NaN or infinite.
    #[error("The validation loss is not finite after step {step}, in the rows of line {}", in_words(.lines))]
    EvaluationNotFinite {
        /// Optimizer steps done.
        step: usize,
        /// Lines of the validation file.
        lines: Vec<usize>,
    },
    /// The model could not do what it was asked.
    #[error(transparent)]
    Model(#[from] tunesmith_model::Error),
    /// The device could not do what it was asked.
    #[error(transparent)]
    Ops(#[from] tunesmith_ops::Error),
    /// Whoever watches the run could not take an event (a full disk, say).
    #[error("{0}")]
    Observer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// `4`, `4 and 7`, `1, 2, 3 and 5 more`.
fn in_words(lines: &[usize]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<String> = lines.iter().take(SHOWN).map(ToString::to_string).collect();
    if lines.len() > SHOWN {
        return format!("{} and {} more", shown.join(", "), lines.len() - SHOWN);
    }
    match shown.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "(none)".into(),
    }
}

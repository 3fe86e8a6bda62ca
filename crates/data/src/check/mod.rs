//! The data check: what a person should know of the rows before a job trains on them.
//!
//! [`Statistics`] takes the rows from [`crate::prepare`] as they pass, as cheaply as a job start can bear, and
//! [`NearDuplicates`] those that are compared with each other. Both end in plain data ([`CheckReport`], [`Similar`]),
//! the JSON of which is a stable format.

mod account;
mod finding;
mod findings;
mod frequent;
mod html;
mod lengths;
mod mask;
mod near;
mod packing;
mod shingles;
mod svg;

use serde::{Deserialize, Serialize};

use crate::dataset::{Counted, DataReport};
use crate::encode::TemplateChoice;
use crate::over_long::OverLong;
use crate::pack::Utilisation;

pub use account::{StatOptions, Statistics};
pub use finding::{Finding, Severity, thousands};
pub use findings::similar as similar_findings;
pub use frequent::Repeated;
pub use html::{html, rows as table};
pub use lengths::{Bin, Lengths};
pub use mask::{MaskPreview, Piece, shortened, visible};
pub use near::{Matches, NearDuplicates, NearOptions, Pair, Similar, Spot};
pub use shingles::{jaccard, shingles};

/// The version of the JSON of [`CheckReport`] and [`Check`].
pub const FORMAT_VERSION: u32 = 1;

/// What the check of one source found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    /// What became of the rows.
    pub data: DataReport,
    /// Longest row in tokens that is used.
    pub max_seq_length: usize,
    /// What becomes of longer ones.
    pub over_long: OverLong,
    /// Whether the rows went through the model's chat template (`chat`) or not (`none`).
    pub template: TemplateChoice,
    /// Tokens of every row that could be read, before any cut.
    pub row_tokens: Lengths,
    /// Tokens that do not count in the loss, of the rows that are used.
    pub prompt_tokens: Lengths,
    /// Tokens that count in the loss, of the rows that are used.
    pub trained_tokens: Lengths,
    /// How full packs of these rows get; nothing without a row.
    pub packing: Option<Utilisation>,
    /// Used rows whose last trained token is a stop token. It must be all of them.
    pub stopped: usize,
    /// Used rows with a trained turn in the middle that no trained stop token ends.
    pub unstopped_turns: Counted,
    /// The most frequent completion: of a conversation, its last trained turn.
    pub repeated_completion: Option<Repeated>,
    /// Used rows whose prompt is empty or only white space.
    pub empty_prompts: Counted,
    /// Used rows whose completion begins or ends with white space.
    pub edge_space: Counted,
    /// Used rows whose prompt and completion are joined without anything between their words.
    pub unseparated: Counted,
    /// What is the matter, the worst first.
    pub findings: Vec<Finding>,
}

/// A whole check: one source, or a source and the rows held out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Version of this format.
    pub format_version: u32,
    /// The rows to train on (and to hold some out of, without `validation`).
    pub train: CheckReport,
    /// The rows held out, if they have a source of their own.
    pub validation: Option<CheckReport>,
    /// Rows that are alike.
    pub similar: Option<Similar>,
    /// What is the matter with the two together.
    pub findings: Vec<Finding>,
}

impl Check {
    /// Puts the reports together.
    pub fn new(train: CheckReport, validation: Option<CheckReport>, similar: Option<Similar>) -> Self {
        let files: Vec<_> =
            [Some(&train), validation.as_ref()].into_iter().flatten().map(|r| &r.data).collect();
        let findings = similar.as_ref().map(|s| findings::similar(s, &files)).unwrap_or_default();
        Self { format_version: FORMAT_VERSION, train, validation, similar, findings }
    }

    /// Every finding with the source that its places are in, the worst first.
    pub fn findings(&self) -> Vec<(&Finding, &DataReport)> {
        let train = self.train.findings.iter().chain(&self.findings).map(|f| (f, &self.train.data));
        let held = self.validation.iter().flat_map(|r| r.findings.iter().map(|f| (f, &r.data)));
        let mut all: Vec<_> = train.chain(held).collect();
        all.sort_by_key(|(finding, _)| finding.severity);
        all
    }

    /// How many findings there are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings().iter().filter(|(f, _)| f.severity == severity).count()
    }
}

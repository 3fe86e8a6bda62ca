//! Counting, as the rows pass.

use super::findings;
use super::frequent::Frequent;
use super::lengths::Counts;
use super::{CheckReport, packing};
use crate::dataset::{Counted, DataReport, Fate, PrepareOptions, Prepared};
use crate::encode::{Encoder, TemplateChoice};
use crate::rows::RowContent;

/// What [`Statistics`] are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatOptions {
    /// Tokens of a pack; raised to the longest row.
    pub pack_tokens: usize,
}

impl Default for StatOptions {
    fn default() -> Self {
        Self { pack_tokens: 2048 }
    }
}

/// Counts what a check reports, row by row, in a few megabytes however many rows there are.
#[derive(Debug)]
pub struct Statistics {
    options: StatOptions,
    stop_ids: Vec<u32>,
    template: bool,
    all: Counts,
    used: Counts,
    prompts: Counts,
    trained: Counts,
    stopped: usize,
    unstopped: Counted,
    unstopped_turns: Counted,
    completions: Frequent,
    empty_prompts: Counted,
    edge_space: Counted,
    unseparated: Counted,
}

impl Statistics {
    /// Nothing counted yet; the rows are to come from this encoder.
    pub fn new(options: StatOptions, encoder: &Encoder) -> Self {
        Self {
            options,
            stop_ids: encoder.stop_ids().to_vec(),
            template: encoder.template().is_some(),
            all: Counts::default(),
            used: Counts::default(),
            prompts: Counts::default(),
            trained: Counts::default(),
            stopped: 0,
            unstopped: Counted::default(),
            unstopped_turns: Counted::default(),
            completions: Frequent::default(),
            empty_prompts: Counted::default(),
            edge_space: Counted::default(),
            unseparated: Counted::default(),
        }
    }

    /// Counts a row, whatever became of it.
    pub fn add(&mut self, row: &Prepared) {
        let example = &row.encoded.example;
        let length = example.ids.len();
        self.all.add(length + if let Fate::Truncated(cut) = row.fate { cut } else { 0 });
        if !row.fate.is_kept() {
            return;
        }
        let trained = example.trained_tokens();
        self.used.add(length);
        self.prompts.add(length - trained);
        self.trained.add(trained);
        self.stops(row);
        self.texts(row);
    }

    /// Whether each trained stretch ends in a stop token.
    fn stops(&mut self, row: &Prepared) {
        let example = &row.encoded.example;
        let place = example.place;
        let ends = |i: &usize| example.trained[*i] && !example.trained.get(i + 1).is_some_and(|next| *next);
        let stop = |i: usize| self.stop_ids.contains(&example.ids[i]);
        let mut unstopped = (0..example.ids.len()).filter(ends).filter(|i| !stop(*i)).peekable();
        let last = example.trained.iter().rposition(|trained| *trained);
        if unstopped.peek().is_none() {
            self.stopped += 1;
            return;
        }
        if last.is_some_and(stop) {
            self.stopped += 1;
            self.unstopped_turns.add(place);
        } else {
            self.unstopped.add(place);
        }
    }

    fn texts(&mut self, row: &Prepared) {
        let place = row.row.place;
        match &row.row.content {
            RowContent::PromptCompletion { prompt, completion } => {
                self.completions.add(completion, place);
                if prompt.trim().is_empty() {
                    self.empty_prompts.add(place);
                }
                if has_edge_space(completion) {
                    self.edge_space.add(place);
                }
                let word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
                let ends = prompt.chars().next_back();
                if !self.template && !ends.is_none_or(char::is_whitespace) && word(completion.chars().next())
                {
                    self.unseparated.add(place);
                }
            }
            RowContent::Messages(messages) => {
                let trained = |m: &&crate::rows::Message| m.is_assistant() && m.trained;
                if let Some(last) = messages.iter().rfind(trained) {
                    self.completions.add(&last.content, place);
                }
                let mut said = messages.iter().filter(|m| m.role == "user").peekable();
                if said.peek().is_none() || said.any(|m| m.content.trim().is_empty()) {
                    self.empty_prompts.add(place);
                }
                if messages.iter().filter(trained).any(|m| has_edge_space(&m.content)) {
                    self.edge_space.add(place);
                }
            }
        }
    }

    /// The report. `data` is what [`crate::prepare`] gave for the same rows under these options.
    pub fn finish(self, data: DataReport, options: &PrepareOptions, encoder: &Encoder) -> CheckReport {
        let mut report = CheckReport {
            max_seq_length: options.max_seq_length,
            over_long: options.over_long,
            template: if self.template { TemplateChoice::Chat } else { TemplateChoice::None },
            row_tokens: self.all.summary(),
            prompt_tokens: self.prompts.summary(),
            trained_tokens: self.trained.summary(),
            packing: packing::utilisation(&self.used, self.options.pack_tokens),
            stopped: self.stopped,
            unstopped_turns: self.unstopped_turns,
            repeated_completion: self.completions.finish(),
            empty_prompts: self.empty_prompts,
            edge_space: self.edge_space,
            unseparated: self.unseparated,
            findings: Vec::new(),
            data,
        };
        report.findings = findings::of(&report, &self.unstopped, options, encoder);
        report
    }
}

fn has_edge_space(text: &str) -> bool {
    text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace)
}

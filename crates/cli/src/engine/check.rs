//! `tunesmith data check`: rows read as a job reads them, and nothing trained.

use std::sync::atomic::{AtomicBool, Ordering};

use tunesmith_data::check::{
    Check, CheckReport, MaskPreview, NearDuplicates, NearOptions, StatOptions, Statistics,
};
use tunesmith_data::{
    Columns, Encoder, Format, OverLong, PrepareOptions, Prepared, TemplateChoice, prepare, split,
};

use super::base::Base;
use super::{Source, source};
use crate::error::CliError;
use crate::progress::Progress;

/// What a check is told.
#[derive(Debug, Clone)]
pub struct CheckRequest {
    /// The base model, whose tokenizer and template decide.
    pub source: Source,
    /// Where the rows are.
    pub train: Vec<String>,
    /// Where the rows to be held out are.
    pub validation: Option<String>,
    /// How the files are written, where their names do not tell.
    pub format: Option<Format>,
    /// Whether rows go through the chat template.
    pub template: TemplateChoice,
    /// Which columns hold what.
    pub columns: Columns,
    /// Longest row in tokens; the model's context when absent.
    pub max_seq_length: Option<usize>,
    /// What becomes of longer ones.
    pub over_long: OverLong,
    /// Column whose equal values a split keeps together.
    pub split_by: Option<String>,
    /// Rows to show.
    pub previews: usize,
}

/// What it found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The report.
    pub check: Check,
    /// The first rows that are trained on, as the model sees them.
    pub previews: Vec<MaskPreview>,
}

/// Checks rows.
///
/// # Errors
/// [`CliError::Cancelled`] when stopped through `cancel`; a model or a source that cannot be read. What is wrong with
/// rows is in the report.
pub fn check(
    request: &CheckRequest,
    progress: &mut Progress,
    cancel: &AtomicBool,
) -> Result<Checked, CliError> {
    let base = Base::open(&request.source, request.template, progress)?;
    let options = PrepareOptions {
        columns: request.columns.clone(),
        max_seq_length: base.sequence_limit(request.max_seq_length, "--max-seq-length")?,
        over_long: request.over_long,
        group: request.split_by.clone(),
    };
    let mut reading = Reading {
        request,
        options: &options,
        encoder: &base.encoder,
        near: NearDuplicates::new(NearOptions::new(std::env::temp_dir()))?,
        groups: Vec::new(),
        previews: Vec::new(),
        progress,
        cancel,
    };
    let train = reading.source(&request.train)?;
    let rows = reading.groups.len();
    let validation = match &request.validation {
        None => None,
        Some(uri) => {
            reading.near.next_source();
            Some(reading.source(std::slice::from_ref(uri))?)
        }
    };
    let Reading { near, groups, previews, .. } = reading;
    let mut held = vec![false; groups.len()];
    if validation.is_some() {
        held[rows..].fill(true);
    } else {
        // As a job splits that says nothing else.
        let defaults = crate::spec::DataSpec::default();
        for row in split(&groups, defaults.validation_split, defaults.seed)?.validation {
            held[row] = true;
        }
    }
    let similar = near.finish(&|row| held[row])?;
    Ok(Checked { check: Check::new(train, validation, Some(similar)), previews })
}

struct Reading<'a> {
    request: &'a CheckRequest,
    options: &'a PrepareOptions,
    encoder: &'a Encoder,
    near: NearDuplicates,
    /// What a split keeps together, for each row that is used.
    groups: Vec<u128>,
    previews: Vec<MaskPreview>,
    progress: &'a mut Progress,
    cancel: &'a AtomicBool,
}

impl Reading<'_> {
    fn source(&mut self, uris: &[String]) -> Result<CheckReport, CliError> {
        let mut records = source::open(uris, self.request.format)?;
        let mut statistics = Statistics::new(StatOptions::default(), self.encoder);
        let mut rows = 0;
        let (encoder, options) = (self.encoder, self.options);
        let mut each = |row: Prepared| {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(CliError::Cancelled);
            }
            rows += 1;
            self.progress.rows("reading", rows);
            statistics.add(&row);
            self.near.add(&row)?;
            if row.fate.is_kept() {
                self.groups.push(row.group);
                if self.previews.len() < self.request.previews {
                    self.previews.push(MaskPreview::new(&row, encoder.tokenizer())?);
                }
            }
            Ok(())
        };
        let report = prepare(&mut records, encoder, options, &mut each);
        self.progress.read();
        Ok(statistics.finish(report?, options, encoder))
    }
}

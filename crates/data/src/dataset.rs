//! From a file to tokenised examples, with an account of every row.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::encode::{BosRule, EncodedRow, Encoder};
use crate::error::{Error, RowError};
use crate::example::Example;
use crate::rows::{self, Columns, Line, Lines, MAX_LINE_BYTES};
use crate::split::split;

/// How many line numbers a report lists per reason.
const LISTED: usize = 10;
/// Lines and bytes that are tokenised at once: enough for every core, little beside the result.
const BATCH_LINES: usize = 4096;
const BATCH_BYTES: usize = 16 << 20;

/// How to read a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Which columns hold what.
    pub columns: Columns,
    /// Rows with more tokens than this are dropped and counted.
    pub max_seq_length: usize,
}

/// A number of rows and the first few of their lines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// How many rows.
    pub count: usize,
    /// One-based lines of the first of them.
    pub lines: Vec<usize>,
}

impl Counted {
    fn add(&mut self, line: usize) {
        self.count += 1;
        if self.lines.len() < LISTED {
            self.lines.push(line);
        }
    }
}

/// What became of the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// Rows read.
    pub rows: usize,
    /// Rows that became examples.
    pub kept: usize,
    /// Rows longer than the limit, left out.
    pub dropped_over_long: Counted,
    /// Rows without a trainable token, left out.
    pub zero_trained: Counted,
    /// Rows that repeat an earlier row exactly. They are kept.
    pub duplicates: usize,
    /// Tokens of the kept rows.
    pub tokens: usize,
    /// Tokens of the kept rows that count in the loss.
    pub trained_tokens: usize,
    /// Tokens of the longest kept row.
    pub longest: usize,
    /// Tokens that hold text from both sides of a trained span's edge, in the kept rows.
    pub boundary_merged: usize,
    /// Kept rows whose answer was ended by appending the tokenizer's EOS.
    pub eos_appended: usize,
    /// Kept rows whose own text spells out a control token, such as `</s>`, and so becomes one.
    pub control_text: Counted,
    /// Kept rows whose prompt the template renders differently at inference than inside the finished conversation.
    pub prompt_differs: Counted,
    /// Columns that nothing reads.
    pub ignored_columns: BTreeSet<String>,
    /// Where the BOS token comes from.
    pub bos: BosRule,
}

/// Tokenised rows in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The rows that can be trained on.
    pub examples: Vec<Example>,
    /// Content hash of each example's row, `[examples]`: what [`split`] groups by.
    pub fingerprints: Vec<u128>,
    /// What became of the rows.
    pub report: DataReport,
}

impl Dataset {
    /// Divides the examples into `(train, validation)` by content; see [`split`].
    ///
    /// # Errors
    /// [`Error::Fraction`].
    pub fn split(self, fraction: f64, seed: u64) -> Result<(Vec<Example>, Vec<Example>), Error> {
        let halves = split(&self.fingerprints, fraction, seed)?;
        let held: HashSet<usize> = halves.validation.into_iter().collect();
        let (mut train, mut validation) = (Vec::new(), Vec::new());
        for (i, example) in self.examples.into_iter().enumerate() {
            if held.contains(&i) { &mut validation } else { &mut train }.push(example);
        }
        Ok((train, validation))
    }
}

struct Read {
    shape: rows::Parsed,
    fingerprint: u128,
    encoded: Result<EncodedRow, RowError>,
}

/// Reads a JSONL file and tokenises it on all cores. Examples keep the file's order.
///
/// # Errors
/// The first row that cannot be used, an empty file, or a file in which no row is left to train on.
pub fn load(path: &Path, encoder: &Encoder, options: &LoadOptions) -> Result<Dataset, Error> {
    let mut loader = Loader::new(path, options);
    let mut lines = Lines::open(path, MAX_LINE_BYTES)?;
    loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_LINES && bytes < BATCH_BYTES {
            let Some(line) = lines.next_line()? else { break };
            bytes += line.text.as_ref().map_or(0, String::len);
            batch.push(line);
        }
        if batch.is_empty() {
            return loader.finish(encoder);
        }
        let read: Vec<Result<Read, (usize, RowError)>> = batch
            .into_par_iter()
            .map(|line| read_line(&line, encoder, &options.columns).map_err(|e| (line.number, e)))
            .collect();
        for row in read {
            let row = row.map_err(|(line, e)| Error::row(path, line, e))?;
            loader.take(row)?;
        }
    }
}

fn read_line(line: &Line, encoder: &Encoder, columns: &Columns) -> Result<Read, RowError> {
    let parsed = rows::parse_line(line, columns)?;
    let encoded = encoder.encode_row(&parsed.row);
    Ok(Read { fingerprint: parsed.row.fingerprint(), shape: parsed, encoded })
}

struct Loader<'a> {
    path: &'a Path,
    limit: usize,
    first: Option<(&'static str, usize)>,
    seen: HashSet<u128>,
    shortest: usize,
    longest: usize,
    data: Dataset,
}

impl<'a> Loader<'a> {
    fn new(path: &'a Path, options: &LoadOptions) -> Self {
        let data = Dataset { examples: Vec::new(), fingerprints: Vec::new(), report: DataReport::default() };
        let limit = options.max_seq_length;
        Self { path, limit, first: None, seen: HashSet::new(), shortest: usize::MAX, longest: 0, data }
    }

    fn take(&mut self, read: Read) -> Result<(), Error> {
        let row = &read.shape.row;
        let (shape, first_line) = *self.first.get_or_insert((row.shape(), row.line));
        rows::check_shape(self.path, shape, first_line, row)?;
        let line = row.line;
        let encoded = read.encoded.map_err(|e| Error::row(self.path, line, e))?;
        let report = &mut self.data.report;
        report.rows += 1;
        report.ignored_columns.extend(read.shape.ignored);
        report.duplicates += usize::from(!self.seen.insert(read.fingerprint));
        let length = encoded.example.ids.len();
        self.shortest = self.shortest.min(length);
        self.longest = self.longest.max(length);
        let trained = encoded.example.trained_tokens();
        if length > self.limit {
            report.dropped_over_long.add(line);
        } else if trained == 0 {
            report.zero_trained.add(line);
        } else {
            report.kept += 1;
            report.tokens += length;
            report.trained_tokens += trained;
            report.longest = report.longest.max(length);
            report.boundary_merged += encoded.boundary_merged;
            report.eos_appended += usize::from(encoded.eos_appended);
            if encoded.control_text {
                report.control_text.add(line);
            }
            if encoded.prompt_differs {
                report.prompt_differs.add(line);
            }
            self.data.examples.push(encoded.example);
            self.data.fingerprints.push(read.fingerprint);
        }
        Ok(())
    }

    fn finish(mut self, encoder: &Encoder) -> Result<Dataset, Error> {
        let report = &mut self.data.report;
        let path = self.path.to_owned();
        let rows = report.rows;
        if rows == 0 {
            return Err(Error::NoRows { path });
        }
        if report.dropped_over_long.count == rows {
            let (shortest, longest) = (self.shortest, self.longest);
            return Err(Error::AllOverLong { path, rows, limit: self.limit, shortest, longest });
        }
        let Some(first) = self.data.examples.first() else {
            let (zero_trained, over_long) = (report.zero_trained.count, report.dropped_over_long.count);
            return Err(Error::ZeroTrainable { path, rows, zero_trained, over_long });
        };
        report.bos = encoder.bos_rule(&first.ids);
        Ok(self.data)
    }
}

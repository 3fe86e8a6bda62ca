//! From a source to tokenised rows, with an account of every row.

use std::collections::{BTreeSet, HashSet};
use std::sync::mpsc::{Receiver, sync_channel};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::encode::{BosRule, ControlText, EncodedRow, Encoder};
use crate::error::{Error, RowError};
use crate::example::Example;
use crate::over_long::{self, OverLong};
use crate::rows::{Columns, Parsed, Row, Shape};
use crate::sip::Fingerprint;
use crate::snippet;
use crate::source::{self, FileFacts, Place, Record, Records};

/// How many places a report lists per reason.
const LISTED: usize = 10;
/// How many unusable rows a report describes.
const DESCRIBED: usize = 100;
/// Records and bytes that are tokenised at once: enough for every core, little beside what is kept.
const BATCH_RECORDS: usize = 2048;
const BATCH_BYTES: usize = 4 << 20;

/// How to read a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrepareOptions {
    /// Which columns hold what.
    pub columns: Columns,
    /// Longest row in tokens.
    pub max_seq_length: usize,
    /// What becomes of longer ones.
    pub over_long: OverLong,
    /// Column whose equal values keep rows together in a split; the whole content when absent.
    pub group: Option<String>,
}

/// A number of rows and the places of the first few.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// How many rows.
    pub count: usize,
    /// Where the first of them stand.
    pub places: Vec<Place>,
}

impl Counted {
    /// Counts a row.
    pub fn add(&mut self, place: Place) {
        self.count += 1;
        if self.places.len() < LISTED {
            self.places.push(place);
        }
    }
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// Where it stands.
    pub place: Place,
    /// What is wrong and what to do.
    pub message: String,
    /// The beginning of the row, or the stretch of it where the fault is; empty when it could not be read.
    #[serde(default)]
    pub snippet: String,
    #[serde(skip)]
    source: Option<RowError>,
}

/// What became of a row that could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is an example.
    Kept,
    /// It is an example whose prompt lost this many tokens at its beginning.
    Truncated(usize),
    /// It is longer than the limit and left out.
    OverLong,
    /// Nothing in it counts in the loss, so it is left out.
    ZeroTrained,
}

impl Fate {
    /// Whether the row is trained on.
    pub fn is_kept(self) -> bool {
        matches!(self, Self::Kept | Self::Truncated(_))
    }
}

/// A row that could be read, tokenised.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The row; under [`Fate::Truncated`] with the prompt that is left.
    pub row: Row,
    /// [`Row::fingerprint`] of the row as it was read.
    pub fingerprint: u128,
    /// What a split keeps together: rows of equal numbers. The fingerprint, or the hash of [`PrepareOptions::group`].
    pub group: u128,
    /// Ids and mask.
    pub encoded: EncodedRow,
    /// What becomes of it.
    pub fate: Fate,
    /// Columns that nothing read.
    pub ignored: BTreeSet<String>,
    /// Whether an earlier row of the source is the same.
    pub repeats: bool,
}

/// What became of the rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// The files the rows came from.
    pub files: Vec<FileFacts>,
    /// What the user should know of how the files were found and read, in sentences: what was left out, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What shape the rows have and which columns say so.
    pub shape: String,
    /// Rows read, the unusable ones included.
    pub rows: usize,
    /// Rows that became examples.
    pub kept: usize,
    /// Rows that cannot be used.
    pub bad: Counted,
    /// The first hundred of them, each with what is wrong.
    pub bad_rows: Vec<BadRow>,
    /// Rows longer than the limit, left out.
    pub dropped_over_long: Counted,
    /// Kept rows whose prompt was cut to fit the limit.
    pub truncated: Counted,
    /// Prompt tokens that were cut off.
    pub truncated_tokens: usize,
    /// Rows without a trainable token, left out.
    pub zero_trained: Counted,
    /// Rows that repeat an earlier row exactly. They are kept.
    pub duplicates: Counted,
    /// Tokens of the kept rows.
    pub tokens: usize,
    /// Tokens of the kept rows that count in the loss.
    pub trained_tokens: usize,
    /// Tokens of the longest kept row.
    pub longest: usize,
    /// Tokens of the shortest row of all.
    pub shortest_row: usize,
    /// Tokens of the longest row of all, before any cut.
    pub longest_row: usize,
    /// Tokens that hold text from both sides of a trained span's edge, in the kept rows.
    pub boundary_merged: usize,
    /// Kept rows whose answer was ended by appending the tokenizer's EOS.
    pub eos_appended: usize,
    /// Kept rows whose own text spells out a control token, such as `</s>`, and becomes one, because the row is
    /// trained without a chat template.
    pub control_text: Counted,
    /// Kept rows whose own text spells out a control token and stays text.
    pub literal_control_text: Counted,
    /// Kept rows whose prompt the template renders differently at inference than inside the finished conversation.
    pub prompt_differs: Counted,
    /// Columns that nothing reads.
    pub ignored_columns: BTreeSet<String>,
    /// Where the BOS token comes from.
    pub bos: BosRule,
}

impl DataReport {
    /// What to call the data set.
    pub fn title(&self) -> String {
        source::title(&self.files)
    }

    /// A place in words: the file and the line or row.
    pub fn locate(&self, place: Place) -> String {
        source::locate(&self.files, place)
    }

    /// Whether a job can train on these rows.
    ///
    /// # Errors
    /// Rows that cannot be used, no rows at all, or none left to train on.
    pub fn check(&self, options: &PrepareOptions) -> Result<(), Error> {
        let name = || self.title();
        if let Some(BadRow { place, source: Some(source), .. }) = self.bad_rows.first() {
            let (place, source, count) = (self.locate(*place), source.clone(), self.bad.count);
            return Err(if count == 1 {
                Error::Row { place, source }
            } else {
                Error::Rows { place, source, count }
            });
        }
        let rows = self.rows;
        if rows == 0 {
            return Err(Error::NoRows { name: name() });
        }
        if self.dropped_over_long.count == rows {
            let (shortest, longest) = (self.shortest_row, self.longest_row);
            let limit = options.max_seq_length;
            return Err(Error::AllOverLong { name: name(), rows, limit, shortest, longest });
        }
        if self.kept == 0 {
            let (zero_trained, over_long) = (self.zero_trained.count, self.dropped_over_long.count);
            return Err(Error::ZeroTrainable { name: name(), rows, zero_trained, over_long });
        }
        Ok(())
    }
}

/// Tokenised rows in memory, in the source's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The rows that can be trained on.
    pub examples: Vec<Example>,
    /// What [`crate::split`] groups by, for each example.
    pub groups: Vec<u128>,
    /// What became of the rows.
    pub report: DataReport,
}

/// Reads a source into memory. For data that is small for certain; a job uses [`prepare`].
///
/// # Errors
/// Those of [`prepare`] and [`DataReport::check`].
pub fn load(records: &mut Records, encoder: &Encoder, options: &PrepareOptions) -> Result<Dataset, Error> {
    let (mut examples, mut groups) = (Vec::new(), Vec::new());
    let report = prepare::<Error>(records, encoder, options, &mut |row| {
        if row.fate.is_kept() {
            examples.push(row.encoded.example);
            groups.push(row.group);
        }
        Ok(())
    })?;
    report.check(options)?;
    Ok(Dataset { examples, groups, report })
}

type Outcome = (Place, Result<Prepared, (RowError, String)>);

/// Reads a source to its end and tokenises it on all cores. `each` takes the rows that could be read, in the source's
/// order, with memory bounded by a few batches. Rows that cannot be used are counted and described in the report, which
/// says with [`DataReport::check`] whether they can be trained on.
///
/// # Errors
/// A source that breaks off, and whatever `each` ends with.
pub fn prepare<E: From<Error> + Send>(
    records: &mut Records,
    encoder: &Encoder,
    options: &PrepareOptions,
    each: &mut (dyn FnMut(Prepared) -> Result<(), E> + Send),
) -> Result<DataReport, E> {
    let mut account = Account::default();
    std::thread::scope(|scope| -> Result<(), E> {
        let (send, batches) = sync_channel(1);
        let reading = scope.spawn(|| {
            let send = send;
            loop {
                let batch = records.next_batch(BATCH_RECORDS, BATCH_BYTES)?;
                // Nobody takes more when the other side has failed.
                if batch.is_empty() || send.send(batch).is_err() {
                    return Ok(());
                }
            }
        });
        let tokenised = tokenise(&batches, encoder, options, &mut account, each);
        drop(batches);
        let read: Result<(), Error> = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        tokenised.and(read.map_err(E::from))
    })?;
    Ok(account.finish(records, encoder))
}

/// Tokenises one batch while `each` takes the one before it.
fn tokenise<E: From<Error> + Send>(
    batches: &Receiver<Vec<Record>>,
    encoder: &Encoder,
    options: &PrepareOptions,
    account: &mut Account,
    each: &mut (dyn FnMut(Prepared) -> Result<(), E> + Send),
) -> Result<(), E> {
    let mut shape = None;
    let mut before: Vec<Outcome> = Vec::new();
    loop {
        let batch = batches.recv().unwrap_or_default();
        let done = batch.is_empty();
        if shape.is_none() {
            shape = recognise(&batch, &options.columns);
            account.report.shape = shape.as_ref().map(Shape::to_string).unwrap_or_default();
        }
        let (outcomes, taken) = rayon::join(
            || {
                let read = |record| read(record, shape.as_ref(), encoder, options);
                batch.into_par_iter().map(read).collect::<Vec<Outcome>>()
            },
            || before.into_iter().try_for_each(|outcome| account.take(outcome, each)),
        );
        taken?;
        before = outcomes;
        if done {
            return Ok(());
        }
    }
}

/// The shape of the first record that has one.
fn recognise(batch: &[Record], columns: &Columns) -> Option<Shape> {
    batch.iter().find_map(|record| {
        let object = record.raw.as_ref().ok()?.to_object().ok()?;
        Shape::recognise(&object, columns).ok()
    })
}

fn read(record: Record, shape: Option<&Shape>, encoder: &Encoder, options: &PrepareOptions) -> Outcome {
    let place = record.place;
    let raw = match record.raw {
        Ok(raw) => raw,
        // What is no text has no snippet but the one in its error.
        Err(e) => return (place, Err((e, String::new()))),
    };
    let understood = raw.to_object().and_then(|object| {
        let key = options.group.as_deref().map(|column| group_key(&object, column)).transpose()?;
        let parsed = match shape {
            Some(shape) => shape.parse(object, place)?,
            // No record of the batch has a shape: each says why.
            None => Shape::recognise(&object, &options.columns)?.parse(object, place)?,
        };
        encode(parsed, key, encoder, options)
    });
    let prepared = understood.map_err(|e| {
        let snippet = snippet::of(&raw, &e);
        (e, snippet)
    });
    (place, prepared)
}

/// The hash of a column's value; the column itself stays for the row to read, if it does.
fn group_key(object: &Map<String, Value>, column: &str) -> Result<u128, RowError> {
    match object.get(column) {
        None => Err(RowError::missing(column, object)),
        Some(value) => Ok(Fingerprint::new().text("group").text(&value.to_string()).finish()),
    }
}

fn encode(
    parsed: Parsed,
    key: Option<u128>,
    encoder: &Encoder,
    options: &PrepareOptions,
) -> Result<Prepared, RowError> {
    let Parsed { row, mut ignored } = parsed;
    if let Some(column) = &options.group {
        ignored.remove(column);
    }
    let fingerprint = row.fingerprint();
    let group = key.unwrap_or(fingerprint);
    let encoded = encoder.encode_row(&row)?;
    let length = encoded.example.ids.len();
    let limit = options.max_seq_length;
    if length > limit {
        match options.over_long {
            OverLong::Fail => return Err(RowError::OverLong { tokens: length, limit }),
            OverLong::Drop => {}
            OverLong::TruncatePrompt => {
                if let Some((row, encoded)) = over_long::truncate_prompt(&row, length, encoder, limit)? {
                    let fate = if encoded.example.trained_tokens() == 0 {
                        Fate::ZeroTrained
                    } else {
                        Fate::Truncated(length - encoded.example.ids.len())
                    };
                    return Ok(Prepared { row, fingerprint, group, encoded, fate, ignored, repeats: false });
                }
            }
        }
    }
    let fate = match (length > limit, encoded.example.trained_tokens()) {
        (true, _) => Fate::OverLong,
        (false, 0) => Fate::ZeroTrained,
        (false, _) => Fate::Kept,
    };
    Ok(Prepared { row, fingerprint, group, encoded, fate, ignored, repeats: false })
}

/// The report in the making.
#[derive(Default)]
struct Account {
    report: DataReport,
    seen: HashSet<u128>,
    first: Option<Vec<u32>>,
}

impl Account {
    fn take<E: From<Error>>(
        &mut self,
        (place, outcome): Outcome,
        each: &mut (dyn FnMut(Prepared) -> Result<(), E> + Send),
    ) -> Result<(), E> {
        let report = &mut self.report;
        report.rows += 1;
        let mut prepared = match outcome {
            Ok(prepared) => prepared,
            Err((e, snippet)) => {
                report.bad.add(place);
                if report.bad_rows.len() < DESCRIBED {
                    report.bad_rows.push(BadRow { place, message: e.to_string(), snippet, source: Some(e) });
                }
                return Ok(());
            }
        };
        for column in &prepared.ignored {
            if !report.ignored_columns.contains(column) {
                report.ignored_columns.insert(column.clone());
            }
        }
        prepared.repeats = !self.seen.insert(prepared.fingerprint);
        if prepared.repeats {
            report.duplicates.add(place);
        }
        let encoded = &prepared.encoded;
        let length = encoded.example.ids.len();
        let before = length + if let Fate::Truncated(cut) = prepared.fate { cut } else { 0 };
        report.shortest_row = if report.shortest_row == 0 { before } else { report.shortest_row.min(before) };
        report.longest_row = report.longest_row.max(before);
        match prepared.fate {
            Fate::OverLong => report.dropped_over_long.add(place),
            Fate::ZeroTrained => report.zero_trained.add(place),
            Fate::Truncated(cut) => {
                report.truncated.add(place);
                report.truncated_tokens += cut;
            }
            Fate::Kept => {}
        }
        if prepared.fate.is_kept() {
            report.kept += 1;
            report.tokens += length;
            report.longest = report.longest.max(length);
            report.trained_tokens += encoded.example.trained_tokens();
            report.boundary_merged += encoded.boundary_merged;
            report.eos_appended += usize::from(encoded.eos_appended);
            match encoded.control_text {
                ControlText::None => {}
                ControlText::Literal => report.literal_control_text.add(place),
                ControlText::Control => report.control_text.add(place),
            }
            if encoded.prompt_differs {
                report.prompt_differs.add(place);
            }
            self.first.get_or_insert_with(|| encoded.example.ids.clone());
        }
        each(prepared)
    }

    fn finish(mut self, records: &Records, encoder: &Encoder) -> DataReport {
        self.report.files = records.files();
        self.report.notes = records.notes();
        if let Some(ids) = &self.first {
            self.report.bos = encoder.bos_rule(ids);
        }
        self.report
    }
}

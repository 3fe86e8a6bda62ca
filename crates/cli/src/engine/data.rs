//! The rows of a job: read, split, frozen into the job directory.

use std::fs;
use std::sync::Arc;

use serde_json::json;
use tunesmith_data::check::{Finding, NearDuplicates, Severity, StatOptions, Statistics};
use tunesmith_data::{
    BosRule, Columns, DataReport, Encoder, Examples as _, Part, Place, PrepareOptions, Prepared, Row, Spool,
    SpoolWriter, TokenStore, TokenStoreWriter, prepare as prepare_rows, split,
};

use super::frozen::row_of;
use super::{Run, alike, source};
use crate::error::CliError;
use tunesmith_jobs::dir::{FORMAT_VERSION, Freezer, Manifest};

/// What a run trains and evaluates on.
#[derive(Debug)]
pub(super) struct Parts {
    /// Trained on.
    pub(super) train: Part,
    /// Held out.
    pub(super) validation: Part,
    /// The first held-out rows as text, as many as the job previews.
    pub(super) previews: Vec<Row>,
    /// Where the BOS token comes from.
    pub(super) bos: BosRule,
}

impl Parts {
    /// Tokens of every row, trained on or held out: what a trainer makes room for.
    pub(super) fn lengths(&self) -> impl Iterator<Item = usize> {
        let of = |part: &Part| (0..part.len()).map(|i| part.tokens(i)).collect::<Vec<_>>();
        of(&self.train).into_iter().chain(of(&self.validation))
    }
}

/// Everything read from one source.
struct Data {
    report: DataReport,
    /// Tokens of the kept rows.
    tokens: Arc<TokenStore>,
    /// The kept rows as JSON texts.
    texts: Spool,
    /// What a split keeps together, for each kept row.
    groups: Vec<u128>,
}

/// Reads and splits the rows, and writes frozen copies of exactly those that are used, with a manifest.
pub(super) fn prepare(run: &mut Run<'_>, encoder: &Encoder, limit: usize) -> Result<Parts, CliError> {
    let spec = &run.spec.data;
    run.job.clear_data()?;
    let options = options(run, limit);
    let mut near = alike::start(&run.job.data())?;
    let source = read(run, &spec.train, encoder, &options, &mut near)?;
    near.next_source();
    let held_out = spec.validation.as_ref();
    let held_out = held_out.map(|uri| read(run, uri, encoder, &options, &mut near)).transpose()?;

    let all = |data: &Data| Part::new(data.tokens.clone(), (0..data.groups.len()).collect());
    let held_data = held_out.as_ref().unwrap_or(&source);
    let (train, validation) = if let Some(held_out) = &held_out {
        (all(&source), all(held_out))
    } else {
        let halves = split(&source.groups, spec.validation_split, spec.seed)?;
        let part = |rows| Part::new(source.tokens.clone(), rows);
        (part(halves.train), part(halves.validation))
    };
    if spec.validation_split > 0.0 && validation.rows().is_empty() {
        let message = format!("`{}` has too few different rows to hold any out", spec.train);
        let hint = Some("add rows, or set `data.validation_split = 0` to train on all of them".to_owned());
        return Err(CliError::Input { code: "too_few_examples", message, hint });
    }
    let before = held_out.as_ref().map_or(0, |_| source.groups.len());
    let reports: Vec<_> = std::iter::once(&source).chain(&held_out).map(|data| &data.report).collect();
    alike::report(run, near, before, &validation, &reports, said)?;

    let mut train_rows = run.job.freeze("train")?;
    freeze(&train, &source, &mut train_rows)?;
    let validation_rows = if validation.rows().is_empty() {
        None
    } else {
        let mut rows = run.job.freeze("validation")?;
        freeze(&validation, held_data, &mut rows)?;
        Some(rows.finish()?)
    };
    // Last: with it the rows are whole.
    run.job.write_manifest(&Manifest {
        format_version: FORMAT_VERSION,
        sources: std::iter::once(&source).chain(&held_out).map(|data| data.report.clone()).collect(),
        train: train_rows.finish()?,
        validation: validation_rows,
    })?;
    let wanted = validation.rows().iter().take(run.spec.preview.prompts);
    let previews = wanted.map(|&row| text_of(&held_data.texts, row, held_data.tokens.place(row)));
    let previews = previews.collect::<Result<_, _>>()?;
    Ok(Parts { train, validation, previews, bos: source.report.bos })
}

fn options(run: &Run<'_>, max_seq_length: usize) -> PrepareOptions {
    let spec = &run.spec.data;
    PrepareOptions {
        columns: Columns {
            prompt: spec.prompt_column.clone(),
            completion: spec.completion_column.clone(),
            messages: spec.messages_column.clone(),
        },
        max_seq_length,
        over_long: spec.over_long,
        group: spec.split_by.clone(),
    }
}

/// Reads a source to its end: tokens and texts of the rows that are used go to temporary files in the job directory,
/// which are gone when the run is.
fn read(
    run: &mut Run<'_>,
    uri: &str,
    encoder: &Encoder,
    options: &PrepareOptions,
    near: &mut NearDuplicates,
) -> Result<Data, CliError> {
    let dir = run.job.data();
    let failed = |source| CliError::Io { action: "create", path: dir.clone(), source };
    fs::create_dir_all(&dir).map_err(failed)?;
    let mut tokens = TokenStoreWriter::new(&dir)?;
    let mut texts = SpoolWriter::new(&dir)?;
    let mut groups = Vec::new();
    let mut statistics = Statistics::new(StatOptions::default(), encoder);
    let mut records = source::open(&[uri.to_owned()], run.spec.data.format)?;
    let (stop, mut rows) = (run.stop, 0);
    let progress = &mut run.progress;
    let mut each = |row: Prepared| {
        CliError::check(stop)?;
        rows += 1;
        progress.rows("reading", rows);
        statistics.add(&row);
        near.add(&row)?;
        if row.fate.is_kept() {
            tokens.push(&row.encoded.example)?;
            let text = serde_json::to_vec(&row.row.to_value());
            texts.push([text.map_err(|e| CliError::Internal(e.to_string()))?.as_slice()])?;
            groups.push(row.group);
        }
        Ok(())
    };
    let report = prepare_rows::<CliError>(&mut records, encoder, options, &mut each);
    progress.read();
    let report = report?;
    let checked = statistics.finish(report, options, encoder);
    run.log(&json!({ "type": "data", "data": { "source": uri, "check": &checked } }))?;
    checked.data.check(options)?;
    let title = checked.data.title();
    run.progress.note(&format!("`{title}`: {} rows, {}", checked.data.rows, checked.data.shape));
    for finding in &checked.findings {
        let text = said(finding, &checked.data);
        match finding.severity {
            Severity::Error => {
                let message = format!("`{title}`: {text}");
                let hint = Some(format!("`tunesmith data check {uri}` shows all of it"));
                return Err(CliError::Input { code: "invalid_data", message, hint });
            }
            Severity::Warning => run.progress.note(&format!("warning: `{title}`: {text}")),
            Severity::Note => run.progress.note(&format!("note: `{title}`: {text}")),
        }
    }
    let report = checked.data;
    Ok(Data { report, tokens: Arc::new(tokens.finish()?), texts: texts.finish()?, groups })
}

/// Copies the texts and places of a part's rows.
fn freeze(part: &Part, data: &Data, to: &mut Freezer) -> Result<(), CliError> {
    let mut text = Vec::new();
    for &row in part.rows() {
        data.texts.read(row, &mut text)?;
        let Place { file, number } = data.tokens.place(row);
        to.push(&text, (file, number))?;
    }
    Ok(())
}

/// A kept row, from its text.
fn text_of(texts: &Spool, row: usize, place: Place) -> Result<Row, CliError> {
    let mut text = Vec::new();
    texts.read(row, &mut text)?;
    row_of(&text, place)
}

/// A finding with the places of its first rows.
fn said(finding: &Finding, report: &DataReport) -> String {
    let one = |p: &Place| match report.files.as_slice() {
        [_] => p.number.to_string(),
        _ => report.locate(*p),
    };
    match finding.places.iter().map(one).collect::<Vec<_>>().join(", ").as_str() {
        "" => finding.message.clone(),
        listed => format!("{} (line {listed})", finding.message),
    }
}

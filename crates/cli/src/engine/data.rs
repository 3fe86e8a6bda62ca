//! The rows of a job: read, split, frozen into the job directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use serde_json::json;
use tunesmith_data::{
    Columns, Counted, DataReport, Dataset, Encoder, Example, LoadOptions, Row, load, read_rows,
};

use super::Run;
use crate::error::CliError;
use crate::jobdir::{FORMAT_VERSION, Freezer, Manifest, SourceFile, sha256_file};

/// What a run trains and evaluates on.
#[derive(Debug)]
pub(super) struct Parts {
    /// Trained on.
    pub(super) train: Vec<Example>,
    /// Held out.
    pub(super) validation: Vec<Example>,
    /// The first held-out rows as text, as many as the job previews.
    pub(super) previews: Vec<Row>,
}

/// A source file with its digest before it was read.
struct Source<'a> {
    path: &'a Path,
    sha256: String,
    data: Dataset,
}

/// Reads and splits the rows, and writes frozen copies of exactly those that are used, with a manifest.
pub(super) fn prepare(run: &mut Run<'_>, encoder: &Encoder, limit: usize) -> Result<Parts, CliError> {
    let spec = &run.spec.data;
    let options = LoadOptions { columns: columns(run), max_seq_length: limit };
    let source = open(run, &spec.train, encoder, &options)?;
    let held_out = spec.validation.as_ref().map(|path| open(run, path, encoder, &options)).transpose()?;

    let mut sources = vec![describe(&source)?];
    let train_file = (source.path, source.sha256.clone());
    let (train, split_off) = source.data.split(spec.validation_split, spec.seed)?;
    let (validation, validation_file) = match held_out {
        Some(held_out) => {
            sources.push(describe(&held_out)?);
            let file = (held_out.path, held_out.sha256.clone());
            (held_out.data.examples, Some(file))
        }
        None => (split_off, None),
    };
    if spec.validation_split > 0.0 && validation.is_empty() {
        let message = format!("`{}` has too few different rows to hold any out", spec.train.display());
        let hint = Some("add rows, or set `data.validation_split = 0` to train on all of them".to_owned());
        return Err(CliError::Input { code: "too_few_examples", message, hint });
    }

    let mut train_rows = run.job.freeze("train")?;
    let mut validation_rows = if validation.is_empty() { None } else { Some(run.job.freeze("validation")?) };
    let validation_path = validation_rows.as_ref().map(|rows| rows.path().to_owned());
    match (&validation_file, &mut validation_rows) {
        (None, Some(rows)) => copy(train_file, &mut [(&train, &mut train_rows), (&validation, rows)])?,
        (file, rows) => {
            copy(train_file, &mut [(&train, &mut train_rows)])?;
            if let (Some(file), Some(rows)) = (file, rows) {
                copy(file.clone(), &mut [(&validation, rows)])?;
            }
        }
    }
    run.job.write_manifest(&Manifest {
        format_version: FORMAT_VERSION,
        sources,
        train: train_rows.finish()?,
        validation: validation_rows.map(Freezer::finish).transpose()?,
    })?;

    let wanted = run.spec.preview.prompts;
    let mut previews = Vec::new();
    if let (Some(path), true) = (validation_path, wanted > 0) {
        previews = read_rows(&path, &options.columns)?;
        previews.truncate(wanted);
        for (row, example) in previews.iter_mut().zip(&validation) {
            row.line = example.line;
        }
    }
    Ok(Parts { train, validation, previews })
}

fn columns(run: &Run<'_>) -> Columns {
    let spec = &run.spec.data;
    Columns {
        prompt: spec.prompt_column.clone(),
        completion: spec.completion_column.clone(),
        messages: spec.messages_column.clone(),
    }
}

fn open<'a>(
    run: &mut Run<'_>,
    path: &'a Path,
    encoder: &Encoder,
    options: &LoadOptions,
) -> Result<Source<'a>, CliError> {
    let digest = sha256_file(path);
    let sha256 = digest.map_err(|source| CliError::Io { action: "read", path: path.to_owned(), source })?;
    let data = load(path, encoder, options)?;
    for warning in warnings(&data.report, options.max_seq_length) {
        run.progress.note(&format!("note: `{}`: {warning}", path.display()));
    }
    run.log(&json!({ "type": "data", "data": { "path": path, "report": &data.report } }))?;
    Ok(Source { path, sha256, data })
}

fn describe(source: &Source<'_>) -> Result<SourceFile, CliError> {
    let report = serde_json::to_value(&source.data.report).map_err(|e| CliError::Internal(e.to_string()))?;
    Ok(SourceFile { path: source.path.to_owned(), sha256: source.sha256.clone(), report })
}

/// What a person should know about the rows, though training goes on.
fn warnings(report: &DataReport, limit: usize) -> Vec<String> {
    let rows = |n: usize| if n == 1 { "1 row".to_owned() } else { format!("{n} rows") };
    let lines = |c: &Counted| {
        let listed = c.lines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let more = if c.count > c.lines.len() { ", ..." } else { "" };
        format!("{} (line {listed}{more})", rows(c.count))
    };
    let mut said = Vec::new();
    let mut say = |holds: bool, text: String| {
        if holds {
            said.push(text);
        }
    };
    let counted = |c: &Counted| c.count > 0;
    let over_long = &report.dropped_over_long;
    say(counted(over_long), format!("{} longer than {limit} tokens, left out", lines(over_long)));
    let zero = &report.zero_trained;
    say(counted(zero), format!("{} with nothing to learn, left out", lines(zero)));
    say(report.duplicates > 0, format!("{} repeat an earlier row", rows(report.duplicates)));
    let control = &report.control_text;
    say(counted(control), format!("{} whose text spells a control token, which it becomes", lines(control)));
    let differs = &report.prompt_differs;
    let text = format!("{} whose prompt the chat template renders differently at inference", lines(differs));
    say(counted(differs), text);
    let ignored: Vec<_> = report.ignored_columns.iter().map(|c| format!("`{c}`")).collect();
    say(!ignored.is_empty(), format!("columns that nothing reads: {}", ignored.join(", ")));
    said
}

/// Copies the lines of examples from their source, which must still be what was read.
fn copy(file: (&Path, String), parts: &mut [(&Vec<Example>, &mut Freezer)]) -> Result<(), CliError> {
    let (path, sha256) = file;
    let failed = |source| CliError::Io { action: "read", path: path.to_owned(), source };
    let mut part_of = HashMap::new();
    for (part, (examples, _)) in parts.iter().enumerate() {
        part_of.extend(examples.iter().map(|e| (e.line, part)));
    }
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?);
    let mut line = Vec::new();
    let mut number = 0;
    while reader.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        number += 1;
        if let Some(&part) = part_of.get(&number) {
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            let text = if number == 1 { text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text) } else { text };
            parts[part].1.push(text)?;
        }
        line.clear();
    }
    if sha256_file(path).map_err(failed)? != sha256 {
        let message =
            format!("`{}` changed while it was read; run again when it is complete", path.display());
        return Err(CliError::Input { code: "invalid_file_format", message, hint: None });
    }
    Ok(())
}

//! The frozen rows of a job, read back: whatever has become of the source, a job trains on what it was made with.

use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Map, Value};
use tunesmith_data::{
    Columns, DataReport, Encoder, Example, Part, Place, Row, RowError, Shape, TokenStoreWriter,
};
use tunesmith_jobs::dir::{FrozenFile, FrozenPlace, Manifest};

use super::Run;
use super::data::Parts;
use crate::error::CliError;

/// Rows that are tokenised at once.
const BATCH: usize = 2048;

/// The parts of a job whose manifest is written; nothing if it is not.
///
/// # Errors
/// Frozen rows that are not what was written, by name; [`CliError::Cancelled`] and [`CliError::Paused`].
pub(super) fn load(run: &mut Run<'_>, encoder: &Encoder, limit: usize) -> Result<Option<Parts>, CliError> {
    let Some(manifest) = run.job.read_manifest::<DataReport>()? else { return Ok(None) };
    let Manifest { sources, train, validation, .. } = manifest;
    let train = part(run, &train, encoder, limit, 0)?.0;
    let (validation, previews) = match &validation {
        None => {
            (Part::new(Arc::new(TokenStoreWriter::new(&run.job.data())?.finish()?), Vec::new()), Vec::new())
        }
        Some(file) => part(run, file, encoder, limit, run.spec.preview.prompts)?,
    };
    let bos = sources.first().map(|source| source.bos).unwrap_or_default();
    Ok(Some(Parts { train, validation, previews, bos }))
}

/// The rows of one frozen file as examples, and the first of them as text.
fn part(
    run: &mut Run<'_>,
    file: &FrozenFile,
    encoder: &Encoder,
    limit: usize,
    previews: usize,
) -> Result<(Part, Vec<Row>), CliError> {
    // What is damaged stays so, however often it is tried.
    let damaged = |e: tunesmith_jobs::Error| match e {
        tunesmith_jobs::Error::Corrupt { .. } => {
            CliError::Input { code: "invalid_data", message: e.to_string(), hint: None }
        }
        other => other.into(),
    };
    let mut frozen = file.open(&run.job.data()).map_err(damaged)?;
    let mut tokens = TokenStoreWriter::new(&run.job.data())?;
    let mut texts = Vec::new();
    let mut done = 0;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH
            && let Some(row) = frozen.next_row().map_err(damaged)?
        {
            batch.push(row);
        }
        if batch.is_empty() {
            break;
        }
        run.check_stopped()?;
        let encoded: Vec<_> = batch.into_par_iter().map(|row| encode(&row, encoder, limit)).collect();
        for encoded in encoded {
            done += 1;
            let (row, example) = encoded.map_err(|e| CliError::Input {
                code: "invalid_data",
                message: format!("row {done} of `{}` cannot be used: {e}", frozen.path().display()),
                hint: Some("the base model's tokenizer has changed since; start a new job".to_owned()),
            })?;
            tokens.push(&example)?;
            if texts.len() < previews {
                texts.push(row);
            }
            run.progress.rows("reading", done);
        }
    }
    run.progress.read();
    Ok((Part::new(Arc::new(tokens.finish()?), (0..file.rows).collect()), texts))
}

/// A frozen row with its tokens. It was an example when it was frozen, so it must be one now.
fn encode(
    (text, place): &(Vec<u8>, FrozenPlace),
    encoder: &Encoder,
    limit: usize,
) -> Result<(Row, Example), CliError> {
    let row = row_of(text, Place { file: place.0, number: place.1 })?;
    let example = encoder.encode_row(&row).map_err(|e| CliError::Internal(e.to_string()))?.example;
    if example.ids.len() > limit {
        let tokens = example.ids.len();
        return Err(CliError::Internal(RowError::OverLong { tokens, limit }.to_string()));
    }
    if example.trained_tokens() == 0 {
        return Err(CliError::Internal("nothing of it counts in the loss".to_owned()));
    }
    Ok((row, example))
}

/// A row under the standard names, from its text.
pub(super) fn row_of(text: &[u8], place: Place) -> Result<Row, CliError> {
    let object: Map<String, Value> =
        serde_json::from_slice(text).map_err(|e| CliError::Internal(e.to_string()))?;
    let shape = Shape::recognise(&object, &Columns::default())?;
    Ok(shape.parse(object, place)?.row)
}

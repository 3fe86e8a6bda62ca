//! Replies to held-out rows before and after training.

use std::fs;

use serde::{Deserialize, Serialize};
use tunesmith_data::{Encoder, Message, Prompt, Row, RowContent};
use tunesmith_infer::{FinishReason, Request, Sampling, generate};
use tunesmith_model::Decoder;
use tunesmith_ops::Kernels;

use super::{Run, Stop};
use crate::error::CliError;
use tunesmith_jobs::dir::{Preview, write_atomic};

/// Name of the file, in the job's directory, that keeps the replies of the untrained model while it is trained.
const FILE: &str = "previews.json";

/// Lists the previews in the result, with the replies of the untrained model, which `decoder` must be: those that an
/// earlier attempt of the same run kept, or new ones.
pub(super) fn before<K: Kernels>(
    run: &mut Run<'_>,
    decoder: &mut Decoder<K>,
    encoder: &Encoder,
    rows: &[Row],
    fingerprint: &str,
) -> Result<(), CliError> {
    let path = run.job.path().join(FILE);
    // What cannot be read is made again.
    let kept = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
    if let Some(kept) = kept.filter(|k| k.fingerprint == fingerprint && k.previews.len() == rows.len()) {
        run.result.previews = kept.previews;
        return Ok(());
    }
    for row in rows {
        let Some(before) = reply(run, decoder, encoder, row)? else {
            run.check_stopped()?;
            return Err(CliError::Paused);
        };
        let (prompt, expected) = texts(row);
        run.result.previews.push(Preview {
            line: row.place.number as usize,
            prompt,
            expected,
            before,
            after: None,
        });
    }
    if !rows.is_empty() {
        let kept = Kept { fingerprint: fingerprint.to_owned(), previews: run.result.previews.clone() };
        let text = serde_json::to_vec(&kept).map_err(|e| CliError::Internal(e.to_string()))?;
        write_atomic(&path, &text)?;
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
struct Kept {
    fingerprint: String,
    previews: Vec<Preview>,
}

/// Generates the replies of the trained model. A cancel that comes here loses nothing but the replies; a pause does not
/// lose even them.
pub(super) fn after<K: Kernels>(
    run: &mut Run<'_>,
    decoder: &mut Decoder<K>,
    encoder: &Encoder,
    rows: &[Row],
) -> Result<(), CliError> {
    for (i, row) in rows.iter().enumerate() {
        let after = reply(run, decoder, encoder, row)?;
        if after.is_none() && run.stop.now() == Stop::Pause {
            return Err(CliError::Paused);
        }
        if let Some(preview) = run.result.previews.get_mut(i) {
            preview.after = after;
        }
    }
    Ok(())
}

/// The greedy reply to a row, or nothing when the run is stopped meanwhile.
fn reply<K: Kernels>(
    run: &Run<'_>,
    decoder: &mut Decoder<K>,
    encoder: &Encoder,
    row: &Row,
) -> Result<Option<String>, CliError> {
    let prompt = match &row.content {
        RowContent::PromptCompletion { prompt, .. } => encoder.encode_prompt(Prompt::Text(prompt))?,
        RowContent::Messages(messages) => encoder.encode_prompt(Prompt::Messages(asked(messages).0))?,
    };
    let request = Request {
        prompt: &prompt,
        max_new_tokens: run.spec.preview.max_new_tokens,
        sampling: Sampling::default(),
        stop_ids: encoder.stop_ids(),
    };
    let reply = generate(decoder, &request, &mut |_| {
        run.progress.beat();
        !run.is_stopped()
    })?;
    if reply.finish_reason == FinishReason::Cancelled {
        return Ok(None);
    }
    Ok(Some(encoder.tokenizer().decode(&reply.ids, true)?))
}

/// A conversation up to its last assistant turn, and that turn.
fn asked(messages: &[Message]) -> (&[Message], Option<&Message>) {
    match messages.iter().rposition(Message::is_assistant) {
        Some(last) => (&messages[..last], messages.get(last)),
        None => (messages, None),
    }
}

/// What a row asks, and the reply it has.
fn texts(row: &Row) -> (String, String) {
    match &row.content {
        RowContent::PromptCompletion { prompt, completion } => (prompt.clone(), completion.clone()),
        RowContent::Messages(messages) => {
            let (asked, answer) = asked(messages);
            let prompt =
                asked.iter().map(|m| format!("{}: {}", m.role, m.content)).collect::<Vec<_>>().join("\n");
            (prompt, answer.map(|m| m.content.clone()).unwrap_or_default())
        }
    }
}

//! Replies to held-out rows before and after training.

use tunesmith_data::{Encoder, Message, Prompt, Row, RowContent};
use tunesmith_infer::{FinishReason, Request, Sampling, generate};
use tunesmith_model::Decoder;
use tunesmith_ops::Kernels;

use super::Run;
use crate::error::CliError;
use tunesmith_jobs::dir::Preview;

/// Generates the replies of the untrained model and lists the previews in the result.
pub(super) fn before<K: Kernels>(
    run: &mut Run<'_>,
    decoder: &mut Decoder<K>,
    encoder: &Encoder,
    rows: &[Row],
) -> Result<(), CliError> {
    for row in rows {
        let Some(before) = reply(run, decoder, encoder, row)? else { return Err(CliError::Cancelled) };
        let (prompt, expected) = texts(row);
        run.result.previews.push(Preview {
            line: row.place.number as usize,
            prompt,
            expected,
            before,
            after: None,
        });
    }
    Ok(())
}

/// Generates the replies of the trained model. Stopping here loses nothing but the replies.
pub(super) fn after<K: Kernels>(
    run: &mut Run<'_>,
    decoder: &mut Decoder<K>,
    encoder: &Encoder,
    rows: &[Row],
) -> Result<(), CliError> {
    for (i, row) in rows.iter().enumerate() {
        let after = reply(run, decoder, encoder, row)?;
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
    let reply = generate(decoder, &request, &mut |_| !run.is_cancelled())?;
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

//! `tunesmith generate`: one reply.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tunesmith_data::{Message, Prompt, TemplateChoice};
use tunesmith_infer::{self as engine, FinishReason, Request, Sampling};
use tunesmith_model::peft;
use tunesmith_ops::Kernels;

use super::base::Base;
use super::device::{self, Work};
use super::{GenerateRequest, Generated, Input, Source};
use crate::error::CliError;
use crate::out;
use crate::progress::Progress;

/// Generates a reply, giving each piece of text to `emit` as soon as it is certain.
///
/// # Errors
/// [`CliError::Cancelled`] when stopped through `cancel`; whatever `emit` returns; whatever is wrong with model,
/// adapter or prompt.
pub fn generate(
    request: &GenerateRequest,
    progress: &mut Progress,
    cancel: &AtomicBool,
    emit: &mut dyn FnMut(&str) -> Result<(), CliError>,
) -> Result<Generated, CliError> {
    let template = match request.input {
        Input::Raw(_) => TemplateChoice::None,
        Input::Prompt(_) => TemplateChoice::Auto,
        Input::Messages(_) => TemplateChoice::Chat,
    };
    let base = Base::open(&request.source, template, progress)?;
    let prompt = match &request.input {
        Input::Raw(text) | Input::Prompt(text) => base.encoder.encode_prompt(Prompt::Text(text))?,
        Input::Messages(messages) => {
            let messages: Vec<_> = messages.iter().map(|(role, text)| Message::new(role, text)).collect();
            base.encoder.encode_prompt(Prompt::Messages(&messages))?
        }
    };
    device::run(&request.device, Generating { request, base: &base, prompt: &prompt, progress, cancel, emit })
}

/// All of it that needs the device.
struct Generating<'a> {
    request: &'a GenerateRequest,
    base: &'a Base,
    prompt: &'a [u32],
    progress: &'a mut Progress,
    cancel: &'a AtomicBool,
    emit: &'a mut dyn FnMut(&str) -> Result<(), CliError>,
}

impl Work for Generating<'_> {
    type Output = Generated;

    fn on<K: Kernels>(self, kernels: K) -> Result<Generated, CliError> {
        let Self { request, base, prompt, progress, cancel, emit } = self;
        let mut decoder = match &request.adapter {
            None => base.load(kernels, None, progress)?,
            Some(dir) => {
                let (config, tensors) = peft::load(dir)?;
                if let Some(trained_on) = &config.base_model_name_or_path {
                    note_other_base(trained_on, &request.source, progress);
                }
                let mut decoder = base.load(kernels, Some(&config.lora), progress)?;
                let applied = decoder.set_adapter(dir, &tensors)?;
                progress.note(&format!("applied {applied} tensors of `{}`", dir.display()));
                decoder
            }
        };
        progress.finish();

        let started = Instant::now();
        let tokenizer = base.encoder.tokenizer();
        let mut stream = tokenizer.stream(true);
        let mut text = String::new();
        let mut failed = None;
        let asked = Request {
            prompt,
            max_new_tokens: request.max_new_tokens,
            sampling: Sampling { temperature: request.temperature, top_p: request.top_p, seed: request.seed },
            stop_ids: base.encoder.stop_ids(),
        };
        let reply = engine::generate(&mut decoder, &asked, &mut |id| {
            let piece = stream.push(id).map_err(CliError::from);
            let emitted = piece.and_then(|piece| {
                let piece = piece.unwrap_or_default();
                text.push_str(&piece);
                emit(&piece)
            });
            failed = emitted.err();
            failed.is_none() && !out::stdout_closed() && !cancel.load(Ordering::Relaxed)
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if reply.finish_reason == FinishReason::Cancelled && cancel.load(Ordering::Relaxed) {
            return Err(CliError::Cancelled);
        }
        if let Some(rest) = stream.finish()? {
            text.push_str(&rest);
            emit(&rest)?;
        }
        Ok(Generated {
            text,
            finish_reason: reply.finish_reason.as_str(),
            prompt_tokens: prompt.len(),
            completion_tokens: reply.ids.len(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// Says when an adapter names another base model than the one it is put on: shapes may fit all the same.
fn note_other_base(trained_on: &str, source: &Source, progress: &Progress) {
    let name = |path: &Path| path.file_name().map(ToOwned::to_owned);
    let (same, given) = match source {
        Source::Repo { id, .. } => {
            (id == trained_on || name(Path::new(trained_on)) == name(Path::new(id)), id.clone())
        }
        Source::Dir(dir) => {
            let same_place = match (std::fs::canonicalize(dir), std::fs::canonicalize(trained_on)) {
                (Ok(a), Ok(b)) => a == b || name(&a) == name(&b),
                (Ok(a), Err(_)) => name(&a) == name(Path::new(trained_on)),
                _ => false,
            };
            (same_place, dir.display().to_string())
        }
    };
    if !same {
        progress.note(&format!("note: the adapter was trained on `{trained_on}`, and is put on `{given}`"));
    }
}

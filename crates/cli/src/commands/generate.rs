//! `tunesmith generate`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::args::GenerateArgs;
use crate::commands::current_dir;
use crate::engine::{self, Input, Source};
use crate::error::CliError;
use crate::progress::Progress;
use crate::{interrupt, out};

/// Generates, streaming text to standard output, or one JSON object at the end.
pub(crate) fn run(args: &GenerateArgs) -> Result<(), CliError> {
    let input = input(args)?;
    let source = Source::locate(&args.base, args.hub.revision.as_deref(), args.hub.offline, &current_dir()?)?;
    let cancel = interrupt::install("stopping")?;
    let request = engine::GenerateRequest {
        device: engine::resolve_device(&args.device, args.json)?,
        source,
        adapter: args.adapter.clone(),
        input,
        max_new_tokens: args.max_new_tokens as usize,
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
    };
    let mut progress = Progress::new(args.json);
    let mut ended_line = true;
    let generated = engine::generate(&request, &mut progress, &cancel, &mut |piece| {
        if args.json {
            return Ok(());
        }
        if !piece.is_empty() {
            ended_line = piece.ends_with('\n');
        }
        out::print(piece)
    })?;
    if args.json {
        return out::json(&json!({
            "text": generated.text,
            "finish_reason": generated.finish_reason,
            "prompt_tokens": generated.prompt_tokens,
            "completion_tokens": generated.completion_tokens,
            "seconds": generated.seconds,
            "base": args.base,
            "adapter": args.adapter,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "seed": args.seed,
        }));
    }
    if ended_line { Ok(()) } else { out::line("") }
}

fn input(args: &GenerateArgs) -> Result<Input, CliError> {
    if let Some(path) = &args.messages {
        return messages(path).map(Input::Messages);
    }
    let mut prompt = args.prompt.clone().unwrap_or_default();
    if prompt == "-" {
        prompt = read_stdin()?;
    }
    if prompt.trim().is_empty() && !args.raw {
        return Err(CliError::Usage {
            message: "the prompt is empty".to_owned(),
            hint: Some("give it as `--prompt TEXT`, or on standard input with `--prompt -`".to_owned()),
        });
    }
    Ok(if args.raw { Input::Raw(prompt) } else { Input::Prompt(prompt) })
}

fn read_stdin() -> Result<String, CliError> {
    let mut bytes = Vec::new();
    let path = PathBuf::from("standard input");
    std::io::stdin().lock().read_to_end(&mut bytes).map_err(|source| CliError::Io {
        action: "read",
        path,
        source,
    })?;
    let mut text = String::from_utf8(bytes)
        .map_err(|_| bad_input("the prompt on standard input is not valid UTF-8".into()))?;
    // The newline that ends the last line of a file is not part of what is asked.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// Reads a list of messages, or an object with `messages`, as pairs of role and content.
fn messages(path: &Path) -> Result<Vec<(String, String)>, CliError> {
    let text = std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => missing("messages file", path),
        _ => CliError::Io { action: "read", path: path.to_owned(), source },
    })?;
    let file = path.display();
    let value: Value =
        serde_json::from_slice(&text).map_err(|e| bad_input(format!("`{file}` is not valid JSON: {e}")))?;
    let list = value.get("messages").unwrap_or(&value).as_array();
    let list = list.ok_or_else(|| bad_input(format!("`{file}` holds no list of messages")))?;
    if list.is_empty() {
        return Err(bad_input(format!("the list of messages in `{file}` is empty")));
    }
    let field = |i: usize, message: &Value, name: &str| {
        let text = message.get(name).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| bad_input(format!("message {} in `{file}` has no text in `{name}`", i + 1)))
    };
    list.iter().enumerate().map(|(i, m)| Ok((field(i, m, "role")?, field(i, m, "content")?))).collect()
}

fn bad_input(message: String) -> CliError {
    CliError::Input { code: "invalid_file_format", message, hint: None }
}

/// The error for a file that is not there.
pub(super) fn missing(what: &str, path: &Path) -> CliError {
    CliError::Input {
        code: "file_not_found",
        message: format!("the {what} `{}` does not exist", path.display()),
        hint: None,
    }
}

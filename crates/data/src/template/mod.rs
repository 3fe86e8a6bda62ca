//! Hugging Face chat templates: the model's own Jinja template, rendered as `apply_chat_template` does.

mod clock;
mod jinja;
mod marks;

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::Value as Json;

pub use self::clock::Now;
use crate::error::{Error, RowError};
use crate::rows::Message;

/// The most text one rendering may produce, in bytes.
const MAX_RENDERED_BYTES: usize = 256 << 20;
/// Steps of the template engine per rendering (one per instruction and per 64 bytes handled): a template that loops
/// without end fails instead of hanging. It also bounds the memory of a rendering, to half a gigabyte.
const FUEL: u64 = 8_000_000;
const NAME: &str = "chat_template";

/// The special tokens a template can name, as `(key, text)`, such as `("bos_token", "<s>")`.
pub type SpecialTokens = Vec<(String, String)>;

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text.
    pub text: String,
    /// Byte ranges of `text` that stand between `{% generation %}` and `{% endgeneration %}`, in order.
    pub spans: Vec<Range<usize>>,
}

/// A compiled chat template with everything that Hugging Face puts in its scope.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    tokens: SpecialTokens,
    marked: bool,
    source: String,
}

impl ChatTemplate {
    /// Compiles `source`. `path` is the file it came from, for error messages.
    ///
    /// # Errors
    /// [`Error::TemplateFile`] with the line that does not parse.
    pub fn new(source: &str, tokens: SpecialTokens, now: Now, path: &Path) -> Result<Self, Error> {
        let (rewritten, marked) = marks::rewrite(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let mut env = jinja::environment(now);
        env.set_fuel(Some(FUEL));
        env.add_template_owned(NAME, rewritten)
            .map_err(|e| Error::TemplateFile { path: path.to_owned(), what: reason(&e) })?;
        Ok(Self { env, tokens, marked, source: source.to_owned() })
    }

    /// Reads the template of a model folder: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`
    /// (a text, or a list of named templates of which `default` is taken). `None` when there is neither.
    ///
    /// # Errors
    /// Unreadable files, a list without `default`, a template that does not parse.
    pub fn from_dir(dir: &Path, tokens: SpecialTokens, now: Now) -> Result<Option<Self>, Error> {
        match find_source(dir)? {
            Some((source, path)) => Self::new(&source, tokens, now, &path).map(Some),
            None => Ok(None),
        }
    }

    /// The template's own text, unchanged.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template marks the assistant's text with `{% generation %}`.
    pub fn has_generation_marks(&self) -> bool {
        self.marked
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`RowError::Template`] with the template's own message (`raise_exception`) or the engine's, and
    /// [`RowError::ReservedCharacter`] when a message holds a character that stands for a span mark.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered, RowError> {
        if self.marked {
            marks::check(messages)?;
        }
        let list: Vec<Value> = messages.iter().map(message_value).collect();
        let mut context: Vec<(&str, Value)> =
            self.tokens.iter().map(|(key, text)| (key.as_str(), Value::from(text.as_str()))).collect();
        context.push(("messages", Value::from(list)));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        // Hugging Face passes these two as None: defined, and none.
        context.push(("tools", Value::from(())));
        context.push(("documents", Value::from(())));
        let mut out = Bounded { bytes: Vec::new(), full: false };
        let template = self.env.get_template(NAME).map_err(|e| RowError::Template(reason(&e)))?;
        let rendered = template.render_captured_to(Value::from_pairs(context), &mut out).map(|_| ());
        if out.full {
            let what = format!("it produced more than {MAX_RENDERED_BYTES} bytes of text");
            return Err(RowError::Template(what));
        }
        rendered.map_err(|e| RowError::Template(reason(&e)))?;
        let text = String::from_utf8(out.bytes).map_err(|e| RowError::Template(e.to_string()))?;
        Ok(if self.marked { marks::extract(&text) } else { Rendered { text, spans: Vec::new() } })
    }
}

fn message_value(message: &Message) -> Value {
    let fixed = [("role", &message.role), ("content", &message.content)];
    let fixed = fixed.into_iter().map(|(k, v)| (k.to_owned(), Value::from(v.as_str())));
    let extra = message.extra.iter().map(|(k, v)| (k.clone(), Value::from(Serde(v))));
    Value::from_pairs(fixed.chain(extra))
}

/// The engine's error in one line; `raise_exception`'s own words alone, as Hugging Face shows them.
fn reason(error: &minijinja::Error) -> String {
    if let Some(words) = jinja::raised(error) {
        return words.to_owned();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return "it did not finish within the step limit".to_owned();
    }
    let detail = error.detail().map_or(String::new(), |d| format!(": {d}"));
    let line = error.line().map_or(String::new(), |l| format!(" (template line {l})"));
    format!("{}{detail}{line}", error.kind())
}

struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + buf.len() > MAX_RENDERED_BYTES {
            self.full = true;
            return Err(io::Error::other("too much text"));
        }
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn find_source(dir: &Path) -> Result<Option<(String, PathBuf)>, Error> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return Ok(Some((source, path))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(&path, e)),
    }
    let path = dir.join("tokenizer_config.json");
    let Some(config) = crate::tokenizer::read_json(&path)? else {
        return Ok(None);
    };
    let source = match config.get("chat_template") {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::String(source)) => source.clone(),
        Some(Json::Array(named)) => named
            .iter()
            .find(|t| t.get("name").and_then(Json::as_str) == Some("default"))
            .and_then(|t| t.get("template").and_then(Json::as_str))
            .ok_or_else(|| {
                Error::tokenizer(&path, "`chat_template` is a list without an entry named `default`; add one")
            })?
            .to_owned(),
        Some(_) => {
            return Err(Error::tokenizer(
                &path,
                "`chat_template` is neither a text nor a list of templates; correct it",
            ));
        }
    };
    Ok(Some((source, path)))
}

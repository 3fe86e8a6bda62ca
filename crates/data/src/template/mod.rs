//! Hugging Face chat templates: the model's own Jinja template, rendered as `apply_chat_template` does.
//!
//! Templates come with models and are not trusted. One can only print text of the conversation and its own, inside
//! bounds of steps, memory and output (`bounds`), and best in a process of its own with limits (`helper`); known ones
//! are not run at all (`native`). What a message says is not trusted either: where it spells out a control token, the
//! rendering says so (`control`).

mod bounds;
mod clock;
mod control;
mod helper;
mod jinja;
mod keep;
mod marks;
mod native;
mod source;

use std::ops::Range;
use std::path::Path;

use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};

use self::bounds::{Budget, Output};
pub use self::clock::Now;
use self::control::{ControlTexts, Side};
use self::helper::Helpers;
pub use self::helper::{TemplateHelper, serve_templates};
use self::native::{Renderer, Talk};
use crate::error::{Error, RowError};
use crate::rows::Message;

const NAME: &str = "chat_template";

/// The special tokens a template can name, as `(key, text)`, such as `("bos_token", "<s>")`.
pub type SpecialTokens = Vec<(String, String)>;

/// A rendered conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The whole text.
    pub text: String,
    /// Byte ranges of `text` that stand between `{% generation %}` and `{% endgeneration %}`, in order.
    pub spans: Vec<Range<usize>>,
    /// Byte positions of `text`, ascending, each strictly inside a spelling of a control token that came out of a
    /// message and not out of the template, or out of both together: such a spelling is text, not the control token.
    pub literal: Vec<usize>,
}

/// A compiled chat template with everything that Hugging Face puts in its scope.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    tokens: SpecialTokens,
    marked: bool,
    source: String,
    native: Option<Renderer>,
    now: Now,
    control: ControlTexts,
    helpers: Option<Helpers>,
}

impl ChatTemplate {
    /// Compiles `source`. `path` is the file it came from, for error messages.
    ///
    /// # Errors
    /// [`Error::TemplateFile`] with the line that does not parse, or with the bound that the template breaks.
    pub fn new(source: &str, tokens: SpecialTokens, now: Now, path: &Path) -> Result<Self, Error> {
        let broken = |what: String| Error::TemplateFile { path: path.to_owned(), what };
        bounds::check_source(source).map_err(broken)?;
        let (rewritten, marked) = marks::rewrite(&source.replace("\r\n", "\n").replace('\r', "\n"));
        let mut env = jinja::environment(now);
        bounds::compile(&mut env, NAME, rewritten).map_err(broken)?;
        let native = native::find(source);
        Ok(Self {
            env,
            tokens,
            marked,
            source: source.to_owned(),
            native,
            now,
            control: ControlTexts::default(),
            helpers: None,
        })
    }

    /// Reads the template of a model folder: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`
    /// (a text, or a list of named templates of which `default` is taken). `None` when there is neither.
    ///
    /// # Errors
    /// Unreadable files, a list without `default`, a template that does not parse.
    pub fn from_dir(dir: &Path, tokens: SpecialTokens, now: Now) -> Result<Option<Self>, Error> {
        match source::find_source(dir)? {
            Some((source, path)) => Self::new(&source, tokens, now, &path).map(Some),
            None => Ok(None),
        }
    }

    /// Sets the texts that the tokenizer turns into control tokens wherever they stand: those of its added tokens that
    /// are special. Only these are told apart by [`Rendered::literal`]; an added token that is not special, such as
    /// `</think>` in some models, stays the token it spells, as in Hugging Face. A control token of one character
    /// cannot be told apart, for no position lies inside it.
    #[must_use]
    pub fn with_control_texts<I>(mut self, texts: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.control = ControlTexts::new(texts.into_iter().map(Into::into).collect());
        self
    }

    /// Has the template run by helper processes, in limits of memory and time that hold whatever it does. A known one
    /// ([`ChatTemplate::is_native`]) needs none and stays as it is.
    ///
    /// # Errors
    /// [`Error::TemplateHelper`] when the helper cannot be started.
    pub fn with_helper(mut self, helper: &TemplateHelper) -> Result<Self, Error> {
        if !self.is_native() {
            self.helpers = Some(Helpers::start(helper, &self)?);
        }
        Ok(self)
    }

    /// The template's own text, unchanged.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template marks the assistant's text with `{% generation %}`.
    pub fn has_generation_marks(&self) -> bool {
        self.marked
    }

    /// Whether the template is a known one, which is rendered without running it. Unusual conversations (further keys
    /// in a message, roles that do not alternate, …) go through the template all the same.
    pub fn is_native(&self) -> bool {
        self.native.is_some()
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`RowError::Template`] with the template's own message (`raise_exception`) or the engine's, and
    /// [`RowError::ReservedCharacter`] when a message holds a character that stands for a mark.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered, RowError> {
        self.literals(messages, |messages| {
            let known = self.native.and_then(|renderer| {
                let talk = Talk { messages, tokens: &self.tokens, add_generation_prompt, now: self.now };
                native::render(renderer, &talk)
            });
            known.map_or_else(|| self.run(messages, add_generation_prompt), Ok)
        })
    }

    /// Renders a conversation by running the template even where it is a known one: the reference for
    /// [`ChatTemplate::render`], which gives the same.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_jinja(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, RowError> {
        self.literals(messages, |messages| self.run(messages, add_generation_prompt))
    }

    /// Renders, and finds the control tokens that come out of `messages`: these are rendered once more with marks at
    /// the places in question. What is returned is the rendering without marks. A template whose text changes with
    /// the marks decides by the very text in question; when that is so for either side of it, the row is refused.
    fn literals(
        &self,
        messages: &[Message],
        render: impl Fn(&[Message]) -> Result<Rendered, RowError>,
    ) -> Result<Rendered, RowError> {
        if self.marked {
            marks::check(messages, &marks::MARKS)?;
        }
        let Some(found) = self.control.first_touched(messages) else {
            return render(messages);
        };
        marks::check(messages, &control::MARKS)?;
        let mut plain = render(messages)?;
        for side in [Side::Before, Side::After] {
            let Ok(marked) = render(&self.control.mark(messages, side)) else { continue };
            let (bare, places) = control::take_marks(&marked);
            if bare == plain {
                plain.literal = self.control.literal(&plain.text, &places);
                return Ok(plain);
            }
        }
        Err(RowError::Template(format!(
            "a message contains text of the control token `{found}`, and the template decides by it or changes it, so that it cannot be kept apart from the token itself; remove it from the message"
        )))
    }

    fn run(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered, RowError> {
        match &self.helpers {
            Some(helpers) => helpers.render(messages, add_generation_prompt),
            None => self.run_here(messages, add_generation_prompt),
        }
    }

    /// Runs the template in this process.
    fn run_here(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered, RowError> {
        let list: Vec<Value> = messages.iter().map(message_value).collect();
        let mut context: Vec<(&str, Value)> =
            self.tokens.iter().map(|(key, text)| (key.as_str(), Value::from(text.as_str()))).collect();
        context.push(("messages", Value::from(list)));
        context.push(("add_generation_prompt", Value::from(add_generation_prompt)));
        // Hugging Face passes these two as None: defined, and none.
        context.push(("tools", Value::from(())));
        context.push(("documents", Value::from(())));
        let budget = Budget::of(messages);
        // A clone shares everything but the fuel, which each rendering has for itself.
        let mut env = self.env.clone();
        env.set_fuel(Some(budget.fuel));
        let mut out = Output::new(budget.output);
        let template = env.get_template(NAME).map_err(|e| RowError::Template(reason(&e)))?;
        let rendered = template.render_captured_to(Value::from_pairs(context), &mut out).map(|_| ());
        if out.is_full() {
            let what = format!("it produced more than {} bytes of text", budget.output);
            return Err(RowError::Template(what));
        }
        rendered.map_err(|e| RowError::Template(reason(&e)))?;
        let text = String::from_utf8(out.into_bytes()).map_err(|e| RowError::Template(e.to_string()))?;
        Ok(if self.marked { marks::extract(&text) } else { Rendered { text, ..Rendered::default() } })
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

//! Bounds on what a template may ask of this machine: the size of its source, steps, memory and output.
//!
//! The engine counts steps and the bytes it makes ("fuel"). What it does not count is counted or refused here: the
//! depth of its source, text formatted to a width, and the size of nested lists and maps, which grow twofold with each
//! `[x, x]`. What one expression does is counted when it is done, so that `x ~ ''` or `x == y` on lists that the same
//! expression built can take any memory and time here: against that stand the limits of a process (`helper`).

use std::io::{self, Write};
use std::sync::Arc;

use minijinja::filters::split;
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::marks;
use crate::rows::Message;

/// Name of the filter that bounds what a variable keeps.
pub(super) const KEEP: &str = "tunesmith_keep";

/// Bytes of source. The longest templates in use have some 30 KiB.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Words, signs and strings of one tag: the compiler follows chains of operators in depth.
const MAX_TAG_TOKENS: usize = 2_000;
/// `elif` tags: the compiler nests them.
const MAX_ELIFS: usize = 1_000;
/// Stack to compile on: a debug build needs some 10 KiB for each of those.
const COMPILE_STACK_BYTES: usize = 256 << 20;
/// Levels of lists and maps.
const MAX_DEPTH: usize = 100;
/// Values in one variable, those of lists and maps included.
const MAX_VALUES: usize = 200_000;
/// Spaces for one level of JSON.
const MAX_JSON_INDENT: usize = 32;
/// The largest width or precision in a format.
const MAX_FORMAT_WIDTH: usize = 1_000;
/// Bytes that the engine makes for one step.
const BYTES_PER_STEP: usize = 64;

/// What one rendering may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Steps of the engine, one per instruction and per 64 bytes made. They bound the memory too, to some three times
    /// the bytes that they pay for.
    pub(super) fuel: u64,
    /// Bytes of output.
    pub(super) output: usize,
}

impl Budget {
    const LEAST_FUEL: usize = 1_000_000;
    /// Pays for 320 MB.
    const MOST_FUEL: usize = 5_000_000;
    const FUEL_PER_MESSAGE: usize = 2_000;
    /// Some templates look at every character.
    const FUEL_PER_BYTE: usize = 16;
    const LEAST_OUTPUT: usize = 1 << 20;

    /// A million steps and 16 for each byte of the conversation, up to five million; a megabyte of output, or four
    /// times the conversation and 64 KiB.
    pub(super) fn of(messages: &[Message]) -> Self {
        let bytes: usize = messages.iter().map(size).sum();
        let fuel = Self::LEAST_FUEL + Self::FUEL_PER_MESSAGE * messages.len() + Self::FUEL_PER_BYTE * bytes;
        let output = Self::LEAST_OUTPUT.max(4 * bytes + (64 << 10));
        Self { fuel: fuel.min(Self::MOST_FUEL) as u64, output }
    }
}

fn size(message: &Message) -> usize {
    let extra = message.extra.iter().map(|(k, v)| k.len() + json_size(v)).sum::<usize>();
    message.role.len() + message.content.len() + extra
}

fn json_size(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len(),
        serde_json::Value::Array(list) => list.iter().map(|v| 2 + json_size(v)).sum(),
        serde_json::Value::Object(map) => map.iter().map(|(k, v)| 4 + k.len() + json_size(v)).sum(),
        _ => 8,
    }
}

/// Output up to a bound.
pub(super) struct Output {
    bytes: Vec<u8>,
    limit: usize,
    full: bool,
}

impl Output {
    pub(super) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, full: false }
    }

    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + buf.len() > self.limit {
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

/// Refuses a source that is too long or whose tags are.
pub(super) fn check_source(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!("it is longer than {MAX_SOURCE_BYTES} bytes"));
    }
    let mut elifs = 0;
    let mut broken = None;
    marks::tags(source, |at, tag, name| {
        elifs += usize::from(name == "elif");
        if broken.is_none() && tokens(tag) > MAX_TAG_TOKENS {
            broken = Some(at);
        }
    });
    if let Some(at) = broken {
        let line = source[..at].matches('\n').count() + 1;
        return Err(format!("a tag has more than {MAX_TAG_TOKENS} words and signs (template line {line})"));
    }
    if elifs > MAX_ELIFS {
        return Err(format!("it has more than {MAX_ELIFS} `elif` tags"));
    }
    Ok(())
}

/// Words, signs and strings of a tag.
fn tokens(tag: &str) -> usize {
    let mut count = 0;
    let mut word = false;
    let mut chars = tag.chars();
    while let Some(c) = chars.next() {
        let in_word = c.is_alphanumeric() || c == '_';
        count += usize::from(!(c.is_whitespace() || in_word && word));
        word = in_word;
        if c == '"' || c == '\'' {
            let mut escaped = false;
            for inside in chars.by_ref() {
                if inside == c && !escaped {
                    break;
                }
                escaped = inside == '\\' && !escaped;
            }
        }
    }
    count
}

/// Compiles on a stack of its own: the compiler recurses, and panics in debug builds on lines of 64 KiB.
pub(super) fn compile(
    env: &mut Environment<'static>,
    name: &'static str,
    source: String,
) -> Result<(), String> {
    std::thread::scope(|scope| {
        let work = move || env.add_template_owned(name, source).map_err(|e| super::reason(&e));
        let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| format!("no thread to compile it on could be started ({e})"))?;
        thread.join().unwrap_or_else(|_| Err("the template engine gave up on it".to_owned()))
    })
}

fn refuse(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// Pays for `bytes` handled.
pub(super) fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / BYTES_PER_STEP) as u64)
}

/// Bytes of a value as text, about, all of its parts counted as often as they show.
///
/// # Errors
/// When it is nested too deep, has too many parts, or the fuel runs out.
pub(super) fn measure(state: &State, value: &Value) -> Result<usize, Error> {
    let mut walk = Walk { state, values: 0, bytes: 0 };
    walk.value(value, 0)?;
    Ok(walk.bytes)
}

struct Walk<'a, 'env, 'out> {
    state: &'a State<'env, 'out>,
    values: usize,
    bytes: usize,
}

impl Walk<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(refuse(format!("a list or map has more than {MAX_VALUES} values inside")));
        }
        if self.values.is_multiple_of(4) {
            self.state.consume_fuel(1)?;
        }
        if let Some(text) = value.as_str() {
            self.bytes = self.bytes.saturating_add(text.len());
            return Ok(());
        }
        let map = value.kind() == ValueKind::Map;
        if !map && !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            self.bytes = self.bytes.saturating_add(24);
            return Ok(());
        }
        if depth == MAX_DEPTH {
            return Err(refuse(format!("lists and maps are nested deeper than {MAX_DEPTH} levels")));
        }
        // A namespace can be changed to hold itself.
        if depth > 0 && is_namespace(value) {
            return Err(refuse("a namespace cannot be put into a list, a map or a namespace"));
        }
        for item in value.try_iter()? {
            self.bytes = self.bytes.saturating_add(4);
            self.value(&item, depth + 1)?;
            if map {
                self.value(&value.get_item(&item)?, depth + 1)?;
            }
        }
        Ok(())
    }
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|o| o.type_name().ends_with("::Namespace"))
}

/// The filter on everything that `set` keeps. `inside`: the target is a namespace's attribute.
pub(super) fn keep(state: &State, value: Value, inside: Option<bool>) -> Result<Value, Error> {
    if value.as_object().is_some() {
        let mut walk = Walk { state, values: 0, bytes: 0 };
        walk.value(&value, usize::from(inside == Some(true)))?;
    }
    Ok(value)
}

/// A width of JSON that makes sense.
pub(super) fn check_indent(indent: Option<usize>) -> Result<(), Error> {
    match indent {
        Some(width) if width > MAX_JSON_INDENT => {
            Err(refuse(format!("tojson indents by {MAX_JSON_INDENT} spaces at most")))
        }
        _ => Ok(()),
    }
}

/// Pays for what a method reads and may write; the engine pays for the text it is called on and for what it returns.
pub(super) fn before_method(state: &State, value: &Value, method: &str, args: &[Value]) -> Result<(), Error> {
    let read: usize = args.iter().filter_map(Value::as_str).map(str::len).sum();
    charge(state, read)?;
    match (method, value.as_str()) {
        ("format", Some(pattern)) => before_format(state, pattern, '{', args),
        ("join", Some(_)) => args.iter().try_for_each(|list| charge(state, measure(state, list)?)),
        _ => Ok(()),
    }
}

/// `replace(…)`: the engine does not pay for reading a long `old`.
pub(super) fn replace_filter(
    state: &mut State,
    text: &Value,
    old: &str,
    new: &str,
    rest: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let (count, named): (Option<i32>, Kwargs) = from_args(&rest.into_values())?;
    let count = match count {
        Some(count) => Some(count),
        None => named.get("count")?,
    };
    named.assert_all_used()?;
    charge(state, old.len())?;
    let args = [Value::from(old), Value::from(new), Value::from(count.unwrap_or(-1))];
    unknown_method_callback(state, text, "replace", &args)
}

/// `split(…)`: as [`replace_filter`].
pub(super) fn split_filter(
    state: &State,
    text: &Value,
    separator: Option<&str>,
    most: Option<i64>,
) -> Result<Value, Error> {
    charge(state, separator.map_or(0, str::len))?;
    split(text, separator.map(Arc::from), most)
}

/// `format(…)` with `%`.
pub(super) fn format_filter(
    state: &State,
    pattern: &str,
    args: Rest<ValueOrKwargs>,
) -> Result<String, Error> {
    let args = args.into_values();
    before_format(state, pattern, '%', &args)?;
    format(FormatStyle::Printf, pattern, &args)
}

/// Pays for the longest text that a format could give, and refuses great widths.
fn before_format(state: &State, pattern: &str, field: char, args: &[Value]) -> Result<(), Error> {
    let mut longest = 0;
    for arg in args {
        longest = longest.max(measure(state, arg)?);
    }
    let mut bytes = 0_usize;
    for piece in pattern.split(field).skip(1) {
        // `{:>5}` and `%-5.2f`: what stands between the sign and the end of the field.
        let spec = if field == '{' {
            piece.split('}').next().unwrap_or_default()
        } else {
            let named = piece.strip_prefix('(').and_then(|p| p.split_once(')')).map_or(piece, |(_, p)| p);
            let end = named.find(|c: char| !matches!(c, '-' | '+' | ' ' | '#' | '.' | '*' | '0'..='9'));
            &named[..end.unwrap_or(named.len())]
        };
        let numbers = spec.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
        let width = numbers.map(|n| n.parse().unwrap_or(usize::MAX)).max().unwrap_or(0);
        // A width may come from an argument: `%*d`, `{:{}}`.
        if width > MAX_FORMAT_WIDTH
            || spec.contains('*')
            || (field == '{' && !piece.contains('}') && spec.contains(':'))
        {
            return Err(refuse(format!(
                "a format asks for a width of more than {MAX_FORMAT_WIDTH}, or for one from an argument"
            )));
        }
        bytes = bytes.saturating_add(longest).saturating_add(2 * width);
    }
    charge(state, bytes)
}

//! The Jinja environment of Hugging Face: Python's methods on text, `raise_exception`, `strftime_now` and `tojson`.

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use serde_json::ser::Formatter;

use super::{Now, bounds, marks};

/// What a template said through `raise_exception`.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The message of `raise_exception`, if that is what ended the rendering.
pub(super) fn raised(error: &Error) -> Option<&str> {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(Raised(words)) = inner.downcast_ref::<Raised>() {
            return Some(words);
        }
        source = inner.source();
    }
    None
}

pub(super) fn environment(now: Now) -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    // The default delimiters always build; keeping the environment's own is the same thing.
    if let Ok(syntax) = syntax {
        env.set_syntax(syntax);
    }
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(python_method);
    env.add_function("raise_exception", |words: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(words)))
    });
    env.add_function("strftime_now", move |pattern: String| {
        now.format(&pattern).map_err(|what| Error::new(ErrorKind::InvalidOperation, what))
    });
    env.add_filter("tojson", tojson);
    env.add_filter("trim", |state: &State, text: String, chars: Option<String>| {
        strip(state, &text, chars.as_deref(), (true, true))
    });
    env.add_filter("format", bounds::format_filter);
    env.add_filter("replace", bounds::replace_filter);
    env.add_filter("split", bounds::split_filter);
    env.add_filter(bounds::KEEP, bounds::keep);
    env.add_filter(marks::FILTER, |text: String| marks::wrap(&text));
    env
}

/// Python's `str.isspace`: Unicode white space and the four ASCII separators that Rust does not count.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.strip`, `lstrip` and `rstrip` without arguments.
pub(super) fn trim(text: &str, start: bool, end: bool) -> &str {
    let text = if start { text.trim_start_matches(is_space) } else { text };
    if end { text.trim_end_matches(is_space) } else { text }
}

fn strip(
    state: &State,
    text: &str,
    chars: Option<&str>,
    (start, end): (bool, bool),
) -> Result<String, Error> {
    let Some(set) = chars else { return Ok(trim(text, start, end).to_owned()) };
    // Each character of the text may be looked up in the whole set.
    bounds::charge(state, text.len().saturating_mul(set.len()))?;
    let text = if start { text.trim_start_matches(|c| set.contains(c)) } else { text };
    let text = if end { text.trim_end_matches(|c| set.contains(c)) } else { text };
    Ok(text.to_owned())
}

fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let sides = match method {
        "strip" => Some((true, true)),
        "lstrip" => Some((true, false)),
        "rstrip" => Some((false, true)),
        _ => None,
    };
    if let (Some((start, end)), Some(text), ValueKind::String) = (sides, value.as_str(), value.kind()) {
        let (chars,): (Option<&str>,) = from_args(args)?;
        return Ok(Value::from(strip(state, text, chars, (start, end))?));
    }
    bounds::before_method(state, value, method, args)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// `json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)`, without HTML escapes.
fn tojson(state: &State, value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(width) => Some(width),
        None => options.get::<Option<usize>>("indent")?,
    };
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    options.assert_all_used()?;
    let fail = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    bounds::check_indent(indent)?;
    bounds::measure(state, value)?;
    let mut json = serde_json::to_value(value).map_err(fail)?;
    if sorted {
        json.sort_all_objects();
    }
    let mut out = Vec::new();
    let layout = PythonJson { indent, depth: 0, filled: false };
    serde::Serialize::serialize(&json, &mut serde_json::Serializer::with_formatter(&mut out, layout))
        .map_err(fail)?;
    let text = String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(if ascii { escape_non_ascii(&text) } else { text })
}

fn escape_non_ascii(text: &str) -> String {
    use fmt::Write;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing into a String cannot fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    out
}

/// Python's separators: `", "` and `": "` on one line, `","` and a line break when indented.
struct PythonJson {
    indent: Option<usize>,
    depth: usize,
    filled: bool,
}

impl PythonJson {
    fn open<W: ?Sized + std::io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth += 1;
        self.filled = false;
        w.write_all(bracket)
    }

    fn close<W: ?Sized + std::io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> std::io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.new_line(w)?;
        }
        self.filled = true;
        w.write_all(bracket)
    }

    fn item<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        self.filled = true;
        if !first {
            w.write_all(if self.indent.is_some() { b"," } else { b", " })?;
        }
        self.new_line(w)
    }

    fn new_line<W: ?Sized + std::io::Write>(&self, w: &mut W) -> std::io::Result<()> {
        match self.indent {
            Some(width) => write!(w, "\n{:1$}", "", width * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for PythonJson {
    fn write_f64<W: ?Sized + std::io::Write>(&mut self, w: &mut W, value: f64) -> std::io::Result<()> {
        // Python's repr: shortest digits that read back the same; an exponent below 1e-4 and from 1e16 on.
        let size = value.abs();
        if size != 0.0 && !(1e-4..1e16).contains(&size) {
            let text = format!("{value:e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            return write!(w, "{digits}e{sign}{exponent:0>2}");
        }
        write!(w, "{value:?}")
    }

    fn begin_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.open(w, b"[")
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.close(w, b"]")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.item(w, first)
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.open(w, b"{")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.close(w, b"}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.item(w, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

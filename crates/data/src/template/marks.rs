//! `{% generation %}` … `{% endgeneration %}`: the marks that tell which text is the assistant's.
//!
//! The engine has no such tag, so it is rewritten to a filter block whose filter puts a noncharacter before and after
//! its text; these are taken out of the rendering again and leave byte ranges behind.

use std::borrow::Cow;

use serde_json::Value;

use super::{Rendered, keep};
use crate::error::RowError;
use crate::rows::Message;

pub(super) const FILTER: &str = "tunesmith_generation_span";
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

pub(super) fn wrap(text: &str) -> String {
    format!("{OPEN}{text}{CLOSE}")
}

/// The characters that must not stand in a conversation.
pub(super) const MARKS: [char; 2] = [OPEN, CLOSE];

/// Text of the conversation must not look like one of `marks`.
pub(super) fn check(messages: &[Message], marks: &[char]) -> Result<(), RowError> {
    for m in messages {
        check_text(&m.role, marks)?;
        check_text(&m.content, marks)?;
        for (key, value) in &m.extra {
            check_text(key, marks)?;
            check_json(value, marks)?;
        }
    }
    Ok(())
}

fn check_json(value: &Value, marks: &[char]) -> Result<(), RowError> {
    match value {
        Value::String(text) => check_text(text, marks),
        Value::Array(list) => list.iter().try_for_each(|v| check_json(v, marks)),
        Value::Object(map) => map.iter().try_for_each(|(k, v)| {
            check_text(k, marks)?;
            check_json(v, marks)
        }),
        _ => Ok(()),
    }
}

fn check_text(text: &str, marks: &[char]) -> Result<(), RowError> {
    // The first byte of every mark: most text has none, and that is quick to see.
    if !text.as_bytes().contains(&0xEF) {
        return Ok(());
    }
    match text.chars().find(|c| marks.contains(c)) {
        Some(c) => Err(RowError::ReservedCharacter { code: u32::from(c) }),
        None => Ok(()),
    }
}

pub(super) fn extract(marked: &str) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut start = 0;
    for piece in marked.split_inclusive([OPEN, CLOSE]) {
        match piece.chars().next_back() {
            Some(OPEN) => {
                text.push_str(&piece[..piece.len() - OPEN.len_utf8()]);
                start = text.len();
            }
            Some(CLOSE) => {
                text.push_str(&piece[..piece.len() - CLOSE.len_utf8()]);
                spans.push(start..text.len());
            }
            _ => text.push_str(piece),
        }
    }
    Rendered { text, spans, literal: Vec::new() }
}

/// A piece of a template's source.
enum Piece<'a> {
    /// Text, a comment, or what stands in a raw block.
    Text(&'a str),
    /// `{{ … }}` or `{% … %}`, with the statement's name.
    Tag(&'a str, &'a str),
}

/// Takes `source` apart as the engine does.
fn pieces(source: &str, mut each: impl FnMut(usize, Piece<'_>)) {
    let mut at = 0;
    let mut raw = false;
    while let Some(found) = source[at..].find('{') {
        let start = at + found;
        if found > 0 {
            each(at, Piece::Text(&source[at..start]));
        }
        let rest = &source[start..];
        let statement = rest.starts_with("{%");
        let name = if statement { tag_name(rest) } else { "" };
        let length = match rest.as_bytes().get(1) {
            Some(b'#') if !raw => rest.find("#}").map_or(rest.len(), |e| e + 2),
            Some(b'{') if !raw => tag_length(rest, "}}"),
            // Inside a raw block a tag is only text: look again right behind its first character.
            Some(b'%') if !raw || name == "endraw" => tag_length(rest, "%}"),
            _ => 1,
        };
        let piece = &rest[..length];
        at = start + length;
        if length > 1 && !piece.starts_with("{#") {
            raw = name == "raw";
            each(start, Piece::Tag(piece, name));
        } else {
            each(start, Piece::Text(piece));
        }
    }
    each(at, Piece::Text(&source[at..]));
}

/// Every tag of `source`: where it starts, its text, and its statement's name.
pub(super) fn tags(source: &str, mut each: impl FnMut(usize, &str, &str)) {
    pieces(source, |at, piece| {
        if let Piece::Tag(tag, name) = piece {
            each(at, tag, name);
        }
    });
}

/// Rewrites the two tags, keeping their white-space control, and says whether there were any; puts a bound on what
/// `set` keeps. Comments, expressions, quoted text and raw blocks stay as they are.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut marked = false;
    pieces(source, |_, piece| {
        let replaced: Cow<'_, str> = match piece {
            Piece::Tag(tag, "generation") => {
                marked = true;
                // The variables set inside stay inside, as in the body of a call block.
                let (open, close) = ends(tag);
                format!("{open} with -%}}{{%- filter {FILTER} {close}").into()
            }
            Piece::Tag(tag, "endgeneration") => {
                let (open, close) = ends(tag);
                format!("{open} endfilter -%}}{{%- endwith {close}").into()
            }
            Piece::Tag(tag, "set") => keep::set(tag),
            Piece::Tag(tag, name @ ("for" | "macro" | "call" | "with")) => keep::names(tag, name),
            Piece::Tag(text, _) | Piece::Text(text) => text.into(),
        };
        out.push_str(&replaced);
    });
    (out, marked)
}

fn tag_name(tag: &str) -> &str {
    let inner = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let end = inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len());
    &inner[..end]
}

/// The opening and closing of a tag with their white-space marks: `{%-` and `-%}`.
pub(super) fn ends(tag: &str) -> (&str, &str) {
    let open = 2 + usize::from(tag[2..].starts_with(['-', '+']));
    let body = tag.strip_suffix("%}").unwrap_or(tag);
    let close = body.len() - usize::from(body.len() > open && body.ends_with(['-', '+']));
    (&tag[..open], &tag[close..])
}

/// Bytes up to and with `end`, which does not count inside quotes and brackets.
fn tag_length(text: &str, end: &str) -> usize {
    let mut quote = None;
    let mut open = 0_isize;
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(2) {
        match quote {
            Some(q) => {
                if !escaped && c == q {
                    quote = None;
                }
                escaped = !escaped && c == '\\';
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            None if open == 0 && text[i..].starts_with(end) => return i + end.len(),
            None if matches!(c, '(' | '[' | '{') => open += 1,
            None if matches!(c, ')' | ']' | '}') => open -= 1,
            None => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_tags_are_rewritten() {
        let same = [
            "{# {% generation %} #}x",
            "{{ '{% generation %}' }}",
            "{% raw %}{% generation %}{% endraw %}",
            "{% if a == '%} {% generation %}' %}x{% endif %}",
            "{{ {'a': {}} }}{% set generation %}{% endset %}{ } {",
            "{% generations %}",
        ];
        for source in same {
            assert_eq!(rewrite(source), (source.to_owned(), false));
        }
        let (text, marked) = rewrite("a{%- generation -%}b{% endgeneration +%}c");
        assert!(marked);
        assert_eq!(
            text,
            format!("a{{%- with -%}}{{%- filter {FILTER} -%}}b{{% endfilter -%}}{{%- endwith +%}}c")
        );
        let after_raw = rewrite("{% raw %}{{ x {% endraw %}{% generation %}y{% endgeneration %}");
        assert!(after_raw.1 && after_raw.0.starts_with("{% raw %}{{ x {% endraw %}{% with"));
    }

    #[test]
    fn spans_are_byte_ranges_of_the_clean_text() {
        let marked = format!("ü{}{}é", wrap("añb"), wrap(""));
        assert_eq!(
            extract(&marked),
            Rendered { text: "üañbé".into(), spans: vec![2..6, 6..6], literal: vec![] }
        );
    }
}

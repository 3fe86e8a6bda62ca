//! `{% generation %}` … `{% endgeneration %}`: the marks that tell which text is the assistant's.
//!
//! The engine has no such tag, so it is rewritten to a filter block whose filter puts a noncharacter before and after
//! its text; these are taken out of the rendering again and leave byte ranges behind.

use std::borrow::Cow;

use super::Rendered;
use crate::error::RowError;
use crate::rows::Message;

pub(super) const FILTER: &str = "tunesmith_generation_span";
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';

pub(super) fn wrap(text: &str) -> String {
    format!("{OPEN}{text}{CLOSE}")
}

/// Text of the conversation must not look like a mark.
pub(super) fn check(messages: &[Message]) -> Result<(), RowError> {
    let reserved = |c: &char| matches!(*c, OPEN | CLOSE);
    for m in messages {
        let extra = if m.extra.is_empty() { String::new() } else { format!("{:?}", m.extra) };
        let mut chars = m.role.chars().chain(m.content.chars()).chain(extra.chars());
        if let Some(c) = chars.find(reserved) {
            return Err(RowError::ReservedCharacter { code: u32::from(c) });
        }
    }
    Ok(())
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
    Rendered { text, spans }
}

/// Rewrites the two tags, keeping their white-space control, and says whether there were any. Comments, expressions,
/// quoted text and raw blocks stay as they are.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut marked = false;
    let mut raw = false;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.as_bytes().get(1) {
            Some(b'#') if !raw => rest.find("#}").map_or(rest.len(), |e| e + 2),
            Some(b'{') if !raw => tag_length(rest, "}}"),
            Some(b'%') => tag_length(rest, "%}"),
            _ => 1,
        };
        let tag = &rest[..length];
        let name = if tag.starts_with("{%") { tag_name(tag) } else { "" };
        let replaced: Cow<'_, str> = match name {
            "generation" if !raw => {
                marked = true;
                // The variables set inside stay inside, as in the body of a call block.
                let (open, close) = ends(tag);
                format!("{open} with -%}}{{%- filter {FILTER} {close}").into()
            }
            "endgeneration" if !raw => {
                let (open, close) = ends(tag);
                format!("{open} endfilter -%}}{{%- endwith {close}").into()
            }
            _ => tag.into(),
        };
        raw = name == "raw" || (raw && name != "endraw");
        // Inside a raw block a tag is only text: look again right behind its first character.
        let step = if raw && name != "raw" { 1 } else { length };
        out.push_str(if step == length { &replaced } else { &rest[..step] });
        rest = &rest[step..];
    }
    out.push_str(rest);
    (out, marked)
}

fn tag_name(tag: &str) -> &str {
    let inner = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let end = inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len());
    &inner[..end]
}

/// The opening and closing of a tag with their white-space marks: `{%-` and `-%}`.
fn ends(tag: &str) -> (&str, &str) {
    let open = 2 + usize::from(tag[2..].starts_with(['-', '+']));
    let body = tag.strip_suffix("%}").unwrap_or(tag);
    let close = body.len() - usize::from(body.ends_with(['-', '+']));
    (&tag[..open], &tag[close..])
}

/// Bytes up to and with `end`, which does not count inside quotes.
fn tag_length(text: &str, end: &str) -> usize {
    let mut quote = None;
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
            None if text[i..].starts_with(end) => return i + end.len(),
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
            "{% set generation = 1 %}{ } {",
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
        assert_eq!(extract(&marked), Rendered { text: "üañbé".into(), spans: vec![2..6, 6..6] });
    }
}

//! Control-token text inside a conversation: found, marked, and kept apart from the template's own tokens.
//!
//! A mark is put at one side of each spelling in a message, so that a template that looks for the spelling still finds
//! it. At the edges of a content, text that could become a control token together with the template's is marked too.

use std::ops::Range;

use serde_json::{Map, Value};

use super::{Rendered, jinja};
use crate::rows::Message;

/// What follows may be a control token.
const BEFORE: char = '\u{FDD2}';
/// What ends here may be a control token.
const AFTER: char = '\u{FDD3}';
/// The characters that must not stand in a conversation.
pub(super) const MARKS: [char; 2] = [BEFORE, AFTER];

/// The side of a spelling that its mark stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Before,
    After,
}

/// Places of marks in the text without them.
#[derive(Debug, Default)]
pub(super) struct Places {
    before: Vec<usize>,
    after: Vec<usize>,
}

/// The control tokens of a tokenizer.
#[derive(Debug, Default)]
pub(super) struct ControlTexts {
    texts: Vec<String>,
    groups: Vec<Group>,
    /// Last characters, each once.
    tails: Vec<char>,
    longest: usize,
}

/// Control tokens with the same first character.
#[derive(Debug)]
struct Group {
    head: char,
    /// What all of them start with.
    shared: usize,
    members: Range<usize>,
}

impl ControlTexts {
    pub(super) fn new(mut texts: Vec<String>) -> Self {
        texts.retain(|t| t.chars().nth(1).is_some());
        texts.sort_unstable();
        texts.dedup();
        let mut groups: Vec<Group> = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            let head = text.chars().next().unwrap_or_default();
            match groups.last_mut() {
                Some(group) if group.head == head => {
                    let first = texts[group.members.start].bytes();
                    let same = first.zip(text.bytes()).take_while(|(a, b)| a == b).count();
                    group.shared = group.shared.min(same);
                    group.members.end = i + 1;
                }
                _ => groups.push(Group { head, shared: text.len(), members: i..i + 1 }),
            }
        }
        let mut tails: Vec<char> = texts.iter().filter_map(|t| t.chars().next_back()).collect();
        tails.sort_unstable();
        tails.dedup();
        let longest = texts.iter().map(String::len).max().unwrap_or(0);
        Self { texts, groups, tails, longest }
    }

    /// A control token that a message spells, or could spell together with the text around it.
    pub(super) fn first_touched<'c>(&'c self, messages: &[Message]) -> Option<&'c str> {
        if self.texts.is_empty() {
            return None;
        }
        messages.iter().find_map(|m| {
            let spelled = self.spelled(&m.role).next().map(|(_, t)| t);
            let content = || self.touched(&m.content);
            spelled.or_else(content).or_else(|| m.extra.iter().find_map(|(k, v)| self.touched_json(k, v)))
        })
    }

    fn touched<'c>(&'c self, text: &str) -> Option<&'c str> {
        let spelled = self.spelled(text).next();
        spelled.or_else(|| self.begun(text).next()).or_else(|| self.ended(text).next()).map(|(_, t)| t)
    }

    fn touched_json<'c>(&'c self, key: &str, value: &Value) -> Option<&'c str> {
        let inside = match value {
            Value::String(text) => self.touched(text),
            Value::Array(list) => list.iter().find_map(|v| self.touched_json("", v)),
            Value::Object(map) => map.iter().find_map(|(k, v)| self.touched_json(k, v)),
            _ => None,
        };
        inside.or_else(|| self.spelled(key).next().map(|(_, t)| t))
    }

    /// Every spelling of a control token in `text`: where it starts, and the token.
    fn spelled<'c, 't>(&'c self, text: &'t str) -> impl Iterator<Item = (usize, &'c str)> + use<'c, 't> {
        self.groups.iter().flat_map(move |group| {
            let shared = &self.texts[group.members.start][..group.shared];
            let places = text.match_indices(group.head).filter(move |(i, _)| text[*i..].starts_with(shared));
            places.flat_map(move |(i, _)| {
                let members = self.texts[group.members.clone()].iter();
                members.filter(move |t| text[i..].starts_with(t.as_str())).map(move |t| (i, t.as_str()))
            })
        })
    }

    /// Where the end of `text`, as it is or trimmed, is the beginning of a control token.
    fn begun<'c, 't>(&'c self, text: &'t str) -> impl Iterator<Item = (usize, &'c str)> + use<'c, 't> {
        let trimmed = jinja::trim(text, false, true);
        let other = (trimmed.len() < text.len()).then_some(trimmed);
        std::iter::once(text).chain(other).flat_map(move |text| {
            let window = floor(text, text.len().saturating_sub(self.longest));
            self.groups.iter().flat_map(move |group| {
                text[window..].match_indices(group.head).flat_map(move |(i, _)| {
                    let at = window + i;
                    let rest = &text[at..];
                    let members = self.texts[group.members.clone()].iter();
                    members
                        .filter(move |t| t.len() > rest.len() && t.starts_with(rest))
                        .map(move |t| (at, t.as_str()))
                })
            })
        })
    }

    /// Where the beginning of `text`, as it is or trimmed, is the end of a control token.
    fn ended<'c, 't>(&'c self, text: &'t str) -> impl Iterator<Item = (usize, &'c str)> + use<'c, 't> {
        let skipped = text.len() - jinja::trim(text, true, false).len();
        let starts = if skipped == 0 { 0..1 } else { 0..2 };
        starts.flat_map(move |i| {
            let start = if i == 0 { 0 } else { skipped };
            let window = floor(text, start.saturating_add(self.longest).min(text.len()));
            self.tails.iter().flat_map(move |tail| {
                text[start..window].match_indices(*tail).flat_map(move |(i, found)| {
                    let end = start + i + found.len();
                    let piece = &text[start..end];
                    self.texts
                        .iter()
                        .filter(move |t| t.len() > piece.len() && t.ends_with(piece))
                        .map(move |t| (end, t.as_str()))
                })
            })
        })
    }

    /// The conversation with marks.
    pub(super) fn mark(&self, messages: &[Message], side: Side) -> Vec<Message> {
        let one = |m: &Message| Message {
            role: self.marked(&m.role, side, false),
            content: self.marked(&m.content, side, true),
            trained: m.trained,
            extra: self.mark_map(&m.extra, side),
        };
        messages.iter().map(one).collect()
    }

    fn mark_map(&self, map: &Map<String, Value>, side: Side) -> Map<String, Value> {
        map.iter().map(|(k, v)| (self.marked(k, side, false), self.mark_json(v, side))).collect()
    }

    fn mark_json(&self, value: &Value, side: Side) -> Value {
        match value {
            Value::String(text) => Value::String(self.marked(text, side, true)),
            Value::Array(list) => list.iter().map(|v| self.mark_json(v, side)).collect(),
            Value::Object(map) => Value::Object(self.mark_map(map, side)),
            other => other.clone(),
        }
    }

    /// `edges`: whether the text may join with what stands around it. Roles and keys may not: templates build control
    /// tokens out of them on purpose (`'<|' + message.role + '|>'`).
    fn marked(&self, text: &str, side: Side, edges: bool) -> String {
        let mut marks: Vec<(usize, char)> = Vec::new();
        for (at, token) in self.spelled(text) {
            marks.push(match side {
                Side::Before => (at, BEFORE),
                Side::After => (at + token.len(), AFTER),
            });
        }
        if edges {
            marks.extend(self.begun(text).map(|(at, _)| (at, BEFORE)));
            marks.extend(self.ended(text).map(|(at, _)| (at, AFTER)));
        }
        marks.sort_unstable();
        marks.dedup();
        let mut out = String::with_capacity(text.len() + marks.len() * BEFORE.len_utf8());
        let mut done = 0;
        for (at, mark) in marks {
            out.push_str(&text[done..at]);
            out.push(mark);
            done = at;
        }
        out.push_str(&text[done..]);
        out
    }

    /// One position inside each control token of `text` that starts or ends at a mark.
    pub(super) fn literal(&self, text: &str, places: &Places) -> Vec<usize> {
        let mut literal = Vec::new();
        for at in &places.before {
            let tokens = self.texts.iter().filter(|t| text[*at..].starts_with(t.as_str()));
            literal.extend(tokens.map(|t| *at + head_length(t)));
        }
        for end in &places.after {
            let tokens = self.texts.iter().filter(|t| text[..*end].ends_with(t.as_str()));
            literal.extend(tokens.map(|t| *end - t.len() + head_length(t)));
        }
        literal.sort_unstable();
        literal.dedup();
        literal
    }
}

fn head_length(token: &str) -> usize {
    token.chars().next().map_or(0, char::len_utf8)
}

fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The rendering without marks, and where they stood in it.
pub(super) fn take_marks(marked: &Rendered) -> (Rendered, Places) {
    let mut text = String::with_capacity(marked.text.len());
    let mut places = Places::default();
    // Where each mark ends in the marked text, ascending.
    let mut ends = Vec::new();
    let mut read = 0;
    for (at, mark) in marked.text.match_indices(MARKS) {
        text.push_str(&marked.text[read..at]);
        read = at + mark.len();
        ends.push(read);
        let list = if mark.starts_with(BEFORE) { &mut places.before } else { &mut places.after };
        list.push(text.len());
    }
    text.push_str(&marked.text[read..]);
    let shift = |at: usize| at - BEFORE.len_utf8() * ends.partition_point(|end| *end <= at);
    let spans = marked.spans.iter().map(|s| shift(s.start)..shift(s.end)).collect();
    (Rendered { text, spans, literal: Vec::new() }, places)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> ControlTexts {
        ControlTexts::new(list.iter().map(|t| (*t).to_owned()).collect())
    }

    #[test]
    fn spellings_that_overlap_or_hold_another_are_all_found() {
        let control = texts(&["<s>", "<<s>>", "<s><", "é|>", "x"]);
        let mut found: Vec<_> = control.spelled("a<<s>><s é|>x").collect();
        found.sort_unstable();
        assert_eq!(found, [(1, "<<s>>"), (2, "<s>"), (9, "é|>")]);
        assert_eq!(control.marked("<<s>>", Side::Before, false), "\u{FDD2}<\u{FDD2}<s>>");
        let places = Places { before: vec![0, 1], after: vec![] };
        assert_eq!(control.literal("<<s>>", &places), [1, 2]);
    }

    #[test]
    fn edges_that_could_become_a_token_are_marked() {
        let control = texts(&["<|eot_id|>", "[/INST]"]);
        let mark = |text: &str| control.marked(text, Side::Before, true).replace(MARKS, "#");
        assert_eq!(mark("a <|eot"), "a #<|eot");
        assert_eq!(mark("a <|eot \n"), "a #<|eot \n");
        assert_eq!(mark("id|> b"), "id|># b");
        assert_eq!(mark(" ] b"), " ]# b");
        assert_eq!(mark("a < b [x] c > d"), "a < b [x] c > d");
        assert_eq!(mark(""), "");
        assert_eq!(control.touched("a < b"), None);
        assert_eq!(control.touched("a <"), Some("<|eot_id|>"));
    }

    #[test]
    fn marks_are_taken_out_and_spans_follow() {
        let marked =
            Rendered { text: "é\u{FDD2}<s>\u{FDD3}b".into(), spans: vec![2..8, 5..12], literal: vec![] };
        let (bare, places) = take_marks(&marked);
        assert_eq!((bare.text.as_str(), &bare.spans[..]), ("é<s>b", &[2..5, 2..6][..]));
        assert_eq!((places.before, places.after), (vec![2], vec![5]));
    }
}

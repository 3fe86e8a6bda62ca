//! Puts a bound on everything that a template's variables keep: `set` and `with`, the arguments of macros and call
//! blocks, and the items of loops over lists that the template made.

use std::borrow::Cow;
use std::fmt::Write;

use super::bounds::KEEP;
use super::marks::ends;

/// Words that are no variables, or not to be assigned to.
const NOT_VARIABLES: [&str; 15] = [
    "in",
    "if",
    "else",
    "and",
    "or",
    "not",
    "is",
    "recursive",
    "loop",
    "true",
    "false",
    "none",
    "True",
    "False",
    "None",
];

/// `{% set name = … %}`: the value goes through the filter.
pub(super) fn set(tag: &str) -> Cow<'_, str> {
    let (open, close) = ends(tag);
    let inner = &tag[open.len()..tag.len() - close.len()];
    let Some((target, value)) = inner.split_once('=') else { return tag.into() };
    // Filters of a block assignment may have named arguments.
    if target.contains('|') || close.is_empty() {
        return tag.into();
    }
    let inside = if target.contains('.') { "(true)" } else { "" };
    format!("{open}{target}= ({value}) | {KEEP}{inside} {close}").into()
}

/// A tag that gives values to names, with the assignments behind it that send them through the filter.
pub(super) fn names<'a>(tag: &'a str, name: &str) -> Cow<'a, str> {
    let (open, close) = ends(tag);
    if close.is_empty() {
        return tag.into();
    }
    let inner = tag[open.len()..tag.len() - close.len()].trim_start();
    let inner = inner.get(name.len()..).unwrap_or_default();
    let places = match name {
        // What is looped over as it came was bounded where it came from.
        "for" if !inner.contains(['[', '(', '{']) && !inner.contains("recursive") => return tag.into(),
        "for" => inner.split_once(" in ").map_or("", |(target, _)| target),
        "macro" => inner.split_once('(').map_or("", |(_, arguments)| arguments),
        _ => inner,
    };
    let found = words(places);
    if found.is_empty() {
        return tag.into();
    }
    // The tag's own end comes last: what it does with the white space behind it must go on.
    let mut out = format!("{open} {name}{inner} %}}");
    for (i, word) in found.iter().enumerate() {
        let end = if i + 1 == found.len() { close } else { "%}" };
        // Writing into a String cannot fail.
        let _ = write!(out, "{{% set {word} = {word} | {KEEP} {end}");
    }
    out.into()
}

/// The names in a piece of a tag, each once; attributes and strings left out.
fn words(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut quote = None;
    let mut start = None;
    let mut before = ' ';
    for (i, c) in text.char_indices().chain([(text.len(), ' ')]) {
        if let Some(q) = quote {
            quote = (c != q).then_some(q);
            continue;
        }
        let in_word = c.is_alphanumeric() || c == '_';
        match start {
            None if in_word => start = Some((i, before)),
            Some((from, sign)) if !in_word => {
                let word = &text[from..i];
                let variable = !word.starts_with(|c: char| c.is_numeric()) && !NOT_VARIABLES.contains(&word);
                if variable && sign != '.' && !found.contains(&word) {
                    found.push(word);
                }
                start = None;
            }
            _ => {}
        }
        quote = (c == '"' || c == '\'').then_some(c);
        before = c;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_through_the_filter() {
        let k = KEEP;
        assert_eq!(
            set("{%- set ns.a, b = 1, x | f(y='=') -%}"),
            format!("{{%- set ns.a, b = ( 1, x | f(y='=') ) | {k}(true) -%}}")
        );
        assert_eq!(set("{% set x | f(y=1) %}"), "{% set x | f(y=1) %}");
        assert_eq!(set("{% set x %}"), "{% set x %}");
        assert_eq!(names("{% for m in messages %}", "for"), "{% for m in messages %}");
        assert_eq!(
            names("{% for k, v in [[a, b]] -%}", "for"),
            format!("{{% for k, v in [[a, b]]  %}}{{% set k = k | {k} %}}{{% set v = v | {k} -%}}")
        );
        assert_eq!(
            names("{%- macro m(a, b='x y') %}", "macro"),
            format!("{{%- macro m(a, b='x y')  %}}{{% set a = a | {k} %}}{{% set b = b | {k} %}}")
        );
        assert_eq!(names("{% macro m() %}", "macro"), "{% macro m() %}");
        assert_eq!(words("a.b, 'c', d=\"e\", 1, f1"), ["a", "d", "f1"]);
    }
}

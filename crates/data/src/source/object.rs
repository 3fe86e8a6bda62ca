//! One JSON text to one object, strictly: no key twice, nothing silently replaced.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Deserializer, Map, Number, Value};

use super::integer::too_large_integer;
use super::snippet::{shown, snippet};
use crate::error::{RowError, Spot};

/// The object that `text` spells. A key that stands twice in one object is an error at every depth: parsers would keep
/// the last value and say nothing.
///
/// # Errors
/// Where the text stops being one JSON object, and why.
pub fn parse_object(text: &str) -> Result<Map<String, Value>, RowError> {
    let seen = Seen::default();
    let mut parser = Deserializer::from_str(text);
    let value = Strict(&seen).deserialize(&mut parser).and_then(|v| parser.end().map(|()| v));
    // Only a large number can be a whole one that was rounded, and only its digits tell.
    if let (Ok(_), true, Some((column, _))) = (&value, seen.large.get(), too_large_integer(text)) {
        let byte = column - 1;
        let line = text[..byte].matches('\n').count() + 1;
        let start = text[..byte].rfind('\n').map_or(0, |newline| newline + 1);
        return Err(RowError::InvalidJson {
            at: Spot { line, column: byte - start + 1 },
            reason: "a number beyond 64 bits would lose digits, write it as a string".to_owned(),
            snippet: snippet(text.as_bytes(), byte),
        });
    }
    match value {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(RowError::NotAnObject { found: bare_type(&other) }),
        Err(error) => Err(explain(text, &error, seen.duplicate.take())),
    }
}

fn bare_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn explain(text: &str, error: &serde_json::Error, duplicate: Option<String>) -> RowError {
    let at = Spot { line: error.line().max(1), column: error.column().max(1) };
    if let Some(key) = duplicate {
        return RowError::DuplicateKey { key: shown(&key), at };
    }
    let full = error.to_string();
    let reason = full.rsplit_once(" at line ").map_or(full.as_str(), |(reason, _)| reason);
    let snippet = snippet(text.as_bytes(), byte_of(text, at));
    match reason {
        "recursion limit exceeded" => RowError::TooDeep { at },
        "lone leading surrogate in hex escape" | "unexpected end of hex escape" => {
            RowError::LoneSurrogate { at, snippet }
        }
        _ => RowError::InvalidJson { at, reason: reason.to_owned(), snippet },
    }
}

/// Zero-based byte position of a place in a text of one or more lines.
fn byte_of(text: &str, at: Spot) -> usize {
    let before: usize = text.split_inclusive('\n').take(at.line - 1).map(str::len).sum();
    before + at.column - 1
}

/// What the parser met on its way.
#[derive(Default)]
struct Seen {
    /// A key that stands twice.
    duplicate: Cell<Option<String>>,
    /// Whether a number is larger than 64 bits hold.
    large: Cell<bool>,
}

struct Strict<'a>(&'a Seen);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        // A whole number that 64 bits do not hold arrives here rounded, among true floats.
        if value >= u64::MAX as f64 || value <= i64::MIN as f64 {
            self.0.large.set(true);
        }
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(Strict(self.0))? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            match out.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(entries.next_value_seed(Strict(self.0))?);
                }
                Entry::Occupied(place) => {
                    self.0.duplicate.set(Some(place.key().clone()));
                    return Err(A::Error::custom("duplicate key"));
                }
            }
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn says(text: &str) -> String {
        parse_object(text).unwrap_err().to_string()
    }

    #[test]
    fn faults_are_named_with_their_place() {
        assert_eq!(
            says(r#"{"a": tru}"#),
            "invalid JSON at column 10 near `{\"a\": tru}` (expected ident); write one JSON object per record"
        );
        assert_eq!(
            says(r#"{"a": 1, "b": {"c": 1, "c": 2}}"#),
            "the key `c` stands twice in one object (column 26); remove one"
        );
        assert_eq!(
            says("{\"a\": 1,\n \"a\": 2}"),
            "the key `a` stands twice in one object (line 2 of the record, column 4); remove one"
        );
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(200), "]".repeat(200));
        assert!(
            says(&deep).starts_with("the JSON is nested more than 127 levels deep at column"),
            "{}",
            says(&deep)
        );
        let lone = says(r#"{"a": "x\ud800y"}"#);
        assert!(lone.starts_with("half of a surrogate pair at column 1"), "{lone}");
        assert!(says(r#"{"a": "x\udc00"}"#).starts_with("half of a surrogate pair"));
        assert!(says("[1]").starts_with("the record is a JSON array, not an object"));
        assert!(says("{} {}").starts_with("invalid JSON at column 4"));
        assert!(says("{\"a\": 1e999}").contains("number out of range"));
        for beyond in ["18446744073709551616", "-9223372036854775809", "123456789012345678901234567890"] {
            let refusal = says(&format!("{{\"a\": {beyond}}}"));
            assert!(refusal.contains("would lose digits, write it as a string"), "{refusal}");
        }
        let exact = r#"{"a":18446744073709551615,"b":-9223372036854775808,"c":1.5e15}"#;
        assert_eq!(
            Value::Object(parse_object(exact).unwrap()).to_string(),
            exact.replace("1.5e15", "1500000000000000.0")
        );
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::btree_map(".{0,6}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn gives_what_the_plain_parser_gives(value in json()) {
            let text = Value::Object(Map::from_iter([("k".to_owned(), value)])).to_string();
            let plain: Map<String, Value> = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parse_object(&text).unwrap(), plain);
        }

        #[test]
        fn never_panics_and_accepts_only_what_the_plain_parser_accepts(text in r#"[\[\]{}",:\\a0-9ud. \n-]{0,40}"#) {
            if let Ok(object) = parse_object(&text) {
                prop_assert_eq!(serde_json::from_str::<Map<String, Value>>(&text).unwrap(), object);
            }
        }
    }
}

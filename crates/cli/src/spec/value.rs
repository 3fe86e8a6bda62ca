//! From TOML values to JSON values, and the lines they stand on.

use serde_json::{Map, Number, Value};
use toml::de::DeValue;

/// One-based line of a byte offset.
pub(super) fn line_of(text: &[u8], offset: usize) -> usize {
    text[..offset.min(text.len())].split(|b| *b == b'\n').count()
}

/// The JSON value of a TOML value, or in a few words why there is none.
pub(super) fn to_json(value: &DeValue<'_>) -> Result<Value, String> {
    Ok(match value {
        DeValue::String(s) => Value::String(s.clone().into_owned()),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix())
            .map(Value::from)
            .map_err(|_| format!("the integer {i} is too large"))?,
        DeValue::Float(x) => x
            .as_str()
            .parse()
            .ok()
            .and_then(Number::from_f64)
            .map(Value::Number)
            .ok_or_else(|| format!("expected a finite number, found {x}"))?,
        DeValue::Datetime(d) => {
            return Err(format!("found the date {d}; no key takes a date, put it in quotes"));
        }
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|i| to_json(i.get_ref())).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => {
            let mut map = Map::new();
            for (key, item) in table {
                map.insert(key.get_ref().clone().into_owned(), to_json(item.get_ref())?);
            }
            Value::Object(map)
        }
    })
}

/// A JSON value in a few words, for messages: `the string "abc"`, `an array`.
pub(super) fn words(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => format!("the boolean {b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => {
            let short: String = s.chars().take(40).collect();
            let dots = if short.len() < s.len() { "..." } else { "" };
            format!("the string {}{dots}", Value::String(short))
        }
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "a table".to_owned(),
    }
}

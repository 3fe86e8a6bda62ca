//! One text for all spellings of a row, to hash; and the numbers that a parser would round.

use serde_json::{Map, Value};

/// Appends the row as JSON with the keys of every object in order, so that equal rows give equal bytes.
pub(super) fn write_row(row: &Map<String, Value>, out: &mut Vec<u8>) {
    let mut members: Vec<_> = row.iter().collect();
    members.sort_unstable_by_key(|(key, _)| *key);
    out.push(b'{');
    for (i, (key, value)) in members.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        plain(key, out);
        out.push(b':');
        write_value(value, out);
    }
    out.push(b'}');
}

/// Appends a value in the same way.
pub(super) fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(item, out);
            }
            out.push(b']');
        }
        Value::Object(object) => write_row(object, out),
        other => plain(other, out),
    }
}

fn plain(value: &(impl serde::Serialize + ?Sized), out: &mut Vec<u8>) {
    // Strings, numbers and constants always have a JSON form, and memory takes every write.
    let _ = serde_json::to_writer(out, value);
}

/// The first integer in a JSON text that 64 bits do not hold, which the parser would round to a float without a
/// word: its one-based column and its digits.
pub(crate) fn too_large_integer(text: &str) -> Option<(usize, &str)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let number = |b: &u8| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let end = at + bytes[at..].iter().take_while(|b| number(b)).count();
                let token = &text[at..end];
                let whole = !token.contains(['.', 'e', 'E']);
                // Eighteen digits always fit.
                if whole && token.len() > 18 && token.parse::<i64>().is_err() && token.parse::<u64>().is_err()
                {
                    return Some((at + 1, token));
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    None
}

/// The position behind the string that starts at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(value: &Value) -> String {
        let mut out = Vec::new();
        write_value(value, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_order_of_keys_does_not_count_and_values_do() {
        let a = json!({"b": [1, {"y": 0.1, "x": "é\n"}], "a": null});
        let b = json!({"a": null, "b": [1, {"x": "é\n", "y": 0.1}]});
        assert_eq!(text(&a), text(&b));
        assert_eq!(text(&a), r#"{"a":null,"b":[1,{"x":"é\n","y":0.1}]}"#);
        assert_ne!(text(&json!(1)), text(&json!(1.0)));
        assert_ne!(text(&json!(["a", "b"])), text(&json!(["b", "a"])));
    }

    #[test]
    fn integers_beyond_64_bits_are_found_outside_strings() {
        let none = [
            r#"{"a": 18446744073709551615, "b": -9223372036854775808}"#,
            r#"{"a": "99999999999999999999", "\"": "\\"}"#,
            r#"{"a": 123456789012345678901.5, "b": 1e40}"#,
        ];
        assert!(none.iter().all(|text| too_large_integer(text).is_none()));
        assert_eq!(
            too_large_integer(r#"{"a\"": [18446744073709551616]}"#),
            Some((10, "18446744073709551616"))
        );
        assert_eq!(too_large_integer(r#"{"a": -9223372036854775809}"#), Some((7, "-9223372036854775809")));
    }
}

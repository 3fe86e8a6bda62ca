//! One text for all spellings of a row, to hash.

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
}

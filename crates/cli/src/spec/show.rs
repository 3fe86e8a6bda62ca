//! A resolved spec as TOML, each line with where its value came from.

use std::fmt::Write as _;

use serde_json::Value;

use super::keys::{self, KEYS, TABLES};
use super::{Loaded, Origin};

/// The resolved job as TOML. Reading it back gives the same job.
pub fn show(loaded: &Loaded) -> String {
    let values = serde_json::to_value(&loaded.spec).unwrap_or_default();
    let mut text = String::new();
    lines(&mut text, "", &values, loaded);
    for (table, _) in TABLES {
        let _ = write!(text, "\n[{table}]\n");
        lines(&mut text, table, &values, loaded);
    }
    text
}

fn lines(text: &mut String, table: &str, values: &Value, loaded: &Loaded) {
    let held_out = loaded.spec.data.validation.is_some() || loaded.spec.data.validation_split > 0.0;
    for key in KEYS.iter().filter(|k| keys::table(k.path) == table) {
        let name = keys::leaf(key.path);
        let from = loaded.origins.get(key.path).unwrap_or(&Origin::Default);
        let line = match keys::get(values, key.path) {
            None | Some(Value::Null) => format!("# {name} is not set"),
            // Said twice it would contradict itself when read back: the file rules the split out.
            Some(_) if key.path == "data.validation_split" && loaded.spec.data.validation.is_some() => {
                format!("# {name} = 0.0, because validation names a file")
            }
            // The same for the two ways of saying how long to warm up.
            Some(_) if key.path == "train.warmup_ratio" && loaded.spec.train.warmup_steps.is_some() => {
                format!("# {name} gives way to warmup_steps")
            }
            // A default count of evaluations without held-out rows would be refused when written out.
            Some(_) if key.path == "train.evals_per_epoch" && !held_out => {
                format!("# {name} has no held-out rows to evaluate on")
            }
            Some(value) => format!("{name} = {}  # {}", toml(value), comment(from)),
        };
        text.push_str(&line);
        text.push('\n');
    }
}

/// An origin as it may stand in a comment, which no control character may.
fn comment(origin: &Origin) -> String {
    origin.to_string().replace(char::is_control, "?")
}

/// A JSON value as TOML.
pub(super) fn toml(value: &Value) -> String {
    match value {
        // JSON's escapes are TOML's, except that TOML also wants DEL escaped.
        Value::String(_) => value.to_string().replace('\u{7f}', "\\u007f"),
        Value::Number(n) if n.is_f64() => float(n.as_f64().unwrap_or(0.0)),
        Value::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(map) if map.is_empty() => "{}".to_owned(),
        Value::Object(map) => {
            let entries: Vec<_> = map
                .iter()
                .map(|(k, v)| format!("{} = {}", toml(&Value::from(k.as_str())), toml(v)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// A float as a person would write it, exact when read back.
fn float(x: f64) -> String {
    format!("{x:?}")
}

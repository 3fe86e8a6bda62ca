//! The JSON schema of a job file (draft 2020-12), made from the table of keys.

use serde_json::{Value, json};

use super::keys::{self, KEYS, Key, Kind, TABLES};

/// The schema as a JSON value.
pub fn schema() -> Value {
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tunesmith job",
        "description": "A fine-tuning job: `tunesmith train JOB.toml`.",
        "type": "object",
        "additionalProperties": false,
        "required": required(""),
        "properties": {},
    });
    for key in KEYS.iter().filter(|k| keys::table(k.path).is_empty()) {
        root["properties"][key.path] = property(key);
    }
    for (table, doc) in TABLES {
        let mut object = json!({ "description": doc, "type": "object", "additionalProperties": false });
        let required = required(table);
        if !required.is_empty() {
            object["required"] = json!(required);
        }
        for key in KEYS.iter().filter(|k| keys::table(k.path) == table) {
            object["properties"][keys::leaf(key.path)] = property(key);
        }
        root["properties"][table] = object;
    }
    if let Some(required) = root["required"].as_array_mut() {
        let tables =
            TABLES.iter().filter(|(t, _)| KEYS.iter().any(|k| k.required && keys::table(k.path) == *t));
        required.extend(tables.map(|(t, _)| json!(t)));
    }
    root
}

/// The schema as the text of `configs/job.schema.json`.
pub fn schema_text() -> String {
    format!("{:#}\n", schema())
}

fn required(table: &str) -> Vec<&'static str> {
    KEYS.iter().filter(|k| k.required && keys::table(k.path) == table).map(|k| keys::leaf(k.path)).collect()
}

fn property(key: &Key) -> Value {
    let mut property = match key.kind {
        Kind::Text => json!({ "type": "string", "minLength": 1 }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Int { min, max } => integer(min, max),
        Kind::Real(range) => {
            let mut p = json!({ "type": "number" });
            p[if range.above_min { "exclusiveMinimum" } else { "minimum" }] = number(range.min);
            if range.max.is_finite() {
                p[if range.below_max { "exclusiveMaximum" } else { "maximum" }] = number(range.max);
            }
            p
        }
        Kind::AutoOrInt { min, max } => json!({ "anyOf": [{ "const": "auto" }, integer(min, max)] }),
        Kind::Choice(choices) => json!({ "enum": choices }),
        Kind::Device => json!({ "type": "string", "pattern": "^(cpu|auto|cuda:[0-9]+)$" }),
        Kind::Bytes => json!({ "anyOf": [
            { "type": "integer", "minimum": 1 },
            { "type": "string", "pattern": "^( *[0-9]+(\\.[0-9]+)? *([KMGTkmgt][iI]?[bB])? *)?$" },
        ] }),
        Kind::Targets => {
            let mut list = modules();
            list["minItems"] = json!(1);
            json!({ "anyOf": [{ "const": "all-linear" }, list] })
        }
        Kind::Modules => modules(),
        Kind::Layers => {
            json!({ "type": "array", "items": { "type": "integer", "minimum": 0 }, "uniqueItems": true, "minItems": 1 })
        }
        Kind::IntMap => {
            json!({ "type": "object", "additionalProperties": { "type": "integer", "minimum": 1 } })
        }
        Kind::RealMap => {
            json!({ "type": "object", "additionalProperties": { "type": "number", "exclusiveMinimum": 0 } })
        }
    };
    property["description"] = json!(key.doc);
    let defaults = keys::defaults();
    match keys::get(&defaults, key.path) {
        Some(value) if !key.required && !value.is_null() => property["default"] = value.clone(),
        _ => {}
    }
    property
}

/// Whole numbers without `.0`, as a person would write them.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 { json!(x as i64) } else { json!(x) }
}

fn integer(min: i64, max: i64) -> Value {
    let mut p = json!({ "type": "integer", "minimum": min });
    if max < i64::from(u32::MAX) {
        p["maximum"] = json!(max);
    }
    p
}

fn modules() -> Value {
    json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true })
}

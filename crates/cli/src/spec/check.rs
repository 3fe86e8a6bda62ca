//! What a value must be: alone, by its key's kind, and together with other values.

use serde_json::{Map, Value};
use tunesmith_model::peft::Linear;
use tunesmith_train::plan::Bytes;

use super::keys::{Key, Kind};
use super::load::{Origin, Values};
use super::value::words;

/// Checks one value against its key; returns it in the form the spec stores.
pub(super) fn value(key: &Key, given: &Value) -> Result<Value, String> {
    match key.kind {
        Kind::Text => match given {
            Value::String(s) if s.trim().is_empty() => Err("must not be empty".to_owned()),
            Value::String(_) => Ok(given.clone()),
            _ => Err(expected("a string", given)),
        },
        Kind::Flag => match given {
            Value::Bool(_) => Ok(given.clone()),
            _ => Err(expected("true or false", given)),
        },
        Kind::Int { min, max } => integer(given, min, max),
        Kind::AutoOrInt { min, max } => match given {
            Value::String(s) if s == "auto" => Ok(given.clone()),
            Value::Number(n) if n.is_i64() || n.is_u64() => integer(given, min, max),
            _ => Err(expected("\"auto\" or an integer", given)),
        },
        Kind::Real(range) => match given.as_f64() {
            Some(x) if range.contains(x) => Ok(Value::from(x)),
            Some(_) => Err(format!("must be {}, found {given}", range.words())),
            None => Err(expected("a number", given)),
        },
        Kind::Choice(choices) => choice(choices, given),
        Kind::Device => device(given),
        Kind::Bytes => bytes(given),
        Kind::Targets => match given {
            Value::String(s) if s == "all-linear" => Ok(given.clone()),
            Value::String(s) => {
                Err(format!("expected \"all-linear\" or a list of module names, found {s:?}"))
            }
            _ => {
                let list = modules(given)?;
                if list.as_array().is_some_and(Vec::is_empty) {
                    return Err("must name at least one module".to_owned());
                }
                Ok(list)
            }
        },
        Kind::Modules => modules(given),
        Kind::Layers => layers(given),
        Kind::IntMap => pattern(given, |v| integer(v, 1, i64::from(u32::MAX))),
        Kind::RealMap => pattern(given, |v| match v.as_f64() {
            Some(x) if x > 0.0 => Ok(Value::from(x)),
            Some(_) => Err(format!("must be above 0, found {v}")),
            None => Err(expected("a number", v)),
        }),
    }
}

fn expected(what: &str, given: &Value) -> String {
    format!("expected {what}, found {}", words(given))
}

fn integer(given: &Value, min: i64, max: i64) -> Result<Value, String> {
    let Some(n) = given.as_i64() else {
        return Err(match given {
            // A flag's u64 beyond i64 is an integer all the same.
            Value::Number(n) if n.is_u64() => format!("must be at most {max}, found {n}"),
            _ => expected("an integer", given),
        });
    };
    if n >= min && n <= max {
        return Ok(given.clone());
    }
    Err(if n < min && max >= i64::from(u32::MAX) {
        format!("must be at least {min}, found {n}")
    } else {
        format!("must be from {min} to {max}, found {n}")
    })
}

fn choice(choices: &[&str], given: &Value) -> Result<Value, String> {
    let quoted: Vec<_> = choices.iter().map(|c| format!("\"{c}\"")).collect();
    match given {
        Value::String(s) if choices.contains(&s.as_str()) => Ok(given.clone()),
        _ => Err(expected(&format!("one of {}", quoted.join(", ")), given)),
    }
}

fn bytes(given: &Value) -> Result<Value, String> {
    match given {
        Value::String(s) if s.trim().is_empty() => Ok(Value::Null),
        Value::String(s) => s.parse::<Bytes>().map(|bytes| Value::from(bytes.to_string())),
        // As a text, so that it is written back as one whichever it was.
        Value::Number(n) => match n.as_u64() {
            Some(bytes) if bytes > 0 => Ok(Value::from(Bytes(bytes).to_string())),
            _ => Err(format!("must be at least 1, found {n}")),
        },
        _ => Err(expected("bytes, such as \"24GiB\" or a plain number", given)),
    }
}

/// What names a device, in words.
pub const DEVICES: &str = "\"cpu\", \"auto\" or \"cuda:N\"";

/// Whether a text names a device.
pub fn is_device(text: &str) -> bool {
    matches!(text, "cpu" | "auto") || text.strip_prefix("cuda:").is_some_and(|n| n.parse::<u16>().is_ok())
}

fn device(given: &Value) -> Result<Value, String> {
    match given {
        Value::String(s) if is_device(s) => Ok(given.clone()),
        _ => Err(expected(DEVICES, given)),
    }
}

/// Checks that the last part of a module name is a linear of the supported families.
fn module(name: &str) -> Result<(), String> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let closeness = |linear: &Linear| strsim::normalized_damerau_levenshtein(linear.proj_name(), last);
    match Linear::ALL.iter().max_by(|a, b| closeness(a).total_cmp(&closeness(b))) {
        Some(near) if near.proj_name() != last => {
            Err(format!("unknown module {name:?}; did you mean \"{}\"?", near.proj_name()))
        }
        _ => Ok(()),
    }
}

/// Whether a pattern is a plain name: a regular expression is left to the model, which knows its modules.
fn is_plain(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
}

fn modules(given: &Value) -> Result<Value, String> {
    let list = given.as_array().ok_or_else(|| expected("a list of module names", given))?;
    let mut seen = Vec::new();
    for item in list {
        let name = item.as_str().ok_or_else(|| expected("a module name in quotes", item))?;
        module(name)?;
        if seen.contains(&name) {
            return Err(format!("names {name:?} twice"));
        }
        seen.push(name);
    }
    Ok(given.clone())
}

fn layers(given: &Value) -> Result<Value, String> {
    let list = given.as_array().ok_or_else(|| expected("a list of layer numbers", given))?;
    if list.is_empty() {
        return Err("must name at least one layer; leave the key out for all layers".to_owned());
    }
    for (i, item) in list.iter().enumerate() {
        integer(item, 0, i64::from(u32::MAX))?;
        if list[..i].contains(item) {
            return Err(format!("names layer {item} twice"));
        }
    }
    Ok(given.clone())
}

fn pattern(given: &Value, check: impl Fn(&Value) -> Result<Value, String>) -> Result<Value, String> {
    let table = given
        .as_object()
        .ok_or_else(|| expected("a table from module name to number (names with dots in quotes)", given))?;
    let mut checked = Map::new();
    for (name, item) in table {
        if is_plain(name) {
            module(name)?;
        }
        checked.insert(name.clone(), check(item).map_err(|m| format!("`{name}`: {m}"))?);
    }
    Ok(Value::Object(checked))
}

/// Rules between keys: what to say, and at which key. Only values somebody wrote can contradict each other.
pub(super) fn together(values: &Values) -> Vec<(&'static str, String)> {
    let written =
        |path: &str| values.get(path).filter(|(_, origin)| *origin != Origin::Default).map(|(v, _)| v);
    let number = |path: &str| values.get(path).and_then(|(v, _)| v.as_f64()).unwrap_or(0.0);
    let mut found = Vec::new();

    if written("data.validation").is_some()
        && written("data.validation_split").and_then(Value::as_f64) > Some(0.0)
    {
        found.push((
            "data.validation_split",
            "cannot be above 0 when `data.validation` names a file of held-out rows; remove one of the two"
                .to_owned(),
        ));
    }
    let held_out = written("data.validation").is_some() || number("data.validation_split") > 0.0;
    for path in ["preview.prompts", "train.evals_per_epoch"] {
        if !held_out && written(path).and_then(Value::as_u64) > Some(0) {
            let rule = "needs held-out rows; set `data.validation` or a `data.validation_split` above 0";
            found.push((path, rule.to_owned()));
        }
    }
    if written("train.warmup_steps").is_some() && written("train.warmup_ratio").is_some() {
        let rule = "cannot be given together with `train.warmup_steps`; remove one of the two";
        found.push(("train.warmup_ratio", rule.to_owned()));
    }
    if written("lora.use_dora") == Some(&Value::Bool(true)) {
        let rule = "DoRA is not supported yet; set it to false or remove it";
        found.push(("lora.use_dora", rule.to_owned()));
    }
    found
}

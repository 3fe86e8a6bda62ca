//! `adapter_config.json` as PEFT writes and reads it.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::json::Object;
use crate::peft::linear::Linear;
use crate::peft::lora_config::{LoraConfig, ModuleNames, TargetModules};

/// File name of the configuration in an adapter directory.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The part of PEFT's `LoraConfig` file that has a meaning here: the LoRA settings and the base model they are for.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// Repository id or directory of the base model.
    pub base_model_name_or_path: Option<String>,
    /// Revision of the base model's repository.
    pub revision: Option<String>,
    /// The LoRA settings.
    pub lora: LoraConfig,
}

/// Keys with values that say how the adapter was made or where it came from, and change nothing in what it computes.
const HARMLESS: [&str; 8] = [
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    // Whether PEFT casts adapter weights up to f32 while it loads them; here they always are f32.
    "autocast_adapter_dtype",
];

/// Initialisations that leave the base weights as they are. The others (pissa, olora, corda, loftq, ...) change them,
/// so that the saved A and B are wrong on the plain base model.
const PLAIN_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

impl PeftConfig {
    /// Reads `adapter_config.json` of an adapter directory.
    ///
    /// Absent keys have PEFT's defaults. Unknown keys are accepted only when they hold null, false or something
    /// empty: any other value could change what the adapter computes, and is refused by name.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::from_object(&Object::read(&dir.join(CONFIG_FILE))?)
    }

    fn from_object(object: &Object) -> Result<Self> {
        match object.string("peft_type")? {
            Some("LORA") => {}
            Some(other) => {
                return Err(object.error("peft_type", format!("is {other:?}; only \"LORA\" is supported")));
            }
            None => return Err(object.error("peft_type", "is missing; it must be \"LORA\"")),
        }
        for (key, value) in object.iter() {
            check_key(object, key, value)?;
        }
        let target_modules = part(object, "target_modules")?.ok_or_else(|| {
            object.error("target_modules", "is missing; it must name the modules of the adapter")
        })?;
        let lora = LoraConfig {
            r: object.size("r")?.unwrap_or(8),
            lora_alpha: object.f64("lora_alpha")?.unwrap_or(8.0),
            lora_dropout: object.f64("lora_dropout")?.unwrap_or(0.0),
            target_modules,
            exclude_modules: part(object, "exclude_modules")?,
            layers_to_transform: part(object, "layers_to_transform")?,
            layers_pattern: part(object, "layers_pattern")?,
            rank_pattern: part(object, "rank_pattern")?.unwrap_or_default(),
            alpha_pattern: part(object, "alpha_pattern")?.unwrap_or_default(),
            use_rslora: object.bool_or("use_rslora", false)?,
            use_dora: false,
        };
        Ok(Self {
            base_model_name_or_path: object.string("base_model_name_or_path")?.map(str::to_string),
            revision: object.string("revision")?.map(str::to_string),
            lora,
        })
    }

    /// The file's text: the keys that PEFT has known for long (a newer one makes an old PEFT fail), sorted, with
    /// PEFT's indentation.
    pub fn to_json(&self) -> String {
        let lora = &self.lora;
        let mut map = Map::new();
        for key in ["auto_mapping", "layer_replication", "megatron_config", "modules_to_save"] {
            map.insert(key.into(), Value::Null);
        }
        for key in ["fan_in_fan_out", "use_dora"] {
            map.insert(key.into(), json!(false));
        }
        for key in ["inference_mode", "init_lora_weights"] {
            map.insert(key.into(), json!(true));
        }
        map.insert("alpha_pattern".into(), pairs(lora.alpha_pattern.iter().map(|(k, v)| (k, number(v)))));
        map.insert("base_model_name_or_path".into(), json!(self.base_model_name_or_path));
        map.insert("bias".into(), json!("none"));
        map.insert("layers_pattern".into(), json!(lora.layers_pattern));
        map.insert("layers_to_transform".into(), json!(lora.layers_to_transform));
        map.insert("loftq_config".into(), json!({}));
        map.insert("lora_alpha".into(), number(lora.lora_alpha));
        map.insert("lora_dropout".into(), json!(lora.lora_dropout));
        map.insert("megatron_core".into(), json!("megatron.core"));
        map.insert("peft_type".into(), json!("LORA"));
        map.insert("r".into(), json!(lora.r));
        map.insert("rank_pattern".into(), pairs(lora.rank_pattern.iter().map(|(k, v)| (k, json!(v)))));
        map.insert("revision".into(), json!(self.revision));
        map.insert("target_modules".into(), targets(&lora.target_modules));
        map.insert("task_type".into(), json!("CAUSAL_LM"));
        map.insert("use_rslora".into(), json!(lora.use_rslora));
        // The one newer key, and only when it is needed: without it the adapter would mean something else.
        if let Some(names) = &lora.exclude_modules {
            map.insert("exclude_modules".into(), json!(names));
        }
        map.sort_keys();
        format!("{:#}\n", Value::Object(map))
    }
}

/// Refuses what would change the adapter's meaning and is not supported.
fn check_key(object: &Object, key: &str, value: &Value) -> Result<()> {
    let empty = match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if empty || HARMLESS.contains(&key) {
        return Ok(());
    }
    let refuse = |problem: &str| Err(object.error(key, format!("is {value}; {problem}")));
    match key {
        "peft_type"
        | "r"
        | "lora_alpha"
        | "lora_dropout"
        | "target_modules"
        | "layers_to_transform"
        | "layers_pattern"
        | "exclude_modules"
        | "rank_pattern"
        | "alpha_pattern"
        | "use_rslora"
        | "base_model_name_or_path"
        | "revision" => Ok(()),
        "task_type" if value == "CAUSAL_LM" => Ok(()),
        "task_type" => refuse("only CAUSAL_LM adapters are supported"),
        "bias" if value == "none" => Ok(()),
        "bias" => refuse("adapters with trained biases are not supported"),
        "init_lora_weights" => match value {
            Value::Bool(true) => Ok(()),
            Value::String(kind) if PLAIN_INITS.contains(&kind.to_lowercase().as_str()) => Ok(()),
            _ => refuse(
                "this initialisation changes the base weights; convert the adapter to plain LoRA with PEFT",
            ),
        },
        "use_dora" => refuse("DoRA is not supported yet"),
        "modules_to_save" => refuse("fully trained modules beside the LoRA matrices are not supported"),
        "fan_in_fan_out" => refuse("transposed weights are not supported"),
        "layer_replication" => refuse("replicated layers are not supported"),
        "lora_bias" => refuse("a bias on lora_B is not supported"),
        "trainable_token_indices" => refuse("trained embedding rows are not supported"),
        "target_parameters" => refuse("LoRA on bare parameters is not supported"),
        _ => refuse("this setting is not known, and ignoring it could change what the adapter computes"),
    }
}

fn part<T: DeserializeOwned>(object: &Object, key: &str) -> Result<Option<T>> {
    match object.get(key) {
        None => Ok(None),
        Some(value) => match serde_json::from_value(value.clone()) {
            Ok(part) => Ok(Some(part)),
            Err(error) => Err(object.error(key, format!("is {value}: {error}"))),
        },
    }
}

fn pairs<'a>(items: impl Iterator<Item = (&'a str, Value)>) -> Value {
    Value::Object(items.map(|(key, value)| (key.to_string(), value)).collect())
}

/// PEFT declares `lora_alpha` as an int and writes `16`, not `16.0`.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

fn targets(modules: &TargetModules) -> Value {
    let mut names: Vec<&str> = match modules {
        TargetModules::AllLinear => Linear::ALL.map(Linear::proj_name).into(),
        TargetModules::Named(ModuleNames::List(names)) => names.iter().map(String::as_str).collect(),
        TargetModules::Named(ModuleNames::Regex(text)) => return json!(text),
    };
    names.sort_unstable();
    names.dedup();
    json!(names)
}

#[cfg(test)]
mod tests;

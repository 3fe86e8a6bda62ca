//! PEFT adapter folders, read here on their own so that the oracle shares no code with what it checks.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, read_json};
use crate::tensors::{StoredType, Tensor, Tensors, read_tensors, write_tensors};

/// What PEFT puts before the module path in tensor names.
pub const PEFT_PREFIX: &str = "base_model.model.";

/// LoRA on one linear layer: y = W x + scale B A x.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    /// Hugging Face module path, for instance `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// A, [r, in].
    pub a: Tensor,
    /// B, [out, r].
    pub b: Tensor,
    /// alpha / r, or alpha / sqrt(r) with rsLoRA.
    pub scale: f32,
}

impl LoraModule {
    /// PEFT's name of A.
    pub fn name_a(&self) -> String {
        format!("{PEFT_PREFIX}{}.lora_A.weight", self.module)
    }

    /// PEFT's name of B.
    pub fn name_b(&self) -> String {
        format!("{PEFT_PREFIX}{}.lora_B.weight", self.module)
    }
}

/// Reads `adapter_config.json` and `adapter_model.safetensors` of a plain LoRA or rsLoRA adapter, sorted by module.
pub fn read_adapter(dir: &Path) -> Result<Vec<LoraModule>, Error> {
    let path = dir.join("adapter_config.json");
    let config: Map<String, Value> = read_json(&path)?;
    let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    if flag("use_dora") {
        return Err(Error::reference(&path, "the oracle does not compute DoRA"));
    }
    let alpha = config.get("lora_alpha").and_then(Value::as_f64);
    let alpha = alpha.ok_or_else(|| Error::reference(&path, "`lora_alpha` is missing or no number"))?;
    let patterns = config.get("alpha_pattern").and_then(Value::as_object).cloned().unwrap_or_default();
    let weights = dir.join("adapter_model.safetensors");
    let mut tensors = read_tensors(&weights)?;
    let mut modules = Vec::new();
    while let Some((name_a, a)) = tensors.pop_first() {
        let module = name_a.strip_prefix(PEFT_PREFIX).and_then(|n| n.strip_suffix(".lora_A.weight"));
        let unexpected = || Error::reference(&weights, format!("tensor `{name_a}` is not the A of a pair"));
        let module = module.ok_or_else(unexpected)?.to_owned();
        let b = tensors.remove(&format!("{PEFT_PREFIX}{module}.lora_B.weight")).ok_or_else(unexpected)?;
        let rank = a.shape[0] as f64;
        let alpha =
            pattern_value(&patterns, &module).map_err(|what| Error::reference(&path, what))?.unwrap_or(alpha);
        let scale = if flag("use_rslora") { alpha / rank.sqrt() } else { alpha / rank };
        modules.push(LoraModule { module, a, b, scale: scale as f32 });
    }
    Ok(modules)
}

/// Writes `modules` as a PEFT adapter of rank `r` and `alpha`; every scale has to be `alpha / r`.
pub fn write_adapter(dir: &Path, modules: &[LoraModule], r: usize, alpha: f64) -> Result<(), Error> {
    let mut targets: Vec<&str> = modules.iter().filter_map(|m| m.module.rsplit('.').next()).collect();
    targets.sort_unstable();
    targets.dedup();
    let scale = (alpha / r as f64) as f32;
    for m in modules {
        if m.a.shape[0] != r || m.scale.to_bits() != scale.to_bits() {
            let what = format!("`{}` has not the rank {r} and the scale {alpha} / {r}", m.module);
            return Err(Error::Argument(what));
        }
    }
    let config = json!({
        "alpha_pattern": {},
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": r,
        "rank_pattern": {},
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let path = dir.join("adapter_config.json");
    std::fs::write(&path, format!("{config:#}\n")).map_err(Error::io(&path))?;
    let mut tensors = Tensors::new();
    for m in modules {
        tensors.insert(m.name_a(), m.a.clone());
        tensors.insert(m.name_b(), m.b.clone());
    }
    write_tensors(&dir.join("adapter_model.safetensors"), &tensors, StoredType::F32)
}

/// The value of the first pattern that matches: each is a regular expression for the end of the module path,
/// starting at a dot.
fn pattern_value(patterns: &Map<String, Value>, module: &str) -> Result<Option<f64>, String> {
    for (key, value) in patterns {
        let rule = regex::Regex::new(&format!(r"^(.*\.)?({key})$"));
        if rule.map_err(|e| format!("pattern `{key}`: {e}"))?.is_match(module) {
            return value.as_f64().map(Some).ok_or_else(|| format!("pattern `{key}` has no number"));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_ends_of_the_path() {
        let patterns = json!({"proj": 1.0, r"layers\.1\..*q_proj": 2.0, "k_proj": 3.0});
        let patterns = patterns.as_object().unwrap();
        let value = |module| pattern_value(patterns, module).unwrap();
        assert_eq!(value("model.layers.1.self_attn.q_proj"), Some(2.0));
        assert_eq!(value("model.layers.0.self_attn.q_proj"), None);
        assert_eq!(value("model.layers.0.self_attn.k_proj"), Some(3.0));
        assert!(pattern_value(json!({"(": 1.0}).as_object().unwrap(), "x").is_err());
    }
}

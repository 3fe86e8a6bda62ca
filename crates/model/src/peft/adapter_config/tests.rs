use serde_json::{Value, json};

use super::*;
use crate::test_support::{assert_error, shared};

fn read(value: &Value) -> Result<PeftConfig> {
    PeftConfig::from_object(&Object::parse(Path::new("adapter_config.json"), value.to_string().as_bytes())?)
}

fn minimal() -> Value {
    json!({"peft_type": "LORA", "target_modules": ["q_proj"]})
}

fn with(key: &str, value: Value) -> Value {
    let mut config = minimal();
    config[key] = value;
    config
}

#[test]
fn absent_keys_have_the_defaults_of_peft() {
    let config = read(&minimal()).unwrap();
    assert_eq!((config.lora.r, config.lora.lora_alpha.to_bits()), (8, 8f64.to_bits()));
    assert!(!config.lora.use_rslora);
    assert_eq!(config.base_model_name_or_path, None);
}

#[test]
fn every_adapter_that_peft_wrote_is_read() {
    let Some(shared) = shared() else { return };
    let mut count = 0;
    for case in std::fs::read_dir(shared.join("reference/cases")).unwrap() {
        let dir = case.unwrap().path().join("adapter_init");
        if dir.is_dir() {
            let config = PeftConfig::read(&dir).unwrap();
            let text = std::fs::read_to_string(dir.join(CONFIG_FILE)).unwrap();
            let written: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(config.lora.r as u64, written["r"].as_u64().unwrap());
            assert_eq!(config.lora.lora_alpha.to_bits(), written["lora_alpha"].as_f64().unwrap().to_bits());
            assert_eq!(config.lora.use_rslora, written["use_rslora"].as_bool().unwrap());
            // Every key that is written has the value that PEFT gave it.
            let ours: Value = serde_json::from_str(&config.to_json()).unwrap();
            for (key, value) in ours.as_object().unwrap() {
                assert_eq!(value, &written[key], "{key}");
            }
            count += 1;
        }
    }
    assert!(count > 0);
}

#[test]
fn dora_adapters_of_peft_are_refused() {
    let Some(shared) = shared() else { return };
    for case in std::fs::read_dir(shared.join("reference/cases")).unwrap() {
        let dir = case.unwrap().path().join("dora/adapter_init");
        if dir.is_dir() {
            assert_error(PeftConfig::read(&dir), &["use_dora", "not supported yet"]);
        }
    }
}

#[test]
fn harmless_and_empty_keys_are_accepted() {
    let mut config = minimal();
    let harmless = json!({
        "auto_mapping": {"base_model_class": "LlamaForCausalLM"}, "peft_version": "0.99", "megatron_core": "megatron.core",
        "qalora_group_size": 16, "runtime_config": {"ephemeral_gpu_offload": false}, "inference_mode": true,
        "bias": "none", "task_type": "CAUSAL_LM", "init_lora_weights": "gaussian", "loftq_config": {},
        "modules_to_save": null, "use_dora": false, "layer_replication": null, "some_future_key": null,
        "another_future_key": false, "future_list": [], "future_map": {}, "lora_bias": false, "r": 4,
        "lora_alpha": 2.5, "base_model_name_or_path": "org/base", "revision": "main"
    });
    for (key, value) in harmless.as_object().unwrap() {
        config[key] = value.clone();
    }
    let config = read(&config).unwrap();
    assert_eq!(config.base_model_name_or_path.as_deref(), Some("org/base"));
    assert_eq!(config.revision.as_deref(), Some("main"));
    assert_eq!(config.lora.lora_alpha.to_bits(), 2.5f64.to_bits());
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    let cases = [
        ("peft_type", json!("IA3")),
        ("peft_type", Value::Null),
        ("task_type", json!("SEQ_CLS")),
        ("target_modules", Value::Null),
        ("target_modules", json!(7)),
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("modules_to_save", json!(["lm_head"])),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("trainable_token_indices", json!([5])),
        ("target_parameters", json!(["experts.w"])),
        ("lora_bias", json!(true)),
        ("alora_invocation_tokens", json!([1, 2])),
        ("use_qalora", json!(true)),
        ("loftq_config", json!({"bits": 4})),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("loftq")),
        ("megatron_config", json!({"a": 1})),
        ("some_future_key", json!(1)),
        ("some_future_key", json!("on")),
        ("some_future_key", json!(true)),
        ("r", json!(0)),
        ("r", json!("8")),
        ("lora_alpha", json!("16")),
        ("use_rslora", json!("true")),
        ("rank_pattern", json!({"q_proj": "4"})),
        ("layers_to_transform", json!("1")),
    ];
    for (key, value) in cases {
        assert_error(read(&with(key, value)), &[&format!("`{key}`"), "adapter_config.json"]);
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    let settings = json!({
        "r": 4, "lora_alpha": 8.5, "lora_dropout": 0.05, "target_modules": ["a", "b"], "exclude_modules": ["x"],
        "layers_to_transform": 1, "layers_pattern": ["layers"], "rank_pattern": {"z": 1, "a": 2},
        "alpha_pattern": {"b": 1.5, "a": 3.0}, "use_rslora": true
    });
    for lora in [serde_json::from_value(settings).unwrap(), LoraConfig::default()] {
        let mut config = PeftConfig {
            base_model_name_or_path: Some("a \"quoted\" base".into()),
            revision: Some("v1".into()),
            lora,
        };
        let read = read(&serde_json::from_str(&config.to_json()).unwrap()).unwrap();
        if config.lora.target_modules == TargetModules::AllLinear {
            let names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
            config.lora.target_modules =
                TargetModules::Named(ModuleNames::List(names.map(String::from).into()));
        }
        assert_eq!(read, config);
        assert_eq!(
            read.lora.rank_pattern.iter().collect::<Vec<_>>(),
            config.lora.rank_pattern.iter().collect::<Vec<_>>()
        );
    }
}

#[test]
fn the_file_has_the_form_of_peft() {
    let config = PeftConfig { base_model_name_or_path: None, revision: None, lora: LoraConfig::default() };
    let text = config.to_json();
    let value: Value = serde_json::from_str(&text).unwrap();
    let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
    assert!(keys.is_sorted(), "{keys:?}");
    assert_eq!(keys.len(), 24);
    assert!(text.contains("\n  \"lora_alpha\": 32,\n"), "an int, as PEFT writes it: {text}");
    assert_eq!(value["inference_mode"], json!(true));
    assert_eq!(value["task_type"], json!("CAUSAL_LM"));
    assert!(value["modules_to_save"].is_null() && value.as_object().unwrap().contains_key("modules_to_save"));
}

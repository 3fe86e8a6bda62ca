use serde_json::{Value, json};

use super::*;
use crate::rope::RopeScaling;
use crate::test_support::{assert_error, shared};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96, "hidden_size": 48,
        "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 6
    })
}

/// The Llama above with some keys replaced; a JSON null stays a null in the file.
fn with(changes: &Value) -> Value {
    let mut config = llama();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(config: &Value, generation: Option<&Value>) -> Result<ModelConfig> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    if let Some(generation) = generation {
        std::fs::write(dir.path().join("generation_config.json"), generation.to_string()).unwrap();
    }
    ModelConfig::from_dir(dir.path())
}

#[test]
fn parameter_counts_of_released_models() {
    let Some(shared) = shared() else { return };
    let text = std::fs::read_to_string(shared.join("configs/parameter_counts.json")).unwrap();
    let counts: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(!counts.is_empty());
    for entry in counts {
        let name = entry["model"].as_str().unwrap();
        let config = ModelConfig::from_dir(&shared.join("configs").join(name)).unwrap();
        assert_eq!(config.parameter_count(), entry["parameters"].as_u64().unwrap(), "{name}");
    }
}

#[test]
fn both_forms_of_a_released_config_mean_the_same() {
    let Some(shared) = shared() else { return };
    for entry in std::fs::read_dir(shared.join("configs/new-style")).unwrap() {
        let new = entry.unwrap().path();
        let classic = shared.join("configs").join(new.file_name().unwrap());
        assert_eq!(ModelConfig::from_dir(&new).unwrap(), ModelConfig::from_dir(&classic).unwrap());
    }
    for entry in std::fs::read_dir(shared.join("models")).unwrap() {
        let dir = entry.unwrap().path();
        if dir.is_dir() {
            ModelConfig::from_dir(&dir).unwrap();
        }
    }
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = read(&llama(), None).unwrap();
    assert_eq!(config.num_key_value_heads, 6);
    assert_eq!(config.head_dim, 8);
    assert_eq!(config.max_position_embeddings, 2048);
    assert_eq!(config.rms_norm_eps.to_bits(), 1e-6f64.to_bits());
    assert_eq!(config.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None });
    assert!(!config.tie_word_embeddings);
    assert_eq!(config.sliding_window, None);
    assert_eq!((config.bos_token_id, config.pad_token_id), (None, None));
    assert!(config.eos_token_ids.is_empty());

    let mistral =
        json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_attention_heads": 8});
    let config = read(&with(&mistral), None).unwrap();
    assert_eq!((config.num_key_value_heads, config.sliding_window), (8, Some(4096)));
    let mut off = with(&mistral);
    off["sliding_window"] = Value::Null;
    off["num_key_value_heads"] = json!(4);
    let config = read(&off, None).unwrap();
    assert_eq!((config.num_key_value_heads, config.sliding_window), (4, None));
}

#[test]
fn either_architecture_key_is_enough() {
    let mut by_type = llama();
    by_type.as_object_mut().unwrap().remove("architectures");
    assert_eq!(read(&by_type, None).unwrap().architecture, Architecture::Llama);
    let mut by_list = llama();
    by_list.as_object_mut().unwrap().remove("model_type");
    assert_eq!(read(&by_list, None).unwrap().architecture, Architecture::Llama);
}

#[test]
fn token_ids_of_generation_config_win() {
    let config = with(&json!({"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": -1}));
    let plain = read(&config, None).unwrap();
    assert_eq!((plain.eos_token_ids.as_slice(), plain.pad_token_id), (&[2][..], None));
    let generation = json!({"eos_token_id": [7, 8], "pad_token_id": 3});
    let config = read(&config, Some(&generation)).unwrap();
    assert_eq!(config.eos_token_ids, [7, 8]);
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(1), Some(3)));
}

#[test]
fn rope_of_both_forms() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    let mut inner = llama3.clone();
    inner["rope_theta"] = json!(500_000.0);
    let classic = read(&with(&json!({"rope_theta": 500_000.0, "rope_scaling": llama3})), None).unwrap();
    let new = read(&with(&json!({"rope_parameters": inner})), None).unwrap();
    let both = json!({"rope_theta": 500_000, "rope_scaling": llama3, "rope_parameters": inner});
    assert_eq!(classic.rope, new.rope);
    assert_eq!(read(&with(&both), None).unwrap().rope, new.rope);
    assert_eq!(new.rope.theta.to_bits(), 500_000f64.to_bits());
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    assert_eq!(new.rope.scaling, expected);

    let linear = read(&with(&json!({"rope_scaling": {"type": "linear", "factor": 2}})), None).unwrap();
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    let default = read(&with(&json!({"rope_scaling": {"rope_type": "default"}})), None).unwrap();
    assert_eq!(default.rope, Rope::default());
}

#[test]
fn what_would_be_silently_wrong_is_refused_by_name() {
    let cases = [
        (json!({"architectures": ["Qwen2ForCausalLM"]}), "Qwen2ForCausalLM"),
        (json!({"architectures": ["LlamaForCausalLM", "LlamaModel"]}), "architectures"),
        (json!({"model_type": "mixtral"}), "mixtral"),
        (json!({"model_type": "mistral"}), "contradicts"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"attention_dropout": 0.1}), "attention_dropout"),
        (json!({"quantization_config": {"bits": 4}}), "quantization_config"),
        (json!({"num_key_value_heads": 4}), "num_key_value_heads"),
        (json!({"num_key_value_heads": 7}), "num_key_value_heads"),
        (json!({"head_dim": 7}), "head_dim"),
        (json!({"hidden_size": 50}), "head_dim"),
        (json!({"hidden_size": 0}), "hidden_size"),
        (json!({"hidden_size": null}), "hidden_size"),
        (json!({"vocab_size": -1}), "vocab_size"),
        (json!({"vocab_size": 1.5}), "vocab_size"),
        (json!({"vocab_size": 1e30}), "vocab_size"),
        (json!({"num_hidden_layers": "three"}), "num_hidden_layers"),
        (json!({"num_hidden_layers": 1025}), "num_hidden_layers"),
        (json!({"hidden_size": 4_294_967_292_u64}), "hidden_size"),
        (
            json!({"num_attention_heads": 1 << 20, "head_dim": 1 << 20, "num_key_value_heads": 1}),
            "hidden_size",
        ),
        (json!({"rms_norm_eps": 0}), "rms_norm_eps"),
        (json!({"rope_theta": -1.0}), "rope_theta"),
        (json!({"sliding_window": 128}), "sliding_window"),
        (json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings"),
        (json!({"eos_token_id": "</s>"}), "eos_token_id"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            "partial_rotary_factor",
        ),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "yarn"),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 4.0}}), "dynamic"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor"),
        (json!({"rope_scaling": {"factor": 2.0}}), "rope_scaling.rope_type"),
        (json!({"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 2.0}}), "rope_type"),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}}), "mrope_section"),
        (json!({"rope_scaling": {"type": "llama3", "factor": 2.0}}), "low_freq_factor"),
        (json!({"rope_scaling": "linear"}), "rope_scaling"),
        (
            json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4, "rope_type": "default"}}),
            "rope_theta",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}),
            "rope_scaling",
        ),
    ];
    for (change, word) in cases {
        assert_error(read(&with(&change), None), &[word, "config.json"]);
    }
}

#[test]
fn files_that_are_no_config() {
    let dir = tempfile::tempdir().unwrap();
    assert_error(ModelConfig::from_dir(dir.path()), &["config.json", "not a Hugging Face model"]);
    std::fs::write(dir.path().join("config.json"), "{\"a\": ").unwrap();
    assert_error(ModelConfig::from_dir(dir.path()), &["config.json", "not valid JSON", "line 1"]);
    std::fs::write(dir.path().join("config.json"), "[]").unwrap();
    assert_error(ModelConfig::from_dir(dir.path()), &["one JSON object"]);
    std::fs::write(dir.path().join("config.json"), llama().to_string()).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), "oops").unwrap();
    assert_error(ModelConfig::from_dir(dir.path()), &["generation_config.json", "not valid JSON"]);
}

#[test]
fn tensor_shapes_follow_head_dim_and_tying() {
    let change = json!({"head_dim": 10, "num_key_value_heads": 3, "tie_word_embeddings": true});
    let tied = read(&with(&change), None).unwrap();
    let shapes: std::collections::HashMap<_, _> = tied.tensor_shapes().into_iter().collect();
    assert_eq!(shapes["model.layers.2.self_attn.q_proj.weight"], [60, 48]);
    assert_eq!(shapes["model.layers.2.self_attn.v_proj.weight"], [30, 48]);
    assert_eq!(shapes["model.layers.0.self_attn.o_proj.weight"], [48, 60]);
    assert_eq!(shapes["model.layers.0.mlp.down_proj.weight"], [48, 112]);
    assert_eq!(shapes["model.norm.weight"], [48]);
    assert!(!shapes.contains_key("lm_head.weight"));
    assert_eq!(shapes.len(), 2 + 3 * 9);
}

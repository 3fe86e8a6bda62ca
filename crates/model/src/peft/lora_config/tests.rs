use serde_json::{Value, json};

use super::*;
use crate::test_support::assert_error;

fn config(value: &Value) -> LoraConfig {
    serde_json::from_value(value.clone()).unwrap()
}

fn sites(value: &Value) -> Vec<(usize, Linear)> {
    config(value).resolve(3).unwrap().iter().map(|site| (site.layer, site.linear)).collect()
}

fn all() -> Vec<(usize, Linear)> {
    (0..3).flat_map(|layer| Linear::ALL.map(|linear| (layer, linear))).collect()
}

fn only(linears: &[Linear]) -> Vec<(usize, Linear)> {
    all().into_iter().filter(|(_, linear)| linears.contains(linear)).collect()
}

#[test]
fn defaults() {
    let config = config(&json!({}));
    assert_eq!(config, LoraConfig::default());
    let sites = config.resolve(3).unwrap();
    assert_eq!(sites.iter().map(|s| (s.layer, s.linear)).collect::<Vec<_>>(), all());
    assert!(sites.iter().all(|s| s.rank == 16 && s.scale.to_bits() == 2f32.to_bits()));
    assert_eq!(sites[7].lora_a_key(), "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight");
    assert_eq!(sites[20].lora_b_key(), "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight");
}

#[test]
fn targets_match_as_in_peft() {
    use Linear::{Down, Gate, O, Q, Up, V};
    assert_eq!(sites(&json!({"target_modules": ["v_proj", "q_proj"]})), only(&[Q, V]));
    assert_eq!(sites(&json!({"target_modules": ["self_attn.o_proj"]})), only(&[O]));
    assert_eq!(sites(&json!({"target_modules": ["1.mlp.up_proj"]})), [(1, Up)]);
    assert_eq!(sites(&json!({"target_modules": ["model.layers.2.mlp.down_proj"]})), [(2, Down)]);
    assert_eq!(sites(&json!({"target_modules": "All-Linear"})), all());
    let regex = r"model\.layers\.[02]\..*\.(gate|up)_proj";
    assert_eq!(sites(&json!({"target_modules": regex})), [(0, Gate), (0, Up), (2, Gate), (2, Up)]);
    // Alternatives must not escape the anchors.
    assert_eq!(sites(&json!({"target_modules": r".*q_proj|.*v_proj"})), only(&[Q, V]));
    let excluded =
        json!({"exclude_modules": ["k_proj", "1.self_attn.q_proj", "mlp.gate_proj", "up_proj", "down_proj"]});
    assert_eq!(sites(&excluded), [(0, Q), (0, V), (0, O), (1, V), (1, O), (2, Q), (2, V), (2, O)]);
    assert_eq!(
        sites(&json!({"exclude_modules": r".*\.mlp\..*", "target_modules": ["v_proj", "up_proj"]})),
        only(&[V])
    );
    // The head and the embedding may be excluded although they never are targets.
    assert_eq!(sites(&json!({"exclude_modules": ["lm_head"]})), all());
}

#[test]
fn a_name_matches_only_at_a_dot() {
    for name in ["proj", "_proj", "ttn.q_proj", ".q_proj", "q_proj.", "layers.0.mlp.q_proj", "Q_proj", ""] {
        let message = assert_error(
            config(&json!({"target_modules": ["v_proj", name]})).resolve(3),
            &["target_modules"],
        );
        assert!(message.contains(&format!("`{name}` matches no module")), "{message}");
    }
}

#[test]
fn layers_to_transform() {
    use Linear::{Q, V};
    let two = json!({"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [2, 0]});
    assert_eq!(sites(&two), [(0, Q), (0, V), (2, Q), (2, V)]);
    let one = json!({"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"});
    assert_eq!(sites(&one), [(1, Q)]);
    let lists =
        json!({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]});
    assert_eq!(sites(&lists), [(1, Q)]);
    // A whole path is taken whatever the layers say.
    let path =
        json!({"target_modules": ["model.layers.0.self_attn.v_proj", "q_proj"], "layers_to_transform": [1]});
    assert_eq!(sites(&path), [(0, V), (1, Q)]);
    assert_eq!(sites(&json!({"layers_to_transform": []})), all());
    assert_eq!(sites(&json!({"layers_to_transform": [1]})).len(), 7);

    let cases = [
        (json!({"layers_to_transform": [3]}), "layer 3"),
        (json!({"layers_to_transform": [0], "target_modules": ".*q_proj"}), "regular expression"),
        (json!({"layers_pattern": "layers"}), "layers_to_transform"),
        (json!({"layers_to_transform": [0], "layers_pattern": "blocks"}), "no module to train"),
    ];
    for (value, word) in cases {
        assert_error(config(&value).resolve(3), &[word]);
    }
}

#[test]
fn rank_and_alpha_patterns() {
    use Linear::{Q, V};
    let value = json!({
        "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 4, "q_proj": 2, r"model\.layers\.2\..*": 32},
        "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 3.5, "2.self_attn.(q|v)_proj": 1}
    });
    let found: Vec<_> =
        config(&value).resolve(3).unwrap().iter().map(|s| (s.layer, s.linear, s.rank, s.scale)).collect();
    let expected = [
        (0, Q, 2, 8.0),
        (0, V, 8, 0.4375),
        // The first pattern in the order of writing wins.
        (1, Q, 4, 4.0),
        (1, V, 8, 2.0),
        (2, Q, 2, 0.5),
        (2, V, 32, 0.03125),
    ];
    assert_eq!(found, expected);
}

#[test]
fn rslora_divides_by_the_root() {
    let sites = config(&json!({"r": 64, "lora_alpha": 16, "use_rslora": true})).resolve(1).unwrap();
    assert!(sites.iter().all(|s| s.scale.to_bits() == 2f32.to_bits()));
    let sites = config(&json!({"r": 8, "lora_alpha": 16, "use_rslora": true})).resolve(1).unwrap();
    assert_eq!(sites[0].scale.to_bits(), ((16.0 / 8f64.sqrt()) as f32).to_bits());
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let cases = [
        (json!({"r": 0}), "`r`"),
        (json!({"r": 65_537}), "65536 is the most"),
        (json!({"rank_pattern": {"q_proj": 65_537}}), "`q_proj` rank 65537"),
        (json!({"lora_alpha": 0}), "lora_alpha"),
        (json!({"lora_alpha": -1.0}), "lora_alpha"),
        (json!({"lora_dropout": 1.0}), "lora_dropout"),
        (json!({"lora_dropout": -0.1}), "lora_dropout"),
        (json!({"use_dora": true}), "DoRA is not supported yet"),
        (json!({"rank_pattern": {"q_proj": 0}}), "rank 0"),
        (json!({"rank_pattern": {"proj": 4}}), "`proj` matches no module"),
        (json!({"rank_pattern": {"q_proj": 4}, "target_modules": ["v_proj"]}), "`q_proj` matches no module"),
        (json!({"alpha_pattern": {"q_proj": 0}}), "`q_proj`"),
        (json!({"alpha_pattern": {"k_": 1}}), "alpha_pattern"),
        (json!({"target_modules": []}), "empty list"),
        (json!({"target_modules": "q_proj"}), "write a list"),
        (json!({"target_modules": "(q_proj"}), "regular expression"),
        (json!({"target_modules": "a)|(.*q_proj"}), "regular expression"),
        (json!({"target_modules": "^(?!.*mlp).*proj"}), "look-around"),
        (json!({"target_modules": ".*"}), "only the seven linear layers"),
        (json!({"target_modules": ["q_proj", "lm_head"]}), "`lm_head`"),
        (json!({"target_modules": ["mlp"]}), "model.layers.0.mlp"),
        (json!({"exclude_modules": ["qproj"]}), "`qproj` matches no module"),
        (json!({"exclude_modules": r".*_proj"}), "no module to train"),
    ];
    for (value, word) in cases {
        assert_error(config(&value).resolve(3), &[word]);
    }
    for value in [
        json!({"rank": 8}),
        json!({"r": -1}),
        json!({"r": 1.5}),
        json!({"target_modules": 3}),
        json!({"target_modules": [3]}),
        json!({"rank_pattern": {"q_proj": 1.5}}),
        json!({"layers_to_transform": [-1]}),
    ] {
        assert!(serde_json::from_value::<LoraConfig>(value.clone()).is_err(), "{value}");
    }
    assert!(serde_json::from_str::<LoraConfig>(r#"{"rank_pattern": {"a": 1, "a": 2}}"#).is_err());
}

#[test]
fn settings_survive_a_round_trip() {
    let value = json!({
        "r": 4, "lora_alpha": 8.5, "lora_dropout": 0.05, "target_modules": ["q_proj"], "exclude_modules": ".*",
        "layers_to_transform": [1], "layers_pattern": "layers", "rank_pattern": {"z": 1, "a": 2},
        "alpha_pattern": {"b": 1.0}, "use_rslora": true
    });
    assert_eq!(serde_json::to_value(config(&value)).unwrap(), value);
    let text = serde_json::to_string(&config(&value)).unwrap();
    assert!(text.contains(r#"{"z":1,"a":2}"#), "the order of patterns is kept: {text}");
}

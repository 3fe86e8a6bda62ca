//! `adapter inspect` on adapters that PEFT wrote, whole and damaged.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Bench, root};

/// A copy of a PEFT adapter of rank 8 and alpha 16 on two layers, as `adapter` in the scratch directory.
fn adapter(bench: &Bench) -> PathBuf {
    let source = root().join("tests/fixtures/golden/tiny-llama-tied/adapter_init");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        bench.write(&format!("adapter/{file}"), fs::read(source.join(file)).unwrap());
    }
    bench.path("adapter")
}

fn edit_config(bench: &Bench, key: &str, value: Value) {
    let path = bench.path("adapter/adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_peft_adapter_is_described() {
    let bench = Bench::new();
    let dir = adapter(&bench);
    let report = bench.run(&["adapter", "inspect", "adapter", "--json"]).json();
    let bytes = fs::metadata(dir.join("adapter_model.safetensors")).unwrap().len();
    assert_eq!((&report["tensors"], &report["file_bytes"]), (&json!(28), &json!(bytes)));
    assert_eq!((&report["config"]["r"], &report["config"]["use_rslora"]), (&json!(8), &json!(false)));
    let sites = report["sites"].as_array().unwrap();
    assert_eq!(sites.len(), 14);
    let counted: u64 = sites
        .iter()
        .flat_map(|s| [&s["a_shape"], &s["b_shape"]])
        .map(|shape| shape[0].as_u64().unwrap() * shape[1].as_u64().unwrap())
        .sum();
    assert_eq!(report["parameters"], json!(counted));
    let first = &sites[0];
    assert_eq!(
        (&first["module"], &first["scaling"]),
        (&json!("model.layers.0.self_attn.q_proj"), &json!(2.0))
    );
    assert_eq!((&first["a_shape"], &first["b_shape"]), (&json!([8, 64]), &json!([64, 8])));
    let norm = |name: &str| first[name].as_f64().unwrap();
    // The norm of a product is at most the product of the norms; neither matrix of this adapter is zero.
    assert!(
        norm("update_norm") > 0.0 && norm("update_norm") <= 2.0 * norm("a_norm") * norm("b_norm"),
        "{first}"
    );

    edit_config(&bench, "use_rslora", json!(true));
    let root = bench.run(&["adapter", "inspect", "adapter", "--json"]).json();
    let ratio = root["sites"][0]["update_norm"].as_f64().unwrap() / norm("update_norm");
    assert!((ratio - 8f64.sqrt()).abs() < 1e-6, "alpha / sqrt(r) is sqrt(8) times alpha / r, got {ratio}");
}

#[test]
fn the_text_has_a_line_for_each_module() {
    let bench = Bench::new();
    adapter(&bench);
    let ran = bench.run(&["adapter", "inspect", "adapter"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(ran.stdout.lines().filter(|l| l.starts_with("model.layers.")).count(), 14);
    assert!(ran.stdout.contains("parameters   18,688 in 28 tensors"), "{}", ran.stdout);
}

#[test]
fn what_does_not_fit_together_is_named() {
    let bench = Bench::new();
    adapter(&bench);
    edit_config(&bench, "r", json!(4));
    bench
        .run(&["adapter", "inspect", "adapter"])
        .failed(65, "have ranks 8 and 8, but adapter_config.json gives 4");
    adapter(&bench);
    edit_config(&bench, "target_modules", json!(["q_proj"]));
    bench.run(&["adapter", "inspect", "adapter"]).failed(65, "does not ask for it");
    adapter(&bench);
    edit_config(&bench, "use_dora", json!(true));
    bench.run(&["adapter", "inspect", "adapter"]).failed(65, "DoRA");
    let dir = adapter(&bench);
    let weights = dir.join("adapter_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&weights, &whole[..length]).unwrap();
        bench.run(&["adapter", "inspect", "adapter"]).failed(65, "adapter_model.safetensors");
    }
}

//! What a run is made of, as one digest: a checkpoint is gone on from only where it is the same.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tunesmith_data::DataReport;
use tunesmith_jobs::dir::{hex, sha256_file};

use super::Run;
use super::base::Base;
use crate::error::CliError;

/// Small files of a base model that decide what is computed, or which tokens it is computed on.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// The digest of a run whose rows are frozen: settings, rows, base model. Where the model lies, on which device and in
/// how much memory it is trained and how often it is saved are no part of it. Weights count by name and size: reading them all would take as
/// long as loading them.
pub(super) fn of(run: &Run<'_>, base: &Base) -> Result<String, CliError> {
    let spec = run.spec;
    let json = |value: serde_json::Result<Value>| value.map_err(|e| CliError::Internal(e.to_string()));
    let mut train = json(serde_json::to_value(&spec.train))?;
    if let Some(keys) = train.as_object_mut() {
        keys.retain(|key, _| !key.starts_with("save_") && key != "memory_limit");
    }
    let manifest = run.job.read_manifest::<DataReport>()?;
    let digest = |file: &tunesmith_jobs::dir::FrozenFile| json!([file.sha256, file.places.sha256, file.rows]);
    let made_of = json!({
        "lora": json(serde_json::to_value(&spec.lora))?,
        "train": train,
        "template": json(serde_json::to_value(spec.data.template))?,
        "max_seq_length": spec.data.max_seq_length,
        "rows": manifest.as_ref().map(|m| digest(&m.train)),
        "held_out": manifest.as_ref().and_then(|m| m.validation.as_ref()).map(digest),
        "base": model(&base.dir)?,
    });
    Ok(hex(&Sha256::digest(made_of.to_string())))
}

/// What tells one base model from another.
fn model(dir: &Path) -> Result<Value, CliError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CliError::Io { action: "read", path, source }
    };
    let mut files = Vec::new();
    for name in FILES {
        let path = dir.join(name);
        if path.exists() {
            files.push(json!([name, sha256_file(&path).map_err(failed(&path))?]));
        }
    }
    let mut weights = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            // Files of the hub's cache are links; what they lead to counts.
            let bytes = fs::metadata(&path).map_err(failed(&path))?.len();
            weights.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes));
        }
    }
    weights.sort();
    Ok(json!({ "files": files, "weights": weights }))
}

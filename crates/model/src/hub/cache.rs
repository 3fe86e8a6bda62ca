//! What is in the Hugging Face cache, and what a model needs of a repository.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::Repo;

use crate::error::Result;
use crate::json::Object;

/// Weights in one file.
pub(super) const SINGLE: &str = "model.safetensors";
/// List of the weights' shards.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Files without which a base model cannot be used.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];

/// Files of the repository that are needed beside the weights.
pub(super) fn is_small_file(name: &str) -> bool {
    let exact =
        ["config.json", "generation_config.json", "special_tokens_map.json", "chat_template.jinja", INDEX];
    let tokenizer = name.starts_with("tokenizer") && Path::new(name).extension().is_some_and(|e| e == "json");
    exact.contains(&name) || (tokenizer && !name.contains(['/', '\\']))
}

/// Branches and tags may contain `/`, but nothing that leaves the cache's directory.
pub(super) fn is_plain_revision(revision: &str) -> bool {
    !revision.is_empty()
        && revision.len() <= 200
        && revision.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+'))
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
}

/// The snapshot directory of a repository's revision, when the cache has one.
pub(super) fn find_snapshot(cache: &Path, repo: &Repo) -> Option<PathBuf> {
    let folder = cache.join(repo.folder_name());
    let noted = std::fs::read_to_string(folder.join("refs").join(repo.revision())).ok();
    // A full commit hash needs no reference: its snapshot has it as its name.
    let commit = noted.as_deref().map_or(repo.revision(), str::trim);
    let snapshot = folder.join("snapshots").join(commit);
    (is_plain_revision(commit) && snapshot.is_dir()).then_some(snapshot)
}

/// The shards that a snapshot's index names.
pub(super) fn shards(snapshot: &Path) -> Result<BTreeSet<String>> {
    let index = Object::read(&snapshot.join(INDEX))?;
    let map = index.object("weight_map")?.ok_or_else(|| index.error("weight_map", "is missing"))?;
    let mut shards = BTreeSet::new();
    for (tensor, _) in map.iter() {
        let shard = map.string(tensor)?.unwrap_or_default();
        crate::weights::shard_path(snapshot, shard).map_err(|problem| map.error(tensor, problem))?;
        shards.insert(shard.to_string());
    }
    Ok(shards)
}

/// The files that a snapshot lacks to be a whole model, or one without weights; empty when it is one.
pub(super) fn missing_files(snapshot: &Path, without_weights: bool) -> Vec<String> {
    let mut needed: Vec<String> = REQUIRED.map(String::from).into();
    if without_weights {
        // What is required is all.
    } else if snapshot.join(SINGLE).exists() {
        // One file, nothing else to look for.
    } else if let Ok(shards) = shards(snapshot) {
        needed.extend(shards);
    } else {
        needed.push(SINGLE.to_string());
    }
    needed.retain(|name| !snapshot.join(name).exists());
    needed
}

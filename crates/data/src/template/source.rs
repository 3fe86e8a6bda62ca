//! Where a model folder keeps its chat template.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::error::Error;

/// The template's text and its file: `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`.
pub(super) fn find_source(dir: &Path) -> Result<Option<(String, PathBuf)>, Error> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return Ok(Some((source, path))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(&path, e)),
    }
    let path = dir.join("tokenizer_config.json");
    let Some(config) = crate::tokenizer::read_json(&path)? else {
        return Ok(None);
    };
    let source = match config.get("chat_template") {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::String(source)) => source.clone(),
        Some(Json::Array(named)) => named
            .iter()
            .find(|t| t.get("name").and_then(Json::as_str) == Some("default"))
            .and_then(|t| t.get("template").and_then(Json::as_str))
            .ok_or_else(|| {
                Error::tokenizer(&path, "`chat_template` is a list without an entry named `default`; add one")
            })?
            .to_owned(),
        Some(_) => {
            return Err(Error::tokenizer(
                &path,
                "`chat_template` is neither a text nor a list of templates; correct it",
            ));
        }
    };
    Ok(Some((source, path)))
}

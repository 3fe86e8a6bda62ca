//! Adapter directories: written whole or not at all, read strictly.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::card::ModelCard;
use crate::error::{Error, Result};
use crate::peft::adapter_config::{CONFIG_FILE, PeftConfig};
use crate::publish::{copy_file, publish_dir, write_file};
use crate::tensor_file::TensorFile;
use crate::weights::{find_pickle, list};

/// File name of the weights in an adapter directory.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const CARD_FILE: &str = "README.md";
/// Values turned into bytes at a time.
const VALUES: usize = 1024;
/// Copied from the base model, so that the adapter's directory is enough to tokenise as in training.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// One matrix to be saved.
#[derive(Clone, Debug)]
pub struct AdapterTensor<'a> {
    /// Key in the file; see [`crate::peft::Site::lora_a_key`].
    pub key: String,
    /// `[rank, in]` for A, `[out, rank]` for B.
    pub shape: [usize; 2],
    /// The values, row-major.
    pub values: &'a [f32],
}

/// One tensor of a loaded adapter, raised to f32.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedTensor {
    /// Key in the file.
    pub key: String,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f32>,
}

/// Writes the adapter directory `dir`, which must not exist: `adapter_model.safetensors`, `adapter_config.json`, the
/// model card, and the tokenizer files of `base_dir` where there are some.
///
/// Everything is built in `<dir>.tmp`, brought to the disk and renamed, so that a full disk or a killed process leaves
/// no adapter that looks whole.
pub fn save(
    dir: &Path,
    config: &PeftConfig,
    tensors: &[AdapterTensor<'_>],
    base_dir: Option<&Path>,
    card: &ModelCard,
) -> Result<()> {
    let header = header(dir, tensors)?;
    let mut known = vec![WEIGHTS_FILE, CONFIG_FILE, CARD_FILE];
    known.extend(TOKENIZER_FILES);
    publish_dir(dir, &known, |tmp| {
        write_weights(&tmp.join(WEIGHTS_FILE), &header)?;
        write_config(tmp, config)?;
        write_file(&tmp.join(CARD_FILE), |out| out.write_all(card.to_markdown().as_bytes()))?;
        for name in TOKENIZER_FILES {
            match base_dir.map(|base| base.join(name)) {
                Some(source) if source.exists() => copy_file(&source, &tmp.join(name))?,
                _ => {}
            }
        }
        Ok(())
    })
}

/// Writes the two files that make an adapter, `adapter_model.safetensors` and `adapter_config.json`, into a directory
/// that somebody else builds and brings into place. Each file is on the disk on return; the names in `dir` are not.
pub fn write(dir: &Path, config: &PeftConfig, tensors: &[AdapterTensor<'_>]) -> Result<()> {
    write_tensors(&dir.join(WEIGHTS_FILE), tensors)?;
    write_config(dir, config)
}

/// Writes an f32 safetensors file; on return it is on the disk. Values that are not finite are refused.
pub fn write_tensors(path: &Path, tensors: &[AdapterTensor<'_>]) -> Result<()> {
    write_weights(path, &header(path, tensors)?)
}

fn write_config(dir: &Path, config: &PeftConfig) -> Result<()> {
    write_file(&dir.join(CONFIG_FILE), |out| out.write_all(config.to_json().as_bytes()))
}

/// The header's bytes and the values in its order.
struct Layout<'a> {
    header: Vec<u8>,
    values: Vec<&'a [f32]>,
}

/// Checks the tensors and lays them out sorted by key, as the safetensors library does for one dtype.
fn header<'a>(dir: &Path, tensors: &[AdapterTensor<'a>]) -> Result<Layout<'a>> {
    let bad = |problem: String| Error::Adapter { path: dir.to_path_buf(), problem };
    let mut sorted: BTreeMap<&str, &AdapterTensor<'a>> = BTreeMap::new();
    for tensor in tensors {
        let key = &tensor.key;
        if tensor.values.len() != tensor.shape[0] * tensor.shape[1] {
            let (shape, count) = (tensor.shape, tensor.values.len());
            return Err(bad(format!(
                "cannot be saved: `{key}` of shape {shape:?} comes with {count} values"
            )));
        }
        if !tensor.values.iter().all(|value| value.is_finite()) {
            return Err(bad(format!("cannot be saved: `{key}` holds a value that is not finite")));
        }
        if sorted.insert(key, tensor).is_some() {
            return Err(bad(format!("cannot be saved: `{key}` is given twice")));
        }
    }
    let mut infos = Vec::with_capacity(sorted.len());
    let mut end = 0;
    for (key, tensor) in &sorted {
        let start = end;
        end += tensor.values.len() * 4;
        let info = TensorInfo { dtype: Dtype::F32, shape: tensor.shape.to_vec(), data_offsets: (start, end) };
        infos.push(((*key).to_string(), info));
    }
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata =
        Metadata::new(Some(format), infos).map_err(|error| bad(format!("cannot be saved: {error}")))?;
    let mut header =
        serde_json::to_vec(&metadata).map_err(|error| bad(format!("cannot be saved: {error}")))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(Layout { header, values: sorted.values().map(|tensor| tensor.values).collect() })
}

fn write_weights(path: &Path, layout: &Layout<'_>) -> Result<()> {
    write_file(path, |out| {
        out.write_all(&(layout.header.len() as u64).to_le_bytes())?;
        out.write_all(&layout.header)?;
        let mut bytes = [0; VALUES * 4];
        for part in layout.values.iter().flat_map(|values| values.chunks(VALUES)) {
            let (words, _) = bytes.as_chunks_mut::<4>();
            for (word, value) in words.iter_mut().zip(part) {
                *word = value.to_le_bytes();
            }
            out.write_all(&bytes[..part.len() * 4])?;
        }
        Ok(())
    })
}

/// Reads the adapter directory `dir`: its configuration and every tensor (f32, f16 or bf16, raised to f32), sorted
/// by key. Values that are not finite are refused, and so are pickled adapters.
pub fn load(dir: &Path) -> Result<(PeftConfig, Vec<LoadedTensor>)> {
    let bad = |problem: String| Error::Adapter { path: dir.to_path_buf(), problem };
    if !dir.is_dir() {
        return Err(bad("is not a directory".into()));
    }
    let weights = dir.join(WEIGHTS_FILE);
    if !weights.exists() {
        return Err(match find_pickle(dir)? {
            Some(path) => Error::Pickle { path },
            None => bad(format!("there is no {WEIGHTS_FILE} in it")),
        });
    }
    if !dir.join(CONFIG_FILE).exists() {
        return Err(bad(format!("there is no {CONFIG_FILE} in it")));
    }
    let config = PeftConfig::read(dir)?;
    let file = TensorFile::open(&weights)?;
    let mut tensors = Vec::new();
    for key in file.names() {
        let values = file.read_f32(&key)?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(bad(format!("`{key}` holds a value that is not finite")));
        }
        let shape = file.shape(&key).unwrap_or_default().to_vec();
        tensors.push(LoadedTensor { key, shape, values });
    }
    Ok((config, tensors))
}

/// Checks that a loaded adapter has exactly the tensors of `expected`, each in its shape. `dir` is for the message.
pub fn check(dir: &Path, expected: &[(String, [usize; 2])], found: &[LoadedTensor]) -> Result<()> {
    let bad = |problem: String| Err(Error::Adapter { path: dir.to_path_buf(), problem });
    let by_key: HashMap<&str, &LoadedTensor> =
        found.iter().map(|tensor| (tensor.key.as_str(), tensor)).collect();
    let wanted: HashMap<&str, [usize; 2]> =
        expected.iter().map(|(key, shape)| (key.as_str(), *shape)).collect();
    let missing: Vec<&str> =
        expected.iter().map(|(key, _)| key.as_str()).filter(|key| !by_key.contains_key(key)).collect();
    let unexpected: Vec<&str> =
        found.iter().map(|tensor| tensor.key.as_str()).filter(|key| !wanted.contains_key(key)).collect();
    // A wrong shape is the clearer sign of another base model, so it is reported first.
    for (key, shape) in expected {
        if let Some(tensor) = by_key.get(key.as_str())
            && tensor.shape != *shape
        {
            return bad(format!(
                "is for another base model or rank: `{key}` has shape {:?} in the adapter, but this base model and \
                 {CONFIG_FILE} need {shape:?}",
                tensor.shape
            ));
        }
    }
    if missing.is_empty() && unexpected.is_empty() {
        return Ok(());
    }
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(list("missing", &missing));
    }
    if !unexpected.is_empty() {
        parts.push(list("unexpected", &unexpected));
    }
    bad(format!("its tensors do not fit its {CONFIG_FILE} and this base model: {}", parts.join("; ")))
}

#[cfg(test)]
mod tests;

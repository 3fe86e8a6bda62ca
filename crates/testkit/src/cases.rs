//! Golden cases: folders that hold `batches.safetensors` and `adapter_init/`.
//!
//! Nothing about a case is written into code: names, shapes, ranks, targets and step counts are read from its
//! files, so that any set of cases can be put in place of another.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, read_json};
use crate::records::{Generation, Scalars, TrainRun};
use crate::tensors::{IntTensors, Tensors, read_int_tensors, read_tensors};

/// The variable that names the folder of golden cases.
pub const REFERENCE_VARIABLE: &str = "TUNESMITH_REFERENCE";

/// Root of the workspace.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of golden cases: what [`REFERENCE_VARIABLE`] names, else `../shared/reference` beside the workspace.
///
/// `None` where neither is there; a folder that the variable names and that is not there is an error.
pub fn reference_dir() -> Result<Option<PathBuf>, Error> {
    if let Some(named) = std::env::var_os(REFERENCE_VARIABLE).filter(|v| !v.is_empty()) {
        let dir = PathBuf::from(named);
        // Cargo runs each test in its package's folder; a relative path is meant from the workspace root.
        let dir = if dir.is_absolute() { dir } else { workspace_root().join(dir) };
        let found = dir.is_dir();
        let missing =
            || Error::reference(&dir, format!("`{REFERENCE_VARIABLE}` names no folder that is there"));
        return if found { Ok(Some(dir)) } else { Err(missing()) };
    }
    let dir = workspace_root().join("../shared/reference");
    Ok(dir.is_dir().then_some(dir))
}

/// The golden cases that a test has to run.
#[derive(Debug)]
pub struct Found {
    /// All cases, by path: the committed ones, then those of the reference folder.
    pub cases: Vec<Case>,
    /// A line to print where the reference folder is not there.
    pub notice: Option<String>,
}

/// Finds the cases committed under `tests/fixtures` and those of [`reference_dir`].
///
/// A reference folder without a case is an error, for a test over no case would pass whatever the code does.
pub fn find() -> Result<Found, Error> {
    let fixtures = workspace_root().join("tests/fixtures");
    let mut cases = if fixtures.is_dir() { find_in(&fixtures)? } else { Vec::new() };
    let Some(reference) = reference_dir()? else {
        let notice = format!(
            "golden: {} committed case(s) only; no reference folder (`{REFERENCE_VARIABLE}` is not set and \
             `../shared/reference` is not there)",
            cases.len()
        );
        return Ok(Found { cases, notice: Some(notice) });
    };
    let more = find_in(&reference)?;
    if more.is_empty() {
        return Err(Error::reference(&reference, "the folder holds no golden case"));
    }
    cases.extend(more);
    Ok(Found { cases, notice: None })
}

/// Finds the cases in `root` and the folders below it, sorted by path.
pub fn find_in(root: &Path) -> Result<Vec<Case>, Error> {
    let mut dirs = vec![root.to_owned()];
    let mut cases = Vec::new();
    while let Some(dir) = dirs.pop() {
        if dir.join("batches.safetensors").is_file() && dir.join("adapter_init").is_dir() {
            cases.push(Case::open(&dir, root)?);
            continue;
        }
        for entry in std::fs::read_dir(&dir).map_err(Error::io(&dir))? {
            let path = entry.map_err(Error::io(&dir))?.path();
            if path.is_dir() {
                dirs.push(path);
            }
        }
    }
    cases.sort_by(|a, b| a.dir.cmp(&b.dir));
    Ok(cases)
}

/// One golden case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Name of the folder.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// Hugging Face folder of the base model.
    pub model_dir: PathBuf,
}

/// A variant of LoRA (`rslora`) that a case also holds: the adapter, its logits and gradients.
#[derive(Debug)]
pub struct Variant {
    /// PEFT adapter folder.
    pub adapter: PathBuf,
    /// `logits` and `merged_logits` [B, T, V] of micro-batch 0; B may be less than the batch's (the first rows).
    pub forward: Tensors,
    /// Gradients of every A and B, by PEFT's names.
    pub grads: Tensors,
}

impl Case {
    /// Opens the case in `dir`, which lies in (or is) the folder `root` of all cases.
    pub fn open(dir: &Path, root: &Path) -> Result<Self, Error> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let model_dir = find_model(dir, root, &name)?;
        Ok(Self { name, dir: dir.to_owned(), model_dir })
    }

    /// All micro-batches.
    pub fn batches(&self) -> Result<Batches, Error> {
        let path = self.dir.join("batches.safetensors");
        let mut tensors = read_int_tensors(&path)?;
        Batches::take(&mut tensors).map_err(|what| Error::reference(&path, what))
    }

    /// The adapter that every record of the case starts from.
    pub fn adapter_init(&self) -> PathBuf {
        self.dir.join("adapter_init")
    }

    /// `base_logits`, `lora_logits`, `merged_logits`, `final_logits` [B, T, V] on micro-batch 0, if recorded.
    pub fn forward(&self) -> Result<Option<Tensors>, Error> {
        optional_tensors(&self.dir.join("forward.safetensors"))
    }

    /// Gradient of the mean loss of micro-batch 0 at `adapter_init` by PEFT's names, if recorded.
    pub fn grads(&self) -> Result<Option<Tensors>, Error> {
        optional_tensors(&self.dir.join("grads.safetensors"))
    }

    /// All weights with `adapter_init` merged in, if recorded.
    pub fn merged_model(&self) -> Result<Option<Tensors>, Error> {
        optional_tensors(&self.dir.join("merged_model.safetensors"))
    }

    /// Losses on micro-batch 0, if recorded.
    pub fn scalars(&self) -> Result<Option<Scalars>, Error> {
        optional_json(&self.dir.join("scalars.json"))
    }

    /// Greedy continuations; none where nothing is recorded.
    pub fn generations(&self) -> Result<Vec<Generation>, Error> {
        Ok(optional_json(&self.dir.join("generation.json"))?.unwrap_or_default())
    }

    /// The recorded run `token_mean`, whose loss is summed over all tokens of a step and divided once.
    pub fn token_mean(&self) -> Result<Option<TrainRun>, Error> {
        TrainRun::read(&self.dir, "token_mean")
    }

    /// The rsLoRA variant, if recorded.
    pub fn rslora(&self) -> Result<Option<Variant>, Error> {
        let dir = self.dir.join("rslora");
        if !dir.is_dir() {
            return Ok(None);
        }
        Ok(Some(Variant {
            adapter: dir.join("adapter_init"),
            forward: read_tensors(&dir.join("forward.safetensors"))?,
            grads: read_tensors(&dir.join("grads.safetensors"))?,
        }))
    }
}

/// The micro-batches of a case: N batches of B rows of T tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batches {
    /// N.
    pub count: usize,
    /// B.
    pub rows: usize,
    /// T.
    pub len: usize,
    input_ids: Vec<i64>,
    attention_mask: Vec<i64>,
    labels: Vec<i64>,
}

/// One micro-batch, right-padded; all fields are [B, T] row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// B.
    pub rows: usize,
    /// T.
    pub len: usize,
    /// Token ids.
    pub input_ids: Vec<i64>,
    /// 1 on tokens, 0 on padding.
    pub attention_mask: Vec<i64>,
    /// The token itself where it is trained, -100 elsewhere; the label at t + 1 is predicted at t.
    pub labels: Vec<i64>,
}

impl Batches {
    fn take(tensors: &mut IntTensors) -> Result<Self, String> {
        let mut take = |name: &str| tensors.remove(name).ok_or_else(|| format!("tensor `{name}` is missing"));
        let (shape, input_ids) = take("input_ids")?;
        let (mask_shape, attention_mask) = take("attention_mask")?;
        let (label_shape, labels) = take("labels")?;
        let &[count, rows, len] = shape.as_slice() else {
            return Err(format!("`input_ids` has shape {shape:?}, not [N, B, T]"));
        };
        if mask_shape != shape || label_shape != shape {
            return Err("`input_ids`, `attention_mask` and `labels` differ in shape".to_owned());
        }
        Ok(Self { count, rows, len, input_ids, attention_mask, labels })
    }

    /// Micro-batch `index`; an error past the last.
    pub fn get(&self, index: usize) -> Result<Batch, Error> {
        if index >= self.count {
            let what = format!("Micro-batch {index} is asked for and there are {}", self.count);
            return Err(Error::Argument(what));
        }
        let part = |all: &[i64]| {
            let size = self.rows * self.len;
            all[index * size..(index + 1) * size].to_vec()
        };
        Ok(Batch {
            rows: self.rows,
            len: self.len,
            input_ids: part(&self.input_ids),
            attention_mask: part(&self.attention_mask),
            labels: part(&self.labels),
        })
    }
}

impl Batch {
    /// Number of labels that count: those at t >= 1 other than -100.
    pub fn label_tokens(&self) -> usize {
        self.labels.chunks(self.len).map(|row| row[1..].iter().filter(|l| **l != -100).count()).sum()
    }
}

fn optional_tensors(path: &Path) -> Result<Option<Tensors>, Error> {
    if path.is_file() { read_tensors(path).map(Some) } else { Ok(None) }
}

fn optional_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}

/// The case's own `model/`, else what a `spec.json` in a folder above, up to the one that holds `root`, says of its name.
fn find_model(dir: &Path, root: &Path, name: &str) -> Result<PathBuf, Error> {
    let own = dir.join("model");
    if own.join("config.json").is_file() {
        return Ok(own);
    }
    let mut tried = Vec::new();
    // One level above `root` too, so that it may be the folder of the cases alone.
    let top = root.parent().unwrap_or(root);
    for parent in dir.ancestors().take_while(|p| p.starts_with(top)) {
        let spec_path = parent.join("spec.json");
        let Some(spec) = optional_json::<Value>(&spec_path)? else { continue };
        let entry = spec["cases"].as_array().into_iter().flatten().find(|c| c["name"] == name);
        let Some(path) = entry.and_then(|c| c["model"]["path"].as_str()) else { continue };
        let last = Path::new(path).file_name().unwrap_or_default();
        let workspace = workspace_root();
        for candidate in [
            parent.join("..").join(path),
            parent.join(path),
            workspace.join("../shared").join(path),
            workspace.join("tests/fixtures").join(last),
        ] {
            if candidate.join("config.json").is_file() {
                return Ok(candidate);
            }
            tried.push(format!("`{}`", candidate.display()));
        }
    }
    let what = if tried.is_empty() {
        "the case has no `model/` and no `spec.json` names its model".to_owned()
    } else {
        format!("the case's model is in none of {}", tried.join(", "))
    };
    Err(Error::reference(dir, what))
}

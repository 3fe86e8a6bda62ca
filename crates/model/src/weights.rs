//! The weights of a model directory: one safetensors file, or several with an index.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tunesmith_ops::{Error as OpsError, Kernels, MatMut, Stored};

use crate::error::{Error, Result};
use crate::json::Object;
use crate::tensor_file::TensorFile;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Extensions under which weights are saved as Python pickles.
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];
/// How many names an error message lists before it only counts.
const LISTED: usize = 5;

/// All tensors of a model directory. Reading takes `&self` and may run on several threads.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor name to position in `files`.
    tensors: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or else the shards that `model.safetensors.index.json` lists, and checks every
    /// header. Pickled weights are refused.
    pub fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        if single.exists() {
            let file = TensorFile::open(&single)?;
            let tensors = file.names().into_iter().map(|name| (name, 0)).collect();
            return Ok(Self { dir: dir.to_path_buf(), files: vec![file], tensors });
        }
        if index.exists() {
            return Self::open_shards(dir, &index);
        }
        match find_pickle(dir)? {
            Some(path) => Err(Error::Pickle { path }),
            None => {
                Err(Error::weights(dir, format!("there is neither {SINGLE} nor {INDEX} in this directory")))
            }
        }
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self> {
        let object = Object::read(index)?;
        let map = object.object("weight_map")?.ok_or_else(|| object.error("weight_map", "is missing"))?;
        let mut files: Vec<TensorFile> = Vec::new();
        let mut by_name: HashMap<&str, usize> = HashMap::new();
        let mut tensors = BTreeMap::new();
        for (tensor, _) in map.iter() {
            let shard = map.string(tensor)?.ok_or_else(|| map.error(tensor, "names no file"))?;
            let file = if let Some(&known) = by_name.get(shard) {
                known
            } else {
                let path = shard_path(dir, shard).map_err(|problem| map.error(tensor, problem))?;
                if !path.exists() {
                    return Err(map.error(
                        tensor,
                        format!("names the shard `{shard}`, which is not in `{}`", dir.display()),
                    ));
                }
                files.push(TensorFile::open(&path)?);
                by_name.insert(shard, files.len() - 1);
                files.len() - 1
            };
            if files[file].shape(tensor).is_none() {
                return Err(Error::MissingTensor {
                    name: tensor.clone(),
                    path: files[file].path().to_path_buf(),
                });
            }
            tensors.insert(tensor.clone(), file);
        }
        // Tensors that the index forgot still show, so that `check_names` can call them unexpected.
        for (position, file) in files.iter().enumerate() {
            for name in file.names() {
                tensors.entry(name).or_insert(position);
            }
        }
        Ok(Self { dir: dir.to_path_buf(), files, tensors })
    }

    /// The directory that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor, None when there is no tensor of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).and_then(|&file| self.files[file].shape(name))
    }

    /// Element type of a tensor, None when there is no tensor of this name.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).and_then(|&file| self.files[file].dtype(name))
    }

    /// Reads rows `rows` of a tensor of shape `expected` as f32 into `out`, row `rows.start + k` at
    /// `out[k * row_stride..]`; see [`TensorFile::read_f32_into`]. A vector is one row: pass `0..1` and its length.
    pub fn read_f32_into(
        &self,
        name: &str,
        expected: &[usize],
        rows: Range<usize>,
        out: &mut [f32],
        row_stride: usize,
    ) -> Result<()> {
        self.file(name)?.read_f32_into(name, expected, rows, out, row_stride)
    }

    /// Reads a whole tensor of shape `expected` as f32, row-major.
    pub fn read_f32(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let file = self.file(name)?;
        match file.shape(name) {
            Some(found) if found != expected => Err(Error::TensorShape {
                name: name.to_string(),
                path: file.path().to_path_buf(),
                expected: expected.to_vec(),
                found: found.to_vec(),
            }),
            _ => file.read_f32(name),
        }
    }

    /// Bytes that a tensor of this shape takes in its file; 0 when there is none of this name.
    pub(crate) fn stored_bytes(&self, name: &str, shape: &[usize]) -> u64 {
        let size = match self.dtype(name) {
            None => 0,
            Some(Dtype::F32) => 4,
            Some(_) => 2,
        };
        shape.iter().map(|&n| n as u64).product::<u64>() * size
    }

    /// Reads a tensor of shape `expected` straight into its place on a device; `told` hears of stored bytes as they are
    /// done.
    pub(crate) fn load<K: Kernels>(
        &self,
        name: &str,
        expected: &[usize],
        kernels: &K,
        out: MatMut<'_, K::Buf>,
        told: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let file = self.file(name)?;
        let tensor = file.stored(name, expected)?;
        let read = |at: usize, bytes: &mut [u8]| tensor.read(at, bytes);
        kernels.load(Stored { of: tensor.of, read: &read }, out, told).map_err(|error| match error {
            OpsError::ValueNotFinite { index } => Error::NotFinite { name: name.to_string(), index },
            OpsError::ValueTooLarge { index, value } => {
                Error::TooLarge { name: name.to_string(), index, value }
            }
            OpsError::Read(source) => Error::io("read", file.path())(source),
            other => other.into(),
        })
    }

    fn file(&self, name: &str) -> Result<&TensorFile> {
        let file = self.tensors.get(name).map(|&file| &self.files[file]);
        file.ok_or_else(|| Error::MissingTensor { name: name.to_string(), path: self.dir.clone() })
    }

    /// Checks that the checkpoint holds exactly the tensors of `expected`, each in its shape.
    ///
    /// Ignored are the `rotary_emb.inv_freq` buffers of old files (they follow from the configuration) and, where
    /// `expected` has no `lm_head.weight` because it is tied, a copy of it.
    pub fn check_names(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        let wanted: HashMap<&str, &[usize]> =
            expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
        let missing: Vec<&str> = expected
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| !self.tensors.contains_key(*name))
            .collect();
        let unexpected: Vec<&str> = self
            .names()
            .filter(|name| {
                !wanted.contains_key(name)
                    && !name.ends_with(".rotary_emb.inv_freq")
                    && *name != "lm_head.weight"
            })
            .collect();
        if !missing.is_empty() || !unexpected.is_empty() {
            let mut parts = Vec::new();
            if !missing.is_empty() {
                parts.push(list("missing", &missing));
            }
            if !unexpected.is_empty() {
                parts.push(list("unexpected", &unexpected));
            }
            let problem = format!("the tensors do not fit config.json: {}", parts.join("; "));
            return Err(Error::weights(&self.dir, problem));
        }
        for (name, shape) in expected {
            let file = self.file(name)?;
            if let Some(found) = file.shape(name)
                && found != shape.as_slice()
            {
                return Err(Error::TensorShape {
                    name: name.clone(),
                    path: file.path().to_path_buf(),
                    expected: shape.clone(),
                    found: found.to_vec(),
                });
            }
        }
        Ok(())
    }
}

/// "3 missing (`a`, `b`, `c`)", cut after a few names.
pub(crate) fn list(kind: &str, names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| format!("`{name}`")).collect();
    let rest = if names.len() > LISTED { ", ..." } else { "" };
    format!("{} {kind} ({}{rest})", names.len(), shown.join(", "))
}

/// A shard must be a plain file name: anything else could reach outside the model's directory.
pub(crate) fn shard_path(dir: &Path, shard: &str) -> std::result::Result<PathBuf, String> {
    let is_safetensors = Path::new(shard).extension().is_some_and(|e| e == "safetensors");
    let plain = !shard.contains(['/', '\\', ':', '\0']) && is_safetensors;
    if plain {
        Ok(dir.join(shard))
    } else {
        Err(format!("`{shard}` is not the plain name of a safetensors file"))
    }
}

/// The first pickled weights file of a directory, by name.
pub(crate) fn find_pickle(dir: &Path) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read the directory", dir))? {
        let path = entry.map_err(Error::io("read the directory", dir))?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        // training_args.bin lies beside many good checkpoints and holds no weights.
        if PICKLES.contains(&extension) && path.file_name().is_some_and(|name| name != "training_args.bin") {
            found.push(path);
        }
    }
    Ok(found.into_iter().min())
}

#[cfg(test)]
mod tests;

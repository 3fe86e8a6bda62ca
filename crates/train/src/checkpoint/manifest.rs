//! `manifest.json`: what a whole checkpoint consists of.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tunesmith_data::hex;
use tunesmith_model::write_file;

use super::{FORMAT_VERSION, MANIFEST_FILE};
use crate::Error;

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListedFile {
    /// Its name in the checkpoint.
    pub(super) file: String,
    /// Its length.
    pub(super) bytes: u64,
    /// Hex digest of its bytes.
    pub(super) sha256: String,
}

/// What a checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub(super) format_version: u32,
    /// Optimizer steps done.
    pub(super) step: usize,
    /// Whether an epoch ends here.
    pub(super) epoch_end: bool,
    /// Every other file.
    pub(super) files: Vec<ListedFile>,
}

/// Why a manifest or the files it lists cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// It is not what was written.
    Damaged(String),
    /// A later version wrote it.
    Newer(u64),
}

impl Manifest {
    /// Lists files of `dir`.
    pub(super) fn of(dir: &Path, step: usize, epoch_end: bool, names: &[&str]) -> Result<Self, Error> {
        let listed = |name: &&str| {
            let path = dir.join(name);
            let digested = digest(&path).map_err(Error::file("read", &path))?;
            Ok(ListedFile { file: (*name).to_owned(), bytes: digested.0, sha256: digested.1 })
        };
        let files = names.iter().map(listed).collect::<Result<_, Error>>()?;
        Ok(Self { format_version: FORMAT_VERSION, step, epoch_end, files })
    }

    /// Bytes of the listed files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// Writes it with a digest of itself: no other file vouches for it.
    pub(super) fn write(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(MANIFEST_FILE);
        let json = |e: serde_json::Error| Error::checkpoint(&path, e.to_string());
        let mut value = serde_json::to_value(self).map_err(json)?;
        let digest = hex(&Sha256::digest(value.to_string()));
        if let Some(object) = value.as_object_mut() {
            object.insert("sha256".to_owned(), Value::from(digest));
        }
        let text = format!("{value}\n");
        Ok(write_file(&path, |out| out.write_all(text.as_bytes()))?)
    }

    /// Reads it; the files it lists are not looked at.
    pub(super) fn read(dir: &Path) -> Result<Self, Unusable> {
        let damaged = |problem: String| Unusable::Damaged(format!("{MANIFEST_FILE} {problem}"));
        let bytes = fs::read(dir.join(MANIFEST_FILE)).map_err(|e| damaged(format!("cannot be read: {e}")))?;
        let mut value: Value =
            serde_json::from_slice(&bytes).map_err(|e| damaged(format!("is no JSON: {e}")))?;
        let exact = format!("{value}\n").as_bytes() == bytes;
        let digest = value.as_object_mut().and_then(|object| object.shift_remove("sha256"));
        let own = hex(&Sha256::digest(value.to_string()));
        if !exact || digest.as_ref().and_then(Value::as_str) != Some(&own) {
            return Err(damaged("is not what was written".to_owned()));
        }
        match value["format_version"].as_u64() {
            Some(version) if version > u64::from(FORMAT_VERSION) => Err(Unusable::Newer(version)),
            _ => serde_json::from_value(value).map_err(|e| damaged(format!("makes no sense: {e}"))),
        }
    }

    /// Checks length and digest of every listed file.
    pub(super) fn verify(&self, dir: &Path) -> Result<(), Unusable> {
        for listed in &self.files {
            let name = &listed.file;
            let (bytes, sha256) = digest(&dir.join(name))
                .map_err(|e| Unusable::Damaged(format!("{name} cannot be read: {e}")))?;
            if bytes != listed.bytes {
                let expected = listed.bytes;
                return Err(Unusable::Damaged(format!("{name} has {bytes} bytes instead of {expected}")));
            }
            if sha256 != listed.sha256 {
                return Err(Unusable::Damaged(format!("{name} is not what was written")));
            }
        }
        Ok(())
    }
}

/// Length and hex digest of a file.
fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((length, hex(&digest.finalize()))),
            Ok(n) => {
                digest.update(&buffer[..n]);
                length += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

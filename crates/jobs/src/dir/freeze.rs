//! Frozen copies of rows: what a job trains on stays what it was.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::hex;
use crate::Error;

/// One frozen file of `data/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenFile {
    /// File name below `data/`.
    pub file: String,
    /// Rows in it.
    pub rows: usize,
    /// Bytes in it.
    pub bytes: u64,
    /// Hex digest of its bytes.
    pub sha256: String,
}

/// The writer of one frozen file.
#[derive(Debug)]
pub struct Freezer {
    path: PathBuf,
    file: io::BufWriter<File>,
    digest: Sha256,
    frozen: FrozenFile,
}

impl Freezer {
    pub(super) fn create(dir: &Path, part: &str) -> Result<Self, Error> {
        let name = format!("{part}.jsonl");
        let path = dir.join(&name);
        let file = io::BufWriter::new(File::create(&path).map_err(Error::at("create", &path))?);
        let frozen = FrozenFile { file: name, rows: 0, bytes: 0, sha256: String::new() };
        Ok(Self { path, file, digest: Sha256::new(), frozen })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a row, which holds no newline.
    pub fn push(&mut self, row: &[u8]) -> Result<(), Error> {
        for piece in [row, b"\n"] {
            self.file.write_all(piece).map_err(Error::at("write", &self.path))?;
            self.digest.update(piece);
            self.frozen.bytes += piece.len() as u64;
        }
        self.frozen.rows += 1;
        Ok(())
    }

    /// Brings the file to the disk and tells what is in it.
    pub fn finish(mut self) -> Result<FrozenFile, Error> {
        let file = self.file.into_inner().map_err(|e| Error::at("write", &self.path)(e.into_error()))?;
        file.sync_all().map_err(Error::at("write", &self.path))?;
        self.frozen.sha256 = hex(&self.digest.finalize());
        Ok(self.frozen)
    }
}

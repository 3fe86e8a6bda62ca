//! Frozen copies of rows: what a job trains on stays what it was.

use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{hex, sha256_file};
use crate::Error;

/// Bytes of one place: the file's number (u32) and the line or row in it (u64), little-endian.
const PLACE_BYTES: usize = 12;

/// Where a frozen row stood in its source: the number of its file, and the line or row in that.
pub type FrozenPlace = (u32, u64);

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
    /// Where its rows stood in their source.
    pub places: FrozenPlaces,
}

/// The file beside a frozen file that says where its rows stood in their source: 12 bytes for each row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenPlaces {
    /// File name below `data/`.
    pub file: String,
    /// Hex digest of its bytes.
    pub sha256: String,
}

/// The writer of one frozen file and its places.
#[derive(Debug)]
pub struct Freezer {
    rows: Output,
    places: Output,
    frozen: FrozenFile,
}

/// A file that is digested while it is written.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    file: io::BufWriter<File>,
    digest: Sha256,
}

impl Output {
    fn create(path: PathBuf) -> Result<Self, Error> {
        let file = io::BufWriter::new(File::create(&path).map_err(Error::at("create", &path))?);
        Ok(Self { path, file, digest: Sha256::new() })
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), Error> {
        self.digest.update(piece);
        self.file.write_all(piece).map_err(Error::at("write", &self.path))
    }

    /// Brings the file to the disk; returns its digest.
    fn finish(self) -> Result<String, Error> {
        let file = self.file.into_inner().map_err(|e| Error::at("write", &self.path)(e.into_error()))?;
        file.sync_all().map_err(Error::at("write", &self.path))?;
        Ok(hex(&self.digest.finalize()))
    }
}

impl Freezer {
    pub(super) fn create(dir: &Path, part: &str) -> Result<Self, Error> {
        let (file, places) = (format!("{part}.jsonl"), format!("{part}.places"));
        let rows = Output::create(dir.join(&file))?;
        let at = Output::create(dir.join(&places))?;
        let places = FrozenPlaces { file: places, sha256: String::new() };
        let frozen = FrozenFile { file, rows: 0, bytes: 0, sha256: String::new(), places };
        Ok(Self { rows, places: at, frozen })
    }

    /// Adds a row, which holds no newline, and where it stood.
    pub fn push(&mut self, row: &[u8], place: FrozenPlace) -> Result<(), Error> {
        self.rows.push(row)?;
        self.rows.push(b"\n")?;
        self.places.push(&place.0.to_le_bytes())?;
        self.places.push(&place.1.to_le_bytes())?;
        self.frozen.bytes += row.len() as u64 + 1;
        self.frozen.rows += 1;
        Ok(())
    }

    /// Brings the files to the disk and tells what is in them.
    pub fn finish(mut self) -> Result<FrozenFile, Error> {
        self.frozen.sha256 = self.rows.finish()?;
        self.frozen.places.sha256 = self.places.finish()?;
        Ok(self.frozen)
    }
}

/// The rows of a frozen file, one after the other.
#[derive(Debug)]
pub struct FrozenRows {
    path: PathBuf,
    rows: io::BufReader<File>,
    places: io::BufReader<File>,
    left: usize,
}

impl FrozenFile {
    /// Opens the file in `data` to read its rows, after checking that file and places are what was written.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when they are not; a file that cannot be read.
    pub fn open(&self, data: &Path) -> Result<FrozenRows, Error> {
        let path = data.join(&self.file);
        let places = data.join(&self.places.file);
        let place_bytes = (self.rows * PLACE_BYTES) as u64;
        let files = [(&path, self.bytes, &self.sha256), (&places, place_bytes, &self.places.sha256)];
        for (path, bytes, sha256) in files {
            let found = path.metadata().map_err(Error::at("read", path))?.len();
            let corrupt = |message: String| Err(Error::Corrupt { path: path.clone(), message });
            if found != bytes {
                return corrupt(format!("it has {found} bytes instead of {bytes}; start a new job"));
            }
            if sha256_file(path).map_err(Error::at("read", path))? != *sha256 {
                return corrupt("its content is not what was frozen; start a new job".to_owned());
            }
        }
        let open = |path: &PathBuf| File::open(path).map(io::BufReader::new).map_err(Error::at("read", path));
        Ok(FrozenRows { rows: open(&path)?, places: open(&places)?, path, left: self.rows })
    }
}

impl FrozenRows {
    /// Where the rows are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next row and where it stood.
    ///
    /// # Errors
    /// A file that cannot be read, or that has more or fewer rows than the manifest says.
    pub fn next_row(&mut self) -> Result<Option<(Vec<u8>, FrozenPlace)>, Error> {
        let mut row = Vec::new();
        self.rows.read_until(b'\n', &mut row).map_err(Error::at("read", &self.path))?;
        if row.is_empty() && self.left == 0 {
            return Ok(None);
        }
        if row.pop() != Some(b'\n') || self.left == 0 {
            let message = "it has not as many rows as its manifest says; start a new job".to_owned();
            return Err(Error::Corrupt { path: self.path.clone(), message });
        }
        self.left -= 1;
        let mut place = [0; PLACE_BYTES];
        self.places.read_exact(&mut place).map_err(Error::at("read the places of", &self.path))?;
        let [a, b, c, d, number @ ..] = place;
        Ok(Some((row, (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(number)))))
    }
}

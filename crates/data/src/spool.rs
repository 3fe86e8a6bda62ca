//! Byte strings kept in a temporary file, by number: what a million rows leave in memory is where each begins.

use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::error::Error;

/// A temporary file that is being filled.
#[derive(Debug)]
pub struct SpoolWriter {
    file: BufWriter<File>,
    dir: PathBuf,
    ends: Vec<u64>,
    written: u64,
}

/// A filled temporary file; it is gone when this is dropped, or when the process dies.
#[derive(Debug)]
pub struct Spool {
    file: Mutex<File>,
    dir: PathBuf,
    ends: Vec<u64>,
}

impl SpoolWriter {
    /// An empty one in a directory.
    ///
    /// # Errors
    /// [`Error::Temporary`].
    pub fn new(dir: &Path) -> Result<Self, Error> {
        let file = tempfile::tempfile_in(dir).map_err(|e| temporary("write", dir, e))?;
        let file = BufWriter::with_capacity(1 << 18, file);
        Ok(Self { file, dir: dir.to_owned(), ends: Vec::new(), written: 0 })
    }

    /// Adds a string of bytes, given in pieces.
    ///
    /// # Errors
    /// [`Error::Temporary`], as when the disk is full.
    pub fn push<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(), Error> {
        for piece in pieces {
            self.file.write_all(piece).map_err(|e| temporary("write", &self.dir, e))?;
            self.written += piece.len() as u64;
        }
        self.ends.push(self.written);
        Ok(())
    }

    /// Ends the filling.
    ///
    /// # Errors
    /// [`Error::Temporary`].
    pub fn finish(self) -> Result<Spool, Error> {
        let Self { file, dir, mut ends, .. } = self;
        let file = file.into_inner().map_err(|e| temporary("write", &dir, e.into_error()))?;
        ends.shrink_to_fit();
        Ok(Spool { file: Mutex::new(file), dir, ends })
    }
}

impl Spool {
    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String `i`, into `bytes` in place of what was there.
    ///
    /// # Errors
    /// [`Error::Temporary`].
    pub fn read(&self, i: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        bytes.clear();
        bytes.resize((self.ends[i] - start) as usize, 0);
        // A poisoned lock only says that another reader panicked; the file is as good as before.
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(bytes));
        read.map_err(|e| temporary("read", &self.dir, e))
    }
}

fn temporary(action: &'static str, dir: &Path, source: std::io::Error) -> Error {
    Error::Temporary { action, dir: dir.to_owned(), source }
}

//! The bytes of a file as stored: counted, hashed and unpacked on the way.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::format::{self, Packing, SNIFFED};
use super::{Limits, SourceError};
use crate::error::{Error, RowError};

/// Bytes from anywhere.
pub(super) type Bytes = Box<dyn Read + Send>;

/// Size of the buffers in bytes.
const BUFFER: usize = 1 << 16;

/// What is known of the stored bytes of one file.
#[derive(Default)]
pub(super) struct Tally(Mutex<State>);

#[derive(Default)]
struct State {
    digest: Sha256,
    bytes: u64,
    ended: bool,
}

impl Tally {
    fn add(&self, bytes: &[u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.digest.update(bytes);
        state.bytes += bytes.len() as u64;
        state.ended |= bytes.is_empty();
    }

    /// Bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Hex digest of the whole file; empty before its end was seen.
    pub(super) fn sha256(&self) -> String {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.ended {
            return String::new();
        }
        crate::hex::hex(&state.digest.clone().finalize())
    }
}

/// Reads through, counting and hashing.
pub(super) struct Counted {
    pub(super) inner: Bytes,
    pub(super) tally: Arc<Tally>,
    pub(super) name: String,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = loop {
            match self.inner.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>) => {
                    return Err(e);
                }
                Err(e) => return Err(io::Error::other(Error::io(self.name.as_ref(), e))),
                Ok(n) => break n,
            }
        };
        if !buffer.is_empty() {
            self.tally.add(&buffer[..n]);
        }
        Ok(n)
    }
}

/// Unpacked bytes, within bounds: a small file must not fill disk or memory.
struct Capped {
    inner: Bytes,
    out: u64,
    tally: Arc<Tally>,
    limits: Limits,
    name: String,
    packed: bool,
}

impl Read for Capped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.out += n as u64;
        let Limits { ratio, ratio_after, output_bytes, .. } = self.limits;
        let stored = self.tally.bytes();
        let what = if self.out > output_bytes {
            let does = if self.packed { "unpacks to" } else { "has" };
            format!("it {does} more than {output_bytes} bytes; split it or raise the bound")
        } else if self.out > ratio_after && self.out / ratio > stored {
            format!(
                "it unpacks to more than {ratio} times its size ({} bytes from {stored}), as only bombs do; \
                 unpack it yourself if it is sound",
                self.out
            )
        } else {
            return Ok(n);
        };
        Err(io::Error::other(Error::from(SourceError::TooLarge { name: self.name.clone(), what })))
    }
}

/// Text to read, after what its first bytes say was checked.
pub(super) struct Text {
    pub(super) reader: Box<dyn BufRead + Send>,
    pub(super) origin: Origin,
}

/// Where a text comes from, for messages.
pub(super) struct Origin {
    pub(super) name: String,
    packing: Packing,
}

impl Text {
    /// Unpacks `inner` as its name says and skips a byte order mark.
    pub(super) fn open(
        inner: Bytes,
        name: &str,
        packing: Packing,
        tally: &Arc<Tally>,
        limits: &Limits,
    ) -> Result<Self, Error> {
        let stored = Counted { inner, tally: Arc::clone(tally), name: name.to_owned() };
        let origin = Origin { name: name.to_owned(), packing };
        let (head, stored) = peek(stored).map_err(|e| origin.broken(e, 0))?;
        // An empty file has no rows, whatever its name says of compression.
        if !(head.is_empty() && packing == Packing::Plain) {
            format::check(name, &head, packing)?;
        }
        let stored = BufReader::with_capacity(BUFFER, stored);
        let unpacked: Bytes = match packing {
            Packing::Plain => Box::new(stored),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
            Packing::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(stored);
                Box::new(decoder.map_err(|e| origin.broken(e, 0))?)
            }
        };
        let (tally, limits, out) = (Arc::clone(tally), limits.clone(), 0);
        let packed = packing != Packing::Plain;
        let capped = Capped { inner: unpacked, out, tally, limits, name: name.to_owned(), packed };
        let (head, rest) = peek(capped).map_err(|e| origin.broken(e, 0))?;
        if packing != Packing::Plain {
            format::check(&format!("{name} (unpacked)"), &head, Packing::Plain)?;
        }
        // Text of other encodings shows by its mark, or by the zero beside the first character.
        if matches!(head[..], [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, 1..=255, ..] | [1..=255, 0, ..]) {
            return Err(Error::Row { place: format!("`{name}`:1"), source: RowError::Utf16 });
        }
        let mut reader = BufReader::with_capacity(BUFFER, rest);
        if head.starts_with(&[0xef, 0xbb, 0xbf]) {
            let mut mark = [0; 3];
            reader.read_exact(&mut mark).map_err(|e| origin.broken(e, 0))?;
        }
        Ok(Self { reader: Box::new(reader), origin })
    }
}

impl Origin {
    /// The error for a failed read behind `line` whole lines.
    pub(super) fn broken(&self, error: io::Error, line: u64) -> Error {
        match error.downcast::<Error>() {
            Ok(error) => error,
            Err(error) if self.packing == Packing::Plain => Error::io(self.name.as_ref(), error),
            Err(error) => {
                let what = match error.kind() {
                    io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
                    _ => error.to_string(),
                };
                let (name, packing) = (self.name.clone(), self.packing.name());
                SourceError::Packed { name, packing, line, what }.into()
            }
        }
    }
}

/// The first bytes, and everything with them in front again.
fn peek(mut inner: impl Read + Send + 'static) -> io::Result<(Vec<u8>, Bytes)> {
    let mut head = Vec::with_capacity(SNIFFED);
    (&mut inner).take(SNIFFED as u64).read_to_end(&mut head)?;
    let again = Cursor::new(head.clone());
    Ok((head, Box::new(again.chain(inner))))
}

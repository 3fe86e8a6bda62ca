//! One safetensors file, read without a memory map: the header once, then each tensor by positioned reads.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use tunesmith_ops::StoredType;

use crate::error::{Error, Result};

/// The longest header that is read, the limit of the safetensors format itself.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes read at a time: the only host memory that loading needs beside its destination.
const CHUNK: usize = 1 << 20;
/// Little-endian bytes to as many f32 values.
type Convert = fn(&[u8], &mut [f32]);

/// An open safetensors file whose header has been checked: every tensor lies inside the file, none overlap, and
/// each one's byte length fits its shape and dtype.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    /// Offset of the first tensor byte.
    data_start: u64,
    metadata: Metadata,
}

/// The bytes of one tensor in its file.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    /// The type of its values.
    pub of: StoredType,
    file: &'a File,
    /// Where it begins in the file.
    start: u64,
}

impl StoredTensor<'_> {
    /// Reads bytes from an offset into the tensor on. Any number of threads may do so at a time.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(&self, at: usize, bytes: &mut [u8]) -> io::Result<()> {
        read_exact_at(self.file, bytes, self.start + at as u64)
    }
}

impl TensorFile {
    /// Opens `path` and checks its header.
    pub fn open(path: &Path) -> Result<Self> {
        let about = std::fs::metadata(path).map_err(Error::io("open", path))?;
        if !about.is_file() {
            return Err(Error::weights(path, "is not a regular file"));
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("open", path))?.len();
        if length < 8 {
            return Err(Error::weights(
                path,
                format!("is not a safetensors file: it has only {length} bytes"),
            ));
        }
        let mut prefix = [0; 8];
        read_exact_at(&file, &mut prefix, 0).map_err(Error::io("read", path))?;
        let header = u64::from_le_bytes(prefix);
        if header > MAX_HEADER {
            return Err(Error::weights(
                path,
                format!(
                    "is not a safetensors file: its header would be {header} bytes, above the format's limit"
                ),
            ));
        }
        if header + 8 > length {
            return Err(Error::weights(
                path,
                format!("is truncated: its header needs {} bytes, the file has {length}", header + 8),
            ));
        }
        let mut text = vec![0; header as usize];
        read_exact_at(&file, &mut text, 8).map_err(Error::io("read", path))?;
        let metadata: Metadata = serde_json::from_slice(&text)
            .map_err(|error| Error::weights(path, format!("has a damaged safetensors header: {error}")))?;
        let needed = (header + 8).checked_add(metadata.data_len() as u64);
        if needed != Some(length) {
            let kind =
                if needed.is_none_or(|n| n > length) { "is truncated" } else { "has stray bytes at its end" };
            let needed = needed.map_or_else(|| "more than 2^64".to_string(), |n| n.to_string());
            return Err(Error::weights(
                path,
                format!("{kind}: its header needs {needed} bytes, the file has {length}"),
            ));
        }
        Ok(Self { path: path.to_path_buf(), file, data_start: header + 8, metadata })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort_unstable();
        names
    }

    /// The free-form string pairs of the header.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Shape of a tensor, None when the file has no tensor of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    /// Element type of a tensor, None when the file has no tensor of this name.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.metadata.info(name).map(|info| info.dtype)
    }

    /// Reads a whole f32, f16 or bf16 tensor as f32, row-major, whatever its shape.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        let count = info.shape.iter().product();
        let mut out = vec![0.0; count];
        self.read_rows(name, info, 0..1, count, &mut out, count)?;
        Ok(out)
    }

    /// Reads rows `rows` of a tensor whose shape must be `expected`, converting to f32. Row `rows.start + k` lands
    /// at `out[k * row_stride..][..columns]`; what lies between two rows of `out` is left as it is.
    ///
    /// A tensor of one dimension counts as one row, of more than two as `[first, product of the others]`.
    pub fn read_f32_into(
        &self,
        name: &str,
        expected: &[usize],
        rows: Range<usize>,
        out: &mut [f32],
        row_stride: usize,
    ) -> Result<()> {
        let info = self.info(name)?;
        self.check_shape(name, info, expected)?;
        let (height, columns) = match expected {
            [] => (1, 1),
            [length] => (1, *length),
            [height, rest @ ..] => (*height, rest.iter().product()),
        };
        let fits = rows.start <= rows.end
            && rows.end <= height
            && (rows.len() < 2 || row_stride >= columns)
            && rows.len().saturating_sub(1) * row_stride + columns.min(columns * rows.len()) <= out.len();
        if !fits {
            return Err(Error::weights(
                &self.path,
                format!(
                    "rows {rows:?} of tensor `{name}` {expected:?} do not fit a buffer of {} values with row stride \
                     {row_stride}",
                    out.len()
                ),
            ));
        }
        self.read_rows(name, info, rows, columns, out, row_stride)
    }

    /// A tensor whose shape must be `expected`, for [`tunesmith_ops::Kernels::load`].
    pub fn stored(&self, name: &str, expected: &[usize]) -> Result<StoredTensor<'_>> {
        let info = self.info(name)?;
        self.check_shape(name, info, expected)?;
        let of = match info.dtype {
            Dtype::F32 => StoredType::F32,
            Dtype::F16 => StoredType::F16,
            Dtype::BF16 => StoredType::Bf16,
            other => return Err(self.unread(name, other)),
        };
        Ok(StoredTensor { of, file: &self.file, start: self.data_start + info.data_offsets.0 as u64 })
    }

    fn check_shape(&self, name: &str, info: &TensorInfo, expected: &[usize]) -> Result<()> {
        if info.shape == expected {
            return Ok(());
        }
        Err(Error::TensorShape {
            name: name.to_string(),
            path: self.path.clone(),
            expected: expected.to_vec(),
            found: info.shape.clone(),
        })
    }

    fn unread(&self, name: &str, found: Dtype) -> Error {
        Error::TensorDtype { name: name.to_string(), path: self.path.clone(), found: found.to_string() }
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.metadata
            .info(name)
            .ok_or_else(|| Error::MissingTensor { name: name.to_string(), path: self.path.clone() })
    }

    /// The destination has been checked by the callers.
    fn read_rows(
        &self,
        name: &str,
        info: &TensorInfo,
        rows: Range<usize>,
        columns: usize,
        out: &mut [f32],
        row_stride: usize,
    ) -> Result<()> {
        let (width, convert): (usize, Convert) = match info.dtype {
            Dtype::F32 => (4, from_f32),
            Dtype::F16 => (2, from_f16),
            Dtype::BF16 => (2, from_bf16),
            other => return Err(self.unread(name, other)),
        };
        let mut left = rows.len() * columns;
        let mut position = self.data_start + (info.data_offsets.0 + rows.start * columns * width) as u64;
        let mut chunk = vec![0; CHUNK.min(left * width)];
        let (mut row, mut column) = (0, 0);
        while left > 0 {
            let count = left.min(CHUNK / width);
            let mut bytes = &mut chunk[..count * width];
            read_exact_at(&self.file, bytes, position).map_err(Error::io("read", &self.path))?;
            while !bytes.is_empty() {
                let run = (columns - column).min(bytes.len() / width);
                let (now, later) = bytes.split_at_mut(run * width);
                let start = row * row_stride + column;
                convert(now, &mut out[start..start + run]);
                bytes = later;
                column += run;
                if column == columns {
                    (row, column) = (row + 1, 0);
                }
            }
            position += (count * width) as u64;
            left -= count;
        }
        Ok(())
    }
}

fn from_f32(bytes: &[u8], out: &mut [f32]) {
    let (words, _) = bytes.as_chunks::<4>();
    for (value, word) in out.iter_mut().zip(words) {
        *value = f32::from_le_bytes(*word);
    }
}

fn from_bf16(bytes: &[u8], out: &mut [f32]) {
    let (words, _) = bytes.as_chunks::<2>();
    for (value, word) in out.iter_mut().zip(words) {
        *value = bf16::from_le_bytes(*word).to_f32();
    }
}

/// Goes through a small block because `half` has the CPU's f16 conversion only for whole slices.
fn from_f16(bytes: &[u8], out: &mut [f32]) {
    let mut block = [f16::ZERO; 256];
    let (words, _) = bytes.as_chunks::<2>();
    for (values, words) in out.chunks_mut(block.len()).zip(words.chunks(block.len())) {
        for (half, word) in block.iter_mut().zip(words) {
            *half = f16::from_le_bytes(*word);
        }
        block[..values.len()].convert_to_f32_slice(values);
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        match file.seek_read(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

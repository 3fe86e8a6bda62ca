//! Bytes that must be text.

use std::io::{self, BufRead, Read as _};

use super::snippet::snippet;
use crate::error::{RowError, Spot};

/// The text that `bytes` are: UTF-8 without NUL.
pub(crate) fn text(bytes: Vec<u8>) -> Result<String, RowError> {
    // Zero bytes first: UTF-16 without its mark shows as them, and that deserves its own words.
    if let Some(i) = bytes.iter().position(|&b| b == 0) {
        return Err(RowError::Nul { at: spot(&bytes, i), snippet: snippet(&bytes, i) });
    }
    String::from_utf8(bytes).map_err(|e| {
        let i = e.utf8_error().valid_up_to();
        RowError::InvalidUtf8 { at: spot(e.as_bytes(), i), snippet: snippet(e.as_bytes(), i) }
    })
}

fn spot(bytes: &[u8], i: usize) -> Spot {
    let before = &bytes[..i];
    let start = before.iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
    Spot { line: 1 + breaks(before), column: i - start + 1 }
}

/// How many line breaks there are.
pub(super) fn breaks(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |n, &b| n + usize::from(b == b'\n'))
}

/// Streams the lines of a text, none longer than `limit` bytes in memory.
pub(super) struct Lines<R> {
    pub(super) reader: R,
    /// Lines read.
    pub(super) number: u64,
    pub(super) limit: usize,
}

impl<R: BufRead> Lines<R> {
    /// The next line that is not blank; nothing at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Result<String, RowError>>> {
        loop {
            let mut bytes = Vec::new();
            let bound = self.limit as u64 + 2;
            if self.reader.by_ref().take(bound).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            } else if bytes.len() as u64 == bound {
                self.reader.skip_until(b'\n')?;
            }
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
            if bytes.len() > self.limit {
                return Ok(Some(Err(RowError::LineTooLong { limit: self.limit })));
            }
            let text = text(bytes);
            if text.as_ref().is_ok_and(|t| t.trim().is_empty()) {
                continue;
            }
            return Ok(Some(text));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8], limit: usize) -> Vec<(u64, Result<String, String>)> {
        let mut lines = Lines { reader: bytes, number: 0, limit };
        std::iter::from_fn(|| {
            let text = lines.next().unwrap()?.map_err(|e| e.to_string());
            Some((lines.number, text))
        })
        .collect()
    }

    #[test]
    fn bad_lines_are_named_and_read_past() {
        let long = "the line is longer than 4 bytes; split the row or check that the file has line breaks";
        assert_eq!(
            lines(b"ab\r\n\n12345\n123456789\r\n1234\r\n\xffx\n  \nlast", 4),
            [
                (1, Ok("ab".to_owned())),
                (3, Err(long.to_owned())),
                (4, Err(long.to_owned())),
                (5, Ok("1234".to_owned())),
                (
                    6,
                    Err("the byte at column 1 is not valid UTF-8 (near `\\xffx`); save the file as UTF-8"
                        .to_owned())
                ),
                (8, Ok("last".to_owned())),
            ]
        );
        let nul = text(b"a\nb\0c".to_vec()).unwrap_err().to_string();
        assert!(nul.starts_with("a NUL byte at line 2 of the record, column 2 (near `a\\nb\\0c`)"), "{nul}");
    }
}

//! Watches the bytes of a table on their way to the parser.
//!
//! The parser takes any bytes: a quote that is never closed swallows the rest of the file without a word, text behind a
//! closing quote is glued to it, and its line numbers are off behind blank lines. Here such faults stop the stream, and
//! the line on which every record starts is written down.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a record.
    Record,
    /// Before a field.
    Field,
    Bare,
    Quoted,
    /// Behind a quote inside a quoted field: its end, or the first of a pair.
    Quote,
}

pub(super) struct Guard<R> {
    inner: R,
    delimiter: u8,
    limit: usize,
    state: State,
    line: u64,
    quote_line: u64,
    record_line: u64,
    record_bytes: usize,
    starts: VecDeque<u64>,
    /// Line and sentence of the fault that ended the stream.
    pub(super) fault: Option<(u64, String)>,
}

impl<R> Guard<R> {
    pub(super) fn new(inner: R, delimiter: u8, limit: usize) -> Self {
        Self {
            inner,
            delimiter,
            limit,
            state: State::Record,
            line: 1,
            quote_line: 1,
            record_line: 1,
            record_bytes: 0,
            starts: VecDeque::new(),
            fault: None,
        }
    }

    /// One-based line of the next byte.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The line of the first record whose line was not asked for yet.
    pub(super) fn take_start(&mut self) -> u64 {
        self.starts.pop_front().unwrap_or(self.line)
    }

    /// Follows one byte; false at a fault.
    fn follow(&mut self, byte: u8) -> bool {
        if self.state == State::Record {
            match byte {
                b'\n' => self.line += 1,
                b'\r' => {}
                _ => {
                    self.starts.push_back(self.line);
                    (self.record_line, self.record_bytes) = (self.line, 0);
                    self.state = State::Field;
                }
            }
            if self.state == State::Record {
                return true;
            }
        }
        self.record_bytes += 1;
        if self.record_bytes > self.limit {
            let what = format!(
                "the record is longer than {} bytes; split it, or close the quote that swallows the rows behind it",
                self.limit
            );
            self.fault = Some((self.record_line, what));
            return false;
        }
        self.state = match (self.state, byte) {
            (State::Quoted, b'"') => State::Quote,
            (State::Quoted, _) | (State::Quote, b'"') => State::Quoted,
            (_, b'\n' | b'\r') => State::Record,
            (_, b) if b == self.delimiter => State::Field,
            (State::Field, b'"') => {
                self.quote_line = self.line;
                State::Quoted
            }
            (State::Quote, _) => {
                let what = "text stands behind a closing quote; double the quotes inside quoted fields";
                self.fault = Some((self.line, what.to_owned()));
                return false;
            }
            _ => State::Bare,
        };
        self.line += u64::from(byte == b'\n');
        true
    }
}

impl<R: BufRead> Read for Guard<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.fault.is_some() {
            return Err(io::Error::other("a fault was found"));
        }
        let buffer = self.inner.fill_buf()?;
        let n = buffer.len().min(out.len());
        out[..n].copy_from_slice(&buffer[..n]);
        self.inner.consume(n);
        if n == 0 && !out.is_empty() && self.state == State::Quoted {
            let what = "a quote that opens here is never closed; close it or double it";
            self.fault = Some((self.quote_line, what.to_owned()));
            return Err(io::Error::other("a fault was found"));
        }
        // Records before a fault are still given out.
        let mut whole = 0;
        for (i, &byte) in out[..n].iter().enumerate() {
            if !self.follow(byte) {
                return if whole > 0 { Ok(whole) } else { Err(io::Error::other("a fault was found")) };
            }
            if self.state == State::Record {
                whole = i + 1;
            }
        }
        Ok(n)
    }
}

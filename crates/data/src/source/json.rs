//! One JSON array of objects, or `{"data": [...]}`, element by element.

use std::io::BufRead as _;

use super::snippet::{shown, snippet};
use super::stored::Text;
use super::text::{breaks, text};
use super::{Inner, Numbered, Raw, SourceError, parse_object};
use crate::error::{Error, RowError};

/// How many keys a message lists.
const LISTED: usize = 10;

/// Where the reader stands in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start,
    /// Before the first element.
    First,
    /// Behind an element.
    Next,
    End,
}

pub(super) struct JsonArray {
    text: Text,
    stage: Stage,
    /// Whether the array is the value of `data` in an object.
    wrapped: bool,
    /// One-based line of the next byte.
    line: u64,
    limit: usize,
}

impl Inner for JsonArray {
    fn next(&mut self) -> Result<Option<Numbered>, Error> {
        if self.stage == Stage::Start {
            self.start()?;
        }
        if self.stage == Stage::End {
            return Ok(None);
        }
        let mut next = self.token()?;
        if next == Some(b']') {
            self.bump();
            return self.finish().map(|()| None);
        }
        if self.stage == Stage::Next {
            if next != Some(b',') {
                return Err(self.unexpected(next, "a comma or `]` behind a record"));
            }
            self.bump();
            next = self.token()?;
        }
        if matches!(next, None | Some(b',' | b']' | b'}' | b':')) {
            return Err(self.unexpected(next, "a record"));
        }
        self.stage = Stage::Next;
        let line = self.line;
        let raw = self.value(self.limit)?.and_then(text).map(Raw::Line);
        Ok(Some((line, raw)))
    }
}

impl JsonArray {
    pub(super) fn new(text: Text, limit: usize) -> Self {
        Self { text, stage: Stage::Start, wrapped: false, line: 1, limit }
    }

    fn start(&mut self) -> Result<(), Error> {
        self.stage = Stage::First;
        match self.token()? {
            Some(b'[') => self.bump(),
            Some(b'{') => {
                self.bump();
                self.wrapped = true;
                self.unwrap()?;
            }
            None => self.stage = Stage::End,
            other => return Err(self.unexpected(other, "`[`, the start of a list of objects")),
        }
        Ok(())
    }

    /// Finds the rows in an object: `{"data": [...]}` and nothing else.
    fn unwrap(&mut self) -> Result<(), Error> {
        let mut keys = Vec::new();
        loop {
            match self.token()? {
                Some(b'}') => break,
                Some(b',') if !keys.is_empty() => self.bump(),
                Some(b'"') => {
                    let key = self.value(self.limit)?.and_then(text).and_then(|t| name(&t));
                    let key = key.map_err(|source| Error::Row {
                        place: format!("`{}`:{}", self.text.origin.name, self.line),
                        source,
                    })?;
                    match self.token()? {
                        Some(b':') => self.bump(),
                        other => return Err(self.unexpected(other, "`:` behind a key")),
                    }
                    let value = self.token()?;
                    if keys.is_empty() && key == "data" && value == Some(b'[') {
                        self.bump();
                        return Ok(());
                    }
                    if matches!(value, None | Some(b',' | b']' | b'}' | b':')) {
                        return Err(self.unexpected(value, "a value behind a key"));
                    }
                    if keys.len() <= LISTED {
                        keys.push(key);
                    }
                    // Only skipped: nothing of it is kept.
                    let _ = self.value(0)?;
                }
                other => return Err(self.unexpected(other, "a key")),
            }
        }
        self.bump();
        let more = if keys.len() > LISTED { ", …" } else { "" };
        keys.truncate(LISTED);
        let keys = keys.iter().map(|k| format!("`{}`", shown(k))).collect::<Vec<_>>().join(", ");
        let what = match self.token()? {
            Some(b'{') => "the file holds one object behind the other, which is JSONL; give it the ending .jsonl or set the format".to_owned(),
            _ => format!(
                "the file is one object (its keys: {keys}{more}), not a list of objects; write `[...]` or `{{\"data\": [...]}}`"
            ),
        };
        Err(self.structure(what))
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.stage = Stage::End;
        if self.wrapped {
            match self.token()? {
                Some(b'}') => self.bump(),
                Some(b',') => {
                    let what = "`data` is not the only key of the file's object; write `[...]` or `{\"data\": [...]}`";
                    return Err(self.structure(what.to_owned()));
                }
                other => return Err(self.unexpected(other, "`}` behind the list `data`")),
            }
        }
        match self.token()? {
            None => Ok(()),
            other => Err(self.unexpected(other, "the end of the file behind the list")),
        }
    }

    fn structure(&self, what: String) -> Error {
        SourceError::Structure { name: self.text.origin.name.clone(), line: self.line, what }.into()
    }

    fn unexpected(&mut self, found: Option<u8>, wanted: &str) -> Error {
        let rest = self.text.reader.fill_buf().unwrap_or_default();
        let found = match found {
            None => "the file ends".to_owned(),
            Some(_) => format!("`{}` stands", snippet(&rest[..rest.len().min(24)], 0)),
        };
        self.structure(format!("{found} where {wanted} is expected; correct the JSON there"))
    }

    fn fill(&mut self) -> Result<&[u8], Error> {
        let Self { text: Text { reader, origin }, line, .. } = self;
        reader.fill_buf().map_err(|e| origin.broken(e, *line - 1))
    }

    /// The next byte that is not white space, not taken yet.
    fn token(&mut self) -> Result<Option<u8>, Error> {
        loop {
            let buffer = self.fill()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let blank = buffer.iter().take_while(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n')).count();
            let lines = breaks(&buffer[..blank]) as u64;
            let found = buffer.get(blank).copied();
            self.line += lines;
            self.text.reader.consume(blank);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn bump(&mut self) {
        self.text.reader.consume(1);
    }

    /// Takes one value: by its brackets and quotes alone, so that a malformed record does not swallow the next. Beyond
    /// `limit` bytes nothing is kept.
    fn value(&mut self, limit: usize) -> Result<Result<Vec<u8>, RowError>, Error> {
        let first = self.line;
        let (mut kept, mut length) = (Vec::new(), 0_usize);
        let mut scan = Scan::default();
        loop {
            let buffer = self.fill()?;
            if buffer.is_empty() {
                if scan.is_bare() {
                    break;
                }
                let what =
                    format!("the file ends inside the record that starts on line {first}; complete it");
                return Err(self.structure(what));
            }
            let (taken, ended) = scan.step(buffer);
            length += taken;
            if length <= limit {
                kept.extend_from_slice(&buffer[..taken]);
            } else {
                kept = Vec::new();
            }
            let lines = breaks(&buffer[..taken]) as u64;
            self.line += lines;
            self.text.reader.consume(taken);
            if ended {
                break;
            }
        }
        Ok(if length <= limit { Ok(kept) } else { Err(RowError::LineTooLong { limit }) })
    }
}

/// Follows brackets and quotes to the end of a value.
#[derive(Default)]
struct Scan {
    kind: Kind,
    depth: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Start,
    /// In a number or a word, which end before the first byte that belongs to the list.
    Bare,
    Quoted,
    /// Behind a backslash in a string.
    Escaped,
    Brackets,
}

impl Scan {
    fn is_bare(&self) -> bool {
        self.kind == Kind::Bare
    }

    /// How many bytes of `buffer` belong to the value, and whether it ends there.
    fn step(&mut self, buffer: &[u8]) -> (usize, bool) {
        for (i, &byte) in buffer.iter().enumerate() {
            let ends = matches!(byte, b',' | b']' | b'}' | b':' | b' ' | b'\t' | b'\r' | b'\n');
            self.kind = match (self.kind, byte) {
                (Kind::Bare, _) if ends => return (i, true),
                (Kind::Quoted, b'\\') => Kind::Escaped,
                (Kind::Quoted, b'"') => Kind::Brackets,
                (Kind::Bare | Kind::Quoted, _) => continue,
                (Kind::Escaped, _) | (_, b'"') => Kind::Quoted,
                (_, b'{' | b'[') => {
                    self.depth += 1;
                    Kind::Brackets
                }
                (Kind::Start, _) => Kind::Bare,
                (_, b'}' | b']') => {
                    self.depth = self.depth.saturating_sub(1);
                    Kind::Brackets
                }
                _ => continue,
            };
            if self.depth == 0 && self.kind == Kind::Brackets {
                return (i + 1, true);
            }
        }
        (buffer.len(), false)
    }
}

/// The text of a JSON string.
fn name(json: &str) -> Result<String, RowError> {
    let object = parse_object(&format!("{{{json}:0}}"))?;
    Ok(object.into_iter().next().map(|(key, _)| key).unwrap_or_default())
}

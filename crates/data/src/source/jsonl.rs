//! One JSON object a line.

use std::io::BufRead;

use super::stored::{Origin, Text};
use super::text::Lines;
use super::{Inner, Numbered, Raw};
use crate::error::Error;

pub(super) struct JsonLines {
    origin: Origin,
    lines: Lines<Box<dyn BufRead + Send>>,
}

impl JsonLines {
    pub(super) fn new(text: Text, limit: usize) -> Self {
        let Text { reader, origin } = text;
        Self { origin, lines: Lines { reader, number: 0, limit } }
    }
}

impl Inner for JsonLines {
    fn next(&mut self) -> Result<Option<Numbered>, Error> {
        let line = self.lines.next().map_err(|e| self.origin.broken(e, self.lines.number))?;
        Ok(line.map(|text| (self.lines.number, text.map(Raw::Line))))
    }
}

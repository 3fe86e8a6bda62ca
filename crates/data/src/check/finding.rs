//! What a check has to say.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::dataset::Counted;
use crate::source::Place;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing can be trained like this, or the adapter would be useless.
    Error,
    /// Training goes on, but probably not as meant.
    Warning,
    /// Worth knowing.
    Note,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, for programs: stable, in `snake_case`.
    pub code: Cow<'static, str>,
    /// One sentence: how many rows, what is the matter, what to do.
    pub message: String,
    /// Where the first such rows stand.
    pub places: Vec<Place>,
    /// The stretch of the row where the fault is, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub snippet: String,
}

impl Finding {
    pub(super) fn new(severity: Severity, code: &'static str, message: impl Into<String>) -> Self {
        let (message, snippet) = (message.into(), String::new());
        Self { severity, code: Cow::Borrowed(code), message, places: Vec::new(), snippet }
    }

    pub(super) fn at(mut self, places: &[Place]) -> Self {
        self.places = places.to_vec();
        self
    }
}

/// Findings in the making.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    /// Says something if it is so.
    pub(super) fn when(&mut self, holds: bool, severity: Severity, code: &'static str, message: String) {
        if holds {
            self.0.push(Finding::new(severity, code, message));
        }
    }

    /// Says something of the rows counted, if there are any.
    pub(super) fn rows(&mut self, counted: &Counted, severity: Severity, code: &'static str, message: &str) {
        if counted.count > 0 {
            let message = format!("{} {message}", rows(counted.count));
            self.0.push(Finding::new(severity, code, message).at(&counted.places));
        }
    }

    /// All of them, the worst first.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        self.0.sort_by_key(|finding| finding.severity);
        self.0
    }
}

/// `1 row`, `1,234 rows`.
pub(super) fn rows(count: usize) -> String {
    if count == 1 { "1 row".to_owned() } else { format!("{} rows", thousands(count)) }
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|g| str::from_utf8(g).ok()).collect();
    groups.join(",")
}

/// `12.3 %`; never a rounded 0 or 100 that is none.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        p if p > 0.0 && p < 0.1 => "under 0.1 %".to_owned(),
        p if p < 100.0 && p > 99.9 => "over 99.9 %".to_owned(),
        p => format!("{p:.1} %"),
    }
}

//! What a table may be called.

use serde::{Deserialize, Serialize};

use super::error::TableError;

/// Longest name, in bytes.
const LONGEST: usize = 63;

/// What the store's own tables begin with; no user's table or column does.
pub(super) const RESERVED: &str = "_tunesmith_";

/// SQL's own words (SQLite's list), which would have to be quoted in every query.
const KEYWORDS: &str = "abort action add after all alter always analyze and as asc attach autoincrement before begin \
    between by cascade case cast check collate column commit conflict constraint create cross current current_date \
    current_time current_timestamp database default deferrable deferred delete desc detach distinct do drop each else \
    end escape except exclude exclusive exists explain fail filter first following for foreign from full generated glob \
    group groups having if ignore immediate in index indexed initially inner insert instead intersect into is isnull \
    join key last left like limit match materialized natural no not nothing notnull null nulls of offset on or order \
    others outer over partition plan pragma preceding primary query raise range recursive references regexp reindex \
    release rename replace restrict returning right rollback row rows savepoint select set table temp temporary then \
    ties to transaction trigger unbounded union unique update using vacuum values view virtual when where window with \
    within without";

/// The name of a table: `[A-Za-z_][A-Za-z0-9_]{0,62}`, no word of SQL. Names that differ only in case are one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableName(String);

impl TableName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`TableError::Name`] with the rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, TableError> {
        let lower = text.to_ascii_lowercase();
        let first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let why = if text.is_empty() {
            "it is empty"
        } else if text.len() > LONGEST {
            "it is too long"
        } else if !text.starts_with(first) {
            "it does not begin with a letter or _"
        } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            "it has a character that is no letter, digit or _"
        } else if lower.starts_with("sqlite_") || lower.starts_with(RESERVED) || lower.starts_with("pragma_")
        {
            "its beginning is reserved"
        } else if KEYWORDS.split_whitespace().any(|word| word == lower) {
            "it is a word of SQL"
        } else if TABLE_FUNCTIONS.contains(&lower.as_str()) {
            "it is a function of SQL"
        } else {
            return Ok(Self(text.to_owned()));
        };
        Err(TableError::Name { name: text.to_owned(), why })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Functions that stand where a table does.
pub(super) const TABLE_FUNCTIONS: [&str; 2] = ["json_each", "json_tree"];

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A table, or one snapshot of it: `NAME` or `NAME@2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRef {
    /// The table.
    pub name: TableName,
    /// The snapshot; the newest when none is given.
    pub snapshot: Option<u64>,
}

impl TableRef {
    /// Reads `NAME` or `NAME@2`.
    ///
    /// # Errors
    /// [`TableError::Name`].
    pub fn parse(text: &str) -> Result<Self, TableError> {
        let Some((name, number)) = text.split_once('@') else {
            return Ok(Self { name: TableName::parse(text)?, snapshot: None });
        };
        let name = TableName::parse(name)?;
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        match number.parse() {
            Ok(number) if digits && number > 0 => Ok(Self { name, snapshot: Some(number) }),
            _ => Err(TableError::Name { name: text.to_owned(), why: "no snapshot number follows the @" }),
        }
    }
}

impl std::fmt::Display for TableRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.snapshot {
            Some(number) => write!(f, "{}@{number}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// A name as SQL has it.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        let longest = "a".repeat(63);
        for good in ["tickets", "_x", "A1_b", "selected", longest.as_str()] {
            assert_eq!(TableName::parse(good).unwrap().as_str(), good);
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "1a",
            "a-b",
            "a.b",
            "é",
            "a b",
            "Select",
            "table",
            "sqlite_x",
            "_Tunesmith_x",
            "json_each",
            "a\0",
            too_long.as_str(),
        ] {
            assert!(TableName::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(
            TableName::parse("order").unwrap_err().to_string(),
            "`order` cannot name a table: it is a word of SQL; use letters, digits and _, at most 63, and no digit in front"
        );
    }

    #[test]
    fn a_snapshot_follows_the_name() {
        let parsed = TableRef::parse("tickets@12").unwrap();
        assert_eq!((parsed.name.as_str(), parsed.snapshot), ("tickets", Some(12)));
        assert_eq!(TableRef::parse("tickets").unwrap().snapshot, None);
        for bad in ["tickets@", "tickets@0", "tickets@+1", "tickets@x", "@1", "a@1@2"] {
            assert!(TableRef::parse(bad).is_err(), "{bad}");
        }
    }
}

//! Looks at the text of a query: enough of SQL's spelling to tell one statement from two and to say where a mistake is.

use super::error::{TableError, known, like, nearest};

/// A piece of SQL that is no white space and no comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) kind: TokenKind,
}

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A bare word or a number.
    Word,
    /// A name in quotes.
    Name,
    /// A string.
    Text,
    /// Anything else, one character.
    Other,
}

impl Token<'_> {
    fn is_word(&self, word: &str) -> bool {
        self.kind == TokenKind::Word && self.text.eq_ignore_ascii_case(word)
    }

    /// The name that a word or a quoted name spells.
    pub(super) fn name(&self) -> Option<String> {
        match self.kind {
            TokenKind::Word => Some(self.text.to_owned()),
            TokenKind::Name if self.text.len() >= 2 => {
                Some(self.text[1..self.text.len() - 1].replace("\"\"", "\""))
            }
            _ => None,
        }
    }
}

/// The tokens of a text.
pub(super) fn tokens(sql: &str) -> Vec<Token<'_>> {
    let bytes = sql.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &sql[at..];
        let (length, kind) = match bytes[at] {
            b if b.is_ascii_whitespace() => (1, None),
            b'-' if rest.starts_with("--") => (rest.find('\n').unwrap_or(rest.len()), None),
            b'/' if rest.starts_with("/*") => (rest.find("*/").map_or(rest.len(), |end| end + 2), None),
            quote @ (b'\'' | b'"' | b'`') => {
                let kind = if quote == b'\'' { TokenKind::Text } else { TokenKind::Name };
                (quoted_length(rest.as_bytes(), quote), Some(kind))
            }
            b'[' => (rest.find(']').map_or(rest.len(), |end| end + 1), Some(TokenKind::Name)),
            b if is_word(b) => (rest.bytes().take_while(|&b| is_word(b)).count(), Some(TokenKind::Word)),
            _ => (1, Some(TokenKind::Other)),
        };
        if let Some(kind) = kind {
            found.push(Token { text: &rest[..length], kind });
        }
        at += length;
    }
    found
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn quoted_length(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        if bytes[at] == quote {
            if bytes.get(at + 1) != Some(&quote) {
                return at + 1;
            }
            at += 1;
        }
        at += 1;
    }
    bytes.len()
}

/// Refuses what is not one statement that reads.
pub(super) fn check_statement(sql: &str) -> Result<(), TableError> {
    if sql.contains('\0') {
        return Err(TableError::sql("it contains a NUL character; remove it"));
    }
    let all = tokens(sql);
    let Some(first) = all.iter().find(|t| t.text != "(" && t.text != ";") else {
        return Err(TableError::sql("it is empty; write a SELECT"));
    };
    if !["select", "with", "values", "explain"].iter().any(|word| first.is_word(word)) {
        return Err(TableError::refused(format!(
            "it begins with `{}`, but queries only read; use SELECT, WITH, VALUES or EXPLAIN",
            first.text
        )));
    }
    let end = all.iter().position(|t| t.text == ";" && t.kind == TokenKind::Other);
    if end.is_some_and(|end| all[end..].iter().any(|t| t.text != ";")) {
        return Err(TableError::refused("it has more than one statement; send one at a time"));
    }
    Ok(())
}

/// Whether a text looks like a query and not like a path: it starts with `select` or `with` and what may follow.
pub(super) fn looks_like_query(text: &str) -> bool {
    let all = tokens(text);
    let Some(first) = all.first() else { return false };
    if !first.is_word("select") && !first.is_word("with") {
        return false;
    }
    // `select.jsonl` and `with/rows.csv` are files.
    let after = text.find(first.text).map_or("", |at| &text[at + first.text.len()..]);
    let more = !after.trim().is_empty();
    more && after.starts_with(|c: char| c.is_whitespace() || c == '(')
}

/// A use of the current time, which makes a query give other rows another day.
pub(super) fn uses_now(sql: &str) -> bool {
    const TIMES: [&str; 7] = ["date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"];
    let all = tokens(sql);
    let bare =
        |w: &[Token<'_>]| w[1].text == "(" && w[2].text == ")" && TIMES.iter().any(|time| w[0].is_word(time));
    all.iter().any(|t| t.kind == TokenKind::Text && t.text.eq_ignore_ascii_case("'now'"))
        || all.windows(3).any(bare)
}

/// What a mistake in a query can be compared with.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// Tables that may be read.
    pub(super) tables: Vec<String>,
    /// Columns of the tables that the query names.
    pub(super) columns: Vec<String>,
    /// Functions that may be called.
    pub(super) functions: Vec<String>,
}

/// SQLite's message about a query, as a sentence that helps.
pub(super) fn explain(message: &str, sql: &str, offset: Option<usize>, words: &Vocabulary) -> String {
    let place = offset.filter(|&at| at <= sql.len()).map(|at| place(sql, at)).unwrap_or_default();
    let about = |prefix: &str| {
        let name = message.strip_prefix(prefix)?;
        let name = name.split(" - should").next().unwrap_or(name);
        Some(name.trim_matches('"').to_owned())
    };
    if let Some(token) = message.strip_prefix("near \"").and_then(|m| m.split("\": ").next()) {
        format!("SQL does not expect `{token}` here{place}; check what stands before it")
    } else if message.starts_with("incomplete input") {
        "it ends too early; complete it".to_owned()
    } else if let Some(name) = about("no such table: ") {
        let near = nearest(like(&name, words.tables.iter().map(String::as_str)).as_ref());
        format!("there is no table `{name}`{place}{near}; {}", known("the tables are", &words.tables))
    } else if let Some(name) = about("no such column: ") {
        let bare = name.rsplit('.').next().unwrap_or(&name);
        let near = nearest(like(bare, words.columns.iter().map(String::as_str)).as_ref());
        let columns = if words.columns.is_empty() {
            "strings stand in single quotes".to_owned()
        } else {
            known("the columns are", &words.columns)
        };
        format!("there is no column `{name}`{place}{near}; {columns}")
    } else if let Some(name) = about("no such function: ") {
        let near = nearest(like(&name, words.functions.iter().map(String::as_str)).as_ref());
        format!("there is no function `{name}`{place}{near}; use one of SQLite's own")
    } else if let Some(name) = about("ambiguous column name: ") {
        format!("`{name}` is a column of more than one table{place}; write TABLE.{name}")
    } else if message.starts_with("unrecognized token") {
        format!("{}{place}; check the quotes", message.replace('"', "`"))
    } else {
        format!("{message}{place}; correct it")
    }
}

/// Line and column, where there is more than one line.
fn place(sql: &str, offset: usize) -> String {
    let before = String::from_utf8_lossy(&sql.as_bytes()[..offset]);
    let (line, column) =
        (before.matches('\n').count() + 1, before.chars().rev().take_while(|&c| c != '\n').count() + 1);
    if sql.trim_end().contains('\n') {
        format!(" (line {line}, column {column})")
    } else {
        format!(" (column {column})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_hide_what_they_hold() {
        let texts: Vec<_> =
            tokens("select 'a;''b' /* ; */, \"x\"\"y\" -- ;\n from [t u];").iter().map(|t| t.text).collect();
        assert_eq!(texts, ["select", "'a;''b'", ",", "\"x\"\"y\"", "from", "[t u]", ";"]);
        for unfinished in ["'a", "\"", "/* x", "[", "-- x", "é'é"] {
            let _ = tokens(unfinished);
        }
    }

    #[test]
    fn only_one_reading_statement_passes() {
        for good in [
            "select 1",
            " /* x */ WITH a as (select 1) select * from a;",
            "values (1)",
            "(select 1)",
            "explain select 1;;",
        ] {
            assert!(check_statement(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            " -- x",
            "delete from t",
            "pragma user_version",
            "select 1; select 2",
            "select 1;attach 'x' as y",
            "select 1\0",
            "begin",
        ] {
            assert!(check_statement(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn queries_are_told_from_paths() {
        for query in [
            "select * from t",
            "SELECT\n1",
            "with(x) as (select 1) select 1",
            "With a as (select 1) select 1",
            "select(1)",
        ] {
            assert!(looks_like_query(query), "{query}");
        }
        for path in [
            "select",
            "select.jsonl",
            "selected rows.jsonl",
            "with/rows.csv",
            "with-rows",
            "data/select x.csv",
            "",
            "select_1",
            "select*",
        ] {
            assert!(!looks_like_query(path), "{path}");
        }
    }

    #[test]
    fn the_current_time_is_noticed() {
        for sql in ["select date('now')", "select DATETIME ( )", "select strftime('%Y', 'NOW')"] {
            assert!(uses_now(sql), "{sql}");
        }
        for sql in ["select date(created)", "select 'know', date from t", "select \"now\" from t"] {
            assert!(!uses_now(sql), "{sql}");
        }
    }
}

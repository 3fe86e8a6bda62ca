//! A short stretch of a row, to show with what is wrong with it.

use crate::error::RowError;
use crate::source::Raw;

/// Characters shown.
const SHOWN: usize = 80;
/// Columns of a row without text that are written out.
const COLUMNS: usize = 4;

/// The beginning of the row, or what stands around the fault.
pub(crate) fn of(raw: &Raw, error: &RowError) -> String {
    match (raw, error) {
        (Raw::Line(text), RowError::InvalidJson { at, .. }) => around(text, at.column.saturating_sub(1)),
        (Raw::Line(text), _) => around(text, 0),
        (Raw::Object(object), _) => {
            let columns = object.iter().take(COLUMNS);
            let columns: Vec<_> =
                columns.map(|(k, v)| format!("{k}: {}", around(&v.to_string(), 0))).collect();
            around(&columns.join(", "), 0)
        }
    }
}

/// 80 characters around a byte of a text, with dots where it goes on.
fn around(text: &str, byte: usize) -> String {
    let at = text.floor_char_boundary(byte.min(text.len()));
    let before = text[..at].char_indices().rev().take(SHOWN / 2).last().map_or(0, |(i, _)| i);
    // Near the end there is room for more in front.
    let rest = text[at..].chars().take(SHOWN).count();
    let start = if rest < SHOWN / 2 {
        text[..at].char_indices().rev().take(SHOWN - rest).last().map_or(0, |(i, _)| i)
    } else {
        before
    };
    let shown: String = text[start..].chars().take(SHOWN).collect();
    let (front, back) = (start > 0, start + shown.len() < text.len());
    format!("{}{shown}{}", if front { "…" } else { "" }, if back { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Spot;

    #[test]
    fn a_snippet_shows_the_fault() {
        let long = format!("{{\"prompt\": \"{}\", oops}}", "ä".repeat(300));
        let column = long.find("oops").unwrap() + 1;
        let at = Spot { line: 1, column };
        let error = RowError::InvalidJson { at, reason: String::new(), snippet: String::new() };
        let shown = of(&Raw::Line(long.clone()), &error);
        assert!(shown.starts_with('…') && shown.ends_with("ä\", oops}"), "{shown}");
        assert_eq!(shown.chars().count(), SHOWN + 1);
        let shown = of(&Raw::Line(long), &RowError::NoMessages);
        assert!(shown.starts_with("{\"prompt\": \"ää") && shown.ends_with("ä…"), "{shown}");
        assert_eq!(of(&Raw::Line("[1]".to_owned()), &error), "[1]");
        let row = serde_json::json!({"a": 1, "b": "x"});
        let shown = of(&Raw::Object(row.as_object().unwrap().clone()), &RowError::NoMessages);
        assert_eq!(shown, "a: 1, b: \"x\"");
    }
}

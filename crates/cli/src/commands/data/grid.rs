//! Rows as a table of text that fits the terminal.

use console::{Term, measure_text_width, truncate_str};
use serde_json::Value;
use std::fmt::Write as _;

/// Space between columns.
const GAP: usize = 2;

/// Narrowest column that still says something.
const NARROWEST: usize = 6;

/// Longest text that is looked at for a cell.
const LONGEST: usize = 1000;

/// Columns of the terminal; `COLUMNS` or 100 where there is none.
pub(in crate::commands) fn width() -> usize {
    let terminal = Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    let said = || std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    terminal.or_else(said).unwrap_or(100).max(20)
}

/// Cells a text takes.
pub(in crate::commands) fn measure(text: &str) -> usize {
    measure_text_width(text)
}

/// A value as a cell: nothing for a missing one.
pub(super) fn cell(value: Option<&Value>) -> String {
    match value {
        None => String::new(),
        Some(Value::String(text)) => plain(text),
        Some(other) => plain(&other.to_string()),
    }
}

/// A text in one line, with nothing that a terminal would obey, cut where it is very long.
pub(in crate::commands) fn plain(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => escape(&text[..end]) + "…",
        None => escape(text),
    }
}

/// A text in one line, with nothing that a terminal would obey.
pub(in crate::commands) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            // Also the marks that turn the direction of writing, which can make a text look like another.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                out.extend(c.escape_default());
            }
            c => out.push(c),
        }
    }
    out
}

/// A header and rows of as many cells, cut to a width; columns that have no room are counted below.
pub(super) fn table(header: &[String], rows: &[Vec<String>], width: usize) -> String {
    table_with(header, rows, width, 0)
}

/// [`table`] in which the first `whole` columns are never cut.
pub(in crate::commands) fn table_with(
    header: &[String],
    rows: &[Vec<String>],
    width: usize,
    whole: usize,
) -> String {
    let header: Vec<String> = header.iter().map(|name| plain(name)).collect();
    let mut widths: Vec<usize> = (0..header.len())
        .map(|i| rows.iter().map(|row| measure(&row[i])).chain([measure(&header[i])]).max().unwrap_or(0))
        .collect();
    let whole = whole.min(widths.len());
    let room = width.saturating_sub(widths[..whole].iter().map(|width| width + GAP).sum());
    let shown = (whole + (room + GAP) / (NARROWEST + GAP)).max(1);
    widths.truncate(shown);
    fit(&mut widths[whole..], room);
    let line = |cells: &[String]| {
        let cut = cells.iter().zip(&widths).map(|(cell, &width)| {
            let text = truncate_str(cell, width, "…");
            let space = width.saturating_sub(measure(&text));
            format!("{text}{}", " ".repeat(space))
        });
        let line = cut.collect::<Vec<_>>().join(&" ".repeat(GAP));
        format!("{}\n", line.trim_end())
    };
    let rule: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
    let mut text = line(&header) + &line(&rule);
    text.extend(rows.iter().map(|row| line(row)));
    let left = header.len() - widths.len();
    if left > 0 {
        // Writing to a string cannot fail.
        let columns = if left == 1 { "column" } else { "columns" };
        let _ = writeln!(text, "… and {left} more {columns}: {}", header[widths.len()..].join(", "));
    }
    text
}

/// Takes from the widest columns until all fit.
fn fit(widths: &mut [usize], width: usize) {
    let room = width.saturating_sub(GAP * widths.len().saturating_sub(1));
    while widths.iter().sum::<usize>() > room {
        let widest = widths.iter().copied().max().unwrap_or(0);
        if widest <= NARROWEST {
            return;
        }
        let next = widths.iter().copied().filter(|&w| w < widest).max().unwrap_or(0).max(NARROWEST);
        let count = widths.iter().filter(|&&w| w == widest).count();
        let excess = widths.iter().sum::<usize>() - room;
        // Down to the next widest, or by what is too much, shared among the widest.
        let to = widest.saturating_sub(excess.div_ceil(count)).max(next);
        widths.iter_mut().filter(|w| **w == widest).for_each(|w| *w = to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|c| (*c).to_owned()).collect()
    }

    #[test]
    fn long_cells_are_cut_and_lines_fit() {
        let header = row(&["id", "prompt", "completion"]);
        let rows = [row(&["1", &"x".repeat(90), "short"]), row(&["2", "日本語のテキスト", &"y".repeat(70)])];
        for width in [40, 61, 80, 200] {
            let text = table(&header, &rows, width);
            assert!(text.lines().all(|line| measure(line) <= width), "{width}\n{text}");
            assert_eq!(text.lines().count(), 4);
        }
        assert_eq!(
            table(&header, &rows, 30),
            "id  prompt        completion\n──  ────────────  ────────────\n1   xxxxxxxxxxx…  short\n2   日本語のテ…   yyyyyyyyyyy…\n"
        );
    }

    #[test]
    fn a_column_that_is_to_stay_whole_is_never_cut() {
        let header = row(&["id", "name", "reason"]);
        let rows = [row(&["ftjob-0123456789", &"n".repeat(40), &"r".repeat(40)])];
        for width in [20, 30, 40, 80] {
            let text = table_with(&header, &rows, width, 1);
            assert!(text.lines().nth(2).unwrap().starts_with("ftjob-0123456789"), "{width}\n{text}");
            assert!(text.lines().take(3).all(|line| measure(line) <= width), "{width}\n{text}");
        }
        assert!(table_with(&header, &rows, 20, 1).ends_with("… and 2 more columns: name, reason\n"));
    }

    #[test]
    fn columns_without_room_are_counted() {
        let header: Vec<String> = (0..10).map(|i| format!("column{i}")).collect();
        let text = table(&header, &[vec!["v".to_owned(); 10]], 30);
        assert!(
            text.ends_with("… and 6 more columns: column4, column5, column6, column7, column8, column9\n"),
            "{text}"
        );
    }

    #[test]
    fn nothing_in_a_cell_moves_the_cursor() {
        assert_eq!(cell(Some(&json!("a\n\u{1b}[31mb\t\u{202e}"))), "a\\n\\u{1b}[31mb\\t\\u{202e}");
        assert_eq!(
            (cell(None), cell(Some(&json!(null))), cell(Some(&json!([1])))),
            (String::new(), "null".to_owned(), "[1]".to_owned())
        );
        assert_eq!(plain(&"x".repeat(5000)).chars().count(), LONGEST + 1);
    }
}

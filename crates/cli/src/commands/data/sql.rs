//! `tunesmith data sql`.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tunesmith_data::{QueryLimits, QueryOptions, TableRows};

use super::{count, grid, next, tables};
use crate::args::SqlArgs;
use crate::error::CliError;
use crate::out;

/// Most bytes of values that are collected for a table or a JSON object; CSV is streamed.
const MOST_BYTES: u64 = 1 << 30;

/// Runs a query and prints its rows.
pub(super) fn run(args: &SqlArgs) -> Result<(), CliError> {
    let limits = QueryLimits {
        time: Duration::from_secs(args.timeout),
        rows: None,
        bytes: (!args.csv).then_some(MOST_BYTES),
    };
    let mut reader = tables()?.query(&args.sql, &QueryOptions { limits, ..QueryOptions::default() })?;
    let columns = reader.columns().to_vec();
    if args.csv {
        let more = csv(args, &mut reader, &columns)?;
        note_more(more, args.limit);
        return Ok(());
    }
    let mut rows = Vec::new();
    let more = take(args, &mut reader, |row| {
        rows.push(row);
        Ok(())
    })?;
    if args.json {
        return out::json(&json!({ "columns": columns, "rows": rows, "more": more }));
    }
    let cells = |row: &Map<String, Value>| columns.iter().map(|name| grid::cell(row.get(name))).collect();
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let table = grid::table(&columns, &cells, grid::width());
    out::print(&format!("{table}{}\n", count(rows.len() as u64, "row", "rows")))?;
    note_more(more, args.limit);
    Ok(())
}

/// Takes rows up to the limit; whether there are more.
fn take(
    args: &SqlArgs,
    reader: &mut TableRows,
    mut each: impl FnMut(Map<String, Value>) -> Result<(), CliError>,
) -> Result<bool, CliError> {
    let mut taken = 0;
    while let Some(row) = next(reader)? {
        if args.limit > 0 && taken == args.limit {
            return Ok(true);
        }
        taken += 1;
        each(row)?;
        if out::stdout_closed() {
            break;
        }
    }
    Ok(false)
}

fn csv(args: &SqlArgs, reader: &mut TableRows, columns: &[String]) -> Result<bool, CliError> {
    out::print(&csv_line(columns.iter().map(String::as_str)))?;
    take(args, reader, |row| {
        let fields: Vec<String> = columns.iter().map(|name| csv_field(row.get(name))).collect();
        out::print(&csv_line(fields.iter().map(String::as_str)))
    })
}

fn csv_field(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A line of CSV (RFC 4180, with the line ends of this system).
fn csv_line<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    let quoted = |field: &str| {
        if field.contains([',', '"', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.to_owned()
        }
    };
    let fields: Vec<_> = fields.map(quoted).collect();
    // A line without any character would be no record.
    if fields == [""] { "\"\"\n".to_owned() } else { format!("{}\n", fields.join(",")) }
}

fn note_more(more: bool, limit: usize) {
    if more {
        out::note(&format!(
            "note: only the first {} are shown; --limit 0 gives all",
            count(limit as u64, "row", "rows")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        assert_eq!(
            csv_line(["a", "b \"c\"", "d,e", "f\ng", ""].into_iter()),
            "a,\"b \"\"c\"\"\",\"d,e\",\"f\ng\",\n"
        );
        assert_eq!(csv_line([""].into_iter()), "\"\"\n");
        assert_eq!(csv_field(Some(&json!([1, "a"]))), "[1,\"a\"]");
    }
}

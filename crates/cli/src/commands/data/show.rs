//! `tunesmith data ls` and `tunesmith data show`.

use serde_json::json;
use std::fmt::Write as _;
use tunesmith_data::{Origin, Snapshot};

use super::{count, grid, next, summary, tables};
use crate::args::ShowArgs;
use crate::error::CliError;
use crate::out;
use crate::progress::thousands;

/// Lists every snapshot of every table.
pub(super) fn list(json: bool) -> Result<(), CliError> {
    let all = tables()?.list()?;
    if json {
        return out::json(&all);
    }
    if all.is_empty() {
        out::note("no tables yet; `tunesmith data load NAME FILE` makes one");
        return Ok(());
    }
    let header = ["table", "rows", "columns", "bytes", "created", "from"].map(str::to_owned);
    let rows = all.iter().map(|s| {
        let name = if s.newest { s.label() } else { format!("{} (old)", s.label()) };
        let created = s.created.get(..19).unwrap_or(&s.created).replace('T', " ");
        vec![
            name,
            thousands(s.rows as usize),
            s.columns.len().to_string(),
            thousands(s.bytes as usize),
            created,
            source(s),
        ]
    });
    out::print(&grid::table(&header, &rows.collect::<Vec<_>>(), grid::width()))
}

/// Shows a snapshot and its first rows.
pub(super) fn run(args: &ShowArgs) -> Result<(), CliError> {
    let tables = tables()?;
    let snapshot = tables.find(&args.table)?;
    let mut reader = tables.read(&args.table)?;
    let mut rows = Vec::new();
    while rows.len() < args.rows
        && let Some(row) = next(&mut reader)?
    {
        rows.push(row);
    }
    if args.json {
        return out::json(&json!({ "table": snapshot, "rows": rows }));
    }
    let mut text = format!("{}\n{}", summary(&snapshot), columns(&snapshot));
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "\ncreated   {}\ncontent   sha256 {}\n{}\n",
        snapshot.created,
        snapshot.sha256,
        lineage(&snapshot.origin)
    );
    if !rows.is_empty() {
        let header: Vec<_> = snapshot.columns.iter().map(|c| c.name.clone()).collect();
        let cells = |row| header.iter().map(|name| grid::cell(serde_json::Map::get(row, name))).collect();
        let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
        text.push('\n');
        text.push_str(&grid::table(&header, &cells, grid::width()));
    }
    out::print(&text)
}

/// The columns of a snapshot, a line each.
pub(super) fn columns(snapshot: &Snapshot) -> String {
    let widest = snapshot.columns.iter().map(|c| grid::measure(&grid::plain(&c.name))).max().unwrap_or(0);
    let line = |c: &tunesmith_data::Column| {
        let name = grid::plain(&c.name);
        let mut line =
            format!("  {name}{}  {:7}", " ".repeat(widest - grid::measure(&name)), c.kind.as_str());
        if let Some(mixture) = c.mixture() {
            // Writing to a string cannot fail.
            let _ = write!(line, "  mixed: {mixture}");
        }
        if c.nulls > 0 {
            // Writing to a string cannot fail.
            let _ = write!(line, "  {} null", thousands(c.nulls as usize));
        }
        if c.missing > 0 {
            // Writing to a string cannot fail.
            let _ = write!(line, "  missing in {}", count(c.missing, "row", "rows"));
        }
        format!("{}\n", line.trim_end())
    };
    snapshot.columns.iter().map(line).collect()
}

/// Where a snapshot came from, in a word or two.
fn source(snapshot: &Snapshot) -> String {
    match &snapshot.origin {
        Origin::Files { files } => match files.as_slice() {
            [one] => grid::plain(&one.name),
            many => count(many.len() as u64, "file", "files"),
        },
        Origin::Query { sql, .. } => grid::plain(sql),
        Origin::Split { parent, .. } => format!("split of {}@{}", parent.table, parent.snapshot),
    }
}

fn lineage(origin: &Origin) -> String {
    match origin {
        Origin::Files { files } => {
            let line = |f: &tunesmith_data::FileFacts| {
                let (name, rows) = (grid::plain(&f.name), count(f.records, "record", "records"));
                let bytes = thousands(f.bytes as usize);
                format!("file      {name}, {rows}, {bytes} bytes, sha256 {}", f.sha256)
            };
            files.iter().map(line).collect::<Vec<_>>().join("\n")
        }
        Origin::Query { sql, parents } => {
            let parents: Vec<_> = parents.iter().map(|p| format!("{}@{}", p.table, p.snapshot)).collect();
            format!("query     {}\nreads     {}", grid::plain(sql), parents.join(", "))
        }
        Origin::Split { parent, parts, seed, by } => {
            let parts: Vec<_> = parts.iter().map(|(name, weight)| format!("{name} {weight:.3}")).collect();
            let by = by.as_ref().map(|by| format!(" by {}", grid::plain(by))).unwrap_or_default();
            format!("split     {}@{}{by}, seed {seed}: {}", parent.table, parent.snapshot, parts.join(", "))
        }
    }
}

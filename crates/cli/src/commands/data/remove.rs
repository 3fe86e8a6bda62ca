//! `tunesmith data rm`.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;

use super::{count, tables};
use crate::args::RemoveArgs;
use crate::error::CliError;
use crate::out;

/// Removes a table or a snapshot, after asking.
pub(super) fn run(args: &RemoveArgs) -> Result<(), CliError> {
    let mut tables = tables()?;
    let found = tables.find(&args.table)?;
    if !args.yes {
        let (what, rows) = if args.table.snapshot.is_some() {
            (found.label(), found.rows)
        } else {
            let all = tables.list()?;
            let own = all.iter().filter(|s| s.name == found.name);
            let (snapshots, rows) = own.fold((0, 0), |(n, rows), s| (n + 1, rows + s.rows));
            (format!("{} with {}", found.name, count(snapshots, "snapshot", "snapshots")), rows)
        };
        if !confirm(&format!("remove {what}, {}? [y/N]", count(rows, "row", "rows")))? {
            out::note("nothing was removed");
            return Ok(());
        }
    }
    let removed = tables.remove(&args.table)?;
    if args.json {
        return out::json(&removed);
    }
    removed.iter().try_for_each(|s| out::line(&format!("removed {}", s.label())))
}

fn confirm(question: &str) -> Result<bool, CliError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() || !std::io::stderr().is_terminal() {
        return Err(CliError::Usage {
            message: "there is no terminal to ask on".to_owned(),
            hint: Some("add -y to remove without being asked".to_owned()),
        });
    }
    out::note(question);
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(|source| CliError::Io {
        action: "read",
        path: PathBuf::from("standard input"),
        source,
    })?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

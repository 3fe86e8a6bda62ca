//! `tunesmith data rm`.

use super::{count, tables};
use crate::args::RemoveArgs;
use crate::commands::confirm;
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
        if !confirm(&format!("remove {what}, {}? [y/N]", count(rows, "row", "rows")), "remove")? {
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

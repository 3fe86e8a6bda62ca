//! `tunesmith data split`.

use tunesmith_data::{Snapshot, SplitOptions, TableName};

use super::{summary, tables};
use crate::args::SplitArgs;
use crate::error::CliError;
use crate::out;

/// Splits a table and says how many rows each part has.
pub(super) fn run(args: &SplitArgs) -> Result<(), CliError> {
    let names = names(args)?;
    let options = SplitOptions {
        parts: names.into_iter().zip(args.weights.iter().copied()).collect(),
        seed: args.seed,
        by: args.by.clone(),
        replace: args.replace,
    };
    let made = tables()?.split(&args.table, &options)?;
    if args.json {
        return out::json(&made);
    }
    let total: u64 = made.iter().map(|s| s.rows).sum();
    let line = |s: &Snapshot| {
        let share = 100.0 * s.rows as f64 / total as f64;
        format!("{} ({share:.1} %)\n", summary(s))
    };
    out::print(&made.iter().map(line).collect::<String>())
}

fn names(args: &SplitArgs) -> Result<Vec<TableName>, CliError> {
    let usage = |message: String| CliError::Usage { message, hint: None };
    let parts = args.weights.len();
    match (args.names.len(), parts) {
        (0, 2) => ["train", "validation"]
            .map(|part| TableName::parse(&format!("{}_{part}", args.table.name)))
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|e| usage(format!("{e}; name the parts with --names"))),
        (0, _) => Err(usage(format!("{parts} parts need names: add --names a,b,c"))),
        (given, _) if given != parts => {
            Err(usage(format!("there are {parts} weights but {given} names; give one name for each")))
        }
        _ => Ok(args.names.clone()),
    }
}

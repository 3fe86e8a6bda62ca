//! `tunesmith data`: tables and SQL.

pub(super) mod grid;
mod load;
mod remove;
mod show;
mod split;
mod sql;

use serde_json::{Map, Value};
use tunesmith_data::{RecordReader as _, Snapshot, TableRows, Tables};

use crate::args::{DataCommand, ExportArgs};
use crate::error::CliError;
use crate::progress::thousands;
use crate::{engine, out};

/// Runs a verb; says whether the data is good, which only a check can deny.
pub(crate) fn run(command: &DataCommand) -> Result<bool, CliError> {
    match command {
        DataCommand::Check(args) => return Ok(!super::data_check::run(args)?),
        DataCommand::Load(args) => load::run(args)?,
        DataCommand::Ls { json } => show::list(*json)?,
        DataCommand::Show(args) => show::run(args)?,
        DataCommand::Sql(args) => sql::run(args)?,
        DataCommand::Split(args) => split::run(args)?,
        DataCommand::Export(args) => export(args)?,
        DataCommand::Rm(args) => remove::run(args)?,
    }
    Ok(true)
}

fn export(args: &ExportArgs) -> Result<(), CliError> {
    let done = tables()?.export(&args.table, &args.file, args.force)?;
    if args.json {
        return out::json(&done);
    }
    if done.nulls > 0 {
        let nulls = count(done.nulls, "null or missing value", "null or missing values");
        out::note(&format!("note: {nulls} became empty fields; JSONL keeps the difference"));
    }
    let rows = count(done.rows, "row", "rows");
    out::line(&format!("{}: {rows}, {} bytes", args.file.display(), thousands(done.bytes as usize)))
}

/// The workspace's tables.
fn tables() -> Result<Tables, CliError> {
    Ok(Tables::open(&engine::tables_path()?)?)
}

/// The next row, as an object.
fn next(rows: &mut TableRows) -> Result<Option<Map<String, Value>>, CliError> {
    let Some(record) = rows.next_record()? else { return Ok(None) };
    let object = record.raw.and_then(tunesmith_data::Raw::into_object);
    object.map(Some).map_err(|e| CliError::Internal(format!("a row of the store cannot be read: {e}")))
}

/// `1 row`, `2,000 rows`.
fn count(n: u64, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{} {many}", thousands(n as usize)) }
}

/// A snapshot in one line.
fn summary(snapshot: &Snapshot) -> String {
    let columns = count(snapshot.columns.len() as u64, "column", "columns");
    format!("{}: {}, {columns}", snapshot.label(), count(snapshot.rows, "row", "rows"))
}

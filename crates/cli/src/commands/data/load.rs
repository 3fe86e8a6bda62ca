//! `tunesmith data load`.

use std::ops::ControlFlow;

use tunesmith_data::{LoadOrigin, QueryOptions, Records, SourceOptions, TrainingData, open_training_data};

use super::{show, summary, tables};
use crate::args::LoadArgs;
use crate::error::CliError;
use crate::out;
use crate::progress::Progress;

/// Loads a table and says what it holds.
pub(super) fn run(args: &LoadArgs) -> Result<(), CliError> {
    let mut tables = tables()?;
    let source = SourceOptions { format: args.format.map(Into::into), ..SourceOptions::default() };
    let (mut records, origin) = match args.uris.as_slice() {
        [one] => match TrainingData::parse(one, None)? {
            TrainingData::Query(sql) => {
                let data = TrainingData::Query(sql.clone());
                let (records, parents) =
                    open_training_data(&data, Some(&tables), &QueryOptions::default(), &source)?;
                (records, LoadOrigin::Query { sql, parents })
            }
            // A name without a dot is a file here: a table is loaded from another with a query.
            TrainingData::Path(_) | TrainingData::Table(_) => {
                (Records::open(&args.uris, &source)?, LoadOrigin::Files)
            }
        },
        uris => (Records::open(uris, &source)?, LoadOrigin::Files),
    };
    let mut progress = Progress::new(args.json);
    let loaded = tables.load(&args.name, &mut records, origin, args.replace, |rows| {
        progress.rows("loading", rows);
        ControlFlow::Continue(())
    });
    progress.finish();
    for note in records.notes() {
        out::note(&format!("note: {note}"));
    }
    let Some(snapshot) = loaded? else { return Err(CliError::Cancelled) };
    if args.json {
        return out::json(&snapshot);
    }
    out::print(&format!("{}\n{}", summary(&snapshot), show::columns(&snapshot)))
}

//! What the name of a source means: files, a table of the workspace, or a query over its tables.

use std::path::{Path, PathBuf};

use tunesmith_data::{
    Format, QueryOptions, Records, SourceOptions, TableRef, Tables, TrainingData, open_training_data,
};

use crate::error::CliError;
use tunesmith_jobs::dir as jobdir;

/// The records of a source as a job, a check or a quote is given it.
pub(super) fn open(uris: &[String], format: Option<Format>) -> Result<Records, CliError> {
    let source = SourceOptions { format, ..SourceOptions::default() };
    let [only] = uris else { return Ok(Records::open(uris, &source)?) };
    // A workspace without tables must not get a store for having been asked, and files need no workspace.
    let path = tables_path().ok();
    let tables = path.map(|path| Tables::open_existing(&path)).transpose()?.flatten();
    let data = TrainingData::parse(only, tables.as_ref())?;
    let options = QueryOptions { repeatable: true, ..QueryOptions::default() };
    Ok(open_training_data(&data, tables.as_ref(), &options, &source)?.0)
}

/// Where the workspace keeps its tables.
pub(crate) fn tables_path() -> Result<PathBuf, CliError> {
    Ok(jobdir::home()?.join("tables.sqlite"))
}

/// Whether a source is a path that names one thing, and no table, query, address, pattern or standard input.
pub(crate) fn is_plain_path(uri: &str) -> bool {
    let path = matches!(TrainingData::parse(uri, None), Ok(TrainingData::Path(_)));
    path && uri != "-" && !uri.contains("://") && !uri.contains(['*', '?', '['])
}

/// Where rows are read from, made absolute if it is a path. What may be a table's name stays as it is.
pub(crate) fn absolute(uri: &str, cwd: &Path) -> String {
    let path = matches!(TrainingData::parse(uri, None), Ok(TrainingData::Path(_)));
    if uri == "-" || uri.contains("://") || !path || TableRef::parse(uri).is_ok() {
        return uri.to_owned();
    }
    cwd.join(uri).to_string_lossy().into_owned()
}

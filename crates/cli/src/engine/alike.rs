//! Rows of a job that are alike, found as `tunesmith data check` finds them, under the job's own split.

use std::path::Path;

use serde_json::json;
use tunesmith_data::check::{Finding, NearDuplicates, NearOptions, Severity, similar_findings};
use tunesmith_data::{DataReport, Part};

use super::Run;
use crate::error::CliError;

/// Rows to be compared; what does not fit into memory waits in `dir`, in a file that goes away with the run.
pub(super) fn start(dir: &Path) -> Result<NearDuplicates, CliError> {
    std::fs::create_dir_all(dir).map_err(|source| CliError::Io {
        action: "create",
        path: dir.to_owned(),
        source,
    })?;
    Ok(NearDuplicates::new(NearOptions::new(dir.to_owned()))?)
}

/// Compares the rows and says what was found, on the terminal and in the log.
///
/// `before` rows were taken ahead of the source that `validation` counts its rows in. `reports` are those of the
/// sources in the order they were taken.
pub(super) fn report(
    run: &mut Run<'_>,
    near: NearDuplicates,
    before: usize,
    validation: &Part,
    reports: &[&DataReport],
    said: impl Fn(&Finding, &DataReport) -> String,
) -> Result<(), CliError> {
    let rows: usize = reports.iter().map(|report| report.kept).sum();
    let mut held = vec![false; rows];
    for row in validation.rows() {
        held[before + row] = true;
    }
    let similar = near.finish(&|row| held[row])?;
    let findings = similar_findings(&similar, reports);
    run.log(&json!({ "type": "data", "data": { "similar": &similar, "findings": &findings } }))?;
    for finding in &findings {
        let word = if finding.severity == Severity::Note { "note" } else { "warning" };
        // The message names the first pair; the places of such a finding are all in the first source.
        let text = match reports.first().filter(|_| finding.places.len() > 1) {
            Some(first) => said(finding, first),
            None => finding.message.clone(),
        };
        run.progress.note(&format!("{word}: {text}"));
    }
    Ok(())
}

//! Splits a table into parts that share no row and no group.

use std::collections::HashSet;

use super::canonical::{write_row, write_value};
use super::catalog::{self, Column, Origin, Snapshot};
use super::error::TableError;
use super::name::{TableName, TableRef};
use super::writer::{Fault, Ready, SnapshotWriter};
use super::{Tables, query, store};
use crate::error::Error;
use crate::sip::siphash24;
use crate::source::RecordReader as _;
use crate::split::split_parts;

/// Rows that are written at once, of each part.
const BATCH: usize = 4096;

/// How to split.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitOptions {
    /// The tables to make, and their weights: positive numbers, of which only the ratio counts.
    pub parts: Vec<(TableName, f64)>,
    /// Seed: another one gives other parts.
    pub seed: u64,
    /// The column whose equal values stay together; equal rows do otherwise.
    pub by: Option<String>,
    /// Makes new snapshots where the tables exist.
    pub replace: bool,
}

impl Tables {
    /// Splits a snapshot by a hash of each row, or of its value in a column. Which part a row goes to depends on the
    /// seed and on the set of different rows or values, never on their order. Each part takes its share of the groups,
    /// rounded, and at least one.
    ///
    /// # Errors
    /// [`TableError::Split`] for fewer than two parts, weights that are none, one name for two parts, a row without a
    /// group, or a part that would be empty; [`TableError::NoColumn`], [`TableError::Exists`], and those of
    /// [`Tables::find`].
    pub fn split(&mut self, source: &TableRef, options: &SplitOptions) -> Result<Vec<Snapshot>, Error> {
        let weights = check(options)?;
        let parent = self.find(source)?;
        let by = options.by.as_deref().map(|by| parent.column(by)).transpose()?;
        let pinned = TableRef { name: source.name.clone(), snapshot: Some(parent.snapshot) };
        let path = self.path.clone();
        let failed = |e| store::fault(&path, e);

        let prints = self.fingerprints(&pinned, by)?;
        let parts = split_parts(&prints, &weights, options.seed).ok_or_else(|| {
            let what = if by.is_some() { "values of the column" } else { "rows" };
            fault(format!(
                "`{}` has too few different {what} for {} parts, so one would be empty; use fewer parts",
                parent.label(),
                weights.len()
            ))
        })?;

        let transaction = self.write()?;
        for (name, _) in &options.parts {
            catalog::check_free(&transaction, name, options.replace)?;
        }
        let first = catalog::next_id(&transaction).map_err(failed)?;
        let ids: Vec<i64> = (first..).take(weights.len()).collect();
        let mut writers: Vec<_> = ids
            .iter()
            .map(|&id| (SnapshotWriter::with_columns(&transaction, id, &parent.columns), Vec::new()))
            .collect();
        let mut rows = query::read_table(&path, &pinned)?;
        let flush = |writer: &mut SnapshotWriter<'_>, batch: &mut Vec<Ready>| {
            let pushed = writer.push(batch);
            batch.clear();
            pushed.map_err(|e| match e {
                Fault::Row(_, what) => fault(what),
                Fault::Sqlite(error) => failed(error),
            })
        };
        for &part in &parts {
            let Some(record) = rows.next_record()? else { break };
            let object = object(record)?;
            let mut canonical = Vec::new();
            write_row(&object, &mut canonical);
            let (writer, batch) = &mut writers[part];
            batch.push(Ready { object, canonical });
            if batch.len() == BATCH {
                flush(writer, batch)?;
            }
        }
        let named: Vec<_> = options.parts.iter().map(|(name, _)| name.to_string()).zip(weights).collect();
        for (((mut writer, mut batch), (name, _)), id) in writers.into_iter().zip(&options.parts).zip(ids) {
            flush(&mut writer, &mut batch)?;
            let written = writer.finish().map_err(failed)?;
            let origin = Origin::Split {
                parent: parent.reference(),
                parts: named.clone(),
                seed: options.seed,
                by: by.map(|column| column.name.clone()),
            };
            catalog::enter(&transaction, id, name, &written, &origin).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        let made = |(name, _): &(TableName, f64)| self.find(&TableRef { name: name.clone(), snapshot: None });
        options.parts.iter().map(made).collect()
    }

    /// A hash of each row's group, in order.
    fn fingerprints(&self, source: &TableRef, by: Option<&Column>) -> Result<Vec<u128>, Error> {
        let mut rows = self.read(source)?;
        let mut prints = Vec::new();
        let mut bytes = Vec::new();
        while let Some(record) = rows.next_record()? {
            let object = object(record)?;
            bytes.clear();
            if let Some(by) = by {
                let Some(value) = object.get(&by.name).filter(|v| !v.is_null()) else {
                    return Err(fault(format!(
                        "row {} of `{source}` has no `{}`; give every row one, or load a query's result without such rows",
                        prints.len() + 1,
                        by.name
                    )));
                };
                write_value(value, &mut bytes);
            } else {
                write_row(&object, &mut bytes);
            }
            prints.push(fingerprint(&bytes));
        }
        Ok(prints)
    }
}

/// Two differently keyed hashes side by side.
fn fingerprint(bytes: &[u8]) -> u128 {
    let high = siphash24(0x7461_626c_6573_706c, 0x6974_2d68_6967_6821, bytes);
    let low = siphash24(0x7461_626c_6573_706c, 0x6974_2d6c_6f77_2121, bytes);
    (u128::from(high) << 64) | u128::from(low)
}

fn object(record: crate::source::Record) -> Result<serde_json::Map<String, serde_json::Value>, Error> {
    let object = record.raw.and_then(crate::source::Raw::into_object);
    object.map_err(|e| fault(e.to_string()))
}

/// The weights, which add up to 1.
fn check(options: &SplitOptions) -> Result<Vec<f64>, Error> {
    let parts = &options.parts;
    if parts.len() < 2 {
        return Err(fault("one part is no split; give two weights or more, such as 0.8 0.2".to_owned()));
    }
    if let Some((name, weight)) = parts.iter().find(|(_, w)| !(w.is_finite() && *w > 0.0)) {
        return Err(fault(format!("`{name}` has the weight {weight}; use a number above 0")));
    }
    let mut names = HashSet::new();
    if let Some((name, _)) = parts.iter().find(|(name, _)| !names.insert(name.as_str().to_ascii_lowercase()))
    {
        return Err(fault(format!("two parts are called `{name}`; give each its own name")));
    }
    let total: f64 = parts.iter().map(|(_, w)| w).sum();
    if !total.is_finite() {
        return Err(fault("the weights add up to more than a number holds; use smaller ones".to_owned()));
    }
    Ok(parts.iter().map(|(_, w)| w / total).collect())
}

fn fault(what: String) -> Error {
    TableError::Split { what }.into()
}

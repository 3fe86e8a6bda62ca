//! Documents laid one after another, and the rows whose predictions count.

use std::sync::OnceLock;

use tunesmith_ops::{Error as OpsError, Index, RowNames, Sequences};

/// Number of the document that fills a batch up.
const FILLER: u32 = u32::MAX;

/// A micro-batch: documents are concatenated and never see each other.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[tokens]`: the ids of all documents.
    pub ids: Vec<u32>,
    /// `[tokens]`: position of each token in its document.
    pub positions: Index,
    /// Which row belongs to which document.
    pub sequences: Sequences,
    /// `[selected]`, ascending: rows whose next-token prediction is wanted.
    pub rows: Index,
    /// `[selected]`: the token each of them should predict; empty when only logits are wanted.
    pub targets: Vec<u32>,
    /// `[selected]`: which document (as a number of the call that made the batch) each row is from.
    pub documents: Vec<usize>,
    /// `[tokens]`: the document's number in the optimizer step and the position: names dropout rows.
    pub row_keys: RowNames,
    /// What the last block makes of it, once it is asked for.
    last_queries: OnceLock<Sequences>,
    selected_keys: OnceLock<RowNames>,
}

/// One document of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Document<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// Which of them count as targets; the first never does.
    pub trained: &'a [bool],
    /// Number of the document in its optimizer step.
    pub number: u32,
}

impl Batch {
    /// A batch to train or evaluate on: row `t` is selected when token `t + 1` is a target. Rows after a
    /// document's last target are left out, as nothing depends on them; so are documents without a target.
    pub fn for_training(documents: &[Document<'_>]) -> Self {
        Self::filled_up(documents, 1)
    }

    /// As [`Batch::for_training`], filled up to a multiple of `rows` rows (if there is any) for the device's sake: with a
    /// document of its own that has no target. The others do not see it and nothing depends on it, so it changes no loss,
    /// and its gradient is zero.
    pub fn filled_up(documents: &[Document<'_>], rows: usize) -> Self {
        let multiple = rows.max(1);
        let (mut text, mut rows, mut targets, mut from) =
            (Text::default(), Vec::new(), Vec::new(), Vec::new());
        for (d, doc) in documents.iter().enumerate() {
            let Some(last) = (1..doc.ids.len()).rev().find(|&t| doc.trained[t]) else { continue };
            let start = text.ids.len();
            text.push(&doc.ids[..last], doc.number);
            for t in (0..last).filter(|&t| doc.trained[t + 1]) {
                rows.push(start + t);
                targets.push(doc.ids[t + 1]);
                from.push(d);
            }
        }
        let missing = text.ids.len().next_multiple_of(multiple) - text.ids.len();
        if missing > 0 {
            text.push(&vec![0; missing], FILLER);
        }
        text.batch(rows, targets, from)
    }

    /// A batch whose every row is selected, for logits.
    pub fn for_logits(documents: &[&[u32]]) -> Self {
        let (mut text, mut from) = (Text::default(), Vec::new());
        for (d, ids) in documents.iter().enumerate() {
            text.push(ids, d as u32);
            from.extend(ids.iter().map(|_| d));
        }
        let rows = (0..text.ids.len()).collect();
        text.batch(rows, Vec::new(), from)
    }

    /// Rows that are computed, those that fill it up among them.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The queries of the last block: only the selected rows, unless they are all of them.
    pub(crate) fn last_queries(&self) -> Result<Option<&Sequences>, OpsError> {
        if self.rows.len() == self.ids.len() {
            return Ok(None);
        }
        if self.last_queries.get().is_none() {
            // Once, so that forward and backward share what a device makes of it.
            let _ = self.last_queries.set(self.sequences.select(&self.rows)?);
        }
        Ok(self.last_queries.get())
    }

    /// `[selected]`: dropout names of the selected rows.
    pub(crate) fn selected_keys(&self) -> &RowNames {
        self.selected_keys.get_or_init(|| self.rows.iter().map(|&r| self.row_keys[r]).collect())
    }

    /// Makes all that a step reads of it, so that nothing is left to do when the step is queued.
    ///
    /// # Errors
    /// If it was changed and is no batch any more.
    pub fn prepare(&self, dropout: bool) -> Result<(), OpsError> {
        self.last_queries()?;
        if dropout {
            self.selected_keys();
        }
        Ok(())
    }
}

/// The documents of a batch in the making.
#[derive(Default)]
struct Text {
    ids: Vec<u32>,
    lengths: Vec<usize>,
    positions: Vec<usize>,
    row_keys: Vec<[u32; 2]>,
}

impl Text {
    fn push(&mut self, ids: &[u32], number: u32) {
        self.ids.extend_from_slice(ids);
        self.lengths.push(ids.len());
        self.positions.extend(0..ids.len());
        self.row_keys.extend((0..ids.len()).map(|p| [number, p as u32]));
    }

    fn batch(self, rows: Vec<usize>, targets: Vec<u32>, documents: Vec<usize>) -> Batch {
        Batch {
            ids: self.ids,
            positions: self.positions.into(),
            sequences: Sequences::whole(&self.lengths),
            rows: rows.into(),
            targets,
            documents,
            row_keys: self.row_keys.into(),
            last_queries: OnceLock::new(),
            selected_keys: OnceLock::new(),
        }
    }
}

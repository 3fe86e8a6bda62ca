//! Documents laid one after another, and the rows whose predictions count.

use tunesmith_ops::{Error as OpsError, Sequences};

/// A micro-batch without padding: documents are concatenated and never see each other.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[tokens]`: the ids of all documents.
    pub ids: Vec<u32>,
    /// `[tokens]`: position of each token in its document.
    pub positions: Vec<usize>,
    /// Which row belongs to which document.
    pub sequences: Sequences,
    /// `[selected]`, ascending: rows whose next-token prediction is wanted.
    pub rows: Vec<usize>,
    /// `[selected]`: the token each of them should predict; empty when only logits are wanted.
    pub targets: Vec<u32>,
    /// `[selected]`: which document (as a number of the call that made the batch) each row is from.
    pub documents: Vec<usize>,
    /// `[tokens]`: the document's number in the optimizer step and the position: names dropout rows.
    pub row_keys: Vec<[u32; 2]>,
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
        let mut b = Self::empty();
        let mut lengths = Vec::with_capacity(documents.len());
        for (d, doc) in documents.iter().enumerate() {
            let Some(last) = (1..doc.ids.len()).rev().find(|&t| doc.trained[t]) else { continue };
            let start = b.ids.len();
            b.push(&doc.ids[..last], doc.number);
            lengths.push(last);
            for t in (0..last).filter(|&t| doc.trained[t + 1]) {
                b.rows.push(start + t);
                b.targets.push(doc.ids[t + 1]);
                b.documents.push(d);
            }
        }
        b.sequences = Sequences::whole(&lengths);
        b
    }

    /// A batch whose every row is selected, for logits.
    pub fn for_logits(documents: &[&[u32]]) -> Self {
        let mut b = Self::empty();
        for (d, ids) in documents.iter().enumerate() {
            b.push(ids, d as u32);
            b.documents.extend(ids.iter().map(|_| d));
        }
        b.rows = (0..b.ids.len()).collect();
        b.sequences = Sequences::whole(&documents.iter().map(|d| d.len()).collect::<Vec<_>>());
        b
    }

    fn empty() -> Self {
        Self {
            ids: Vec::new(),
            positions: Vec::new(),
            sequences: Sequences::whole(&[]),
            rows: Vec::new(),
            targets: Vec::new(),
            documents: Vec::new(),
            row_keys: Vec::new(),
        }
    }

    fn push(&mut self, ids: &[u32], number: u32) {
        self.ids.extend_from_slice(ids);
        self.positions.extend(0..ids.len());
        self.row_keys.extend((0..ids.len()).map(|p| [number, p as u32]));
    }

    /// Rows that are computed.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The queries of the last block: only the selected rows, unless they are all of them.
    pub(crate) fn last_queries(&self) -> Result<Option<Sequences>, OpsError> {
        if self.rows.len() == self.ids.len() { Ok(None) } else { self.sequences.select(&self.rows).map(Some) }
    }
}

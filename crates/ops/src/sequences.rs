//! Which rows of a batch belong to which document, and where in it they stand.

use std::ops::Range;

use crate::{Error, Tag};

/// Documents laid one after another without padding. Queries may be a part of the rows: those whose output
/// anybody will read.
///
/// A query at position `p` of a document sees the keys at positions `p - window + 1 ..= p` of the same document
/// and of no other.
#[derive(Debug, Clone)]
pub struct Sequences {
    tag: Tag,
    cu_queries: Vec<usize>,
    cu_keys: Vec<usize>,
    query_positions: Vec<usize>,
}

impl Sequences {
    /// Documents of these lengths, every row a query.
    pub fn whole(lengths: &[usize]) -> Self {
        let mut cu = vec![0];
        let mut positions = Vec::new();
        for &n in lengths {
            cu.push(positions.len() + n);
            positions.extend(0..n);
        }
        Self { tag: Tag::fresh(), cu_queries: cu.clone(), cu_keys: cu, query_positions: positions }
    }

    /// The same documents, with only the rows `selected` (ascending, as row numbers of the batch) as queries.
    ///
    /// # Errors
    /// If `selected` is not strictly ascending or names a row that is not there.
    pub fn select(&self, selected: &[usize]) -> Result<Self, Error> {
        let rows = self.keys();
        if selected.windows(2).any(|w| w[0] >= w[1]) || selected.last().is_some_and(|&r| r >= rows) {
            return Err(Error::shape("select", format!("rows must ascend and stay below {rows}")));
        }
        let mut out = Self {
            tag: Tag::fresh(),
            cu_queries: vec![0],
            cu_keys: self.cu_keys.clone(),
            query_positions: Vec::new(),
        };
        for d in 0..self.documents() {
            let keys = self.key_rows(d);
            let mine = selected.iter().filter(|r| keys.contains(r)).map(|r| r - keys.start);
            out.query_positions.extend(mine);
            out.cu_queries.push(out.query_positions.len());
        }
        Ok(out)
    }

    /// One document whose last `new` positions are the queries, the `past` ones before them already cached.
    pub fn continuing(past: usize, new: usize) -> Self {
        Self {
            tag: Tag::fresh(),
            cu_queries: vec![0, new],
            cu_keys: vec![0, past + new],
            query_positions: (past..past + new).collect(),
        }
    }

    /// What these documents are remembered by.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.cu_keys.len() - 1
    }

    /// Rows of queries over all documents.
    pub fn queries(&self) -> usize {
        self.query_positions.len()
    }

    /// Rows of keys over all documents.
    pub fn keys(&self) -> usize {
        self.cu_keys.last().copied().unwrap_or(0)
    }

    /// Where each document's queries and keys begin and end, `[documents + 1]` each.
    pub(crate) fn boundaries(&self) -> (&[usize], &[usize]) {
        (&self.cu_queries, &self.cu_keys)
    }

    /// The query rows of a document.
    pub fn query_rows(&self, document: usize) -> Range<usize> {
        self.cu_queries[document]..self.cu_queries[document + 1]
    }

    /// The key rows of a document.
    pub fn key_rows(&self, document: usize) -> Range<usize> {
        self.cu_keys[document]..self.cu_keys[document + 1]
    }

    /// `[queries]`: the position of each query row in its document.
    pub fn query_positions(&self) -> &[usize] {
        &self.query_positions
    }
}

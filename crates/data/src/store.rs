//! Tokenised examples on disk, and the parts of them that are trained and evaluated on.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;
use crate::example::{Example, Examples};
use crate::source::Place;
use crate::spool::{Spool, SpoolWriter};

/// Marks a trained token in the file; ids stay far below it.
const TRAINED: u32 = 1 << 31;

#[derive(Debug, Clone, Copy)]
struct Entry {
    place: Place,
    trained_tokens: u32,
    tokens: u32,
}

/// A token store that is being filled.
#[derive(Debug)]
pub struct TokenStoreWriter {
    spool: SpoolWriter,
    entries: Vec<Entry>,
    buffer: Vec<u8>,
}

/// Tokenised examples in a temporary file: in memory are their lengths and places only.
#[derive(Debug)]
pub struct TokenStore {
    spool: Spool,
    entries: Vec<Entry>,
}

impl TokenStoreWriter {
    /// An empty one, in a temporary file in `dir`.
    ///
    /// # Errors
    /// [`Error::Temporary`].
    pub fn new(dir: &Path) -> Result<Self, Error> {
        Ok(Self { spool: SpoolWriter::new(dir)?, entries: Vec::new(), buffer: Vec::new() })
    }

    /// Adds an example.
    ///
    /// # Errors
    /// [`Error::Temporary`].
    pub fn push(&mut self, example: &Example) -> Result<(), Error> {
        self.buffer.clear();
        for (id, trained) in example.ids.iter().zip(&example.trained) {
            let word = if *trained { id | TRAINED } else { *id };
            self.buffer.extend_from_slice(&word.to_le_bytes());
        }
        self.entries.push(Entry {
            place: example.place,
            trained_tokens: example.trained_tokens() as u32,
            tokens: example.ids.len() as u32,
        });
        self.spool.push([self.buffer.as_slice()])
    }

    /// Ends the filling.
    ///
    /// # Errors
    /// [`Error::Temporary`].
    pub fn finish(self) -> Result<TokenStore, Error> {
        Ok(TokenStore { spool: self.spool.finish()?, entries: self.entries })
    }
}

impl TokenStore {
    /// Where example `i` comes from.
    pub fn place(&self, i: usize) -> Place {
        self.entries[i].place
    }
}

impl Examples for TokenStore {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn tokens(&self, i: usize) -> usize {
        self.entries[i].tokens as usize
    }

    fn trained_tokens(&self, i: usize) -> usize {
        self.entries[i].trained_tokens as usize
    }

    fn get(&self, i: usize) -> Result<Cow<'_, Example>, Error> {
        let mut bytes = Vec::new();
        self.spool.read(i, &mut bytes)?;
        let words = bytes.as_chunks::<4>().0.iter().map(|w| u32::from_le_bytes(*w));
        let (ids, trained) = words.map(|w| (w & !TRAINED, w & TRAINED != 0)).unzip();
        Ok(Cow::Owned(Example { ids, trained, place: self.entries[i].place }))
    }
}

/// Some of a store's examples, in ascending order.
#[derive(Debug, Clone)]
pub struct Part {
    store: Arc<TokenStore>,
    rows: Vec<usize>,
}

impl Part {
    /// The examples of these numbers.
    pub fn new(store: Arc<TokenStore>, rows: Vec<usize>) -> Self {
        Self { store, rows }
    }

    /// The numbers of its examples in the store.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }
}

impl Examples for Part {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn tokens(&self, i: usize) -> usize {
        self.store.tokens(self.rows[i])
    }

    fn trained_tokens(&self, i: usize) -> usize {
        self.store.trained_tokens(self.rows[i])
    }

    fn get(&self, i: usize) -> Result<Cow<'_, Example>, Error> {
        self.store.get(self.rows[i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = TokenStoreWriter::new(dir.path()).unwrap();
        let examples: Vec<Example> = (0..300u32)
            .map(|i| Example {
                ids: (0..i % 17).map(|t| t * 7919 + i).collect(),
                trained: (0..i % 17).map(|t| (t + i) % 3 == 0).collect(),
                place: Place { file: i % 2, number: u64::from(i) + 1 },
            })
            .collect();
        for example in &examples {
            writer.push(example).unwrap();
        }
        let store = Arc::new(writer.finish().unwrap());
        let part = Part::new(store.clone(), (0..300).step_by(7).collect());
        for (i, example) in examples.iter().enumerate().rev() {
            assert_eq!(store.get(i).unwrap().as_ref(), example);
            assert_eq!(store.tokens(i), example.ids.len());
            assert_eq!(store.trained_tokens(i), example.trained_tokens());
            assert_eq!(store.place(i), example.place);
        }
        assert_eq!(part.len(), 43);
        assert_eq!(part.get(3).unwrap().as_ref(), &examples[21]);
        // The file has no name: nothing is left behind, whatever happens.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! Device copies of what a batch fixes, kept while they are in use.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Tag};

/// Copies kept: the positions, rows and documents of a few micro-batches.
pub(super) const KEPT: usize = 16;

/// Device copies by the tag of their host contents; the one not used for longest goes first.
#[derive(Debug)]
pub(super) struct Memo<T> {
    entries: Mutex<Vec<(Tag, Arc<T>)>>,
}

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self { entries: Mutex::new(Vec::new()) }
    }
}

impl<T> Memo<T> {
    /// The copy under `tag`, made if it is not there.
    pub(super) fn get(&self, tag: Tag, make: impl FnOnce() -> Result<T, Error>) -> Result<Arc<T>, Error> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match entries.iter().position(|(t, _)| *t == tag) {
            Some(at) => entries.remove(at).1,
            None => Arc::new(make()?),
        };
        if entries.len() >= KEPT {
            entries.remove(0);
        }
        entries.push((tag, Arc::clone(&found)));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_each_copy_once_and_drops_the_one_unused_longest() {
        let (memo, first) = (Memo::default(), Tag::fresh());
        let get = |tag, value| *memo.get(tag, || Ok(value)).expect("a copy");
        assert_eq!(get(first, 1), 1);
        for value in 0..KEPT - 1 {
            get(Tag::fresh(), value);
        }
        assert_eq!(get(first, 2), 1, "still there, and now the newest");
        for value in 0..KEPT {
            get(Tag::fresh(), value);
        }
        assert_eq!(get(first, 3), 3, "gone, and made again");
    }
}

//! Device copies of what a batch fixes, kept while they are in use.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Tag};

/// Copies kept. A pass uses one of each kind or two; those of the pass before may still be wanted, by a recomputation say.
pub(super) const KEPT: usize = 4;

/// Device copies by the tag of their host contents. The one not used for longest goes first, and the next one is made in
/// its memory: nothing is allocated any more once there are [`KEPT`] that are large enough.
///
/// All work of a device is queued in order, so the memory of a copy may be written anew while kernels that read the old
/// one are still under way: the write comes behind them. A copy that somebody still holds is not used again.
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
    /// The copy under `tag`; if it is not there it is made, in the memory of an old one where there is one to spare.
    pub(super) fn get(
        &self,
        tag: Tag,
        make: impl FnOnce(Option<T>) -> Result<T, Error>,
    ) -> Result<Arc<T>, Error> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let found = if let Some(at) = entries.iter().position(|(t, _)| *t == tag) {
            entries.remove(at).1
        } else {
            let old = if entries.len() >= KEPT { Arc::into_inner(entries.remove(0).1) } else { None };
            Arc::new(make(old)?)
        };
        entries.push((tag, Arc::clone(&found)));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_each_copy_once_and_gives_up_the_one_unused_longest() {
        let (memo, first) = (Memo::default(), Tag::fresh());
        let get = |tag, value| *memo.get(tag, |_| Ok(value)).expect("a copy");
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

    #[test]
    fn a_new_copy_is_made_of_an_old_one_that_nobody_holds() {
        let memo = Memo::default();
        let get = |value| {
            let mut given = None;
            let made = memo.get(Tag::fresh(), |old| {
                given = old;
                Ok(value)
            });
            (made.expect("a copy"), given)
        };
        let held: Vec<_> = (0..KEPT).map(|value| get(value).0).collect();
        assert_eq!(get(10).1, None, "the oldest is still held");
        drop(held);
        assert_eq!((get(11).1, get(12).1), (Some(1), Some(2)));
    }
}

//! Arrays of a batch that no longer change, under a number that a device can remember its copy by.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names contents that never change: equal numbers mean equal contents, so a copy on a device stays good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(u64);

impl Tag {
    /// A number that nothing else has.
    pub(crate) fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Values that are read only. Every block of a model uses the same positions and rows; a device uploads them once.
#[derive(Debug, Clone)]
pub struct Fixed<T> {
    tag: Tag,
    values: Vec<T>,
}

/// Row numbers or positions.
pub type Index = Fixed<usize>;
/// Names of rows for dropout: the document's number in the step, and the position in it.
pub type RowNames = Fixed<[u32; 2]>;

impl<T> Fixed<T> {
    /// What these values are remembered by.
    pub fn tag(&self) -> Tag {
        self.tag
    }
}

impl<T> From<Vec<T>> for Fixed<T> {
    fn from(values: Vec<T>) -> Self {
        Self { tag: Tag::fresh(), values }
    }
}

impl<T> FromIterator<T> for Fixed<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        values.into_iter().collect::<Vec<T>>().into()
    }
}

impl<T> Deref for Fixed<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_a_tag_and_nothing_else_does() {
        let a = Index::from(vec![1, 2]);
        assert_eq!(a.tag(), a.clone().tag());
        assert_ne!(a.tag(), Index::from(vec![1, 2]).tag());
        assert_eq!(&a[..], [1, 2]);
    }
}

//! Places where a test may have the process die or an operation fail, to see what is left.
//!
//! `TUNESMITH_FAIL=ckpt:before_rename` aborts the process at that place, `TUNESMITH_FAIL=ckpt:before_rename@3` at the
//! third time it comes there; several are separated by commas. Release builds have none of it.

/// Aborts the process if `TUNESMITH_FAIL` names this place.
pub fn hit(place: &str) {
    if named(place) {
        std::process::abort();
    }
}

/// Whether `TUNESMITH_FAIL` names this place now: for operations that are to fail and not to kill.
#[cfg(debug_assertions)]
pub fn named(place: &str) -> bool {
    use std::collections::HashMap;
    use std::sync::{Mutex, OnceLock, PoisonError};
    static POINTS: OnceLock<HashMap<String, u64>> = OnceLock::new();
    static HITS: Mutex<Option<HashMap<String, u64>>> = Mutex::new(None);
    let points = POINTS.get_or_init(|| parse(&std::env::var("TUNESMITH_FAIL").unwrap_or_default()));
    let Some(at) = points.get(place) else { return false };
    let mut hits = HITS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = hits.get_or_insert_default().entry(place.to_owned()).or_default();
    *count += 1;
    *count == *at
}

/// Never, in a release build.
#[cfg(not(debug_assertions))]
pub fn named(_place: &str) -> bool {
    false
}

#[cfg(debug_assertions)]
fn parse(text: &str) -> std::collections::HashMap<String, u64> {
    let points = text.split(',').map(str::trim).filter(|point| !point.is_empty());
    points
        .map(|point| match point.rsplit_once('@') {
            Some((name, count)) => (name.to_owned(), count.parse().unwrap_or(1)),
            None => (point.to_owned(), 1),
        })
        .collect()
}

#[cfg(all(test, debug_assertions))]
mod tests {
    #[test]
    fn points_have_a_name_and_may_have_a_count() {
        let points = super::parse("ckpt:before_rename, store:commit@3,");
        assert_eq!(points.len(), 2);
        assert_eq!((points["ckpt:before_rename"], points["store:commit"]), (1, 3));
    }
}

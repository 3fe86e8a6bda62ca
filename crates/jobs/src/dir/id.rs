//! Job ids: `ftjob-` and 26 characters that sort by time.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::UNIX_EPOCH;

/// Crockford's base 32, which leaves out i, l, o and u; in the order of ASCII.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A new id: 48 bits of milliseconds, then 80 random bits (the layout of a ULID).
pub(super) fn fresh() -> String {
    let millis = super::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    // The standard library seeds each hasher from the operating system.
    let random = || u128::from(RandomState::new().build_hasher().finish());
    encode(millis, random() << 64 | random())
}

fn encode(millis: u128, random: u128) -> String {
    let bits = (millis & ((1 << 48) - 1)) << 80 | (random & ((1 << 80) - 1));
    let mut id = String::from("ftjob-");
    for place in (0..26).rev() {
        id.push(char::from(DIGITS[(bits >> (5 * place)) as usize & 31]));
    }
    id
}

/// Whether a text has the form of a job id. No id holds a separator or a dot: it is safe as a file name.
pub fn is_id(text: &str) -> bool {
    text.strip_prefix("ftjob-")
        .is_some_and(|rest| rest.len() == 26 && rest.bytes().all(|b| DIGITS.contains(&b)))
}

/// Milliseconds since 1970 at which an id was made.
pub fn created_millis(id: &str) -> Option<i64> {
    let digits = id.strip_prefix("ftjob-").filter(|_| is_id(id))?.bytes();
    let bits = digits.fold(0u128, |bits, b| {
        bits << 5 | DIGITS.iter().position(|digit| *digit == b).unwrap_or_default() as u128
    });
    Some((bits >> 80) as i64 & ((1 << 48) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn later_ids_sort_later_and_none_repeats() {
        let random = (1 << 80) - 1;
        assert!(encode(1_800_000_000_000, random) < encode(1_800_000_000_001, 0));
        assert_eq!(encode(0, 0), format!("ftjob-{}", "0".repeat(26)));
        let id = encode(1_800_000_000_123, random);
        assert_eq!(created_millis(&id), Some(1_800_000_000_123));
        assert!(is_id(&id) && !is_id("ftjob-../../etc/passwd/aaaaaaaaaa") && !is_id("ftjob-"));
        let ids: HashSet<_> = (0..2000).map(|_| fresh()).collect();
        assert_eq!(ids.len(), 2000);
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().skip(6).all(|b| DIGITS.contains(&b))));
    }
}

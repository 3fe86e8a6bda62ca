//! A short, printable piece of a text around a fault.

use std::fmt::Write as _;

/// Bytes shown on each side of the fault.
const BEFORE: usize = 24;
const AFTER: usize = 32;
/// The most characters a snippet has.
const LONGEST: usize = 60;

/// What stands around `at` (a zero-based byte position) in `text`: control characters and bytes that are no text are
/// spelled out, and `…` marks where it goes on.
pub(crate) fn snippet(text: &[u8], at: usize) -> String {
    let at = at.min(text.len());
    let mut start = at.saturating_sub(BEFORE);
    let mut end = (at + AFTER).min(text.len());
    // Never begin or end inside a character.
    let inside = |i: usize| i < text.len() && (text[i] & 0xc0) == 0x80;
    while start < at && inside(start) {
        start += 1;
    }
    while end > at + 1 && inside(end) {
        end -= 1;
    }
    let mut out = String::new();
    for chunk in text[start..end].utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\u{feff}' { out.extend(c.escape_debug()) } else { out.push(c) }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    if out.chars().count() > LONGEST - 2 {
        out = out.chars().take(LONGEST - 2).collect();
        end = 0;
    }
    let (left, right) = (if start > 0 { "…" } else { "" }, if end < text.len() { "…" } else { "" });
    format!("{left}{out}{right}")
}

/// A name in a message: short and printable, whatever it holds.
pub(crate) fn shown(name: &str) -> String {
    snippet(name.as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shows_the_place_and_spells_out_what_cannot_be_printed() {
        assert_eq!(snippet(b"abc", 1), "abc");
        assert_eq!(snippet(b"a\0b\n\xff", 4), "a\\0b\\n\\xff");
        let long = format!("{}X{}", "a".repeat(100), "b".repeat(100));
        assert_eq!(snippet(long.as_bytes(), 100), format!("…{}X{}…", "a".repeat(24), "b".repeat(31)));
        assert_eq!(snippet("日本語のテキスト".as_bytes(), 24), "日本語のテキスト");
    }

    proptest! {
        #[test]
        fn is_short_and_printable_for_any_bytes(text in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..400) {
            let shown = snippet(&text, at);
            prop_assert!(shown.chars().count() <= LONGEST);
            prop_assert!(!shown.chars().any(char::is_control));
        }
    }
}

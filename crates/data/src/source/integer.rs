//! Whole numbers that a JSON parser would round.

/// The first integer in a JSON text that 64 bits do not hold, which the parser would round to a float without a
/// word: its one-based column and its digits.
pub(super) fn too_large_integer(text: &str) -> Option<(usize, &str)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let number = |b: &u8| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let end = at + bytes[at..].iter().take_while(|b| number(b)).count();
                let token = &text[at..end];
                let whole = !token.contains(['.', 'e', 'E']);
                // Eighteen digits always fit.
                if whole && token.len() > 18 && token.parse::<i64>().is_err() && token.parse::<u64>().is_err()
                {
                    return Some((at + 1, token));
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    None
}

/// The position behind the string that starts at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_64_bits_are_found_outside_strings() {
        let none = [
            r#"{"a": 18446744073709551615, "b": -9223372036854775808}"#,
            r#"{"a": "99999999999999999999", "\"": "\\"}"#,
            r#"{"a": 123456789012345678901.5, "b": 1e40}"#,
        ];
        assert!(none.iter().all(|text| too_large_integer(text).is_none()));
        assert_eq!(
            too_large_integer(r#"{"a\"": [18446744073709551616]}"#),
            Some((10, "18446744073709551616"))
        );
        assert_eq!(too_large_integer(r#"{"a": -9223372036854775809}"#), Some((7, "-9223372036854775809")));
    }
}

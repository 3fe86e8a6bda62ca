//! Sizes of memory in words.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A number of bytes, at least one, as people write it: `24GiB`, `800 MB`, `1.5GiB`, or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Units, the largest of each kind first.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "expected bytes, such as \"24GiB\", \"800MB\" or a plain number of at least 1, found {text:?}"
            )
        };
        let text = text.trim();
        let ends = |unit: &str| {
            let at = text.len().checked_sub(unit.len())?;
            let (number, end) = text.split_at_checked(at)?;
            end.eq_ignore_ascii_case(unit).then_some(number)
        };
        let (number, unit) =
            UNITS.iter().find_map(|(unit, bytes)| Some((ends(unit)?, *bytes))).unwrap_or((text, 1));
        let number = number.trim_end();
        let digits = |c: char| c.is_ascii_digit() || (c == '.' && unit > 1);
        if number.is_empty() || !number.chars().all(digits) {
            return Err(wrong());
        }
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(unit).ok_or_else(wrong)?,
            Err(_) => {
                let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit as f64;
                if bytes < 2f64.powi(63) { bytes as u64 } else { return Err(wrong()) }
            }
        };
        if bytes == 0 { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().filter(|(_, unit)| self.0.is_multiple_of(*unit));
        match exact.max_by_key(|(_, unit)| *unit) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl Visitor<'_> for Words {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes, such as \"24GiB\" or a plain number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
                if bytes == 0 { Err(E::custom("must be at least 1")) } else { Ok(Bytes(bytes)) }
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Bytes, E> {
                u64::try_from(bytes)
                    .map_err(|_| E::custom("must be at least 1"))
                    .and_then(|b| self.visit_u64(b))
            }
        }
        deserializer.deserialize_any(Words)
    }
}

/// `1234567` as `1.2 MiB`.
pub fn rounded(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them_and_written_exactly() {
        for (text, bytes, back) in [
            ("24GiB", 24 << 30, "24GiB"),
            (" 24 gib ", 24 << 30, "24GiB"),
            ("1.5GiB", 3 << 29, "1536MiB"),
            ("800MB", 800_000_000, "800MB"),
            ("24GB", 24_000_000_000, "24GB"),
            ("1025", 1025, "1025"),
            ("3000", 3000, "3KB"),
            ("2048", 2048, "2KiB"),
        ] {
            let read: Bytes = text.parse().unwrap();
            assert_eq!((read.0, read.to_string().as_str()), (bytes, back), "{text}");
            assert_eq!(back.parse(), Ok(read));
            assert_eq!(serde_json::to_value(read).unwrap(), back);
            assert_eq!(serde_json::from_value::<Bytes>(back.into()).unwrap(), read);
        }
        assert_eq!(serde_json::from_str::<Bytes>("4096").unwrap(), Bytes(4096));
        for wrong in ["", "GiB", "0", "0GiB", "-1", "1.5", "24 Gigs", "1e9", "nan", "99999999TiB", "1.2.3GiB"]
        {
            assert!(wrong.parse::<Bytes>().unwrap_err().contains("such as \"24GiB\""), "{wrong}");
        }
        assert!(serde_json::from_str::<Bytes>("-3").is_err() && serde_json::from_str::<Bytes>("0").is_err());
        assert_eq!(rounded(24 << 30), "24.0 GiB");
        assert_eq!(rounded(17), "17 B");
    }
}

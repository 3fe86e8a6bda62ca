//! What a file's name says about its bytes, and what its first bytes say.

use super::{Format, SourceError};

/// The endings that are read, for messages.
pub(super) const KNOWN: &str =
    ".jsonl, .ndjson, .json, .csv, .tsv (each also with .gz or .zst behind) and .parquet";

/// How a text file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Format and compression by the endings of `name`; the format is unknown where no ending tells it.
pub(super) fn by_name(name: &str) -> (Option<Format>, Packing) {
    let base = name.rsplit(['/', '\\']).next().unwrap_or(name).to_ascii_lowercase();
    let (stem, packing) = match base.rsplit_once('.') {
        Some((stem, "gz")) => (stem, Packing::Gzip),
        Some((stem, "zst")) => (stem, Packing::Zstd),
        _ => (base.as_str(), Packing::Plain),
    };
    let format = match stem.rsplit_once('.').map(|(_, ending)| ending) {
        Some("jsonl" | "ndjson") => Some(Format::Jsonl),
        Some("json") => Some(Format::Json),
        Some("csv") => Some(Format::Csv),
        Some("tsv") => Some(Format::Tsv),
        Some("parquet") => Some(Format::Parquet),
        _ => None,
    };
    (format, packing)
}

/// The kinds of file that are known by their first bytes.
const MAGIC: [(&[u8], &str); 7] = [
    (&[0x1f, 0x8b], "gzip"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (b"PAR1", "a Parquet file"),
    (b"PK\x03\x04", "a ZIP archive (or a spreadsheet)"),
    (b"BZh", "bzip2"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (b"SQLite format 3\0", "an SQLite database"),
];

/// How many bytes [`sniff`] looks at.
pub(super) const SNIFFED: usize = 16;

/// The kind that the first bytes of a file show, when it is not text.
pub(super) fn sniff(head: &[u8]) -> Option<&'static str> {
    MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, kind)| *kind)
}

/// The file must be of the compression that its name says.
pub(super) fn check(name: &str, head: &[u8], packing: Packing) -> Result<(), SourceError> {
    let kind = sniff(head);
    if kind == Some(packing.name()) || (kind.is_none() && packing == Packing::Plain) {
        return Ok(());
    }
    let fix = match (kind, packing) {
        (Some(_), _) if name == "-" => "unpack it before it is piped in".to_owned(),
        (Some("gzip"), _) => "add .gz to its name or unpack it".to_owned(),
        (Some("zstd"), _) => "add .zst to its name or unpack it".to_owned(),
        (Some("a Parquet file"), Packing::Plain) => "give it the ending .parquet".to_owned(),
        (Some(_), Packing::Plain) => "unpack or export it as JSONL, CSV or Parquet".to_owned(),
        (_, packing) => format!("take the {} ending from its name, or fetch it again", packing.name()),
    };
    let says = if packing == Packing::Plain { "text" } else { packing.name() };
    if name == "-" {
        let (name, found) = ("standard input".to_owned(), kind.unwrap_or_default());
        return Err(SourceError::Address { name, what: format!("it is {found}, not text; {fix}") });
    }
    let found = kind.unwrap_or(if head.is_empty() { "empty" } else { "not compressed" });
    Err(SourceError::WrongKind { name: name.to_owned(), found, says, fix })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_format_and_compression() {
        for (name, format, packing) in [
            ("a.jsonl", Some(Format::Jsonl), Packing::Plain),
            ("A.NDJSON", Some(Format::Jsonl), Packing::Plain),
            ("x/y.json.gz", Some(Format::Json), Packing::Gzip),
            ("s3://b/k.csv.zst", Some(Format::Csv), Packing::Zstd),
            ("t.tsv", Some(Format::Tsv), Packing::Plain),
            ("p.parquet", Some(Format::Parquet), Packing::Plain),
            ("dir.csv/file", None, Packing::Plain),
            ("csv", None, Packing::Plain),
            ("x.gz", None, Packing::Gzip),
        ] {
            assert_eq!(by_name(name), (format, packing), "{name}");
        }
    }
}

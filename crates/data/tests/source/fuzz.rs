//! Any bytes under any name end in rows or a sentence, and whole files survive the trip.

use std::path::Path;

use parquet::basic::Compression;
use proptest::prelude::*;
use serde_json::{Map, Value};
use tunesmith_data::{Limits, SourceOptions};

use crate::kit::{Folder, Outcome, gzip, parquet_text, read, read_all, zstd};

const NAMES: [&str; 8] =
    ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.zst", "a.json.zst"];

/// Small bounds, so that no case takes long.
fn bounded(path: &Path) -> Outcome {
    let limits =
        Limits { line_bytes: 4096, output_bytes: 1 << 20, ratio_after: 1 << 16, ..Limits::default() };
    read_all(&[path.display().to_string()], &SourceOptions { limits, ..SourceOptions::default() })
}

/// Every message is one line and says what to do.
fn check(outcome: &Outcome) {
    for fault in outcome.faults() {
        assert!(!fault.contains('\n') && fault.contains("; "), "{fault:?}");
        assert!(!fault.chars().any(char::is_control), "{fault:?}");
    }
}

/// The committed seeds: one file for each format, with what is hard in it.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut seeds: Vec<(String, Vec<u8>)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(p).unwrap()))
        .collect();
    seeds.sort();
    let text = seeds[0].1.clone();
    seeds.push(("p.jsonl.gz".into(), gzip(&text)));
    seeds.push(("p.jsonl.zst".into(), zstd(&text)));
    let rows: Vec<Vec<String>> = (0..50).map(|i| vec![format!("p{i}"), "c".repeat(i)]).collect();
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
        let groups = [rows[..20].to_vec(), rows[20..].to_vec()];
        seeds.push(("p.parquet".into(), parquet_text(&["prompt", "completion"], &groups, compression)));
    }
    seeds
}

#[test]
fn the_seeds_are_sound_or_end_in_a_sentence() {
    let folder = Folder::new();
    let mut rows = 0;
    for (name, bytes) in seeds() {
        let outcome = read(folder.write(&name, bytes));
        check(&outcome);
        rows += outcome.rows.len();
    }
    assert!(rows > 200, "{rows}");
}

#[derive(Debug, Clone)]
enum Change {
    Flip(usize, u8),
    Cut(usize),
    Drop(usize, usize),
    Insert(usize, Vec<u8>),
    Double(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..1_000_000_usize;
    let token = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..6),
        prop::sample::select(vec![
            "\"", "{", "[", "]", "}", ",", ";", "\n", "\r", "\0", "\u{feff}", "\\u", "\\ud800", "null"
        ])
        .prop_map(|t| t.as_bytes().to_vec()),
    ];
    prop_oneof![
        (at.clone(), 1..=255_u8).prop_map(|(i, b)| Change::Flip(i, b)),
        at.clone().prop_map(Change::Cut),
        (at.clone(), 1..40_usize).prop_map(|(i, n)| Change::Drop(i, n)),
        (at.clone(), token).prop_map(|(i, t)| Change::Insert(i, t)),
        (at, 1..200_usize).prop_map(|(i, n)| Change::Double(i, n)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let place = |i: &usize| i % bytes.len();
    let range = |i: &usize, n: &usize| place(i)..(place(i) + n).min(bytes.len());
    match change {
        Change::Flip(i, b) => {
            let i = place(i);
            bytes[i] ^= b;
        }
        Change::Cut(i) => bytes.truncate(place(i)),
        Change::Drop(i, n) => drop(bytes.drain(range(i, n))),
        Change::Insert(i, token) => drop(bytes.splice(place(i)..place(i), token.iter().copied())),
        Change::Double(i, n) => {
            let part = bytes[range(i, n)].to_vec();
            bytes.splice(place(i)..place(i), part);
        }
    }
}

fn texts() -> impl Strategy<Value = Vec<Vec<String>>> {
    let text = prop_oneof![".{0,12}", "[a\",;\r\n\t \u{feff}é]{0,12}"].prop_map(|t| t.replace('\0', ""));
    (1..4_usize).prop_flat_map(move |columns| {
        prop::collection::vec(prop::collection::vec(text.clone(), columns), 1..20)
    })
}

fn objects(rows: &[Vec<String>]) -> Vec<Map<String, Value>> {
    let object = |row: &Vec<String>| {
        row.iter().enumerate().map(|(i, t)| (format!("c{i}"), t.clone().into())).collect()
    };
    rows.iter().map(object).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_end_in_rows_or_a_sentence(bytes in prop::collection::vec(any::<u8>(), 0..400), packed in any::<bool>()) {
        let folder = Folder::new();
        for name in NAMES {
            let bytes = match name.rsplit_once('.') {
                Some((_, "gz")) if packed => gzip(&bytes),
                Some((_, "zst")) if packed => zstd(&bytes),
                _ => bytes.clone(),
            };
            check(&bounded(&folder.write(name, bytes)));
        }
    }

    #[test]
    fn any_tokens_end_in_rows_or_a_sentence(text in r#"[\[\]{}",;:\\\n\r\x00ab1 ]{0,60}"#) {
        let folder = Folder::new();
        for name in &NAMES[..4] {
            check(&bounded(&folder.write(name, &text)));
        }
    }

    #[test]
    fn changed_files_end_in_rows_or_a_sentence(
        seed in any::<prop::sample::Index>(), changes in prop::collection::vec(change(), 1..4)
    ) {
        let seeds = seeds();
        let (name, mut bytes) = seeds[seed.index(seeds.len())].clone();
        for change in &changes {
            apply(&mut bytes, change);
        }
        let folder = Folder::new();
        check(&bounded(&folder.write(&name, bytes)));
    }

    #[test]
    fn rows_survive_the_trip_through_every_format(rows in texts(), crlf in any::<bool>(), semicolon in any::<bool>()) {
        let folder = Folder::new();
        let expected = objects(&rows);
        let lines: String = expected.iter().map(|r| Value::Object(r.clone()).to_string() + "\n").collect();
        let list = serde_json::to_vec_pretty(&expected).unwrap();
        let names: Vec<String> = (0..rows[0].len()).map(|i| format!("c{i}")).collect();
        let columns: Vec<&str> = names.iter().map(String::as_str).collect();
        let table = |delimiter: u8| {
            let mut builder = csv::WriterBuilder::new();
            let end = if crlf { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') };
            // An empty line is no row, so the only field of a row must be quoted to be seen.
            builder.delimiter(delimiter).terminator(end).quote_style(csv::QuoteStyle::Always);
            let mut writer = builder.from_writer(Vec::new());
            writer.write_record(&names).unwrap();
            rows.iter().for_each(|row| writer.write_record(row).unwrap());
            writer.into_inner().unwrap()
        };
        for (name, bytes) in [
            ("a.jsonl", lines.clone().into_bytes()),
            ("a.json", list),
            ("a.csv", table(if semicolon && columns.len() > 1 { b';' } else { b',' })),
            ("a.tsv", table(b'\t')),
            ("a.parquet", parquet_text(&columns, std::slice::from_ref(&rows), Compression::SNAPPY)),
            ("a.jsonl.gz", gzip(lines.as_bytes())),
            ("a.csv.zst", zstd(&table(b','))),
        ] {
            let got = read(folder.write(name, bytes)).objects();
            prop_assert!(got == expected, "{}: {:?} {:?}", name, got, expected);
        }
    }
}

//! Every format gives the same rows from the same data.

use std::collections::BTreeMap;

use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use serde_json::{Map, Value, json};
use tunesmith_data::Format;

use crate::common::shared;
use crate::kit::{Folder, parquet_text, read, sha256};

/// Rows with all that is hard in text files.
fn rows() -> Vec<Map<String, Value>> {
    let texts = [
        "plain",
        "",
        "a,b;c\td",
        "\"quoted\" and \"\"",
        "two\nlines\r\nthree",
        " spaces ",
        "日本語 🦀 é",
        "{\"json\": [1]}",
    ];
    texts
        .iter()
        .enumerate()
        .map(|(i, text)| {
            let row =
                json!({ "id": i.to_string(), "prompt": text, "completion": texts[(i + 3) % texts.len()] });
            row.as_object().unwrap().clone()
        })
        .collect()
}

fn csv_text(rows: &[Map<String, Value>], delimiter: &str, end: &str) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let line = |cells: Vec<String>| cells.join(delimiter) + end;
    let names = line(rows[0].keys().cloned().collect());
    names
        + &rows
            .iter()
            .map(|r| line(r.values().map(|v| quote(v.as_str().unwrap())).collect()))
            .collect::<String>()
}

#[test]
fn one_table_in_every_format() {
    let folder = Folder::new();
    let rows = rows();
    let lines: String = rows.iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
    let values: Vec<Vec<String>> =
        rows.iter().map(|r| r.values().map(|v| v.as_str().unwrap().to_owned()).collect()).collect();
    let columns = ["id", "prompt", "completion"];
    let parquet =
        |compression| parquet_text(&columns, &[values[..3].to_vec(), values[3..].to_vec()], compression);
    let mut files: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    files.insert("a.jsonl", lines.clone().into());
    files.insert("b.ndjson", format!("\u{feff}\n{}", lines.replace('\n', "\r\n\r\n")).into());
    files.insert("c.json", serde_json::to_vec(&rows).unwrap());
    files.insert("d.json", serde_json::to_vec_pretty(&json!({ "data": rows })).unwrap());
    files.insert("e.csv", csv_text(&rows, ",", "\n").into());
    files.insert("f.csv", format!("\u{feff}{}", csv_text(&rows, ";", "\r\n")).into());
    files.insert("g.tsv", csv_text(&rows, "\t", "\n\n").trim_end().into());
    files.insert("h.parquet", parquet(Compression::UNCOMPRESSED));
    files.insert("i.parquet", parquet(Compression::SNAPPY));
    files.insert("j.parquet", parquet(Compression::ZSTD(ZstdLevel::default())));
    files.insert("k.parquet", parquet(Compression::GZIP(GzipLevel::default())));
    files.insert("l.parquet", parquet(Compression::BROTLI(BrotliLevel::default())));
    files.insert("m.parquet", parquet(Compression::LZ4_RAW));
    for (name, bytes) in files {
        let outcome = read(folder.write(name, &bytes));
        let facts = &outcome.files[0];
        assert_eq!((facts.bytes, facts.records), (bytes.len() as u64, 8), "{name}");
        assert_eq!(facts.sha256, sha256(&bytes), "{name}");
        assert_eq!(outcome.objects(), rows, "{name}");
    }
}

#[test]
fn numbers_are_the_lines_on_which_records_start() {
    let folder = Folder::new();
    let numbers = |name: &str, bytes: &str| -> Vec<u64> {
        let outcome = read(folder.write(name, bytes));
        assert_eq!(outcome.faults(), Vec::<String>::new(), "{bytes:?}");
        outcome.rows.iter().map(|(_, n, _)| *n).collect()
    };
    assert_eq!(numbers("a.jsonl", "\n{}\r\n\n  \n{}"), [2, 5]);
    assert_eq!(numbers("a.json", "\n[\n {\n  \"a\": 1\n },\n\n {}, {}]\n"), [3, 7, 7]);
    assert_eq!(numbers("a.csv", "a,b\n\n1,2\n\r\n\"x\ny\",3\n4,5\n6,7"), [3, 5, 7, 8]);
    assert_eq!(numbers("a.csv", "a\r\"b\nc\"\rd\r"), [1, 2]);
}

#[test]
fn values_of_json_keep_their_types() {
    let folder = Folder::new();
    let row = json!({"a": 1, "b": -2.5, "c": null, "d": [true, {"e": "f"}], "g": u64::MAX});
    let outcome = read(folder.write("a.json", json!([row]).to_string()));
    assert_eq!(outcome.objects(), [row.as_object().unwrap().clone()]);
}

#[test]
fn a_semicolon_is_said() {
    let folder = Folder::new();
    let outcome = read(folder.write("a.csv", "a;b\n1;2,5\n"));
    assert_eq!(folder.bare(&outcome.notes[0]), "`a.csv`: fields are separated by `;`, as its header shows");
    assert_eq!(outcome.objects(), [json!({"a": "1", "b": "2,5"}).as_object().unwrap().clone()]);
    let one = read(folder.write("b.csv", "\"a;b\"\n1\n"));
    assert!(one.notes.is_empty());
    assert_eq!(one.objects(), [json!({"a;b": "1"}).as_object().unwrap().clone()]);
}

#[test]
fn the_real_tickets_are_the_same_in_every_format() {
    let Some(data) = shared("data") else { return };
    let rows = |name: &str| read(data.join(name)).objects();
    let tickets = rows("support/tickets.jsonl");
    assert_eq!(tickets.len(), 2000);
    for name in ["support/tickets.csv", "support/tickets.parquet", "support/tickets_zstd_3groups.parquet"] {
        assert!(rows(name) == tickets, "{name}");
    }
    let general = rows("instructions/general.jsonl");
    assert_eq!(general.len(), 900);
    for name in ["instructions/general.json", "instructions/general.csv", "instructions/general.parquet"] {
        assert!(rows(name) == general, "{name}");
    }
    assert!(rows("chat/ordering_dialogues.parquet") == rows("chat/ordering_dialogues.jsonl"));
    for (name, count) in [("chat/toolcalls_sharegpt.json", 200), ("chat/abcd_sample.json", 3)] {
        let outcome = read(data.join(name));
        assert_eq!(outcome.files[0].format, Format::Json);
        assert_eq!(outcome.objects().len(), count);
    }
}

#[test]
fn the_real_files_have_the_listed_checksums() {
    let Some(data) = shared("data") else { return };
    let sums = std::fs::read_to_string(data.join("SHA256SUMS")).unwrap();
    let mut compared = 0;
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let name = name.trim_start_matches("./");
        if name.starts_with("support/tickets") || name.starts_with("instructions/general") {
            assert_eq!(read(data.join(name)).files[0].sha256, sum, "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 8);
}

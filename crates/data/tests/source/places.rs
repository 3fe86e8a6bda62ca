//! What names stand for.

use std::io::Write as _;
use std::process::{Command, Stdio};

use tunesmith_data::{Format, Records, SourceOptions};

use crate::kit::{Folder, Outcome, read, read_all, refused};

fn ids(outcome: &Outcome) -> Vec<(u32, String)> {
    let id = |row: &Result<serde_json::Map<String, serde_json::Value>, String>| {
        row.as_ref().unwrap()["id"].as_str().unwrap().to_owned()
    };
    outcome.rows.iter().map(|(file, _, row)| (*file, id(row))).collect()
}

fn some() -> Folder {
    let folder = Folder::new();
    for (name, id) in
        [("b.jsonl", "b"), ("a.jsonl", "a"), ("sub/c.jsonl", "c"), (".hidden.jsonl", "h"), ("sub/d.txt", "d")]
    {
        folder.write(name, format!("{{\"id\": \"{id}\"}}\n"));
    }
    folder.write("z.csv", "id\nz\n");
    folder.write("README.md", "words");
    folder
}

#[test]
fn a_directory_is_its_data_files_in_order_and_the_rest_is_noted() {
    let folder = some();
    let outcome = read(folder.path());
    assert_eq!(ids(&outcome), [(0, "a".to_owned()), (1, "b".to_owned()), (2, "z".to_owned())]);
    let names: Vec<String> = outcome.files.iter().map(|f| folder.bare(&f.name)).collect();
    assert_eq!(names, ["a.jsonl", "b.jsonl", "z.csv"]);
    assert_eq!(
        outcome.notes.iter().map(|n| folder.bare(n)).collect::<Vec<_>>(),
        ["`DIR`: left out 3 other entries: .hidden.jsonl, README.md, sub"]
    );
    let csv = SourceOptions { format: Some(Format::Csv), ..SourceOptions::default() };
    assert_eq!(ids(&read_all(&[folder.path().display().to_string()], &csv)), [(0, "z".to_owned())]);
}

#[test]
fn patterns_are_sorted_and_go_deep_only_when_asked() {
    let folder = some();
    let under = |pattern: &str| read(folder.path().join(pattern));
    let only = |outcome: &Outcome| ids(outcome).into_iter().map(|(_, id)| id).collect::<String>();
    assert_eq!(only(&under("*.jsonl")), "ab");
    assert_eq!(only(&under("[b-c].jsonl")), "b");
    assert_eq!(only(&under("**/*.jsonl")), "abc");
    let deep = under("**");
    assert_eq!(only(&deep), "abcz");
    assert_eq!(folder.bare(&deep.notes[0]), "`**`: left out 2 other entries: README.md, d.txt");
    let fault = |pattern: &str| folder.bare(&under(pattern).fault.unwrap());
    assert!(
        fault("*.parquet")
            .starts_with("`*.parquet` names no data (no file matches); correct it, or name a file")
    );
    assert!(fault("sub/*.t?t").starts_with("the name `sub/d.txt` does not tell the format"));
    assert_eq!(
        fault("a[.jsonl"),
        "`a[.jsonl`: not a pattern (invalid range pattern at character 2); correct it"
            .replace("character 2", &format!("character {}", folder.path().display().to_string().len() + 3))
    );
}

#[test]
fn a_name_with_the_signs_of_a_pattern_is_a_name_when_it_exists() {
    let folder = Folder::new();
    let path = folder.write("a[1].jsonl", "{\"id\": \"x\"}");
    assert_eq!(ids(&read(path)), [(0, "x".to_owned())]);
}

#[test]
fn nothing_is_read_twice() {
    let folder = some();
    let (dir, file) =
        (folder.path().display().to_string(), folder.path().join("./a.jsonl").display().to_string());
    assert_eq!(
        folder.bare(&refused(&[&dir, &file], &SourceOptions::default())),
        "`./a.jsonl` is the same file as `a.jsonl`, so its rows would count twice; name it once"
    );
    assert!(refused(&["-", "-"], &SourceOptions::default()).contains("name it once"));
}

#[test]
fn what_is_not_there_is_named() {
    let options = SourceOptions::default();
    assert_eq!(
        refused(&["no/such.jsonl"], &options),
        "cannot read `no/such.jsonl`: No such file or directory (os error 2); check the path and its permissions"
    );
    let folder = Folder::new();
    assert!(
        folder
            .bare(&refused(&[&folder.path().display().to_string()], &options))
            .starts_with("`DIR` names no data (it is empty)")
    );
    folder.write("x.md", "");
    assert!(
        refused(&[&folder.path().display().to_string()], &options)
            .contains("names no data (1 other entry: x.md)")
    );
    assert_eq!(
        refused(&["gs://bucket/x.csv"], &options),
        "`gs://…`: this kind of address is not read; use a path, s3:// or https://"
    );
}

#[test]
fn files_of_mixed_formats_keep_their_places() {
    let folder = Folder::new();
    let paths = [
        folder.write("a.jsonl", "{\"id\": \"1\"}\n\n{\"id\": \"2\"}\n"),
        folder.write("b.csv", "id\n\"3\n\"\n4\n"),
        folder.write("empty.jsonl", ""),
        folder.write("c.json", "[\n{\"id\": \"5\"}]"),
    ];
    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    let outcome = read_all(&names, &SourceOptions::default());
    let places: Vec<(u32, u64)> = outcome.rows.iter().map(|(f, n, _)| (*f, *n)).collect();
    assert_eq!(places, [(0, 1), (0, 3), (1, 2), (1, 4), (3, 2)]);
    let records: Vec<u64> = outcome.files.iter().map(|f| f.records).collect();
    assert_eq!(records, [2, 2, 0, 1]);
    assert!(outcome.files.iter().all(|f| f.sha256.len() == 64));
}

#[test]
fn a_fault_in_the_second_file_comes_behind_the_first_files_rows() {
    let folder = Folder::new();
    let first = folder.write("a.jsonl", "{}\n").display().to_string();
    let second = folder.write("b.json", "[{}, ]").display().to_string();
    let third = folder.write("c.jsonl", "{}\n").display().to_string();
    let mut records = Records::open(&[first, second, third], &SourceOptions::default()).unwrap();
    assert_eq!(records.next_batch(100, 1000).unwrap().len(), 2);
    assert!(
        folder
            .bare(&records.next_batch(100, 1000).unwrap_err().to_string())
            .starts_with("`b.json`:1: `]` stands")
    );
    assert!(records.next_batch(100, 1000).unwrap().is_empty());
}

/// Reads standard input in another process: this one's belongs to the test harness.
fn piped(bytes: &[u8], format: &str) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "places::child_that_reads_standard_input", "--nocapture"])
        .env(CHILD, format)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

const CHILD: &str = "TUNESMITH_TEST_STDIN_FORMAT";

#[test]
fn child_that_reads_standard_input() {
    let Ok(format) = std::env::var(CHILD) else { return };
    let format = serde_json::from_value(format.into()).unwrap();
    let outcome = read_all(&["-".to_owned()], &SourceOptions { format, ..SourceOptions::default() });
    println!("{} rows, {} bytes, {:?}", outcome.rows.len(), outcome.files[0].bytes, outcome.fault);
}

#[test]
fn standard_input_is_jsonl_or_what_is_said() {
    assert!(piped(b"{}\n{}\n", "jsonl").contains("2 rows, 6 bytes, None"));
    assert!(piped(b"a,b\n1,2\n", "csv").contains("1 rows, 8 bytes, None"));
    let rows = vec![vec!["x".to_owned()]; 40];
    let parquet = crate::kit::parquet_text(&["a"], &[rows], parquet::basic::Compression::SNAPPY);
    assert!(piped(&parquet, "parquet").contains(&format!("40 rows, {} bytes, None", parquet.len())));
    let packed = piped(&crate::kit::gzip(b"{}"), "jsonl");
    assert!(
        packed.contains("`standard input`: it is gzip, not text; unpack it before it is piped in"),
        "{packed}"
    );
    assert!(piped(b"", "jsonl").contains("Some(\"`-` has no rows; "));
}

#[test]
fn batches_end_at_either_bound() {
    let folder = Folder::new();
    let path = folder.write("a.jsonl", "{\"a\": 1}\n".repeat(10)).display().to_string();
    let mut records = Records::open(&[path], &SourceOptions::default()).unwrap();
    let sizes: Vec<usize> = [(3, 1000), (100, 16), (100, 1), (100, 1000), (100, 1000)]
        .map(|(n, bytes)| records.next_batch(n, bytes).unwrap().len())
        .to_vec();
    assert_eq!(sizes, [3, 2, 1, 4, 0]);
}

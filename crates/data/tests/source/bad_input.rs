//! A sentence with the place for every way a file can be bad.

use crate::kit::{Folder, faults_of, read, read_all};
use tunesmith_data::{Format, Limits, SourceOptions};

#[test]
fn bad_lines_of_jsonl_do_not_hide_the_good_ones() {
    let text = b"{\"a\": 1}\r\nnot json\n{\"a\": 1, \"a\": 2}\n\xff\xfe\n[]\n{\"b\": \"x\0\"}\n{\"c\": \"\\ud800\"}\n{\"ok\": 1}\n";
    assert_eq!(
        faults_of("a.jsonl", text),
        [
            "2: invalid JSON at column 2 near `not json` (expected ident); write one JSON object per record",
            "3: the key `a` stands twice in one object (column 12); remove one",
            "4: the byte at column 1 is not valid UTF-8 (near `\\xff\\xfe`); save the file as UTF-8",
            "5: the record is a JSON array, not an object; write one object per record, such as {\"prompt\": …, \"completion\": …}",
            "6: a NUL byte at column 9 (near `{\"b\": \"x\\0\"}`); remove it, or save the file as UTF-8 if it is UTF-16",
            "7: half of a surrogate pair at column 14 (near `{\"c\": \"\\ud800\"}`) is no character; write the whole pair or the character itself",
        ]
    );
    let folder = Folder::new();
    let outcome = read(folder.write("a.jsonl", text));
    assert_eq!(outcome.rows.iter().filter(|(_, _, row)| row.is_ok()).count(), 2);
    assert_eq!(outcome.files[0].records, 8);
}

#[test]
fn files_without_rows_say_so() {
    let empty = ["has no rows; give it at least one, with `prompt` and `completion` or with `messages`"];
    for (name, bytes) in [
        ("a.jsonl", ""),
        ("a.jsonl", "\u{feff}"),
        ("a.jsonl", "\n \r\n\t\n"),
        ("a.json", ""),
        ("a.json", " [ ] "),
        ("a.json", "{\"data\": []}"),
        ("a.csv", ""),
        ("a.csv", "\r\n\r\n"),
        ("a.csv", "prompt,completion\r\n"),
        ("a.tsv", "prompt\tcompletion"),
    ] {
        assert_eq!(faults_of(name, bytes), [format!("`{name}` {}", empty[0])], "{bytes:?}");
    }
}

#[test]
fn utf_16_is_refused_with_and_without_its_mark() {
    let utf16 = |text: &str, mark: &[u8]| -> Vec<u8> {
        mark.iter().copied().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
    };
    for name in ["a.jsonl", "a.json", "a.csv"] {
        let marked = faults_of(name, utf16("a,b\n1,2\n", &[0xff, 0xfe]));
        assert_eq!(marked, [format!("`{name}`:1: the file is UTF-16; save it as UTF-8")]);
        assert_eq!(faults_of(name, utf16("{\"a\": 1}\n", &[])), marked);
    }
}

#[test]
fn long_lines_are_read_up_to_the_limit() {
    let folder = Folder::new();
    let long = format!("{{\"a\": \"{}\"}}", "x".repeat(10 << 20));
    let text = format!("{long}\n{{}}\n");
    let path = folder.write("a.jsonl", &text);
    let rows = read(&path).objects();
    assert_eq!(rows[0]["a"].as_str().unwrap().len(), 10 << 20);
    let limits = Limits { line_bytes: 1 << 20, ..Limits::default() };
    let options = SourceOptions { limits, ..SourceOptions::default() };
    let name = |path: &std::path::Path| [path.display().to_string()];
    let sentence =
        "1: the line is longer than 1048576 bytes; split the row or check that the file has line breaks";
    let outcome = read_all(&name(&path), &options);
    assert_eq!(outcome.faults(), [sentence]);
    assert_eq!(outcome.rows.len(), 2);
    let outcome = read_all(&name(&folder.write("a.json", format!("[{long}, {{}}]"))), &options);
    assert_eq!(outcome.faults(), [sentence]);
    assert_eq!(outcome.rows.len(), 2);
    let outcome =
        read_all(&name(&folder.write("a.csv", format!("a\nb\n{}\n", "x".repeat(2 << 20)))), &options);
    let fault = folder.bare(&outcome.fault.unwrap());
    assert_eq!(
        fault,
        "`a.csv`:3: the record is longer than 1048576 bytes; split it, or close the quote that swallows the rows behind it"
    );
}

#[test]
fn deep_nesting_is_refused_in_every_place() {
    let deep = |n: usize| format!("{{\"a\": {}{}}}", "[".repeat(n), "]".repeat(n));
    assert!(faults_of("a.jsonl", deep(126)).is_empty());
    assert_eq!(
        faults_of("a.jsonl", deep(1_000_000)),
        ["1: the JSON is nested more than 127 levels deep at column 133; flatten the row"]
    );
    assert!(faults_of("a.json", format!("[{}]", deep(100_000)))[0].contains("more than 127 levels deep"));
}

#[test]
fn broken_arrays_name_the_line() {
    for (text, sentence) in [
        (
            "[{}",
            "`a.json`:1: the file ends where a comma or `]` behind a record is expected; correct the JSON there",
        ),
        (
            "[\n{} {}]",
            "`a.json`:2: `{}]` stands where a comma or `]` behind a record is expected; correct the JSON there",
        ),
        ("[{},\n]", "`a.json`:2: `]` stands where a record is expected; correct the JSON there"),
        ("[,{}]", "`a.json`:1: `,{}]` stands where a record is expected; correct the JSON there"),
        (
            "[\n{\"a\": [1, 2}\n",
            "`a.json`:3: the file ends inside the record that starts on line 2; complete it",
        ),
        (
            "[{}]\n\nx",
            "`a.json`:3: `x` stands where the end of the file behind the list is expected; correct the JSON there",
        ),
        (
            "3",
            "`a.json`:1: `3` stands where `[`, the start of a list of objects is expected; correct the JSON there",
        ),
        (
            "{\"a\": 1}\n{\"a\": 2}\n",
            "`a.json`:2: the file holds one object behind the other, which is JSONL; give it the ending .jsonl or set the format",
        ),
        (
            "{\"version\": 1, \"rows\": [{}]}",
            "`a.json`:1: the file is one object (its keys: `version`, `rows`), not a list of objects; write `[...]` or `{\"data\": [...]}`",
        ),
        (
            "{\"data\": [], \"more\": 1}",
            "`a.json`:1: `data` is not the only key of the file's object; write `[...]` or `{\"data\": [...]}`",
        ),
        ("{\"data\" 3", "`a.json`:1: `3` stands where `:` behind a key is expected; correct the JSON there"),
        ("{3", "`a.json`:1: `3` stands where a key is expected; correct the JSON there"),
    ] {
        let faults = faults_of("a.json", text);
        assert_eq!(faults.last().map(String::as_str), Some(sentence), "{text}");
    }
    let bad = "[\n {\"a\": 1},\n {\"a\":\n  tru},\n 7,\n {\"b\": 1,\n  \"b\": 2}\n]";
    assert_eq!(
        faults_of("a.json", bad),
        [
            "3: invalid JSON at line 2 of the record, column 6 near `{\"a\":\\n  tru}` (expected ident); write one JSON object per record",
            "5: the record is a JSON number, not an object; write one object per record, such as {\"prompt\": …, \"completion\": …}",
            "6: the key `b` stands twice in one object (line 2 of the record, column 5); remove one",
        ]
    );
}

#[test]
fn ragged_and_broken_tables_name_the_line() {
    let ragged = "a,b\n1,2\n3\n\n4,5,6\n\"x\ny\",7\n";
    let fields = |n: u64, found: u64| {
        format!(
            "{n}: the row has {found} fields, but the header has 2; put fields with separators or line breaks into double quotes"
        )
    };
    assert_eq!(faults_of("a.csv", ragged), [fields(3, 1), fields(5, 3)]);
    assert_eq!(
        faults_of("a.csv", "a,b\n1,2\n3,\"open\n4,5\n"),
        ["`a.csv`:3: a quote that opens here is never closed; close it or double it"]
    );
    assert_eq!(
        faults_of("a.csv", "a,b\n1,2\n3,\"x\"y\n4,5\n"),
        ["`a.csv`:3: text stands behind a closing quote; double the quotes inside quoted fields"]
    );
    assert_eq!(
        faults_of("a.csv", "a,b,a\n1,2,3\n"),
        ["`a.csv`:1: the header names the column `a` twice; rename one"]
    );
    assert_eq!(
        faults_of("a.csv", b"a,b\n1,caf\xe9\n\0,2\n3,4\n"),
        [
            "2: `b` has bytes that are not valid UTF-8 at byte 4 of the field (near `caf\\xe9`); save the file as UTF-8",
            "3: `a` has a NUL byte at byte 1 of the field (near `\\0`); save the file as UTF-8",
        ]
    );
    assert!(
        faults_of("a.csv", b"a,\xff\n1,2\n")[0]
            .starts_with("`a.csv`:1: the name of column 2 (`\\xff`) is not valid UTF-8")
    );
    // The rows before a broken one are given.
    let folder = Folder::new();
    assert_eq!(read(folder.write("a.csv", "a,b\n1,2\n3,\"open\n4,5\n")).rows.len(), 1);
}

#[test]
fn unknown_names_and_wrong_kinds_are_refused() {
    assert!(
        faults_of("a.txt", "{}")[0].starts_with("the name `a.txt` does not tell the format; rename the file")
    );
    assert_eq!(
        faults_of("a.jsonl", b"PK\x03\x04zip"),
        [
            "`a.jsonl` is a ZIP archive (or a spreadsheet), but its name says text; unpack or export it as JSONL, CSV or Parquet"
        ]
    );
    assert_eq!(
        faults_of("a.csv", b"PAR1xxxx"),
        ["`a.csv` is a Parquet file, but its name says text; give it the ending .parquet"]
    );
    assert_eq!(
        faults_of("a.parquet", b"a,b\n"),
        [
            "`a.parquet` is no Parquet file, but its name says Parquet; give it the ending of its own format, or write it again"
        ]
    );
    let sql = SourceOptions { format: Some(Format::Sql), ..SourceOptions::default() };
    let folder = Folder::new();
    let path = folder.write("a.jsonl", "{}").display().to_string();
    assert!(read_all(&[path], &sql).fault.unwrap().contains("a file cannot have the format sql"));
}

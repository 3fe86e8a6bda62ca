//! Parquet types as JSON, and the files that are refused.

use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, FixedLenByteArray, Int96};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use tunesmith_data::{Limits, SourceOptions};

use crate::kit::{Folder, faults_of, parquet_text, read, read_all};

/// The values of a column, with definition and repetition levels where the schema has them.
type Levels<'a> = (Option<&'a [i16]>, Option<&'a [i16]>);

enum Column<'a> {
    Bool(&'a [bool]),
    Int(&'a [i32]),
    Long(&'a [i64]),
    Int96([u32; 3]),
    Float(&'a [f32]),
    Double(&'a [f64]),
    Bytes(&'a [&'a [u8]]),
    Fixed(&'a [&'a [u8]]),
}

/// A file with one row group.
fn file(schema: &str, columns: &[(Column<'_>, Levels<'_>)]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut out = Vec::new();
    let properties = Arc::new(WriterProperties::default());
    let mut writer = SerializedFileWriter::new(&mut out, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (values, (def, rep)) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let (def, rep) = (*def, *rep);
        let bytes = |list: &[&[u8]]| list.iter().map(|b| ByteArray::from(b.to_vec())).collect::<Vec<_>>();
        match (column.untyped(), values) {
            (ColumnWriter::BoolColumnWriter(w), Column::Bool(v)) => w.write_batch(v, def, rep),
            (ColumnWriter::Int32ColumnWriter(w), Column::Int(v)) => w.write_batch(v, def, rep),
            (ColumnWriter::Int64ColumnWriter(w), Column::Long(v)) => w.write_batch(v, def, rep),
            (ColumnWriter::Int96ColumnWriter(w), Column::Int96(v)) => {
                w.write_batch(&[Int96::from(v.to_vec())], def, rep)
            }
            (ColumnWriter::FloatColumnWriter(w), Column::Float(v)) => w.write_batch(v, def, rep),
            (ColumnWriter::DoubleColumnWriter(w), Column::Double(v)) => w.write_batch(v, def, rep),
            (ColumnWriter::ByteArrayColumnWriter(w), Column::Bytes(v)) => w.write_batch(&bytes(v), def, rep),
            (ColumnWriter::FixedLenByteArrayColumnWriter(w), Column::Fixed(v)) => {
                let v: Vec<FixedLenByteArray> = bytes(v).into_iter().map(Into::into).collect();
                w.write_batch(&v, def, rep)
            }
            _ => panic!("the column has another type"),
        }
        .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    out
}

fn rows(bytes: &[u8]) -> Vec<Value> {
    let folder = Folder::new();
    read(folder.write("a.parquet", bytes)).objects().into_iter().map(Value::Object).collect()
}

/// What one required column gives.
fn cell(declared: &str, values: Column<'_>) -> Result<Value, String> {
    let bytes = file(&format!("message m {{ REQUIRED {declared}; }}"), &[(values, (None, None))]);
    let folder = Folder::new();
    let outcome = read(folder.write("a.parquet", bytes));
    match outcome.faults().first() {
        Some(fault) => Err(folder.bare(fault)),
        None => Ok(outcome.rows[0].2.as_ref().unwrap()["c"].clone()),
    }
}

#[test]
fn every_type_has_a_faithful_value() {
    for (declared, values, expected) in [
        ("BOOLEAN c", Column::Bool(&[true]), json!(true)),
        ("INT32 c", Column::Int(&[-7]), json!(-7)),
        ("INT32 c (INT_8)", Column::Int(&[-7]), json!(-7)),
        ("INT32 c (UINT_32)", Column::Int(&[-1]), json!(u32::MAX)),
        ("INT64 c", Column::Long(&[i64::MIN]), json!(i64::MIN)),
        ("INT64 c (UINT_64)", Column::Long(&[-1]), json!(u64::MAX)),
        ("FLOAT c", Column::Float(&[0.1]), json!(0.1)),
        ("DOUBLE c", Column::Double(&[1e300]), json!(1e300)),
        ("BYTE_ARRAY c (UTF8)", Column::Bytes(&["é".as_bytes()]), json!("é")),
        ("BYTE_ARRAY c", Column::Bytes(&[b"plain"]), json!("plain")),
        ("BYTE_ARRAY c (ENUM)", Column::Bytes(&[b"A"]), json!("A")),
        ("BYTE_ARRAY c (JSON)", Column::Bytes(&[b"{}"]), json!("{}")),
        ("INT32 c (DATE)", Column::Int(&[19_930]), json!("2024-07-26")),
        ("INT32 c (TIME_MILLIS)", Column::Int(&[1_500]), json!("00:00:01.500")),
        ("INT64 c (TIME_MICROS)", Column::Long(&[1_000_000]), json!("00:00:01")),
        ("INT64 c (TIMESTAMP_MILLIS)", Column::Long(&[1_721_999_109_250]), json!("2024-07-26T13:05:09.250")),
        ("INT64 c (TIMESTAMP_MICROS)", Column::Long(&[i64::MAX]), json!("294247-01-10T04:00:54.775807")),
        ("INT64 c (TIMESTAMP(NANOS,true))", Column::Long(&[1]), json!("1970-01-01T00:00:00.000000001")),
        ("INT96 c", Column::Int96([0, 0, 2_440_588]), json!("1970-01-01T00:00:00")),
        ("INT32 c (DECIMAL(9,2))", Column::Int(&[-5]), json!("-0.05")),
        ("INT64 c (DECIMAL(18,3))", Column::Long(&[1_234_567]), json!("1234.567")),
        ("BYTE_ARRAY c (DECIMAL(30,1))", Column::Bytes(&[&[0x04, 0xd2]]), json!("123.4")),
        ("FIXED_LEN_BYTE_ARRAY (3) c (DECIMAL(5,0))", Column::Fixed(&[&[0xff, 0xff, 0xfe]]), json!("-2")),
    ] {
        assert_eq!(cell(declared, values), Ok(expected), "{declared}");
    }
}

#[test]
fn what_has_no_faithful_value_is_refused_by_name() {
    let bad_cell = |what: &str| Err(format!("1: `c` {what}"));
    assert_eq!(
        cell("BYTE_ARRAY c", Column::Bytes(&[&[0xff, 0]])),
        bad_cell("holds 2 bytes that are not text; leave the column out of the file")
    );
    assert_eq!(
        cell("FLOAT c", Column::Float(&[f32::NAN])),
        bad_cell("is not a finite number; write null or a number")
    );
    assert_eq!(
        cell("DOUBLE c", Column::Double(&[f64::INFINITY])),
        bad_cell("is not a finite number; write null or a number")
    );
    let wide = [1_u8; 20];
    assert_eq!(
        cell("BYTE_ARRAY c (DECIMAL(48,1))", Column::Bytes(&[&wide])),
        bad_cell("is a decimal of more than 38 digits; convert the column to text")
    );
    for declared in ["FIXED_LEN_BYTE_ARRAY (12) c (INTERVAL)", "FIXED_LEN_BYTE_ARRAY (16) c (UUID)"] {
        let fixed = [0_u8; 16];
        let width = if declared.contains("12") { 12 } else { 16 };
        let refusal = cell(declared, Column::Fixed(&[&fixed[..width]])).unwrap_err();
        assert!(
            refusal.starts_with("`a.parquet`: column `c` has the Parquet type FIXED_LEN_BYTE_ARRAY ("),
            "{refusal}"
        );
        assert!(
            refusal.ends_with("which cannot be read; leave the column out or convert it to text"),
            "{refusal}"
        );
    }
}

#[test]
fn nested_columns_become_lists_and_objects() {
    let schema = "message m {
        REQUIRED GROUP messages (LIST) { REPEATED GROUP list { REQUIRED GROUP element {
            REQUIRED BYTE_ARRAY role (UTF8); OPTIONAL DOUBLE weight; } } }
        OPTIONAL GROUP facts (MAP) { REPEATED GROUP key_value { REQUIRED BYTE_ARRAY key (UTF8); OPTIONAL INT32 value; } }
        OPTIONAL GROUP at { REQUIRED INT64 when (TIMESTAMP(NANOS,false)); }
    }";
    let bytes = file(
        schema,
        &[
            (Column::Bytes(&[b"user", b"assistant"]), (Some(&[1, 1, 0]), Some(&[0, 1, 0]))),
            (Column::Double(&[0.5]), (Some(&[1, 2, 0]), Some(&[0, 1, 0]))),
            (Column::Bytes(&[b"x", b"y"]), (Some(&[2, 2, 0]), Some(&[0, 1, 0]))),
            (Column::Int(&[3]), (Some(&[3, 2, 0]), Some(&[0, 1, 0]))),
            (Column::Long(&[0]), (Some(&[1, 0]), None)),
        ],
    );
    assert_eq!(
        rows(&bytes),
        [
            json!({
                "messages": [{"role": "user", "weight": null}, {"role": "assistant", "weight": 0.5}],
                "facts": {"x": 3, "y": null},
                "at": {"when": "1970-01-01T00:00:00"},
            }),
            json!({"messages": [], "facts": null, "at": null}),
        ]
    );
    // A fault below says the whole way.
    let schema = "message m { REQUIRED GROUP l (LIST) { REPEATED GROUP list { REQUIRED GROUP element { REQUIRED FLOAT x; } } } }";
    let bytes = file(schema, &[(Column::Float(&[1.0, f32::NAN]), (Some(&[1, 1]), Some(&[0, 1])))]);
    assert_eq!(faults_of("a.parquet", bytes), ["1: `l[1].x` is not a finite number; write null or a number"]);
}

fn some_rows(groups: usize) -> Vec<u8> {
    let group: Vec<Vec<String>> =
        (0..500).map(|i| vec![format!("prompt {i}"), format!("answer {}", i * 7)]).collect();
    parquet_text(&["prompt", "completion"], &vec![group; groups], Compression::SNAPPY)
}

#[test]
fn damaged_files_end_in_a_sentence_behind_their_good_rows() {
    let bytes = some_rows(3);
    assert_eq!(rows(&bytes).len(), 1500);
    for cut in [5, bytes.len() / 2, bytes.len() - 1] {
        let fault = faults_of("a.parquet", &bytes[..cut]).pop().unwrap();
        assert!(
            fault.starts_with(
                "`a.parquet`: the Parquet file is damaged at its end, where its columns are described ("
            ) && fault.ends_with("); write or fetch it again"),
            "{fault}"
        );
    }
    assert!(faults_of("a.parquet", b"PA")[0].contains("is no Parquet file"));
    // A page in the middle of the last group.
    let mut wrong = bytes.clone();
    let third = wrong.len() * 3 / 4;
    wrong[third..third + 64].fill(0xee);
    let folder = Folder::new();
    let outcome = read(folder.write("a.parquet", wrong));
    let fault = folder.bare(&outcome.fault.unwrap());
    assert!(
        fault.starts_with("`a.parquet`: the Parquet file is damaged in row group 3, behind row "),
        "{fault}"
    );
    assert!(outcome.rows.len() >= 1000);
}

#[test]
fn dense_columns_are_bombs() {
    let same = vec![vec!["x".repeat(2000); 2]; 4000];
    let bytes = parquet_text(
        &["prompt", "completion"],
        &[same],
        Compression::ZSTD(parquet::basic::ZstdLevel::default()),
    );
    assert_eq!(rows(&bytes).len(), 4000);
    let folder = Folder::new();
    let path = [folder.write("a.parquet", &bytes).display().to_string()];
    let limits = Limits { output_bytes: 1 << 20, ..Limits::default() };
    let outcome = read_all(&path, &SourceOptions { limits, ..SourceOptions::default() });
    let sentence = "`a.parquet`: its rows take more than 1048576 bytes; split the file or raise the bound";
    assert_eq!(folder.bare(&outcome.fault.unwrap()), sentence);
    let limits = Limits { ratio: 2, ratio_after: 100, ..Limits::default() };
    let fault = read_all(&path, &SourceOptions { limits, ..SourceOptions::default() }).fault.unwrap();
    assert!(fault.contains("column `prompt` unpacks to more than 2 times its size ("), "{fault}");
}

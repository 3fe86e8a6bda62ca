//! What the tests read with, and the files they write.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value};
use sha2::Digest as _;
use tunesmith_data::{Error, FileFacts, Records, SourceOptions};

/// File, number, and the row or its fault.
pub type Row = (u32, u64, Result<Map<String, Value>, String>);

/// All that reading gave.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub rows: Vec<Row>,
    /// The error that ended it.
    pub fault: Option<String>,
    pub files: Vec<FileFacts>,
    pub notes: Vec<String>,
}

impl Outcome {
    /// The rows, which must all be good.
    pub fn objects(self) -> Vec<Map<String, Value>> {
        assert_eq!(self.fault, None);
        self.rows.into_iter().map(|(_, _, row)| row.unwrap()).collect()
    }

    /// `number: fault` of every bad row, and the fault at the end.
    pub fn faults(&self) -> Vec<String> {
        let bad = self.rows.iter().filter_map(|(_, n, row)| Some(format!("{n}: {}", row.as_ref().err()?)));
        bad.chain(self.fault.clone()).collect()
    }
}

pub fn read_all(uris: &[String], options: &SourceOptions) -> Outcome {
    let mut outcome = Outcome { rows: Vec::new(), fault: None, files: Vec::new(), notes: Vec::new() };
    let mut records = match Records::open(uris, options) {
        Ok(records) => records,
        Err(e) => return Outcome { fault: Some(e.to_string()), ..outcome },
    };
    loop {
        match records.next_batch(7, 1 << 20) {
            Ok(batch) if batch.is_empty() => break,
            Ok(batch) => outcome.rows.extend(batch.into_iter().map(|record| {
                let row = record.raw.and_then(tunesmith_data::Raw::into_object).map_err(|e| e.to_string());
                (record.place.file, record.place.number, row)
            })),
            Err(e) => {
                outcome.fault = Some(e.to_string());
                break;
            }
        }
    }
    // After an error there is nothing more, and never a panic.
    assert!(records.next_batch(1, 1).unwrap().is_empty());
    outcome.files = records.files();
    outcome.notes = records.notes();
    outcome
}

pub fn read(path: impl AsRef<Path>) -> Outcome {
    read_all(&[path.as_ref().display().to_string()], &SourceOptions::default())
}

/// A folder to write files to.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Without the folder's own path, which differs in every run.
    pub fn bare(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.path().display()), "")
            .replace(&self.path().display().to_string(), "DIR")
    }
}

/// What reading a file of these bytes gives, with paths cut down to names.
pub fn faults_of(name: &str, bytes: impl AsRef<[u8]>) -> Vec<String> {
    let folder = Folder::new();
    let outcome = read(folder.write(name, bytes));
    outcome.faults().iter().map(|fault| folder.bare(fault)).collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A Parquet file of text columns, one row group for each list of rows.
pub fn parquet_text(columns: &[&str], groups: &[Vec<Vec<String>>], compression: Compression) -> Vec<u8> {
    let fields = columns.join(" (UTF8); REQUIRED BYTE_ARRAY ");
    let schema = Arc::new(
        parse_message_type(&format!("message m {{ REQUIRED BYTE_ARRAY {fields} (UTF8); }}")).unwrap(),
    );
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut out = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut out, schema, properties).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        let mut i = 0;
        while let Some(mut column) = group.next_column().unwrap() {
            let values: Vec<ByteArray> = rows.iter().map(|row| row[i].as_str().into()).collect();
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
            i += 1;
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
    out
}

pub fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// An error as `Records::open` gives it.
pub fn refused(uris: &[&str], options: &SourceOptions) -> String {
    let uris: Vec<String> = uris.iter().map(|u| (*u).to_owned()).collect();
    let error: Error = Records::open(&uris, options).unwrap_err();
    error.to_string()
}

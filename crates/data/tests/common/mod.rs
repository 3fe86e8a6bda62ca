//! A model folder to vary: the shipped base model's tokenizer with another template or other special tokens.
#![allow(dead_code, unreachable_pub)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

use serde_json::{Value, json};
use tunesmith_data::{
    Columns, Dataset, Encoder, Error, Now, OverLong, PrepareOptions, Records, Row, SourceOptions,
    TemplateChoice,
};

static ONCE: Once = Once::new();

/// A folder of the shared test data (`TUNESMITH_SHARED`, by default `../shared` beside the workspace), or a line that
/// says what is skipped.
pub fn shared(folder: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let shared = std::env::var_os("TUNESMITH_SHARED").unwrap_or_else(|| "../shared".into());
    let folder = root.join(shared).join(folder);
    if folder.is_dir() {
        return Some(folder);
    }
    // Written past the test harness, which hides what passing tests print.
    ONCE.call_once(|| {
        let line = format!("SKIPPED tests on shared data: no {} (set TUNESMITH_SHARED)\n", folder.display());
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    });
    None
}

pub const EOS: u32 = 4093;

pub fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/support-base-4m")
}

/// The shipped model's encoder.
pub fn encoder(choice: TemplateChoice) -> Encoder {
    Encoder::from_dir(&base(), choice, &[4089, EOS], Now::date(2024, 7, 26)).unwrap()
}

/// A folder with the shipped tokenizer after `edit` changed its configuration.
pub fn folder(edit: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(base().join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let config = std::fs::read(base().join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    edit(&mut config);
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

/// An encoder with `template` in place of the model's own.
pub fn with_template(template: &str) -> Result<Encoder, Error> {
    let dir = folder(|config| config["chat_template"] = json!(template));
    Encoder::from_dir(dir.path(), TemplateChoice::Chat, &[4089, EOS], Now::date(2024, 7, 26))
}

/// A file `data.jsonl` with these bytes.
pub fn data(bytes: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

pub fn options(max_seq_length: usize) -> PrepareOptions {
    PrepareOptions { columns: Columns::default(), max_seq_length, over_long: OverLong::Drop, group: None }
}

/// The records of one file.
pub fn records(path: &Path) -> Result<Records, Error> {
    Records::open(&[path.to_str().unwrap().to_owned()], &SourceOptions::default())
}

pub fn read_rows(path: &Path, columns: &Columns) -> Result<Vec<Row>, Error> {
    tunesmith_data::read_rows(&mut records(path)?, columns)
}

pub fn load(path: &Path, encoder: &Encoder, options: &PrepareOptions) -> Result<Dataset, Error> {
    tunesmith_data::load(&mut records(path)?, encoder, options)
}

//! What the unit tests share.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;

use serde_json::{Value, json};

/// The folder of shared material: `TUNESMITH_SHARED`, or `../shared` beside the workspace. None, with one visible line,
/// where there is none.
pub(crate) fn shared() -> Option<PathBuf> {
    static SAID: Once = Once::new();
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let dir = std::env::var_os("TUNESMITH_SHARED").map_or_else(beside, PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    // Written past the test harness, which would hide it in a test that passes.
    SAID.call_once(|| {
        let line = format!(
            "skipped the tests on shared material: {} is not there (TUNESMITH_SHARED)\n",
            dir.display()
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    });
    None
}

/// The bytes of a safetensors file with this header and data.
pub(crate) fn safetensors_bytes(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A safetensors file of f32 tensors whose values count up from 0 over the whole file.
pub(crate) fn counting_file(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut count = 0;
    for (name, shape) in tensors {
        let start = count;
        count += shape.iter().product::<usize>();
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start * 4, count * 4]});
        header.insert((*name).to_string(), entry);
    }
    let data: Vec<u8> = (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect();
    safetensors_bytes(&Value::Object(header).to_string(), &data)
}

/// The message of an error that must occur, checked to hold every word of `words`.
#[track_caller]
pub(crate) fn assert_error<T: std::fmt::Debug>(result: crate::Result<T>, words: &[&str]) -> String {
    let message = result.expect_err("this must be refused").to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    assert!(!message.contains('\n'), "one sentence, one line: {message:?}");
    message
}

//! Discovery of golden cases in folders made here.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it inside test functions; helpers of tests are the same"
)]

use std::fs;
use std::path::Path;

use tunesmith_testkit::cases::{find_in, workspace_root};
use tunesmith_testkit::records::Baseline;
use tunesmith_testkit::tensors::{IntTensors, write_int_tensors};

fn make_case(dir: &Path, shape: &[usize]) {
    fs::create_dir_all(dir.join("adapter_init")).unwrap();
    let count: usize = shape.iter().product();
    let tensor = |offset: i64| (shape.to_vec(), (0..count as i64).map(|i| i + offset).collect());
    let tensors = IntTensors::from([
        ("input_ids".to_owned(), tensor(0)),
        ("attention_mask".to_owned(), tensor(1000)),
        ("labels".to_owned(), tensor(2000)),
    ]);
    write_int_tensors(&dir.join("batches.safetensors"), &tensors).unwrap();
}

fn make_model(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), "{}").unwrap();
}

#[test]
fn cases_are_found_at_any_depth_with_their_models() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("reference");
    make_case(&root.join("b/own"), &[2, 2, 3]);
    make_model(&root.join("b/own/model"));
    make_case(&root.join("a/deep/er/named"), &[1, 1, 4]);
    make_model(&temp.path().join("models/m"));
    fs::write(root.join("spec.json"), r#"{"cases": [{"name": "named", "model": {"path": "models/m"}}]}"#)
        .unwrap();
    fs::create_dir_all(root.join("c/no-case/adapter_init")).unwrap();
    let cases = find_in(&root).unwrap();
    let names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["named", "own"]);
    assert!(cases[0].model_dir.ends_with("models/m"));
    assert!(cases[1].model_dir.ends_with("b/own/model"));
    let batches = cases[1].batches().unwrap();
    assert_eq!((batches.count, batches.rows, batches.len), (2, 2, 3));
    let second = batches.get(1).unwrap();
    assert_eq!(second.input_ids, [6, 7, 8, 9, 10, 11]);
    assert_eq!(second.labels[0], 2006);
    assert!(batches.get(2).is_err());
    // The folder of the cases alone may be named too.
    assert_eq!(find_in(&root.join("a")).unwrap().len(), 1);
}

#[test]
fn a_case_without_a_model_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    make_case(&temp.path().join("lost"), &[1, 1, 4]);
    let message = find_in(temp.path()).unwrap_err().to_string();
    assert!(message.contains("lost"), "{message}");
    fs::write(
        temp.path().join("spec.json"),
        r#"{"cases": [{"name": "lost", "model": {"path": "no/such-model-anywhere"}}]}"#,
    )
    .unwrap();
    let message = find_in(temp.path()).unwrap_err().to_string();
    assert!(message.contains("such-model-anywhere"), "{message}");
}

#[test]
fn batches_of_unequal_shape_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    make_case(temp.path(), &[2, 6]);
    make_model(&temp.path().join("model"));
    let case = find_in(temp.path()).unwrap().remove(0);
    assert!(case.batches().unwrap_err().to_string().contains("[N, B, T]"));
}

#[test]
fn golden_baseline_runs_are_read() {
    let Some(reference) = tunesmith_testkit::cases::reference_dir().unwrap() else {
        eprintln!("golden: no reference folder, no baseline runs");
        return;
    };
    for run in Baseline::read_all(&reference).unwrap() {
        assert!(run.paths.train.is_file(), "{}", run.paths.train.display());
        assert!(run.steps.iter().all(|s| s.rows.len() == run.config.batch));
        assert!(run.adapter_init().is_dir());
        eprintln!("golden: {}: {} steps", run.name, run.steps.len());
    }
}

#[test]
fn the_workspace_root_is_the_workspace() {
    assert!(workspace_root().join("Cargo.lock").is_file());
}

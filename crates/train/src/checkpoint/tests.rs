use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tunesmith_model::peft::{Linear, LoraConfig, Site};
use tunesmith_model::{ModelConfig, peft};

use super::*;
use crate::{Best, Exact, RunState, Snapshot};

const PRINT: &str = "ab12";

fn adapter() -> Adapter {
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let site = |layer, linear| Site { layer, linear, rank: 2, scale: 2.0 };
    let sites = [site(0, Linear::Q), site(0, Linear::V), site(1, Linear::Down)];
    let lora = LoraConfig { r: 2, ..LoraConfig::default() };
    let config_file = PeftConfig { base_model_name_or_path: Some("org/base".into()), revision: None, lora };
    Adapter { config: config_file, layout: AdapterLayout::new(&config, &sites) }
}

fn snapshot(step: usize, n: usize) -> Snapshot {
    let mut state = RunState::new(PRINT, 3, 30);
    (state.step, state.epoch, state.batch, state.tokens) = (step, step / 10, step % 10, 100 * step);
    state.epoch_loss = Exact(0.1 + step as f64);
    state.best = Some(Best { step: 10, loss: Exact(1.5), row_losses: vec![Exact(1.0), Exact(2.0)] });
    let values = |salt: f32| (0..n).map(|i| (i as f32 * 0.37 + salt + step as f32).sin()).collect();
    Snapshot {
        state,
        parameters: values(0.0),
        first_moment: values(1.0),
        second_moment: values(2.0),
        best_parameters: (step > 10).then(|| values(3.0)),
    }
}

fn put(dir: &Path, adapter: &Adapter, step: usize, epoch_end: bool) -> Written {
    write(dir, &snapshot(step, adapter.layout.len()), epoch_end, adapter, &|_| {}).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn bits(snapshot: &Snapshot) -> Vec<u32> {
    let best = snapshot.best_parameters.iter().flatten();
    let all = snapshot.parameters.iter().chain(&snapshot.first_moment).chain(&snapshot.second_moment);
    all.chain(best).map(|v| v.to_bits()).collect()
}

#[test]
fn a_checkpoint_comes_back_bit_by_bit_and_is_an_adapter() {
    let (dir, adapter) = (tempfile::tempdir().unwrap(), adapter());
    assert_eq!(latest(dir.path(), &adapter.layout, PRINT).unwrap(), Found::default());
    for step in [10, 20] {
        let mut taken = snapshot(step, adapter.layout.len());
        taken.second_moment[0] = -0.0;
        taken.second_moment[1] = 1e-44;
        let written = write(dir.path(), &taken, step == 20, &adapter, &|_| {}).unwrap();
        assert_eq!((written.step, written.epoch_end, written.best), (step, step == 20, step == 10));
        let found = latest(dir.path(), &adapter.layout, PRINT).unwrap();
        assert_eq!(found.damaged, [""; 0]);
        let (path, read) = found.newest.unwrap();
        assert_eq!((path, bits(&read)), (written.path.clone(), bits(&taken)));
        assert_eq!((read.state, read.best_parameters.is_some()), (taken.state, step == 20));

        let (config, tensors) = peft::load(&written.path).unwrap();
        assert_eq!((config.lora.r, config.base_model_name_or_path.as_deref()), (2, Some("org/base")));
        assert_eq!(adapter.layout.flatten(&tensors), taken.parameters);
        let on_disk: u64 = fs::read_dir(&written.path)
            .unwrap()
            .map(|e| e.unwrap())
            .filter(|e| e.file_name() != "manifest.json")
            .map(|e| e.metadata().unwrap().len())
            .sum();
        assert_eq!(written.bytes, on_disk);
    }
    assert_eq!(names(dir.path()), ["ckpt-00000010", "ckpt-00000020"]);
    let kept = latest(dir.path(), &adapter.layout, PRINT).unwrap().kept;
    assert_eq!(kept.iter().map(|k| (k.step, k.epoch_end)).collect::<Vec<_>>(), [(10, false), (20, true)]);
}

/// Whatever is done to any byte, or to the end, of any file: the checkpoint before it is what is gone on from.
#[test]
fn no_changed_byte_and_no_cut_goes_unnoticed() {
    let (dir, adapter) = (tempfile::tempdir().unwrap(), adapter());
    put(dir.path(), &adapter, 10, false);
    let newest = put(dir.path(), &adapter, 20, false).path;
    let check = |what: &str| {
        let found = latest(dir.path(), &adapter.layout, PRINT).unwrap();
        assert_eq!(found.newest.map(|(_, s)| s.state.step), Some(10), "{what}");
        let [sentence] = found.damaged.as_slice() else { panic!("{what}: {:?}", found.damaged) };
        assert!(
            sentence.starts_with("checkpoint ckpt-00000020 is damaged (")
                && sentence.ends_with("; going on from ckpt-00000010"),
            "{what}: {sentence}"
        );
        assert!(found.kept[1].damaged && !found.kept[0].damaged, "{what}");
    };
    let files: BTreeMap<String, Vec<u8>> =
        names(&newest).into_iter().map(|n| (n.clone(), fs::read(newest.join(&n)).unwrap())).collect();
    assert_eq!(files.len(), 5);
    for (name, whole) in &files {
        let path = newest.join(name);
        // Every byte of small files, a sample of large ones that never falls into step with four-byte numbers.
        let stride = (whole.len() / 300).max(1) | 1;
        for at in (0..whole.len()).step_by(stride) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            check(&format!("{name}, byte {at} of {}", whole.len()));
        }
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            check(&format!("{name} cut to {length}"));
        }
        fs::write(&path, [whole.as_slice(), b" "].concat()).unwrap();
        check(&format!("{name} with a byte more"));
        fs::remove_file(&path).unwrap();
        check(&format!("{name} gone"));
        fs::write(&path, whole).unwrap();
    }
    // A whole file of another checkpoint in its place.
    fs::copy(dir.path().join("ckpt-00000010/state.json"), newest.join("state.json")).unwrap();
    check("the state of another step");
    fs::write(newest.join("state.json"), &files["state.json"]).unwrap();
    let found = latest(dir.path(), &adapter.layout, PRINT).unwrap();
    assert_eq!(found.newest.map(|(_, s)| s.state.step), Some(20), "whole again");
}

#[test]
fn half_a_checkpoint_under_any_name_is_none() {
    let (dir, adapter) = (tempfile::tempdir().unwrap(), adapter());
    put(dir.path(), &adapter, 10, false);
    for left in
        ["ckpt-00000020.tmp", "ckpt-00000005.old.tmp", "ckpt-30", "ckpt-000000040", "ckpt-x", "adapter"]
    {
        let path = dir.path().join(left);
        fs::create_dir(&path).unwrap();
        for file in names(&dir.path().join("ckpt-00000010")) {
            fs::copy(dir.path().join("ckpt-00000010").join(&file), path.join(&file)).unwrap();
        }
    }
    let found = latest(dir.path(), &adapter.layout, PRINT).unwrap();
    assert_eq!((found.kept.len(), found.damaged.len()), (1, 0));
    sweep(dir.path()).unwrap();
    assert_eq!(names(dir.path()), ["adapter", "ckpt-000000040", "ckpt-00000010", "ckpt-30", "ckpt-x"]);

    // Under a whole one's name without a manifest, or as a file.
    fs::create_dir(dir.path().join("ckpt-00000050")).unwrap();
    fs::write(dir.path().join("ckpt-00000060"), "").unwrap();
    let found = latest(dir.path(), &adapter.layout, PRINT).unwrap();
    assert_eq!((found.newest.map(|(_, s)| s.state.step), found.damaged.len()), (Some(10), 2));
    fs::remove_dir_all(dir.path().join("ckpt-00000010")).unwrap();
    let found = latest(dir.path(), &adapter.layout, PRINT).unwrap();
    assert!(found.newest.is_none() && found.damaged[0].ends_with("; starting over"), "{:?}", found.damaged);
}

#[test]
fn another_run_or_a_later_version_is_an_error_and_not_an_older_checkpoint() {
    let (dir, adapter) = (tempfile::tempdir().unwrap(), adapter());
    put(dir.path(), &adapter, 10, false);
    let path = put(dir.path(), &adapter, 20, false).path;
    let error = latest(dir.path(), &adapter.layout, "cd34").unwrap_err().to_string();
    assert!(error.contains("ckpt-00000020` belongs to another run"), "{error}");

    let names = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"];
    let state = fs::read_to_string(path.join("state.json")).unwrap();
    fs::write(path.join("state.json"), state.replace("\"version\": 1", "\"version\": 2")).unwrap();
    let mut manifest = manifest::Manifest::of(&path, 20, false, &names).unwrap();
    manifest.write(&path).unwrap();
    let error = latest(dir.path(), &adapter.layout, PRINT).unwrap_err().to_string();
    assert!(error.contains("of format 2, which a later version"), "{error}");
    manifest.format_version = 7;
    manifest.write(&path).unwrap();
    let error = latest(dir.path(), &adapter.layout, PRINT).unwrap_err().to_string();
    assert!(error.contains("of format 7, which a later version"), "{error}");
}

#[test]
fn numbers_that_are_none_are_never_written() {
    let (dir, adapter) = (tempfile::tempdir().unwrap(), adapter());
    for part in 0..4 {
        let mut taken = snapshot(20, adapter.layout.len());
        let best = taken.best_parameters.as_mut().unwrap();
        [&mut taken.parameters, &mut taken.first_moment, &mut taken.second_moment, best][part][3] = f32::NAN;
        assert!(write(dir.path(), &taken, false, &adapter, &|_| {}).is_err(), "{part}");
    }
    let mut short = snapshot(20, adapter.layout.len());
    short.first_moment.pop();
    assert!(write(dir.path(), &short, false, &adapter, &|_| {}).is_err());
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn retention_keeps_what_matters() {
    let kept = |text: &str| -> Vec<Kept> {
        // `10` other, `20e` the end of an epoch, `30d` damaged.
        let one = |word: &str| Kept {
            step: word.trim_end_matches(['e', 'd']).parse().unwrap(),
            epoch_end: word.ends_with('e'),
            bytes: 100,
            damaged: word.ends_with('d'),
        };
        text.split_whitespace().map(one).collect()
    };
    let gone = |text: &str, best, others, bytes| excess(&kept(text), best, Limits { others, bytes });
    for (text, best, others, bytes, expected) in [
        ("", None, Some(0), Some(0), vec![]),
        ("1", None, Some(0), Some(0), vec![]),
        ("1 2 3", None, None, None, vec![]),
        ("1 2 3", None, Some(0), None, vec![1, 2]),
        ("1 2 3", None, Some(1), None, vec![1]),
        ("1 2 3", Some(1), Some(0), None, vec![2]),
        ("1 2e 3 4e 5", None, Some(0), None, vec![1, 3]),
        ("1 2e 3 4e 5", Some(3), Some(0), None, vec![1]),
        ("1 2e 3 4e 5", None, None, Some(500), vec![]),
        ("1 2e 3 4e 5", None, None, Some(499), vec![1]),
        ("1 2e 3 4e 5", None, None, Some(300), vec![1, 3]),
        ("1 2e 3 4e 5", None, None, Some(299), vec![1, 3, 2]),
        ("1 2e 3 4e 5", Some(2), None, Some(0), vec![1, 3, 4]),
        ("1 2e 3 4e 5", None, Some(1), Some(300), vec![1, 3]),
        ("1 2e 3d 4 5d", None, None, None, vec![3, 5]),
        ("1d 2d", None, Some(0), Some(0), vec![]),
    ] {
        assert_eq!(gone(text, best, others, bytes), expected, "{text} {best:?} {others:?} {bytes:?}");
    }
}

fn writer(dir: &Path, limits: Limits, hook: Hook) -> CheckpointWriter {
    let adapter = adapter();
    let found = latest(dir, &adapter.layout, PRINT).unwrap();
    CheckpointWriter::new(dir, adapter, limits, &found, hook).unwrap()
}

#[test]
fn the_writer_writes_in_order_and_removes_what_is_too_many() {
    let (dir, n) = (tempfile::tempdir().unwrap(), adapter().layout.len());
    put(dir.path(), &adapter(), 5, false);
    // A damaged one, which goes once a sound one is there.
    fs::create_dir(dir.path().join("ckpt-00000007")).unwrap();
    let mut writer = writer(dir.path(), Limits { others: Some(1), bytes: None }, Arc::new(|_: &str| {}));
    assert!(writer.has(5, false, false) && !writer.has(5, true, false) && !writer.has(5, false, true));
    for step in [6, 10, 12, 20, 21, 22] {
        writer.save(snapshot(step, n), step == 20).unwrap();
        assert!(writer.has(step, step == 20, false));
    }
    writer.wait(&mut || {}).unwrap();
    let mut told = Vec::new();
    while let Some(written) = writer.next_written().unwrap() {
        told.push(written.step);
    }
    assert_eq!(told, [6, 10, 12, 20, 21, 22]);
    drop(writer);
    // The best, the end of an epoch, one other, the last.
    assert_eq!(names(dir.path()), ["ckpt-00000010", "ckpt-00000020", "ckpt-00000021", "ckpt-00000022"]);
}

#[test]
fn the_writer_is_busy_while_it_writes_and_done_when_dropped() {
    let (dir, n) = (tempfile::tempdir().unwrap(), adapter().layout.len());
    let (reached, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let hook: Hook = Arc::new(move |place: &str| {
        if place == "ckpt:before_rename" {
            let _ = gate.lock().unwrap().recv();
        }
    });
    let mut writer = writer(dir.path(), Limits::default(), hook);
    assert!(!writer.is_busy().unwrap());
    writer.save(snapshot(1, n), false).unwrap();
    assert!(writer.is_busy().unwrap() && writer.next_written().unwrap().is_none());
    let waited = AtomicUsize::new(0);
    writer
        .wait(&mut || {
            if waited.fetch_add(1, Ordering::Relaxed) == 1 {
                reached.send(()).unwrap();
            }
        })
        .unwrap();
    assert!(waited.into_inner() >= 2 && !writer.is_busy().unwrap());
    writer.save(snapshot(2, n), false).unwrap();
    reached.send(()).unwrap();
    drop(writer);
    assert_eq!(names(dir.path()), ["ckpt-00000001", "ckpt-00000002"]);
}

#[test]
fn the_places_to_die_at_come_in_order_and_leave_what_they_say() {
    let (dir, adapter) = (tempfile::tempdir().unwrap(), adapter());
    let seen = std::sync::Mutex::new(Vec::new());
    let at = |place: &str| {
        let newest = latest(dir.path(), &adapter.layout, PRINT).unwrap().newest.is_some();
        seen.lock().unwrap().push((place.to_owned(), newest));
    };
    write(dir.path(), &snapshot(3, adapter.layout.len()), false, &adapter, &at).unwrap();
    let expected = [("ckpt:after_tmp", false), ("ckpt:before_rename", false), ("ckpt:after_rename", true)];
    assert_eq!(seen.into_inner().unwrap(), expected.map(|(place, there)| (place.to_owned(), there)));
}

#[test]
#[cfg(unix)]
fn a_place_that_cannot_be_written_is_named_at_the_next_call() {
    let (dir, n) = (tempfile::tempdir().unwrap(), adapter().layout.len());
    let mut writer = writer(dir.path(), Limits::default(), Arc::new(|_: &str| {}));
    // A file in the place of the directory that is to be built: no user is privileged enough for that.
    fs::write(dir.path().join("ckpt-00000004.tmp"), "").unwrap();
    writer.save(snapshot(4, n), false).unwrap();
    let error = writer.wait(&mut || {}).unwrap_err().to_string();
    assert!(error.contains("ckpt-00000004.tmp"), "{error}");
    writer.save(snapshot(5, n), false).unwrap();
    writer.wait(&mut || {}).unwrap();
}

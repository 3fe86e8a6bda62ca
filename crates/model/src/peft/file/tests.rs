use serde_json::json;

use super::*;
use crate::peft::LoraConfig;
use crate::test_support::{assert_error, counting_file, safetensors_bytes, shared};

fn config() -> PeftConfig {
    PeftConfig {
        base_model_name_or_path: Some("org/base".into()),
        revision: None,
        lora: LoraConfig::default(),
    }
}

fn card() -> ModelCard {
    ModelCard {
        name: "tickets".into(),
        base_model: "org/base".into(),
        facts: vec![("steps".into(), "3".into())],
    }
}

fn tensors(values: &[f32; 12]) -> Vec<AdapterTensor<'_>> {
    let tensor = |key: &str, shape, values| AdapterTensor { key: key.into(), shape, values };
    vec![tensor("b", [3, 2], &values[..6]), tensor("a", [2, 3], &values[6..])]
}

const VALUES: [f32; 12] = [0.5, -0.0, 1e-40, 3.4e38, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0];

#[test]
fn an_adapter_comes_back_bit_by_bit() {
    let root = tempfile::tempdir().unwrap();
    let (base, dir) = (root.path().join("base"), root.path().join("adapter"));
    std::fs::create_dir(&base).unwrap();
    for name in ["tokenizer.json", "chat_template.jinja", "config.json"] {
        std::fs::write(base.join(name), name).unwrap();
    }
    save(&dir, &config(), &tensors(&VALUES), Some(&base), &card()).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = ["README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"];
    assert_eq!(names, [&expected[..], &["tokenizer.json"]].concat());
    assert_eq!(std::fs::read_to_string(dir.join("tokenizer.json")).unwrap(), "tokenizer.json");
    assert!(!root.path().join("adapter.tmp").exists());

    let (_, loaded) = load(&dir).unwrap();
    assert_eq!(loaded.iter().map(|t| t.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(loaded[1].shape, [3, 2]);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&loaded[0].values), bits(&VALUES[6..]));
    assert_eq!(bits(&loaded[1].values), bits(&VALUES[..6]));
}

#[test]
fn what_peft_wrote_is_written_byte_for_byte() {
    let Some(shared) = shared() else { return };
    let mut count = 0;
    for case in std::fs::read_dir(shared.join("reference/cases")).unwrap() {
        let source = case.unwrap().path().join("adapter_init");
        if !source.is_dir() {
            continue;
        }
        let (config, loaded) = load(&source).unwrap();
        let tensors: Vec<_> = loaded
            .iter()
            .map(|t| AdapterTensor { key: t.key.clone(), shape: [t.shape[0], t.shape[1]], values: &t.values })
            .collect();
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("copy");
        save(&dir, &config, &tensors, None, &card()).unwrap();
        let read = |dir: &Path| std::fs::read(dir.join(WEIGHTS_FILE)).unwrap();
        assert!(read(&dir) == read(&source), "{} differs", source.display());
        assert_eq!(load(&dir).unwrap().0, config);
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn keys_of_an_adapter_that_peft_wrote_follow_from_its_config() {
    let Some(shared) = shared() else { return };
    for case in std::fs::read_dir(shared.join("reference/cases")).unwrap() {
        let dir = case.unwrap().path().join("adapter_init");
        if !dir.is_dir() {
            continue;
        }
        let (config, loaded) = load(&dir).unwrap();
        let layers = loaded.iter().filter(|t| t.key.ends_with("q_proj.lora_A.weight")).count();
        let sites = config.lora.resolve(layers).unwrap();
        let mut keys: Vec<_> = sites.iter().flat_map(|site| [site.lora_a_key(), site.lora_b_key()]).collect();
        keys.sort();
        assert_eq!(keys, loaded.iter().map(|t| t.key.clone()).collect::<Vec<_>>());
        assert!(sites.iter().all(|site| site.rank == config.lora.r));
    }
}

#[test]
fn half_precision_adapters_are_raised() {
    let root = tempfile::tempdir().unwrap();
    let data: Vec<u8> = [1.5f32, -2.25].iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    let header = r#"{"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}"#;
    std::fs::write(root.path().join(WEIGHTS_FILE), safetensors_bytes(header, &data)).unwrap();
    std::fs::write(root.path().join(CONFIG_FILE), config().to_json()).unwrap();
    let expected = LoadedTensor { key: "a".into(), shape: vec![1, 2], values: vec![1.5, -2.25] };
    assert_eq!(load(root.path()).unwrap().1, [expected]);
}

#[test]
fn an_existing_directory_is_never_touched() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    std::fs::create_dir(&dir).unwrap();
    assert_error(save(&dir, &config(), &tensors(&VALUES), None, &card()), &["adapter", "already exists"]);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn values_that_cannot_be_an_adapter_are_not_saved() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    let mut nan = VALUES;
    nan[7] = f32::NAN;
    let mut short = tensors(&VALUES);
    short[0].shape = [4, 2];
    let mut twice = tensors(&VALUES);
    twice[0].key = "a".into();
    for (tensors, word) in [(tensors(&nan), "not finite"), (short, "6 values"), (twice, "twice")] {
        assert_error(save(&dir, &config(), &tensors, None, &card()), &[word]);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_failed_copy_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (base, dir) = (root.path().join("base"), root.path().join("adapter"));
    std::fs::create_dir_all(base.join("tokenizer.json")).unwrap();
    assert_error(save(&dir, &config(), &tensors(&VALUES), Some(&base), &card()), &["tokenizer.json"]);
    assert!(!dir.exists() && !root.path().join("adapter.tmp").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("adapter");
    let many = vec![1.0; 100_000];
    let tensors = [AdapterTensor { key: "a".into(), shape: [1000, 100], values: &many }];
    let layout = header(&dir, &tensors).unwrap();
    let result = publish_dir(&dir, &[], |tmp| {
        // Writes to /dev/full fail as on a full disk.
        std::os::unix::fs::symlink("/dev/full", tmp.join(WEIGHTS_FILE)).unwrap();
        write_weights(&tmp.join(WEIGHTS_FILE), &layout)
    });
    assert_error(result, &["cannot write", WEIGHTS_FILE, "No space left"]);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn directories_that_are_no_adapter() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    assert_error(load(&dir.join("none")), &["not a directory"]);
    assert_error(load(dir), &[WEIGHTS_FILE]);
    std::fs::write(dir.join("adapter_model.bin"), "x").unwrap();
    assert_error(load(dir), &["adapter_model.bin", "pickle"]);
    std::fs::write(dir.join(WEIGHTS_FILE), counting_file(&[("a", &[1, 2])])).unwrap();
    assert_error(load(dir), &[CONFIG_FILE]);
    std::fs::write(dir.join(CONFIG_FILE), json!({"peft_type": "LORA"}).to_string()).unwrap();
    assert_error(load(dir), &["target_modules"]);
    std::fs::write(dir.join(CONFIG_FILE), config().to_json()).unwrap();
    load(dir).unwrap();
    std::fs::write(dir.join(WEIGHTS_FILE), &counting_file(&[("a", &[1, 2])])[..50]).unwrap();
    assert_error(load(dir), &[WEIGHTS_FILE, "truncated"]);
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    std::fs::write(dir.join(WEIGHTS_FILE), safetensors_bytes(header, &f32::NAN.to_le_bytes())).unwrap();
    assert_error(load(dir), &["`a`", "not finite"]);
}

#[test]
fn the_check_is_strict() {
    let tensor =
        |key: &str, shape: &[usize]| LoadedTensor { key: key.into(), shape: shape.to_vec(), values: vec![] };
    let expected = [("a".to_string(), [8, 64]), ("b".to_string(), [64, 8])];
    let run = |found: &[LoadedTensor]| check(Path::new("my-adapter"), &expected, found);
    run(&[tensor("b", &[64, 8]), tensor("a", &[8, 64])]).unwrap();
    let other_base = [tensor("a", &[8, 48]), tensor("b", &[64, 8])];
    assert_error(run(&other_base), &["my-adapter", "another base model", "`a`", "[8, 48]", "[8, 64]"]);
    assert_error(run(&[tensor("a", &[512]), tensor("b", &[64, 8])]), &["`a`", "[512]"]);
    assert_error(run(&[tensor("a", &[8, 64])]), &["1 missing (`b`)"]);
    let extra = [tensor("a", &[8, 64]), tensor("b", &[64, 8]), tensor("c", &[1, 1])];
    assert_error(run(&extra), &["1 unexpected (`c`)"]);
    assert_error(run(&[]), &["2 missing"]);
}

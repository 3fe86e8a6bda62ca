use serde_json::json;

use super::*;
use crate::config::ModelConfig;
use crate::test_support::{assert_error, counting_file, shared};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.0.path().join(name), bytes).unwrap();
        self
    }

    fn index(&self, map: &serde_json::Value) -> &Self {
        self.file(INDEX, json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string())
    }

    fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open(self.0.path())
    }
}

fn sharded() -> Dir {
    let dir = Dir::new();
    dir.file("m-1.safetensors", counting_file(&[("a", &[2, 2]), ("b", &[3])]));
    dir.file("m-2.safetensors", counting_file(&[("c", &[1, 2])]));
    dir.index(&json!({"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}));
    dir
}

#[test]
fn one_file_and_shards_read_alike() {
    let one = Dir::new();
    one.file(SINGLE, counting_file(&[("a", &[2, 2]), ("b", &[3])]));
    let (one, many) = (one.open().unwrap(), sharded().open().unwrap());
    assert_eq!(many.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(many.shape("c"), Some(&[1, 2][..]));
    assert_eq!(many.dtype("c"), Some(Dtype::F32));
    assert_eq!((many.shape("d"), many.dtype("d")), (None, None));
    for checkpoint in [one, many] {
        assert_eq!(checkpoint.read_f32("b", &[3]).unwrap(), [4., 5., 6.]);
        let mut out = vec![0.0; 5];
        checkpoint.read_f32_into("a", &[2, 2], 0..2, &mut out, 3).unwrap();
        assert_eq!(out, [0., 1., 0., 2., 3.]);
        assert_error(checkpoint.read_f32("b", &[1, 3]), &["`b`", "[3]", "[1, 3]"]);
        assert_error(checkpoint.read_f32("zz", &[3]), &["`zz`", "missing"]);
    }
}

#[test]
fn the_shipped_shards_hold_what_the_single_file_holds() {
    let Some(shared) = shared() else { return };
    let whole = Checkpoint::open(&shared.join("models/stories260k")).unwrap();
    let dir = shared.join("models/stories260k-f16-sharded");
    let shards = Checkpoint::open(&dir).unwrap();
    let shapes = ModelConfig::from_dir(&dir).unwrap().tensor_shapes();
    for checkpoint in [&whole, &shards] {
        checkpoint.check_names(&shapes).unwrap();
    }
    for (name, shape) in shapes {
        let (a, b) = (whole.read_f32(&name, &shape).unwrap(), shards.read_f32(&name, &shape).unwrap());
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(half::f16::from_f32(*a).to_f32().to_bits(), b.to_bits(), "{name}");
        }
    }
}

#[test]
fn pickles_are_refused_and_empty_directories_named() {
    let dir = Dir::new();
    assert_error(dir.open(), &["model.safetensors", "directory"]);
    dir.file("training_args.bin", "x");
    assert_error(dir.open(), &["neither"]);
    for name in ["pytorch_model.bin", "consolidated.00.pth", "model.pt"] {
        let dir = Dir::new();
        dir.file(name, "x");
        assert_error(dir.open(), &[name, "pickle", "run any code", "safetensors"]);
    }
    assert_error(Checkpoint::open(Path::new("/no/such/place")), &["/no/such/place"]);
}

#[test]
fn hostile_indexes() {
    let missing = sharded();
    std::fs::remove_file(missing.0.path().join("m-2.safetensors")).unwrap();
    assert_error(missing.open(), &["m-2.safetensors", "index.json", "`weight_map.c`"]);

    let lying = sharded();
    lying.index(&json!({"a": "m-1.safetensors", "zz": "m-2.safetensors"}));
    assert_error(lying.open(), &["`zz`", "missing", "m-2.safetensors"]);

    for shard in [
        "../m-1.safetensors",
        "/etc/passwd",
        "..",
        "",
        "sub/m.safetensors",
        "c:m.safetensors",
        "m-1.bin",
        "a\0.safetensors",
    ] {
        let dir = sharded();
        dir.index(&json!({"a": shard}));
        assert_error(dir.open(), &["weight_map.a", "plain name"]);
    }
    let number = sharded();
    number.index(&json!({"a": 3}));
    assert_error(number.open(), &["weight_map.a", "string"]);
    let null = sharded();
    null.index(&json!({"a": null}));
    assert_error(null.open(), &["weight_map.a"]);
    let absent = sharded();
    absent.file(INDEX, "{}");
    assert_error(absent.open(), &["weight_map", "missing"]);
    let damaged = sharded();
    damaged.file("m-2.safetensors", &counting_file(&[("c", &[1, 2])])[..60]);
    assert_error(damaged.open(), &["m-2.safetensors", "truncated"]);
}

#[test]
fn check_names_tells_what_is_wrong() {
    let expected = |names: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        names.iter().map(|(name, shape)| ((*name).to_string(), shape.to_vec())).collect()
    };
    let checkpoint = sharded().open().unwrap();
    checkpoint.check_names(&expected(&[("a", &[2, 2]), ("b", &[3]), ("c", &[1, 2])])).unwrap();
    let wrong = checkpoint.check_names(&expected(&[("a", &[2, 2]), ("b", &[4]), ("c", &[1, 2])]));
    assert_error(wrong, &["`b`", "[3]", "[4]", "m-1.safetensors"]);
    let wrong = checkpoint.check_names(&expected(&[("a", &[2, 2]), ("d", &[4]), ("c", &[1, 2])]));
    assert_error(wrong, &["1 missing (`d`)", "1 unexpected (`b`)"]);
    let many: Vec<_> = (0..9).map(|i| (format!("t{i}"), vec![1])).collect();
    assert_error(
        checkpoint.check_names(&many),
        &["9 missing (`t0`, `t1`, `t2`, `t3`, `t4`, ...)", "3 unexpected"],
    );
}

#[test]
fn a_tensor_that_the_index_forgot_is_unexpected() {
    let dir = sharded();
    dir.index(&json!({"a": "m-1.safetensors", "c": "m-2.safetensors"}));
    let expected = [("a".to_string(), vec![2, 2]), ("c".to_string(), vec![1, 2])];
    assert_error(dir.open().unwrap().check_names(&expected), &["1 unexpected (`b`)"]);
}

#[test]
fn derived_and_tied_tensors_are_ignored() {
    let dir = Dir::new();
    let old = "model.layers.0.self_attn.rotary_emb.inv_freq";
    dir.file(SINGLE, counting_file(&[("a", &[2]), (old, &[4]), ("lm_head.weight", &[2])]));
    let checkpoint = dir.open().unwrap();
    checkpoint.check_names(&[("a".into(), vec![2])]).unwrap();
    checkpoint.check_names(&[("a".into(), vec![2]), ("lm_head.weight".into(), vec![2])]).unwrap();
    let wrong = checkpoint.check_names(&[("a".into(), vec![2]), ("lm_head.weight".into(), vec![3])]);
    assert_error(wrong, &["`lm_head.weight`"]);
}

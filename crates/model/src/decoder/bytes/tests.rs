use std::fs;

use serde_json::json;
use tunesmith_ops::{Kernels as _, RefKernels};

use super::*;
use crate::Checkpoint;
use crate::decoder::workspace::{AttentionTape, MlpTape, Scratch, Tape};
use crate::decoder::{Decoder, Workspace};
use crate::peft::LoraConfig;
use crate::test_support::{counting_file, shared};

/// Bytes of all buffers of a list. Each is named, so that a new one cannot be forgotten.
fn sum<const N: usize>(buffers: [&Vec<f32>; N]) -> u64 {
    buffers.iter().map(|b| 4 * b.len() as u64).sum()
}

fn of_attention(tape: &AttentionTape<RefKernels>) -> u64 {
    let AttentionTape { rstd, s_qkv, qkv, out, s_o, lse } = tape;
    sum([rstd, s_qkv, qkv, out, s_o, lse])
}

fn of_mlp(tape: &MlpTape<RefKernels>) -> u64 {
    let MlpTape { rstd, s_gate_up, gate_up, s_down } = tape;
    sum([rstd, s_gate_up, gate_up, s_down])
}

fn of_workspace(workspace: &Workspace<RefKernels>) -> u64 {
    let Workspace { tapes, scratch, hidden, normed, rstd, dx, dx_rows, losses, .. } = workspace;
    let tape = |Tape { input, attention, middle, mlp }: &Tape<RefKernels>| {
        let optional = attention.as_ref().map_or(0, of_attention) + mlp.as_ref().map_or(0, of_mlp);
        sum([input]) + optional + middle.as_ref().map_or(0, |m| sum([m]))
    };
    let Scratch { group, xn, h, q, dq, dqkv, d_attention, dh, dxn, attention, middle, mlp } = scratch;
    let shared = sum([&group.ds, &group.dropped, &group.part, xn, h, q, dq, dqkv, d_attention, dh, dxn]);
    let again = attention.as_ref().map_or(0, of_attention)
        + mlp.as_ref().map_or(0, of_mlp)
        + middle.as_ref().map_or(0, |m| sum([m]));
    tapes.iter().map(tape).sum::<u64>() + shared + again + sum([hidden, normed, rstd, dx, dx_rows, losses])
}

#[test]
fn the_workspaces_of_the_cpu_have_the_bytes_that_the_arithmetic_says() {
    let dir = tempfile::tempdir().unwrap();
    let text = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 19, "hidden_size": 12, "intermediate_size": 20,
        "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6,
        "rms_norm_eps": 1e-5,
    });
    fs::write(dir.path().join("config.json"), text.to_string()).unwrap();
    let config = ModelConfig::from_dir(dir.path()).unwrap();
    let shapes = config.tensor_shapes();
    let tensors: Vec<(&str, &[usize])> = shapes.iter().map(|(n, s)| (n.as_str(), s.as_slice())).collect();
    fs::write(dir.path().join("model.safetensors"), counting_file(&tensors)).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let lora = LoraConfig { r: 5, ..LoraConfig::default() };
    let layout = AdapterLayout::new(&config, &lora.resolve(3).unwrap());
    let footprint = Footprint::new(&config, &layout, RefKernels.storage());
    let decoder = Decoder::load(RefKernels, config, &checkpoint, Some(&lora), &mut |_, _| ()).unwrap();

    let mut weights = sum([&decoder.embedding, &decoder.norm, decoder.head.as_ref().unwrap()]);
    for block in &decoder.blocks {
        weights += sum([&block.norm1, &block.norm2]);
        weights += block.groups().iter().map(|g| sum([g.weights()])).sum::<u64>();
    }
    assert_eq!(weights, footprint.weights().total());
    assert_eq!(sum([&decoder.parameters]), footprint.parameters());
    for keep in [[Keep::All; 3], [Keep::NoMlp; 3], [Keep::All, Keep::Residuals, Keep::Input]] {
        for (tokens, dropout) in [(1, true), (37, false)] {
            let workspace = decoder.training_workspace(tokens, &keep, dropout).unwrap();
            assert_eq!(of_workspace(&workspace), footprint.training(tokens, &keep, dropout), "{keep:?}");
        }
    }
    assert_eq!(of_workspace(&decoder.evaluation_workspace(9).unwrap()), footprint.evaluation(9));
}

/// A model of the shared configurations with rank 16 on all linears, on a device.
fn known(name: &str) -> Option<Footprint> {
    let config = ModelConfig::from_dir(&shared()?.join("configs").join(name)).unwrap();
    let sites = LoraConfig::default().resolve(config.num_hidden_layers).unwrap();
    Some(Footprint::new(&config, &AdapterLayout::new(&config, &sites), Storage::DEVICE))
}

/// The table of peaks that was worked out by hand before this existed, in GB, for batches of 2,048 tokens each: bf16, no
/// recomputation, gate and up again, all but the input again. It has 0.6 GB of context and 4,096 rows of logits, and 20
/// bytes for each LoRA parameter, where 4 are those of the bf16 copies, which are counted with the weights here.
#[test]
fn the_table_of_peaks_holds_within_four_percent() {
    /// Batches, each with its peak for each way.
    type Table = [(usize, [f64; 3]); 5];
    let tables: [(&str, Table); 2] = [
        (
            "Mistral-7B-v0.1",
            [
                (1, [22.9, 19.1, 17.2]),
                (2, [29.6, 22.1, 18.3]),
                (4, [42.8, 27.8, 20.2]),
                (8, [69.3, 39.2, 24.0]),
                (16, [122.1, 62.0, 31.6]),
            ],
        ),
        (
            "Meta-Llama-3-8B",
            [
                (1, [24.9, 21.1, 19.2]),
                (2, [32.0, 24.5, 20.7]),
                (4, [45.2, 30.2, 22.6]),
                (8, [71.6, 41.6, 26.4]),
                (16, [124.5, 64.4, 33.9]),
            ],
        ),
    ];
    for (name, table) in tables {
        let Some(footprint) = known(name) else { return };
        for (batch, peaks) in table {
            let tokens = batch * 2048;
            for (keep, want) in [Keep::All, Keep::NoMlp, Keep::Input].into_iter().zip(peaks) {
                let fixed = footprint.weights().total() + footprint.parameters() + footprint.states();
                let calls = footprint.calls(tokens, 2048, false);
                let logits = footprint.storage().logits_bytes(&calls);
                let all = fixed + footprint.training(tokens, &vec![keep; footprint.layers()], false) + logits;
                let got = all as f64 / 1e9 + 0.6;
                assert!(
                    (got / want - 1.0).abs() < 0.04,
                    "{name}, {tokens} tokens, {keep:?}: {got:.1} GB, not {want}"
                );
            }
        }
    }
}

#[test]
fn what_a_block_keeps_and_computes_again_is_what_was_worked_out_by_hand() {
    let Some(footprint) = known("Meta-Llama-3-8B") else { return };
    // MB and GFLOP for each token of 2,048-token documents, 32 blocks.
    let keys = 2049.0 / 2.0;
    for (keep, megabytes, gflop) in [
        (Keep::All, 3.03, 0.0),
        (Keep::NoMlp, 1.19, 7.5),
        (Keep::Residuals, 0.52, 9.7),
        (Keep::Input, 0.26, 10.7),
    ] {
        let kept = 32.0 * footprint.kept(1, keep) as f64 / 1e6;
        assert!((kept / megabytes - 1.0).abs() < 0.02, "{keep:?}: {kept:.2} MB");
        let again = (0..32).map(|layer| footprint.again_flops(layer, keep, keys)).sum::<f64>() / 1e9;
        assert!((again - gflop).abs() <= 0.04 * gflop, "{keep:?}: {again:.2} GFLOP");
    }
    for (name, gflop) in [("Mistral-7B-v0.1", 30.5), ("Meta-Llama-3-8B", 32.1)] {
        let all = known(name).unwrap().training_flops(keys) / 1e9;
        assert!((all / gflop - 1.0).abs() < 0.03, "{name}: {all:.2} GFLOP");
    }
}

#[test]
fn blocks_below_the_lowest_update_compute_nothing_again() {
    let Some(whole) = known("Llama-3.2-1B") else { return };
    let config = whole.config.clone();
    let lora =
        LoraConfig { layers_to_transform: serde_json::from_str("[9, 12]").unwrap(), ..LoraConfig::default() };
    let layout = AdapterLayout::new(&config, &lora.resolve(config.num_hidden_layers).unwrap());
    let footprint = Footprint::new(&config, &layout, Storage::DEVICE);
    assert_eq!(footprint.first_trained(), Some(9));
    assert_eq!(footprint.again_flops(8, Keep::Input, 100.0), 0.0);
    assert!(footprint.again_flops(9, Keep::Input, 100.0) > 0.0);
    assert!(footprint.training_flops(100.0) < 0.8 * whole.training_flops(100.0));
}

//! A training step with every operation timed: the step that it is without, and all of its operations, on the CPU and on
//! a device.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use tunesmith_data::{Example, Place};
use tunesmith_emulator::backends;
use tunesmith_model::peft::LoraConfig;
use tunesmith_model::{Decoder, ModelConfig, WeightSource};
use tunesmith_ops::{DeviceKernels, Kernels, Phase, RefKernels, Timed};
use tunesmith_train::{StepOutcome, TrainConfig, Trainer};

fn trainer<K: Kernels>(k: K) -> Trainer<K> {
    let config = ModelConfig {
        vocab_size: 40,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        ..ModelConfig::named("tiny").unwrap()
    };
    let lora = LoraConfig { r: 2, ..LoraConfig::default() };
    let weights = WeightSource::Random { seed: 3, std: 0.2 };
    let mut decoder = Decoder::load(k, config, weights, Some(&lora), &mut |_, _| ()).unwrap();
    decoder.initialize(5).unwrap();
    let settings = TrainConfig { batch_size: 2, micro_batch_size: 2, ..TrainConfig::default() };
    Trainer::for_lengths(decoder, &settings, 0.0, [9, 6]).unwrap()
}

fn rows() -> Vec<Example> {
    let row = |(line, n): (usize, usize)| Example {
        ids: (0..n as u32).map(|i| (i * 7 + 3) % 40).collect(),
        trained: (0..n).map(|t| t > 0).collect(),
        place: Place::line(line),
    };
    [(1, 9), (2, 6)].map(row).to_vec()
}

fn steps<K: Kernels>(trainer: &mut Trainer<K>) -> Vec<StepOutcome> {
    let rows = rows();
    let rows: Vec<&Example> = rows.iter().collect();
    (0..3).map(|_| trainer.step(&rows, 1e-3).unwrap()).collect()
}

fn timed_and_not<K: Kernels>(plain: K, timed: K) {
    let want = steps(&mut trainer(plain));
    let mut trainer = trainer(Timed::new(timed));
    trainer.decoder().kernels().start().unwrap();
    assert_eq!(steps(&mut trainer), want);
    let times = trainer.decoder().kernels().stop().unwrap();
    let calls = |phase, op| {
        times.ops.iter().filter(|o| (o.phase, o.op) == (phase, op)).map(|o| o.calls).sum::<usize>()
    };
    // Of two blocks, three times.
    for (phase, op, each) in [
        (Phase::Forward, "embed", 1),
        (Phase::Forward, "attention", 2),
        (Phase::Forward, "rms_norm", 5),
        (Phase::Head, "linear_cross_entropy", 1),
        (Phase::Backward, "attention_backward", 2),
        (Phase::Backward, "swiglu_backward", 2),
        (Phase::Update, "clip_and_update", 1),
        (Phase::Update, "clear_full", 1),
    ] {
        assert_eq!(calls(phase, op), 3 * each, "{phase:?} {op} in {times:?}");
    }
    // A device pads the batch, and then the last block's residual goes another way.
    assert!(calls(Phase::Forward, "gemm_onto") >= 3 * 3, "{times:?}");
    assert!(calls(Phase::Backward, "gemm_full") > 0 && calls(Phase::Backward, "embed") == 0);
    assert!(times.ops.iter().map(|o| o.time).sum::<Duration>() <= times.total);
}

#[test]
fn a_timed_step_is_the_step_that_it_is_without() {
    timed_and_not(RefKernels, RefKernels);
    backends!(|d| {
        let d = std::sync::Arc::new(d);
        timed_and_not(DeviceKernels::shared(d.clone()), DeviceKernels::shared(d.clone()));
    });
}

//! The oracle on tiny shapes: its gradients against differences of its loss, and what must not matter.

#![cfg(feature = "oracle")]
#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it inside test functions; helpers of tests are the same"
)]

use tunesmith_testkit::adapter::LoraModule;
use tunesmith_testkit::cases::Batch;
use tunesmith_testkit::oracle::{Oracle, Precision};
use tunesmith_testkit::spec::{Family, ModelSpec, RopeScaling};
use tunesmith_testkit::tensors::{assert_close, assert_close_to_max};
use tunesmith_testkit::tiny;

const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn specs() -> Vec<ModelSpec> {
    let llama3 = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16.0,
    };
    vec![
        ModelSpec { rope_scaling: Some(llama3), tie_word_embeddings: true, ..ModelSpec::tiny() },
        ModelSpec { family: Family::Mistral, sliding_window: Some(4), head_dim: 10, ..ModelSpec::tiny() },
    ]
}

fn oracle(spec: &ModelSpec) -> Oracle {
    Oracle::new(spec.clone(), &tiny::weights(spec, 5).unwrap(), Precision::F64).unwrap()
}

/// Moves every element of A and B of one module along a random direction and compares the slope of the loss.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for spec in specs() {
        let oracle = oracle(&spec);
        let batch = tiny::batch(&spec, 2, 11, 9);
        let lora = tiny::lora(&spec, &TARGETS, 3, 6.0, 2).unwrap();
        let out = oracle.run(&lora, &batch).unwrap();
        for (index, module) in lora.iter().enumerate() {
            let mut random = tiny::Random::new(index as u64);
            for (name, of_a) in [(module.name_a(), true), (module.name_b(), false)] {
                let values = |m: &LoraModule| if of_a { m.a.data.clone() } else { m.b.data.clone() };
                let direction: Vec<f32> = values(module).iter().map(|_| random.normal() as f32).collect();
                let mut ends = Vec::new();
                for step in [1e-4_f32, -1e-4] {
                    let mut moved = lora.clone();
                    let target = if of_a { &mut moved[index].a.data } else { &mut moved[index].b.data };
                    target.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
                    ends.push((oracle.run(&moved, &batch).unwrap().loss, values(&moved[index])));
                }
                // The steps were rounded to f32, so the slope is taken along what was really moved.
                let moved = ends[0].1.iter().zip(&ends[1].1).map(|(p, m)| f64::from(*p) - f64::from(*m));
                let expected: f64 =
                    out.grads[&name].data.iter().zip(moved).map(|(g, d)| f64::from(*g) * d).sum();
                let seen = ends[0].0 - ends[1].0;
                let size =
                    2e-3 * out.grads[&name].data.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                assert!(
                    (seen - expected).abs() < 1e-4 * size,
                    "{name}: {seen:e} is not {expected:e} ({size:e})"
                );
            }
        }
    }
}

#[test]
fn both_precisions_agree() {
    for spec in specs() {
        let weights = tiny::weights(&spec, 5).unwrap();
        let batch = tiny::batch(&spec, 3, 12, 4);
        let lora = tiny::lora(&spec, &["k_proj", "o_proj", "up_proj"], 4, 4.0, 2).unwrap();
        let run = |p| Oracle::new(spec.clone(), &weights, p).unwrap().run(&lora, &batch).unwrap();
        let (single, double) = (run(Precision::F32), run(Precision::F64));
        assert_close("logits", &single.logits, &double.logits, 1e-4).unwrap();
        assert_eq!(single.grads.len(), 6 * spec.num_hidden_layers);
        for (name, want) in &double.grads {
            assert_close_to_max(name, &single.grads[name].data, &want.data, 1e-4).unwrap();
        }
    }
}

/// A row alone, without its padding, gives what it gave within the padded batch.
#[test]
fn padding_and_neighbours_do_not_matter() {
    for spec in specs() {
        let oracle = oracle(&spec);
        let batch = tiny::batch(&spec, 3, 13, 6);
        let lora = tiny::lora(&spec, &TARGETS, 2, 4.0, 3).unwrap();
        let whole = oracle.run(&lora, &batch).unwrap();
        let mut loss = 0.0;
        for row in 0..batch.rows {
            let start = row * batch.len;
            let len = batch.attention_mask[start..start + batch.len].iter().sum::<i64>() as usize;
            let part = |all: &[i64]| all[start..start + len].to_vec();
            let alone = Batch {
                rows: 1,
                len,
                input_ids: part(&batch.input_ids),
                attention_mask: part(&batch.attention_mask),
                labels: part(&batch.labels),
            };
            let out = oracle.run(&lora, &alone).unwrap();
            let from = start * spec.vocab_size;
            let want = &whole.logits[from..from + len * spec.vocab_size];
            assert_close(&format!("row {row}"), &out.logits, want, 1e-5).unwrap();
            loss += out.loss * out.label_tokens as f64;
        }
        assert!((loss / whole.label_tokens as f64 - whole.loss).abs() < 1e-9);
    }
}

/// A change of token 0 reaches the logits of position i in a model of L layers only while i <= L (W - 1).
#[test]
fn the_window_ends_where_it_should() {
    let spec = ModelSpec {
        family: Family::Mistral,
        sliding_window: Some(4),
        num_hidden_layers: 2,
        ..ModelSpec::tiny()
    };
    let oracle = oracle(&spec);
    let batch = tiny::batch(&spec, 1, 16, 6);
    let mut other = batch.clone();
    other.input_ids[0] = if batch.input_ids[0] == 3 { 4 } else { 3 };
    let (one, two) = (oracle.run(&[], &batch).unwrap(), oracle.run(&[], &other).unwrap());
    for position in 0..batch.len {
        let range = position * spec.vocab_size..(position + 1) * spec.vocab_size;
        let same = one.logits[range.clone()] == two.logits[range];
        assert_eq!(same, position > 2 * 3, "position {position}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let spec = ModelSpec::tiny();
    let batch = tiny::batch(&spec, 1, 8, 1);
    let mut weights = tiny::weights(&spec, 5).unwrap();
    let mut lora = tiny::lora(&spec, &["v_proj"], 2, 4.0, 3).unwrap();
    lora[1].module = "model.layers.7.self_attn.v_proj".to_owned();
    let message = oracle(&spec).run(&lora, &batch).unwrap_err().to_string();
    assert!(message.contains("layers.7"), "{message}");
    weights.remove("model.layers.1.mlp.up_proj.weight");
    let lacking = Oracle::new(spec, &weights, Precision::F32).unwrap();
    let message = lacking.run(&[], &batch).unwrap_err().to_string();
    assert!(message.contains("model.layers.1.mlp.up_proj.weight"), "{message}");
}

#[test]
fn without_labels_there_is_no_loss_and_no_gradient() {
    let spec = ModelSpec::tiny();
    let mut batch = tiny::batch(&spec, 1, 8, 1);
    // A label on the first token is predicted by nothing.
    batch.labels = vec![-100; 8];
    batch.labels[0] = 5;
    let lora = tiny::lora(&spec, &["v_proj"], 2, 4.0, 3).unwrap();
    let out = oracle(&spec).run(&lora, &batch).unwrap();
    assert_eq!((out.label_tokens, out.grads.len()), (0, 0));
}

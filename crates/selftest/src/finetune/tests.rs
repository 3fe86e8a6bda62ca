//! The stored numbers against a decoder over candle's autograd in f64 (`testkit`), with clipping and AdamW written out:
//! nothing of it is shared with what the numbers were recorded by.

use tunesmith_model::AdapterLayout;
use tunesmith_ops::AdamW;
use tunesmith_testkit::adapter::LoraModule;
use tunesmith_testkit::cases;
use tunesmith_testkit::oracle::{Oracle, Precision};
use tunesmith_testkit::spec::{Family, ModelSpec};
use tunesmith_testkit::tensors::{Tensor, Tensors};

use super::*;
use crate::reference::optimizer::State;

/// Steps that autograd has the time for.
const FIRST: usize = 8;

fn spec() -> ModelSpec {
    let c = config();
    ModelSpec {
        family: Family::Llama,
        vocab_size: c.vocab_size,
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        num_hidden_layers: c.num_hidden_layers,
        num_attention_heads: c.num_attention_heads,
        num_key_value_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: c.rope.theta,
        rope_scaling: None,
        sliding_window: None,
        tie_word_embeddings: false,
    }
}

/// The documents as padded rows.
fn padded() -> cases::Batch {
    let examples = examples();
    let len = examples.iter().map(|e| e.ids.len()).max().unwrap();
    let row = |e: &Example, pad: i64, value: &dyn Fn(usize) -> i64| -> Vec<i64> {
        (0..len).map(|t| if t < e.ids.len() { value(t) } else { pad }).collect()
    };
    let rows = |pad, value: &dyn Fn(&Example, usize) -> i64| {
        examples.iter().flat_map(|e| row(e, pad, &|t| value(e, t))).collect()
    };
    cases::Batch {
        rows: examples.len(),
        len,
        input_ids: rows(0, &|e, t| i64::from(e.ids[t])),
        attention_mask: rows(0, &|_, _| 1),
        labels: rows(-100, &|e, t| if e.trained[t] { i64::from(e.ids[t]) } else { -100 }),
    }
}

#[test]
fn the_stored_numbers_are_those_of_autograd() {
    let tensors: Tensors = weights(&config())
        .into_iter()
        .map(|(name, shape, values)| (name, Tensor::new(shape, values).unwrap()))
        .collect();
    let oracle = Oracle::new(spec(), &tensors, Precision::F64).unwrap();
    let batch = padded();
    let layout = AdapterLayout::new(&config(), &lora().resolve(config().num_hidden_layers).unwrap());
    let initial = layout.initial(1);
    let mut states: Vec<(String, Vec<usize>, State)> = layout
        .tensors(&initial)
        .into_iter()
        .map(|t| (t.key, t.shape.to_vec(), State::new(t.values)))
        .collect();
    for (step, (loss, norm)) in RECORDED.into_iter().take(FIRST).enumerate() {
        let tensor = |at: usize| {
            let (_, shape, state) = &states[at];
            Tensor::new(shape.clone(), state.p.iter().map(|&p| p as f32).collect()).unwrap()
        };
        let modules: Vec<LoraModule> = (0..states.len())
            .step_by(2)
            .map(|at| {
                let module = states[at].0.trim_start_matches("base_model.model.");
                let module = module.trim_end_matches(".lora_A.weight").to_owned();
                LoraModule { module, a: tensor(at), b: tensor(at + 1), scale: 2.0 }
            })
            .collect();
        let out = oracle.run(&modules, &batch).unwrap();
        let squares: f64 =
            out.grads.values().flat_map(|t| &t.data).map(|&g| f64::from(g) * f64::from(g)).sum();
        let own = squares.sqrt();
        assert!((out.loss - loss).abs() < 2e-5, "step {}: loss {} for {loss}", step + 1, out.loss);
        assert!((own / norm - 1.0).abs() < 1e-4, "step {}: norm {own} for {norm}", step + 1);
        let how = AdamW {
            lr: RATE,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step: step as u64 + 1,
            grad_scale: (CLIP / (own + 1e-6)).min(1.0) as f32,
        };
        for (key, _, state) in &mut states {
            state.step(how, &out.grads[key.as_str()].data);
        }
    }
}

/// The run is one that says something: gradients are clipped in some steps and not in others, the loss falls at every
/// step but a few, micro-batches are several and hold several documents.
#[test]
fn the_run_covers_what_it_should() {
    let clipped = RECORDED.iter().filter(|(_, norm)| *norm > CLIP).count();
    assert!(clipped > 0 && clipped < STEPS, "{clipped} steps are clipped");
    let falls = RECORDED.windows(2).filter(|pair| pair[1].0 < pair[0].0).count();
    assert!(falls >= STEPS - 4, "the loss falls in {falls} steps");
    assert!(RECORDED[0].0 - RECORDED[STEPS - 1].0 > FALL + 0.5);
    const { assert!(DOCUMENTS > 2 * MICRO && MICRO > 1) };
    let lengths: Vec<usize> = examples().iter().map(|e| e.ids.len()).collect();
    assert!(lengths.contains(&3) || lengths.iter().min().is_some_and(|&n| n < 8), "{lengths:?}");
    assert!(examples()[0].ids.len() > PROMPT, "{lengths:?}");
}

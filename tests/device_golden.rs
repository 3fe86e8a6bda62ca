//! The goldens of `golden.rs`, which transformers and PEFT have made in f32, through the device's kernels: on the emulator, and
//! with feature `cuda` on a GPU where one is.
//!
//! The device stores activations and frozen weights as bf16, so the goldens' own tolerances are out of reach. How far bf16 takes a
//! given model from its golden is measured beside it: by the CPU's kernels with everything stored rounded. A device may be
//! no further from the golden than a small multiple of that. The emulator does the smallest cases and the beginning of
//! their records, a GPU all of all of them.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests")]

mod common;

use std::any::TypeId;
use std::path::Path;
use std::sync::Arc;

use common::rounded::Rounded;
use common::{examples, load_on, loss_and_gradients, mean, named, padded_logits, with_adapter_on};
use tunesmith_data::Example;
use tunesmith_emulator::{Emulator, backends, check};
use tunesmith_kernels::gpu::Driver;
use tunesmith_model::{Decoder, Keep};
use tunesmith_ops::{DeviceKernels, Kernels, RefKernels};
use tunesmith_testkit::cases::{self, Case};
use tunesmith_testkit::records::{Continuation, TrainRun};
use tunesmith_testkit::tensors::{Tensors, read_tensors};
use tunesmith_train::{LrScheduler, TrainConfig, Trainer};

/// How often what rounding costs the CPU it may cost a device, which also rounds inside operations.
const ROUNDINGS: f64 = 3.0;
/// Largest distance of a mean loss from the golden, in nats, where rounding costs less than a third of it.
const LOSS: f64 = 5e-3;
/// The same of a gradient norm, relative.
const NORM: f64 = 0.01;
/// Largest model that the emulator runs, in bytes of its file.
const SMALL: u64 = 450_000;

/// The cases, each name once, and whether the emulator runs them.
fn all_cases() -> Vec<(Case, bool)> {
    let found = cases::find().unwrap();
    if let Some(notice) = &found.notice {
        eprintln!("{notice}");
    }
    let mut out: Vec<(Case, bool)> = Vec::new();
    for case in found.cases {
        // The committed ones are a part of the reference's, where that is there.
        if out.iter().all(|(other, _)| other.name != case.name) {
            let size =
                case.model_dir.join("model.safetensors").metadata().map_or(u64::MAX, |file| file.len());
            out.push((case, size <= SMALL));
        }
    }
    assert!(
        out.iter().any(|(_, small)| *small) || tunesmith_emulator::gpu_alone(),
        "no case for the emulator"
    );
    out
}

/// Whether a device is slow, and does a part of the work only.
fn is_slow<D: Driver>(_: &D) -> bool {
    TypeId::of::<D>() == TypeId::of::<Emulator>()
}

fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    let want: Vec<f64> = want.iter().copied().map(f64::from).collect();
    check::relative_l2(got, &want)
}

/// Holds a device's values to their golden, by what rounding costs; returns how many times that cost they are away.
fn hold(what: &str, got: &[f32], near: &[f32], golden: &[f32]) -> f64 {
    let (far, rounding) = (relative_l2(got, golden), relative_l2(near, golden));
    assert!(
        far <= ROUNDINGS * rounding,
        "{what}: {far:.2e} from the golden, where rounding costs {rounding:.2e}"
    );
    far / rounding
}

/// The same of a number, which rounding may leave all but untouched by chance.
fn hold_number(what: &str, got: f64, near: f64, golden: f64, least: f64) {
    let allowed = least.max(ROUNDINGS * (near - golden).abs());
    assert!(
        (got - golden).abs() <= allowed,
        "{what}: {got}, where the golden is {golden} and rounding gives {near}"
    );
}

/// Logits of the first micro-batch where they count, the losses there, and the gradients.
#[derive(Debug)]
struct Values {
    /// `base`, `lora`, `merged`, `final`, as far as they are recorded.
    logits: Vec<(&'static str, Vec<f32>)>,
    /// Of the base and of the adapter.
    losses: [f64; 2],
    gradients: Tensors,
}

/// `values [B, T, V]` at the positions that are no padding; `want` may have fewer rows.
fn counted(values: &[f32], mask: &[i64], want: usize) -> Vec<f32> {
    let vocab = values.len() / mask.len();
    let rows = values[..want].chunks_exact(vocab).zip(mask);
    rows.filter(|(_, mask)| **mask == 1).flat_map(|(row, _)| row).copied().collect()
}

fn values<K: Kernels>(kernels: impl Fn() -> K, case: &Case) -> Values {
    let batch = case.batches().unwrap().get(0).unwrap();
    let forward = case.forward().unwrap().unwrap();
    let rows = examples(&batch, 1);
    let mut logits = Vec::new();
    let mut take = |engine: &mut Decoder<K>, which: &'static str, key: &str| {
        let want = forward[key].data.len();
        logits.push((which, counted(&padded_logits(engine, &batch), &batch.attention_mask, want)));
    };
    let mut base = load_on(kernels(), &case.model_dir, None);
    take(&mut base, "base", "base_logits");
    let base_loss = mean(&evaluation(&mut base, &rows));
    let mut lora = with_adapter_on(kernels(), &case.model_dir, &case.adapter_init());
    take(&mut lora, "lora", "lora_logits");
    let (losses, flat) = loss_and_gradients(&mut lora, &rows, Keep::All);
    let gradients = named(lora.layout(), &flat);
    lora.merge_adapter().unwrap();
    take(&mut lora, "merged", "merged_logits");
    if let Some(folder) = case.token_mean().unwrap().and_then(|run| run.final_adapter) {
        take(&mut with_adapter_on(kernels(), &case.model_dir, &folder), "final", "final_logits");
    }
    let trained = rows.iter().map(Example::trained_tokens).sum();
    Values { logits, losses: [base_loss, mean(&losses[..trained])], gradients }
}

fn evaluation<K: Kernels>(engine: &mut Decoder<K>, rows: &[Example]) -> Vec<f32> {
    let batch = common::training_batch(rows);
    engine.prepare_positions(rows.iter().map(|row| row.ids.len()).max().unwrap());
    let mut workspace = engine.evaluation_workspace(batch.tokens()).unwrap();
    engine.losses(&mut workspace, &batch).unwrap()
}

/// Holds all of a case that is one forward and backward pass to its golden values.
fn check_values<K: Kernels>(kernels: impl Fn() -> K, case: &Case) {
    let (Some(forward), Some(scalars), Some(grads)) =
        (case.forward().unwrap(), case.scalars().unwrap(), case.grads().unwrap())
    else {
        return;
    };
    let mask = case.batches().unwrap().get(0).unwrap().attention_mask;
    let (near, got) = (values(|| Rounded, case), values(kernels, case));
    let mut worst = 0f64;
    for ((which, got), (_, near)) in got.logits.iter().zip(&near.logits) {
        let want = &forward[&format!("{which}_logits")].data;
        let golden = counted(&padded_to(want, &mask), &mask, want.len());
        worst = worst.max(hold(&format!("{}: {which} logits", case.name), got, near, &golden));
    }
    for (i, golden) in [scalars.base_loss, scalars.lora_loss].into_iter().enumerate() {
        let what = format!("{}: loss {i}", case.name);
        hold_number(&what, got.losses[i], near.losses[i], golden, LOSS);
    }
    assert_eq!(got.gradients.len(), grads.len());
    for (name, golden) in &grads {
        let (got, near) = (&got.gradients[name].data, &near.gradients[name].data);
        worst = worst.max(hold(&format!("{}: gradient of {name}", case.name), got, near, &golden.data));
    }
    eprintln!("golden: {}: logits and gradients at most {worst:.2} roundings away", case.name);
}

#[test]
fn logits_losses_and_gradients_are_as_near_as_bf16_allows() {
    for (case, small) in all_cases() {
        backends!([1], |d| {
            if small || !is_slow(&d) {
                let d = Arc::new(d);
                check_values(|| DeviceKernels::shared(Arc::clone(&d)), &case);
            }
        });
    }
}

/// The values with rows of zeros behind them, up to as many as the mask has.
fn padded_to(values: &[f32], mask: &[i64]) -> Vec<f32> {
    // A variant may have recorded the first rows alone: then the length of a row does not follow from the mask.
    let mut out = values.to_vec();
    out.resize(values.len().div_ceil(mask.len()) * mask.len(), 0.0);
    out
}

/// Loss and gradient norm of each step, and the adapter after the last.
type Steps = (Vec<(f64, f64)>, Tensors);

fn steps<K: Kernels>(k: K, case: &Case, run: &TrainRun, limit: usize) -> Steps {
    let (batches, c) = (case.batches().unwrap(), &run.config);
    let config = TrainConfig {
        learning_rate: c.lr,
        weight_decay: c.weight_decay,
        adam_beta1: c.betas[0],
        adam_beta2: c.betas[1],
        adam_epsilon: c.eps,
        max_grad_norm: c.max_grad_norm,
        batch_size: batches.rows * c.accumulation,
        micro_batch_size: batches.rows,
        lr_scheduler_type: LrScheduler::Cosine,
        ..TrainConfig::default()
    };
    let needed = (limit * c.accumulation).min(batches.count);
    let micro: Vec<Vec<Example>> =
        (0..needed).map(|n| examples(&batches.get(n).unwrap(), n * batches.rows + 1)).collect();
    let engine = with_adapter_on(k, &case.model_dir, &case.adapter_init());
    let mut trainer = Trainer::new(engine, &config, 0.0, micro.iter().flatten()).unwrap();
    let done = run.steps.iter().take(limit).enumerate().map(|(k, record)| {
        let rows: Vec<&Example> =
            micro[k * c.accumulation..(k + 1) * c.accumulation].iter().flatten().collect();
        // The recorded rates: `golden.rs` compares the schedule with them.
        let step = trainer.step(&rows, record.lr).unwrap();
        (step.loss, step.grad_norm)
    });
    let done = done.collect();
    let decoder = trainer.decoder();
    let adapter = named(decoder.layout(), &decoder.parameters().unwrap());
    (done, adapter)
}

/// Holds the first steps of a case's run, at most `limit`, to the golden ones.
fn check_steps<K: Kernels>(k: K, case: &Case, limit: usize) {
    let Some(run) = case.token_mean().unwrap() else { return };
    let limit = limit.min(run.steps.len());
    let (near, near_adapter) = steps(Rounded, case, &run, limit);
    let (got, adapter) = steps(k, case, &run, limit);
    for ((record, got), near) in run.steps.iter().zip(&got).zip(&near) {
        let what = |of: &str| format!("{}: {of} of step {}", case.name, record.step);
        hold_number(&what("loss"), got.0, near.0, record.loss, LOSS);
        let norm = record.grad_norm_before_clip;
        hold_number(&what("gradient norm"), got.1 / norm, near.1 / norm, 1.0, NORM);
    }
    let last = run.final_adapter.as_ref().filter(|_| limit == run.steps.len());
    let golden = match last {
        Some(dir) => read_tensors(&dir.join("adapter_model.safetensors")).unwrap(),
        // Of steps on the way the f32 engine tells, which `golden.rs` holds to the recorded ones.
        None => steps(RefKernels, case, &run, limit).1,
    };
    assert_eq!(adapter.len(), golden.len());
    let all = |tensors: &Tensors| -> Vec<f32> {
        golden.keys().flat_map(|name| tensors[name].data.clone()).collect()
    };
    let what = format!("{}: adapter", case.name);
    let away = hold(&what, &all(&adapter), &all(&near_adapter), &all(&golden));
    eprintln!("golden: {}: {limit} steps, the adapter {away:.2} roundings away", case.name);
}

#[test]
fn optimizer_steps_follow_the_golden_ones() {
    for (case, small) in all_cases() {
        backends!([1], |d| {
            let slow = is_slow(&d);
            if small || !slow {
                // The first step has rate 0.
                check_steps(DeviceKernels::new(d), &case, if slow { 4 } else { usize::MAX });
            }
        });
    }
}

/// The logits after each token of a recorded continuation but the last, `[new tokens][V]`, the recorded tokens fed whatever
/// they say, from a cache.
fn continued<K: Kernels>(engine: &mut Decoder<K>, want: &Continuation, limit: usize) -> Vec<Vec<f32>> {
    let new = &want.new_ids[..limit.min(want.new_ids.len())];
    let mut cache = engine.cache(want.prompt_ids.len() + new.len(), want.prompt_ids.len()).unwrap();
    let mut out = vec![engine.decode(&mut cache, &want.prompt_ids).unwrap()];
    for id in &new[..new.len() - 1] {
        out.push(engine.decode(&mut cache, &[*id]).unwrap());
    }
    out
}

fn engine_of<K: Kernels>(k: K, case: &Case, adapter: Option<&Path>) -> Decoder<K> {
    match adapter {
        None => load_on(k, &case.model_dir, None),
        Some(folder) => with_adapter_on(k, &case.model_dir, folder),
    }
}

fn largest(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// What the f32 engine says at each token of a continuation: by how much the recorded token leads, and how far rounding
/// moves a logit.
fn leads(want: &Continuation, exact: &[Vec<f32>], near: &[Vec<f32>]) -> Vec<(f32, f32)> {
    let one = |((exact, near), id): ((&Vec<f32>, &Vec<f32>), &u32)| {
        let others = exact.iter().enumerate().filter(|(i, _)| *i != *id as usize).map(|(_, v)| *v);
        let lead = exact[*id as usize] - others.fold(f32::NEG_INFINITY, f32::max);
        let moved = exact.iter().zip(near).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        (lead, moved)
    };
    exact.iter().zip(near).zip(&want.new_ids).map(one).collect()
}

/// Holds the greedy tokens of a case, of so many prompts and so many each, to the golden ones where they are sure.
fn check_tokens<K: Kernels>(kernels: impl Fn() -> K, case: &Case, prompts: usize, tokens: usize) {
    let generations = case.generations().unwrap();
    let trained = case.token_mean().unwrap().and_then(|run| run.final_adapter);
    let adapters = [("base", None), ("adapter_init", Some(case.adapter_init())), ("adapter_final", trained)];
    let (mut sure, mut all) = (0, 0);
    for (kind, folder) in adapters.iter().filter(|(kind, folder)| folder.is_some() || *kind == "base") {
        let folder = folder.as_deref();
        let mut on_device = engine_of(kernels(), case, folder);
        let (mut exact, mut near) = (engine_of(RefKernels, case, folder), engine_of(Rounded, case, folder));
        for want in generations.iter().filter_map(|g| g.by.get(*kind)).take(prompts) {
            let got = continued(&mut on_device, want, tokens);
            let (exact, near) = (continued(&mut exact, want, tokens), continued(&mut near, want, tokens));
            for (i, ((lead, moved), logits)) in leads(want, &exact, &near).iter().zip(&got).enumerate() {
                all += 1;
                // Two logits may move against each other.
                if *lead > 2.0 * ROUNDINGS as f32 * moved {
                    sure += 1;
                    let id = want.new_ids[i];
                    let right = logits[id as usize] >= largest(logits);
                    assert!(right, "{}: {kind}: token {i} is not {id}, which leads by {lead}", case.name);
                }
            }
        }
    }
    eprintln!(
        "golden: {}: {sure} of {all} greedy tokens lead by more than rounding can move, and are right",
        case.name
    );
    assert!(4 * sure >= all, "{}: only {sure} of {all} tokens are sure enough to compare", case.name);
}

#[test]
fn greedy_tokens_are_the_golden_ones_where_the_margin_allows() {
    for (case, small) in all_cases() {
        backends!([1], |d| {
            let slow = is_slow(&d);
            if small || !slow {
                let d = Arc::new(d);
                let (prompts, tokens) = if slow { (1, 12) } else { (usize::MAX, usize::MAX) };
                check_tokens(|| DeviceKernels::shared(Arc::clone(&d)), &case, prompts, tokens);
            }
        });
    }
}

/// What a GPU is asked for is all there and can be met: by the CPU's kernels that round, and by the emulator as far as it gets.
#[test]
#[ignore = "takes minutes: it is for whoever changes what is compared"]
fn the_whole_of_every_case_can_be_held() {
    for (case, small) in all_cases() {
        if small && Emulator::available() {
            check_steps(DeviceKernels::new(Emulator::new(1)), &case, usize::MAX);
            let d = Arc::new(Emulator::new(1));
            check_tokens(|| DeviceKernels::shared(Arc::clone(&d)), &case, usize::MAX, usize::MAX);
        }
        check_values(|| Rounded, &case);
        check_steps(Rounded, &case, usize::MAX);
        check_tokens(|| Rounded, &case, usize::MAX, usize::MAX);
    }
}

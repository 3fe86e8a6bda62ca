//! Training on a device that works behind the host: steps queued ahead, results read late, nothing allocated once it
//! runs, and the same run as on the CPU for whoever looks. On the emulator on x86-64 Linux with g++.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;

use common::rounded::Rounded;
use common::tiny_model::{TARGETS, TinyModel, config};
use common::whole_run;
use tunesmith_data::{Example, Place};
use tunesmith_emulator::{Emulator, Frugal, NEEDS, Record, check, skipped};
use tunesmith_model::peft::LoadedTensor;
use tunesmith_model::{Batch, Checkpoint, Decoder, Document, Keep, ModelConfig};
use tunesmith_ops::{DeviceKernels, Kernels, RefKernels};
use tunesmith_testkit::spec::ModelSpec;
use tunesmith_testkit::tiny::{self, Random};
use tunesmith_train::{
    Epochs, Error, Event, Exact, Observer, ObserverError, RunInput, RunState, Snapshot, StepPoint, Summary,
    TrainConfig, Trainer, epoch_order, train,
};

/// The emulator with one seed: runs are long there, and every kernel has its own tests under several.
macro_rules! emulated {
    (|$d:ident| $run:expr) => {
        if Emulator::available() {
            let $d = Emulator::new(4);
            $run;
        } else {
            skipped(NEEDS);
        }
    };
}

fn spec() -> ModelSpec {
    ModelSpec { hidden_size: 32, head_dim: 8, tie_word_embeddings: false, ..ModelSpec::tiny() }
}

/// A random model whose weights bf16 holds exactly.
fn model() -> TinyModel {
    let mut weights = tiny::weights(&spec(), 5).unwrap();
    weights.values_mut().flat_map(|tensor| &mut tensor.data).for_each(|v| *v = check::round_bf16(*v));
    TinyModel::with_weights(spec(), weights)
}

/// The model on `k` with a random adapter.
fn decoder<K: Kernels>(k: K, model: &TinyModel, targets: &[&str]) -> Decoder<K> {
    let lora = config(targets, 4, 8.0);
    let checkpoint = Checkpoint::open(model.path()).unwrap();
    let base = ModelConfig::from_dir(model.path()).unwrap();
    let mut decoder = Decoder::load(k, base, &checkpoint, Some(&lora), &mut |_, _| ()).unwrap();
    let modules = tiny::lora(&model.spec, targets, 4, 8.0, 17).unwrap();
    let tensors: Vec<LoadedTensor> = modules
        .iter()
        .flat_map(|m| [(m.name_a(), &m.a), (m.name_b(), &m.b)])
        .map(|(key, t)| LoadedTensor { key, shape: t.shape.clone(), values: t.data.clone() })
        .collect();
    decoder.set_adapter(model.path(), &tensors).unwrap();
    decoder
}

/// Rows of up to `longest` tokens, none of them token 7, some of their tokens trained.
fn rows(count: usize, longest: usize, seed: u64) -> Vec<Example> {
    let mut random = Random::new(seed);
    let row = |line: usize| {
        let len = 3 + random.below(longest - 2);
        let ids = (0..len).map(|_| 8 + random.below(20) as u32).collect();
        let trained = (0..len).map(|t| t > 0 && (t == 1 || random.uniform() < 0.6)).collect();
        Example { ids, trained, place: Place::line(line) }
    };
    (1..=count).map(row).collect()
}

fn settings() -> TrainConfig {
    TrainConfig {
        epochs: Epochs::Fixed(2),
        batch_size: 4,
        micro_batch_size: 2,
        learning_rate: 1e-2,
        warmup_steps: Some(0),
        evals_per_epoch: 1,
        seed: 3,
        ..TrainConfig::default()
    }
}

/// A model whose logits overflow after the token 7, and nowhere else; see `poisoned` in `faults.rs`.
fn poisoned() -> TinyModel {
    overflowing(|id| if id % 2 == 0 { 3e38 } else { -3e38 })
}

/// A model whose logits after the token 7 are infinite where `head` times a number around 2 is.
fn overflowing(head: impl Fn(usize) -> f32) -> TinyModel {
    let spec = spec();
    let mut weights = tiny::weights(&spec, 5).unwrap();
    let (v, d) = (spec.vocab_size, spec.hidden_size);
    let mut set = |name: &str, at: usize, value: f32| weights.get_mut(name).unwrap().data[at] = value;
    for id in 0..v {
        set("model.embed_tokens.weight", id * d, if id == 7 { 9.0 } else { 0.0 });
        set("lm_head.weight", id * d, head(id));
    }
    for layer in 0..spec.num_hidden_layers {
        for (name, inputs) in [
            ("self_attn.o_proj", spec.num_attention_heads * spec.head_dim),
            ("mlp.down_proj", spec.intermediate_size),
        ] {
            for at in 0..inputs {
                set(&format!("model.layers.{layer}.{name}.weight"), at, 0.0);
            }
        }
    }
    TinyModel::with_weights(spec, weights)
}

/// Linears that leave channel 0 of the residual stream alone.
const HARMLESS: [&str; 5] = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"];

fn snapshot<K: Kernels>(trainer: &mut Trainer<K>) -> Snapshot {
    trainer.snapshot(RunState::new("", 1, 1), None).unwrap()
}

#[test]
fn outcomes_read_late_are_those_that_are_waited_for() {
    let model = model();
    let data = rows(12, 12, 1);
    let batches: Vec<Vec<&Example>> = data.chunks(4).map(|rows| rows.iter().collect()).collect();
    emulated!(|d| {
        let d = Arc::new(d);
        let trainer = || {
            let decoder = decoder(DeviceKernels::shared(Arc::clone(&d)), &model, &TARGETS);
            Trainer::new(decoder, &settings(), 0.2, &data).unwrap()
        };
        let (mut waiting, mut queued) = (trainer(), trainer());
        let want: Vec<_> = batches.iter().map(|rows| waiting.step(rows, 1e-2).unwrap()).collect();
        let mut got = Vec::new();
        for (i, rows) in batches.iter().enumerate() {
            let prepared = queued.prepare(rows).unwrap();
            let mut asked = 0;
            let mut go_on = || {
                asked += 1;
                true
            };
            assert!(queued.queue(prepared, 1e-2, &mut go_on).unwrap());
            got.extend(queued.outcomes());
            assert_eq!((asked, got.len(), queued.is_pending()), (2, i, true), "one step late, and no more");
        }
        queued.drain().unwrap();
        got.extend(queued.outcomes());
        assert!(!queued.is_pending());
        assert_eq!(got, want);
        assert!(snapshot(&mut queued) == snapshot(&mut waiting));
        assert_eq!(queued.gradients().unwrap(), waiting.gradients().unwrap());
    });
}

/// The host hears of a bad step when the next one is queued already; all is as it was before the bad one.
#[test]
fn a_bad_step_that_is_seen_late_changes_nothing() {
    let model = poisoned();
    let mut data = rows(10, 9, 2);
    data[5].ids[1] = 7;
    data[5].trained[2] = true;
    let batches: Vec<Vec<&Example>> = data.chunks(2).map(|rows| rows.iter().collect()).collect();
    let settings = TrainConfig { batch_size: 2, micro_batch_size: 0, ..settings() };
    emulated!(|d| {
        let d = Arc::new(d);
        let trainer = || {
            let decoder = decoder(DeviceKernels::shared(Arc::clone(&d)), &model, &HARMLESS);
            Trainer::new(decoder, &settings, 0.0, &data).unwrap()
        };
        let mut never = trainer();
        for rows in &batches[..2] {
            never.step(rows, 1e-2).unwrap();
        }
        let before = snapshot(&mut never);
        let after = (never.step(&batches[3], 1e-2).unwrap(), snapshot(&mut never));
        assert!(after.1 != before, "nothing is learnt");
        for behind in [0, 1] {
            let mut trainer = trainer();
            let mut queue = |i: usize| {
                let prepared = trainer.prepare(&batches[i]).unwrap();
                trainer.queue(prepared, 1e-2, &mut || true)
            };
            for i in 0..3 {
                assert!(queue(i).unwrap());
            }
            let error = if behind == 0 { trainer.drain().unwrap_err() } else { queue(3).unwrap_err() };
            assert!(
                matches!(&error, Error::LossNotFinite { step: 3, places } if places == &[Place::line(6)]),
                "{behind}: {error:?}"
            );
            assert_eq!(trainer.outcomes().len(), 2);
            assert!(snapshot(&mut trainer) == before, "{behind} behind: parameters or moments have changed");
            let outcome = trainer.step(&batches[3], 1e-2).unwrap();
            assert!(
                (outcome, snapshot(&mut trainer)) == after,
                "{behind} behind: it does not go on as before"
            );
        }
    });
}

/// An infinite loss stops its update even where the gradient is finite: the logit of a target is -inf, and no other.
#[test]
fn an_infinite_loss_with_a_finite_gradient_changes_nothing() {
    fn run<K: Kernels>(k: &impl Fn() -> K, model: &TinyModel, data: &[Example]) {
        let settings = TrainConfig { batch_size: 2, micro_batch_size: 0, ..settings() };
        let batches: Vec<Vec<&Example>> = data.chunks(2).map(|rows| rows.iter().collect()).collect();
        let trainer = || Trainer::new(decoder(k(), model, &HARMLESS), &settings, 0.0, data).unwrap();
        let mut never = trainer();
        never.step(&batches[0], 1e-2).unwrap();
        let before = snapshot(&mut never);
        let bad = |error: &Error| matches!(error, Error::LossNotFinite { step: 2, places } if places == &[Place::line(3)]);
        let mut alone = trainer();
        alone.step(&batches[0], 1e-2).unwrap();
        let error = alone.step(&batches[1], 1e-2).unwrap_err();
        assert!(bad(&error), "{error:?}");
        let gradients = alone.gradients().unwrap();
        assert!(gradients.iter().all(|g| g.is_finite()) && gradients.iter().any(|g| g.abs() > 1e20));
        assert!(snapshot(&mut alone) == before);

        let mut trainer = trainer();
        let queued = batches.iter().find_map(|rows| {
            let prepared = trainer.prepare(rows).unwrap();
            trainer.queue(prepared, 1e-2, &mut || true).err()
        });
        let error = queued.or_else(|| trainer.drain().err()).unwrap();
        assert!(bad(&error), "{error:?}");
        assert!(snapshot(&mut trainer) == before);
    }
    let model = overflowing(|id| if id == 6 { -3e38 } else { 0.0 });
    let mut data = rows(6, 9, 2);
    (data[2].ids[1], data[2].ids[2], data[2].trained[2]) = (7, 6, true);
    run(&|| RefKernels, &model, &data);
    emulated!(|d| {
        let d = Arc::new(d);
        run(&|| DeviceKernels::shared(Arc::clone(&d)), &model, &data);
    });
}

/// The loss is finite and its gradient is not, as in `faults.rs`.
#[test]
fn a_bad_gradient_on_a_device_names_its_step() {
    let spec = spec();
    let mut weights = tiny::weights(&spec, 5).unwrap();
    weights.get_mut("lm_head.weight").unwrap().data.iter_mut().for_each(|w| *w *= 1e8);
    let model = TinyModel::with_weights(spec, weights);
    let data = rows(2, 6, 3);
    let targets = ["down_proj"];
    let mut lora = tiny::lora(&model.spec, &targets, 4, 8.0, 1).unwrap();
    for module in &mut lora {
        module.a.data.fill(0.0);
        module.b.data.fill(1e32);
    }
    emulated!(|d| {
        let mut decoder = decoder(DeviceKernels::new(d), &model, &targets);
        let tensors: Vec<LoadedTensor> = lora
            .iter()
            .flat_map(|m| [(m.name_a(), &m.a), (m.name_b(), &m.b)])
            .map(|(key, t)| LoadedTensor { key, shape: t.shape.clone(), values: t.data.clone() })
            .collect();
        decoder.set_adapter(model.path(), &tensors).unwrap();
        let mut trainer = Trainer::new(decoder, &settings(), 0.0, &data).unwrap();
        let before = snapshot(&mut trainer);
        let error = trainer.step(&data.iter().collect::<Vec<_>>(), 1e-3).unwrap_err();
        assert!(
            matches!(&error, Error::GradientNotFinite { step: 1, places } if places == &[Place::line(1), Place::line(2)]),
            "{error:?}"
        );
        assert!(snapshot(&mut trainer) == before);
    });
}

/// Losses and gradient of rows, filled up to a multiple of `multiple`.
fn filled<K: Kernels>(k: K, model: &TinyModel, data: &[Example], multiple: usize) -> (Vec<f32>, Vec<f32>) {
    let mut decoder = decoder(k, model, &TARGETS);
    decoder.prepare_positions(200);
    let documents = data.iter().enumerate();
    let documents = documents.map(|(i, e)| Document { ids: &e.ids, trained: &e.trained, number: i as u32 });
    let batch = Batch::filled_up(&documents.collect::<Vec<_>>(), multiple);
    assert!(batch.tokens().is_multiple_of(multiple));
    let keep = vec![Keep::All; decoder.config().num_hidden_layers];
    let mut workspace = decoder.training_workspace(batch.tokens(), &keep, false).unwrap();
    let mut gradients = decoder.kernels().zeros_full(decoder.layout().len()).unwrap();
    let weight = 1.0 / batch.rows.len() as f32;
    let losses = decoder.loss_and_gradients(&mut workspace, &batch, weight, None, &mut gradients).unwrap();
    let evaluated = decoder.losses(&mut workspace, &batch).unwrap();
    assert_eq!(losses, evaluated);
    (losses, decoder.kernels().read_full(&gradients).unwrap())
}

/// What fills a batch up changes no loss and no gradient: it has none itself, and nobody sees it.
#[test]
fn rows_that_fill_a_batch_up_change_nothing() {
    let model = model();
    let data = rows(5, 11, 6);
    // Sums of a gradient over more rows may be cut into other parts.
    let near = |got: &[f32], want: &[f32]| {
        let want: Vec<f64> = want.iter().copied().map(f64::from).collect();
        check::close("gradient", got, &want, 1e-6);
    };
    let (losses, gradient) = filled(RefKernels, &model, &data, 1);
    for multiple in [8, 64, 128] {
        let (more, filled) = filled(RefKernels, &model, &data, multiple);
        assert_eq!(more, losses, "{multiple}");
        near(&filled, &gradient);
    }
    emulated!(|d| {
        let d = Arc::new(d);
        let (losses, gradient) = filled(DeviceKernels::shared(Arc::clone(&d)), &model, &data, 1);
        for multiple in [64, 128] {
            let (more, filled) = filled(DeviceKernels::shared(Arc::clone(&d)), &model, &data, multiple);
            assert_eq!(more, losses, "{multiple}");
            near(&filled, &gradient);
        }
    });
}

/// Notes events and snapshots; looks at every step or only where it has to.
#[derive(Default)]
struct Watch {
    events: Vec<Event>,
    points: Vec<(StepPoint, Snapshot)>,
    /// Does not want steps that it need not look at.
    lazy: bool,
    beats: usize,
    /// Asks to stop after so many micro-batches.
    last_beat: Option<usize>,
    /// Takes the device's memory away after so many.
    close: Option<(usize, Arc<Record>)>,
}

impl Observer for Watch {
    fn event(&mut self, event: &Event) -> Result<(), ObserverError> {
        let mut event = event.clone();
        if let Event::Step { seconds, .. } | Event::Evaluation { seconds, .. } = &mut event {
            assert!(seconds.is_finite() && *seconds >= 0.0);
            *seconds = 0.0;
        }
        self.events.push(event);
        Ok(())
    }

    fn beat(&mut self) {
        self.beats += 1;
        if let Some((_, record)) = self.close.as_ref().filter(|(beats, _)| *beats == self.beats) {
            record.close();
        }
    }

    fn should_stop(&self) -> bool {
        self.last_beat.is_some_and(|last| self.beats >= last)
    }

    fn wants_step(&mut self, _: &StepPoint) -> Result<bool, ObserverError> {
        Ok(!self.lazy)
    }

    fn at_step(
        &mut self,
        point: &StepPoint,
        snapshot: &mut dyn FnMut() -> Result<Snapshot, Error>,
    ) -> Result<(), ObserverError> {
        let mut snapshot = snapshot()?;
        snapshot.state.train_seconds = Exact(0.0);
        self.points.push((*point, snapshot));
        Ok(())
    }
}

/// What a run leaves behind.
struct Run {
    watch: Watch,
    summary: Summary,
    parameters: Vec<f32>,
}

fn run<K: Kernels>(
    k: K,
    (model, data, held): (&TinyModel, &[Example], &[Example]),
    config: &TrainConfig,
    resume: Option<Snapshot>,
    mut watch: Watch,
) -> Result<Run, Box<(Error, Watch)>> {
    let decoder = decoder(k, model, &HARMLESS);
    let mut trainer = Trainer::new(decoder, config, 0.1, data.iter().chain(held)).unwrap();
    let input = RunInput { resume, ..whole_run(data, held, config) };
    match train(&mut trainer, input, &mut watch) {
        Ok(summary) => {
            let parameters = trainer.decoder().parameters().unwrap();
            Ok(Run { watch, summary: Summary { train_seconds: 0.0, ..summary }, parameters })
        }
        Err(error) => Err(Box::new((error, watch))),
    }
}

/// Kind and step of each event.
fn kinds(events: &[Event]) -> Vec<(&'static str, usize)> {
    let kind = |event: &Event| match event {
        Event::Resumed { step } => ("resumed", *step),
        Event::Plan { .. } => ("plan", 0),
        Event::Step { step, .. } => ("step", *step),
        Event::Evaluation { step, .. } => ("evaluation", *step),
        Event::Stopped { step, .. } => ("stopped", *step),
        Event::Warning { .. } => ("warning", 0),
    };
    events.iter().map(kind).collect()
}

/// How far the losses of two runs are apart, in the mean over their steps and evaluations.
fn distance(a: &Run, b: &Run) -> f64 {
    let losses = |run: &Run| -> Vec<f64> {
        let loss = |event: &Event| match event {
            Event::Step { loss, .. } | Event::Evaluation { loss, .. } => Some(*loss),
            _ => None,
        };
        run.watch.events.iter().filter_map(loss).collect()
    };
    let (a, b) = (losses(a), losses(b));
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64
}

/// A device that runs ahead tells the same story as the CPU, in the same order, and snapshots are of their step: whoever
/// looks at every step, or at none that it need not, gets the same bits.
#[test]
fn a_run_on_a_device_is_the_run_of_the_cpu() {
    let model = model();
    let (data, held) = (rows(18, 20, 7), rows(5, 20, 8));
    let all = (&model, data.as_slice(), held.as_slice());
    let config = settings();
    let cpu = run(RefKernels, all, &config, None, Watch::default()).ok().unwrap();
    assert_eq!((cpu.summary.steps, cpu.watch.points.len()), (10, 10));
    let near = run(Rounded, all, &config, None, Watch::default()).ok().unwrap();
    emulated!(|d| {
        let d = Arc::new(d);
        let on_device = |resume, watch| {
            run(DeviceKernels::shared(Arc::clone(&d)), all, &config, resume, watch).ok().unwrap()
        };
        let eager = on_device(None, Watch::default());
        assert_eq!(kinds(&eager.watch.events), kinds(&cpu.watch.events));
        for (got, want) in eager.watch.points.iter().zip(&cpu.watch.points) {
            assert_eq!(got.0, StepPoint { is_best: got.0.is_best, ..want.0 });
            let (got, want) = (&got.1.state, &want.1.state);
            assert_eq!((got.tokens, got.trained_tokens), (want.tokens, want.trained_tokens));
            assert_eq!((got.step, got.epoch, got.batch), (want.step, want.epoch, want.batch));
        }
        // As far from the CPU's losses as the roundings of what is stored make it, and a little more for those inside an
        // operation.
        let (far, rounding) = (distance(&eager, &cpu), distance(&near, &cpu));
        assert!(far <= 3.0 * rounding, "{far:.1e}, where rounding costs {rounding:.1e}");
        assert!(cpu.watch.beats + 1 == eager.watch.beats, "a beat for the warm-up");

        let lazy = on_device(None, Watch { lazy: true, ..Watch::default() });
        assert_eq!(lazy.watch.events, eager.watch.events);
        assert_eq!(lazy.summary, eager.summary);
        assert!(lazy.parameters == eager.parameters);
        // The first step, and the ends of epochs, which are evaluated too.
        let steps: Vec<usize> = lazy.watch.points.iter().map(|(point, _)| point.step).collect();
        assert_eq!(steps, [1, 5, 10]);
        for (point, snapshot) in &lazy.watch.points {
            let reference = &eager.watch.points[point.step - 1];
            assert!(*point == reference.0 && *snapshot == reference.1, "step {}", point.step);
        }

        // Stopped in the middle of step 3, after the warm-up, the evaluation, and five micro-batches.
        let beats = 1 + held.len().div_ceil(2) + 5;
        let stopped = on_device(None, Watch { lazy: true, last_beat: Some(beats), ..Watch::default() });
        let (point, snapshot) = stopped.watch.points.last().unwrap();
        assert!(stopped.summary.stopped && point.stopping && point.step == 2, "{point:?}");
        let reference = &eager.watch.points[1].1;
        assert!(snapshot == reference, "what was half done shows");
        assert_eq!(kinds(&stopped.watch.events), kinds(&eager.watch.events[..4]));
        let resumed = on_device(Some(snapshot.clone()), Watch { lazy: true, ..Watch::default() });
        assert_eq!(resumed.watch.events[2..], eager.watch.events[4..]);
        assert!(resumed.parameters == eager.parameters && resumed.summary == eager.summary);
    });
}

/// A row whose loss is not finite ends the run with its place; the steps before it are told of.
#[test]
fn a_run_on_a_device_names_the_rows_of_a_bad_step() {
    let model = poisoned();
    let mut data = rows(18, 12, 9);
    let config = TrainConfig { evals_per_epoch: 0, ..settings() };
    // A row of the third step.
    let row = epoch_order(config.seed, 0, data.len())[9];
    data[row].ids[1] = 7;
    data[row].trained[2] = true;
    let all = (&model, data.as_slice(), &[][..]);
    let check = |failed: Box<(Error, Watch)>| {
        let (error, watch) = *failed;
        assert!(
            matches!(&error, Error::LossNotFinite { step: 3, places } if places == &[Place::line(row + 1)]),
            "{error:?}"
        );
        assert_eq!(kinds(&watch.events), [("plan", 0), ("step", 1), ("step", 2)]);
    };
    check(run(RefKernels, all, &config, None, Watch::default()).err().unwrap());
    emulated!(|d| {
        let lazy = Watch { lazy: true, ..Watch::default() };
        check(run(DeviceKernels::new(d), all, &config, None, lazy).err().unwrap());
    });
}

/// Batches of every length, several of them a step, dropout, evaluations in between, an epoch after the other: all of it
/// in the memory that was taken by the end of the second step.
#[test]
fn nothing_is_allocated_after_the_second_step() {
    let model = model();
    // The longest rows come late.
    let (mut data, held) = (rows(18, 30, 10), rows(7, 40, 11));
    let config = TrainConfig { evals_per_epoch: 2, ..settings() };
    let order = epoch_order(config.seed, 0, data.len());
    for (at, &row) in order.iter().enumerate() {
        let len = 4 + 5 * at;
        data[row].ids = (0..len).map(|i| 8 + (i * 7 % 20) as u32).collect();
        data[row].trained = (0..len).map(|t| t > 0 && (t + at) % 3 > 0).collect();
    }
    let all = (&model, data.as_slice(), held.as_slice());
    let run = |close_at: usize| {
        let (d, record) = Frugal::new(Emulator::unwatched(4));
        let close = Some((close_at, Arc::clone(&record)));
        let watch = Watch { lazy: true, close, ..Watch::default() };
        (run(DeviceKernels::new(d), all, &config, None, watch), record)
    };
    if !Emulator::available() {
        return skipped(NEEDS);
    }
    // The warm-up, an evaluation, and two steps of two micro-batches.
    let (whole, _) = run(1 + held.len().div_ceil(2) + 4);
    assert_eq!(whole.map_err(|failed| failed.0).unwrap().summary.steps, 10);
    // That it would show; and algorithms are tried out in the warm-up alone.
    let (stopped, record) = run(1);
    let (error, watch) = *stopped.err().unwrap();
    assert!(error.to_string().contains("where none should be any more"), "{error}");
    let (tuning, tuned) = record.tuning();
    assert!(!tuning && tuned > 0, "{tuned} products were tuned");
    assert!(watch.beats < 1 + held.len().div_ceil(2) + 4, "all memory is there after the warm-up");
}

/// A warm-up leaves no trace, on the CPU or a device, and fits the workspace to the last row.
#[test]
fn a_warm_up_changes_nothing() {
    fn steps<K: Kernels>(k: K, model: &TinyModel, data: &[Example], warm: bool) -> Snapshot {
        let mut trainer = Trainer::new(decoder(k, model, &TARGETS), &settings(), 0.2, data).unwrap();
        for rows in data.chunks(4) {
            if warm {
                trainer.warm_up().unwrap();
                assert!(trainer.gradients().unwrap().iter().all(|g| *g == 0.0));
            }
            trainer.step(&rows.iter().collect::<Vec<_>>(), 1e-2).unwrap();
        }
        snapshot(&mut trainer)
    }
    let (model, data) = (model(), rows(8, 9, 12));
    assert!(steps(RefKernels, &model, &data, true) == steps(RefKernels, &model, &data, false));
    emulated!(|d| {
        let (d, data) = (Arc::new(d), &data[..4]);
        let run = |warm| steps(DeviceKernels::shared(Arc::clone(&d)), &model, data, warm);
        assert!(run(true) == run(false));
    });
}

//! A run that was stopped and goes on is the run that was never stopped, bit for bit, wherever it was stopped.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it inside test functions; helpers of tests are the same"
)]

mod common;

use common::load;
use common::tiny_model::{TARGETS, TinyModel, config, specs};
use tunesmith_data::{Example, Place};
use tunesmith_ops::RefKernels;
use tunesmith_testkit::tiny::Random;
use tunesmith_train::{
    Epochs, Error, Event, Exact, Observer, ObserverError, RunInput, RunState, STATE_VERSION, Snapshot,
    StepPoint, Summary, TrainConfig, Trainer, train,
};

/// Where the held-out rows end [`Bench::auto`], and what they keep of it.
const AUTO_END: usize = 16;
const AUTO_BEST: usize = 8;

/// Something that spoils a snapshot.
type Change<'a> = &'a dyn Fn(&mut Snapshot);

const FINGERPRINT: &str = "settings and rows";

/// A model, rows and settings whose run has all there is: several micro-batches a step, a smaller batch at the end
/// of each epoch, dropout, two evaluations an epoch.
struct Bench {
    model: TinyModel,
    train: Vec<Example>,
    validation: Vec<Example>,
    config: TrainConfig,
    rank: usize,
}

/// Steps of an epoch of [`Bench`].
const PER_EPOCH: usize = 8;

impl Bench {
    /// 5 epochs of 8 steps.
    fn new() -> Self {
        Self::with(Epochs::Fixed(5), 5)
    }

    /// Up to 7 epochs; the held-out rows end it after step `AUTO_END`, and the parameters of `AUTO_BEST` are kept.
    fn auto() -> Self {
        Self::overfitting(Epochs::Auto)
    }

    /// 20 held-out rows and a rate too high for them.
    fn overfitting(epochs: Epochs) -> Self {
        let mut bench = Self::with(epochs, 20);
        bench.config.learning_rate = 0.2;
        bench
    }

    fn with(epochs: Epochs, validation: usize) -> Self {
        let model = TinyModel::new(specs().remove(0), 31);
        let mut random = Random::new(8);
        let mut rows = |count: usize| -> Vec<Example> {
            let row = |line| {
                let len = 3 + random.below(7);
                let ids = (0..len).map(|_| random.below(12) as u32).collect();
                let trained = (0..len).map(|t| t > 0 && (t == 1 || random.uniform() < 0.7)).collect();
                Example { ids, trained, place: Place::line(line) }
            };
            (1..=count).map(row).collect()
        };
        let (train, validation) = (rows(31), rows(validation));
        let config = TrainConfig {
            epochs,
            batch_size: 4,
            micro_batch_size: 2,
            learning_rate: 2e-2,
            evals_per_epoch: 2,
            weight_decay: 0.01,
            seed: 5,
            ..TrainConfig::default()
        };
        Self { model, train, validation, config, rank: 2 }
    }

    /// Micro-batches of an evaluation.
    fn evaluation(&self) -> usize {
        self.validation.len().div_ceil(2)
    }

    /// A trainer as a new process makes it.
    fn trainer(&self) -> Trainer<RefKernels> {
        let mut engine = load(self.model.path(), Some(&config(&TARGETS[..2], self.rank, 4.0)));
        engine.initialize(self.config.seed).unwrap();
        let rows = self.train.iter().chain(&self.validation);
        Trainer::new(engine, &self.config, 0.2, rows).unwrap()
    }

    /// Runs on from `resume`, or from the start, until `watch` asks to stop or the end.
    fn run(&self, resume: Option<&Snapshot>, watch: Watch) -> Run {
        self.try_run(resume.map(restarted), watch).unwrap()
    }

    fn try_run(&self, resume: Option<Snapshot>, mut watch: Watch) -> Result<Run, Error> {
        let mut trainer = self.trainer();
        let input = RunInput {
            train: &self.train,
            validation: &self.validation,
            config: &self.config,
            fingerprint: FINGERPRINT,
            resume,
        };
        let summary = train(&mut trainer, input, &mut watch)?;
        let parameters = trainer.decoder().parameters().unwrap();
        Ok(Run { watch, summary: Summary { train_seconds: 0.0, ..summary }, parameters })
    }
}

/// The snapshot as a new process has it: its state has been through a file.
fn restarted(snapshot: &Snapshot) -> Snapshot {
    let text = serde_json::to_string(&snapshot.state).unwrap();
    Snapshot { state: serde_json::from_str(&text).unwrap(), ..snapshot.clone() }
}

/// What is left of a run.
struct Run {
    watch: Watch,
    summary: Summary,
    parameters: Vec<f32>,
}

/// Notes everything down, and asks to stop where it is told to.
#[derive(Default)]
struct Watch {
    /// Stops after so many micro-batches.
    beats_left: Option<usize>,
    /// Stops after this step.
    last_step: Option<usize>,
    stop: bool,
    beats: usize,
    events: Vec<Event>,
    points: Vec<(StepPoint, Snapshot)>,
}

impl Watch {
    fn after_beats(beats: usize) -> Self {
        Self { beats_left: Some(beats), ..Self::default() }
    }

    fn after_step(step: usize) -> Self {
        Self { last_step: Some(step), ..Self::default() }
    }
}

impl Observer for Watch {
    fn event(&mut self, event: &Event) -> Result<(), ObserverError> {
        let mut event = event.clone();
        if let Event::Step { seconds, .. } | Event::Evaluation { seconds, .. } = &mut event {
            *seconds = 0.0;
        }
        self.events.push(event);
        Ok(())
    }

    fn should_stop(&self) -> bool {
        self.stop
    }

    fn beat(&mut self) {
        self.beats += 1;
        self.stop |= self.beats_left == Some(self.beats);
    }

    fn at_step(
        &mut self,
        point: &StepPoint,
        snapshot: &mut dyn FnMut() -> Result<Snapshot, Error>,
    ) -> Result<(), ObserverError> {
        let mut snapshot = snapshot()?;
        // Time is no part of what has to be equal.
        snapshot.state.train_seconds = Exact(0.0);
        self.points.push((*point, snapshot));
        self.stop |= self.last_step == Some(point.step);
        Ok(())
    }
}

/// The events from the first step after `step` on, what stands before each repetition of the plan left out.
fn after(events: &[Event], step: usize) -> &[Event] {
    let is_next = |e: &Event| matches!(e, Event::Step { step: s, .. } if *s == step + 1);
    let at =
        events.iter().position(is_next).or(events.iter().rposition(|e| matches!(e, Event::Stopped { .. })));
    &events[at.unwrap()..]
}

/// The point that the run was stopped at.
fn stopped(run: &Run) -> &Snapshot {
    assert!(run.summary.stopped);
    let (point, snapshot) = run.watch.points.last().unwrap();
    assert!(point.stopping && !point.last, "{point:?}");
    assert_eq!((point.step, snapshot.state.step), (run.summary.steps, run.summary.steps));
    snapshot
}

/// Equal in everything; without the tensors in the message.
#[track_caller]
fn assert_same(a: &Snapshot, b: &Snapshot, at: &str) {
    assert_eq!(a.state, b.state, "{at}");
    assert!(a == b, "{at}: the states are equal, the tensors are not");
}

#[track_caller]
fn assert_same_end(run: &Run, whole: &Run, step: usize) {
    assert_eq!(run.watch.events[0], Event::Resumed { step });
    assert!(matches!(run.watch.events[1], Event::Plan { .. }), "after step {step}");
    assert_eq!(after(&run.watch.events, step), after(&whole.watch.events, step), "after step {step}");
    assert_eq!(run.summary, whole.summary, "after step {step}");
    assert!(run.parameters == whole.parameters, "after step {step}: the parameters are not equal");
    if let (Some(last), Some(reference)) = (run.watch.points.last(), whole.watch.points.last()) {
        // Both moments and the best parameters too.
        assert_eq!(last.0, reference.0, "after step {step}");
        assert_same(&last.1, &reference.1, &format!("after step {step}"));
    }
}

#[test]
fn a_run_stopped_after_any_step_goes_on_as_if_it_never_stopped() {
    for (bench, end) in [(Bench::new(), 40), (Bench::auto(), AUTO_END)] {
        let whole = bench.run(None, Watch::default());
        assert_eq!((whole.summary.steps, whole.watch.points.len()), (end, end));
        let reference = |step: usize| &whole.watch.points[step - 1];
        for step in 1..end {
            let run = bench.run(None, Watch::after_step(step));
            let snapshot = stopped(&run);
            assert_same(snapshot, &reference(step).1, &format!("stopped after step {step}"));
            assert_same_end(&bench.run(Some(snapshot), Watch::default()), &whole, step);
        }
        // A run that is over already has nothing left to do but to say so.
        let over = bench.run(Some(&reference(end).1), Watch::default());
        assert_eq!((over.watch.beats, over.watch.events.len()), (0, 3));
        assert_same_end(&over, &whole, end);
    }
}

/// Stopped after each step, again and again, each time in a new process.
#[test]
fn a_run_stopped_at_every_step_arrives_at_the_same_end() {
    for (bench, end) in [(Bench::new(), 40), (Bench::auto(), AUTO_END)] {
        let whole = bench.run(None, Watch::default());
        let mut run = bench.run(None, Watch::after_step(1));
        for step in 2..=end {
            let snapshot = stopped(&run).clone();
            run = bench.run(Some(&snapshot), Watch::after_step(step));
        }
        assert_same_end(&run, &whole, end - 1);
    }
}

/// With two micro-batches a step, a stop after the first throws the step away.
#[test]
fn a_step_cut_off_between_micro_batches_never_was() {
    let bench = Bench::new();
    let whole = bench.run(None, Watch::default());
    for step in 1..40 {
        let reference = &whole.watch.points[step - 1].1;
        let run = bench.run(Some(reference), Watch::after_beats(1));
        assert_eq!((run.watch.beats, run.watch.points.len()), (1, 1));
        assert_same(stopped(&run), reference, &format!("in the step after {step}"));
        assert!(run.parameters == reference.parameters, "step {step}");
        if step % 7 == 0 {
            assert_same_end(&bench.run(Some(stopped(&run)), Watch::default()), &whole, step);
        }
    }
}

/// Stopped after any of its micro-batches but the last, an evaluation is made again, whole.
#[test]
fn an_evaluation_cut_off_is_made_again() {
    for (bench, end) in [(Bench::new(), 40), (Bench::auto(), AUTO_END)] {
        let whole = bench.run(None, Watch::default());
        for step in (0..=end).step_by(PER_EPOCH / 2) {
            // The step before, so that the evaluation is the first thing after the two micro-batches of this one.
            let before = (step > 1).then(|| &whole.watch.points[step - 2].1);
            let skipped = if step == 0 { 0 } else { 2 };
            for done in 1..bench.evaluation() {
                let run = bench.run(before, Watch::after_beats(skipped + done));
                let snapshot = stopped(&run);
                assert_eq!(snapshot.state.step, step);
                assert!(!run.watch.points.last().unwrap().0.evaluated);
                assert_ne!(snapshot.state.evaluated_step, Some(step));
                let next = bench.run(Some(snapshot), Watch::default());
                let evaluation = |e: &&Event| matches!(e, Event::Evaluation { step: s, .. } if *s == step);
                assert_eq!(
                    next.watch.events.iter().find(evaluation),
                    whole.watch.events.iter().find(evaluation),
                    "in the evaluation after step {step}"
                );
                if step > 0 {
                    let ((point, snapshot), (same, reference)) =
                        (&next.watch.points[0], &whole.watch.points[step - 1]);
                    assert_eq!(point, same);
                    assert_same(snapshot, reference, &format!("after the evaluation of step {step}"));
                }
                assert_same_end(&next, &whole, step);
            }
        }
    }
}

#[test]
fn points_say_where_the_run_stands() {
    for (bench, end, total) in [(Bench::new(), 40, 40), (Bench::auto(), AUTO_END, 56)] {
        let whole = bench.run(None, Watch::default());
        let mut best = (0, f64::INFINITY);
        let of = |step: usize| {
            let loss = |e: &Event| match e {
                Event::Evaluation { step: s, loss, .. } if *s == step => Some(*loss),
                _ => None,
            };
            whole.watch.events.iter().find_map(loss)
        };
        for (i, (point, snapshot)) in whole.watch.points.iter().enumerate() {
            let step = i + 1;
            assert_eq!((point.step, point.total_steps, snapshot.state.step), (step, total, step));
            let ends = step % PER_EPOCH == 0;
            assert_eq!(point.end_of_epoch, ends.then(|| step / PER_EPOCH - 1), "step {step}");
            assert_eq!(point.evaluated, step % (PER_EPOCH / 2) == 0, "step {step}");
            assert_eq!((point.last, point.stopping), (step == end, false), "step {step}");
            if point.is_best {
                best = (step, of(step).unwrap());
            }
            assert!(of(step).is_none_or(|loss| loss >= best.1 - 0.1), "step {step} is far better");
            assert_eq!(snapshot.state.best.as_ref().map_or(0, |b| b.step), best.0);
        }
        assert_eq!(whole.watch.beats, end * 2 + (end / 4 + 1) * bench.evaluation());
    }
}

/// Ended by the held-out rows: the decoder has the best parameters, and everything says so.
#[test]
fn the_best_adapter_is_kept_when_more_training_does_not_help() {
    let bench = Bench::auto();
    let whole = bench.run(None, Watch::default());
    let summary = &whole.summary;
    assert_eq!((summary.steps, summary.total_steps, summary.epochs), (AUTO_END, 56, 7));
    assert_eq!((summary.kept_step, summary.stopped), (AUTO_BEST, false));
    assert_eq!(summary.epochs_done, AUTO_END as f64 / PER_EPOCH as f64);
    let best = &whole.watch.points[AUTO_BEST - 1].1;
    assert!(whole.parameters == best.parameters, "the decoder has other parameters");
    let Some(Event::Stopped { reason, step, best_step }) = whole.watch.events.last() else {
        panic!("no end")
    };
    assert_eq!((*step, *best_step), (AUTO_END, Some(AUTO_BEST)));
    let evaluations = (AUTO_END - AUTO_BEST) / 4;
    assert_eq!(
        *reason,
        format!(
            "no improvement in {evaluations} evaluations since step {AUTO_BEST}; the adapter of step {AUTO_BEST} is kept"
        )
    );
    let loss = |step: usize| match whole
        .watch
        .events
        .iter()
        .find(|e| matches!(e, Event::Evaluation { step: s, .. } if *s == step))
    {
        Some(Event::Evaluation { loss, .. }) => *loss,
        _ => panic!("no evaluation after step {step}"),
    };
    assert_eq!(summary.validation_loss, Some(loss(AUTO_BEST)));
    assert!(loss(AUTO_BEST) < loss(AUTO_END) && loss(AUTO_BEST) < loss(0));
    // What stays on the host for that is in a snapshot only where it differs from the parameters themselves.
    for (point, snapshot) in &whole.watch.points {
        assert_eq!(
            snapshot.best_parameters.is_some(),
            point.step > 4 && !point.is_best,
            "step {}",
            point.step
        );
    }
    let Event::Plan { epochs_rule, epochs: 7, .. } = &whole.watch.events[0] else { panic!("no plan") };
    assert!(epochs_rule.contains("50 steps are wanted"), "{epochs_rule}");
    // Without the parameters of its best evaluation a run cannot go on.
    let (_, last) = whole.watch.points.last().unwrap();
    let bare = Snapshot { best_parameters: None, ..last.clone() };
    let Err(error) = bench.try_run(Some(bare), Watch::default()) else { panic!("it went on") };
    assert!(error.to_string().contains("the adapter of its best evaluation"), "{error}");
}

/// A number of epochs is done to the end, whatever the held-out rows say, and the last parameters are kept.
#[test]
fn a_given_number_of_epochs_is_done() {
    let bench = Bench::overfitting(Epochs::Fixed(4));
    let whole = bench.run(None, Watch::default());
    assert_eq!((whole.summary.steps, whole.summary.kept_step), (32, 32));
    let (_, last) = whole.watch.points.last().unwrap();
    assert!(whole.parameters == last.parameters && last.best_parameters.is_none());
    let best_step = last.state.best.as_ref().map(|best| best.step);
    assert!(best_step < Some(32), "nothing better to keep");
    let reason = "all 4 epochs are done".to_owned();
    assert_eq!(whole.watch.events.last(), Some(&Event::Stopped { reason, step: 32, best_step }));
    // So does `auto` with too few rows to learn from: all of its epochs.
    let few = Bench::with(Epochs::Auto, 19);
    let whole = few.run(None, Watch::default());
    assert_eq!((whole.summary.steps, whole.summary.kept_step), (56, 56));
}

#[test]
fn a_snapshot_of_another_run_is_refused_in_a_sentence() {
    let bench = Bench::new();
    let run = bench.run(None, Watch::after_step(3));
    let good = stopped(&run);
    let refuse = |bench: &Bench, change: Change<'_>| {
        let mut bad = good.clone();
        change(&mut bad);
        let Err(error) = bench.try_run(Some(bad), Watch::default()) else { panic!("it was taken") };
        assert!(matches!(error, Error::Resume { .. }), "{error:?}");
        error.to_string()
    };
    let cases: [(Change<'_>, &str); 9] = [
        (&|s| s.state.fingerprint = "others".into(), "it is of another run"),
        (&|s| s.state.version = STATE_VERSION + 1, "its format has version"),
        (&|s| s.state.total_steps = 48, "of a run of 48 steps in 5 epochs, and this one has 40 in 5"),
        (&|s| s.state.epochs = 4, "of a run of 40 steps in 4 epochs"),
        (&|s| s.state.batch = 4, "step 3 is not batch 4 of epoch 0"),
        (&|s| (s.state.step, s.state.epoch) = (43, 5), "step 43 is not batch 3 of epoch 5"),
        (&|s| s.parameters.truncate(7), "it has 7 LoRA parameters, and this adapter has"),
        (&|s| s.first_moment.truncate(7), "it has 7 values of the first moment"),
        (&|s| s.second_moment.push(0.0), "values of the second moment"),
    ];
    for (change, sentence) in cases {
        let message = refuse(&bench, change);
        assert!(message.contains(sentence), "{message}");
    }
    // Other rows make a run of another length, another rank an adapter of another layout.
    let fewer = Bench { train: bench.train[..20].to_vec(), ..Bench::new() };
    assert!(refuse(&fewer, &|_| ()).contains("of a run of 40 steps in 5 epochs, and this one has 25 in 5"));
    let wider = Bench { rank: 3, ..Bench::new() };
    assert!(refuse(&wider, &|_| ()).contains("and this adapter has"));
    bench.try_run(Some(good.clone()), Watch::after_beats(1)).unwrap();
}

#[test]
fn numbers_of_a_state_come_back_from_json_with_their_bits() {
    let odd = [0.1 + 0.2, -0.0, f64::MIN_POSITIVE / 3.0, f64::INFINITY, 1.0 / 3.0];
    for x in odd {
        let state =
            RunState { epoch_loss: Exact(x), train_loss: Some(Exact(-x)), ..RunState::new("f", 1, 2) };
        let back: RunState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!(back.epoch_loss.0.to_bits(), x.to_bits());
        assert_eq!(back.train_loss.unwrap().0.to_bits(), (-x).to_bits());
    }
    serde_json::from_str::<Exact>("\"12x\"").unwrap_err();
    serde_json::from_str::<Exact>("0.5").unwrap_err();
}

/// An observer that cannot keep a snapshot ends the run with its own words.
#[test]
fn an_observer_that_fails_ends_the_run() {
    struct Full;
    impl Observer for Full {
        fn event(&mut self, _: &Event) -> Result<(), ObserverError> {
            Ok(())
        }

        fn at_step(
            &mut self,
            point: &StepPoint,
            _: &mut dyn FnMut() -> Result<Snapshot, Error>,
        ) -> Result<(), ObserverError> {
            if point.step == 2 { Err("the disk is full".into()) } else { Ok(()) }
        }
    }
    let bench = Bench::new();
    let mut trainer = bench.trainer();
    let input = common::whole_run(&bench.train, &bench.validation, &bench.config);
    let error = train(&mut trainer, input, &mut Full).unwrap_err();
    assert!(matches!(error, Error::Observer(_)) && error.to_string() == "the disk is full", "{error:?}");
}

//! `tunesmith bench`: a model of random weights, trained on random tokens.

mod documents;
mod peak;
mod report;

use std::time::{Duration, Instant};

use serde_json::json;
use tunesmith_data::Example;
use tunesmith_model::peft::LoraConfig;
use tunesmith_model::{AdapterLayout, Decoder, Flops, Footprint, Keep, ModelConfig, WeightSource};
use tunesmith_ops::{Kernels, Timed, Times};
use tunesmith_train::plan::MicroBatches;
use tunesmith_train::{Recompute, TrainConfig, Trainer};

use super::device::{self, Work};
use super::stop::StopFlag;
use crate::energy::{self, Meter};
use crate::error::CliError;
use crate::progress::Progress;
pub use peak::Peak;
pub use report::{Batch, Datasheet, Device, Energy, Memory, Model, Report, Share, StepFlops, Steps, Weights};

/// Steps that are taken again with marks around every operation.
const MARKED_STEPS: usize = 2;
/// Standard deviation of the random weights: that of `initializer_range` in most configurations.
const STD: f32 = 0.02;
const LEARNING_RATE: f64 = 1e-4;

/// What to measure.
#[derive(Debug)]
pub struct BenchRequest {
    /// The model's name in the report.
    pub name: String,
    /// Its sizes.
    pub config: ModelConfig,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Tokens of a step.
    pub tokens: usize,
    /// Tokens of a document, or a mix of many lengths.
    pub each: Option<usize>,
    /// Rank of the adapter.
    pub rank: usize,
    /// What is computed again.
    pub recompute: Recompute,
    /// Timed steps, at least one.
    pub steps: usize,
    /// Steps before them.
    pub warmup: usize,
    /// Seed of everything.
    pub seed: u64,
}

/// Measures.
///
/// # Errors
/// A device that is not there or has too little memory; sizes that fit no model; [`CliError::Cancelled`] through `stop`.
pub fn bench(request: &BenchRequest, stop: &StopFlag, progress: &mut Progress) -> Result<Report, CliError> {
    device::run(&request.device, Measuring { request, stop, progress })
}

struct Measuring<'a> {
    request: &'a BenchRequest,
    stop: &'a StopFlag,
    progress: &'a mut Progress,
}

impl Work for Measuring<'_> {
    type Output = Report;

    fn on<K: Kernels>(self, kernels: K) -> Result<Report, CliError> {
        let Self { request, stop, progress } = self;
        let plan = Plan::new(request)?;
        let kernels = Timed::new(kernels);
        let reckoned = plan.fits(&kernels)?;
        let on_cpu = kernels.memory()?.is_none();
        let name = device::cpu_name().filter(|_| on_cpu).unwrap_or_else(|| kernels.name());

        progress.note("measuring the largest matrix products");
        let (square, least) = if on_cpu { (1024, 200) } else { (8192, 100) };
        let c = &request.config;
        // The widest linear of a block, and a product that any device has room for.
        let shapes = [[request.tokens, 2 * c.intermediate_size, c.hidden_size], [square; 3]];
        kernels.tune(true);
        let peak = peak::measure(&kernels, &shapes, Duration::from_millis(least))?;
        CliError::check(stop)?;

        progress.note(&format!(
            "making {} random weights",
            crate::progress::thousands(plan.parameters() as usize)
        ));
        let started = Instant::now();
        let mut trainer = plan.trainer(kernels, progress)?;
        let weights =
            Weights { seconds: started.elapsed().as_secs_f64(), bytes: plan.footprint.weights().total() };

        let examples = documents::examples(&plan.lengths, request.config.vocab_size, request.seed);
        let examples: Vec<&Example> = examples.iter().collect();
        // As in a run, a step is queued while the device is busy with the one before.
        let step = |trainer: &mut Trainer<Timed<K>>| -> Result<(), CliError> {
            CliError::check(stop)?;
            let prepared = trainer.prepare(&examples)?;
            trainer.queue(prepared, LEARNING_RATE, &mut || true)?;
            Ok(())
        };
        progress.note(&format!("steps: {} to warm up, {} timed", request.warmup, request.steps));
        for _ in 0..request.warmup {
            step(&mut trainer)?;
            progress.beat();
        }
        trainer.drain()?;
        // What the warm-up has not met is not worth a trial.
        trainer.decoder().kernels().tune(false);
        let meter = Meter::start(device::energy_counter(&request.device));
        let started = Instant::now();
        let mut marks = vec![trainer.decoder().kernels().mark()?];
        for _ in 0..request.steps {
            step(&mut trainer)?;
            marks.push(trainer.decoder().kernels().mark()?);
            progress.beat();
        }
        trainer.drain()?;
        let wall = started.elapsed();
        let spent = meter.spent();
        let kernels = trainer.decoder().kernels();
        let between = |pair: &[K::Mark]| kernels.between(&pair[0], &pair[1]);
        let times = marks.windows(2).map(between).collect::<Result<Vec<_>, _>>()?;

        kernels.start()?;
        for _ in 0..MARKED_STEPS {
            step(&mut trainer)?;
        }
        trainer.drain()?;
        let marked = trainer.decoder().kernels().stop()?;
        let losses: Vec<f64> = trainer.outcomes().iter().map(|step| step.loss).collect();
        let steps = Steps::of(&times, wall);
        let energy = Energy {
            watts: spent.joules.map(|joules| joules / wall.as_secs_f64()),
            joules: spent.joules,
            of: spent.of,
            unknown: spent.unknown,
        };
        let memory = Memory {
            device_peak_bytes: trainer.decoder().kernels().memory()?.map(|memory| memory.peak),
            host_peak_bytes: energy::peak_bytes(),
            reckoned_bytes: reckoned,
        };
        let losses =
            [losses.first().copied().unwrap_or(f64::NAN), losses.last().copied().unwrap_or(f64::NAN)];
        Ok(plan.report(Found { name, on_cpu, weights, steps, peak, memory, energy, losses, marked }))
    }
}

/// Lengths of the rows that these documents are: each has a token more, which is only predicted and for which there is room
/// too.
fn rows(documents: &[usize]) -> impl Iterator<Item = usize> {
    documents.iter().map(|n| n + 1)
}

/// What was measured.
struct Found {
    name: String,
    on_cpu: bool,
    weights: Weights,
    steps: Steps,
    peak: Peak,
    memory: Memory,
    energy: Energy,
    losses: [f64; 2],
    marked: Times,
}

/// All that follows from the request.
struct Plan<'a> {
    request: &'a BenchRequest,
    lengths: Vec<usize>,
    lora: LoraConfig,
    layout: AdapterLayout,
    footprint: Footprint,
    keep: Vec<Keep>,
    settings: TrainConfig,
}

impl<'a> Plan<'a> {
    fn new(request: &'a BenchRequest) -> Result<Self, CliError> {
        let c = &request.config;
        let lengths = match request.each {
            Some(each) => documents::equal(request.tokens, each),
            None => documents::mix(request.tokens, request.seed),
        };
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest > c.max_position_embeddings {
            let context = c.max_position_embeddings;
            return Err(CliError::Input {
                code: "invalid_config",
                message: format!(
                    "documents of {longest} tokens are longer than {}'s context of {context}",
                    request.name
                ),
                hint: Some("choose shorter ones with --seq".to_owned()),
            });
        }
        let lora =
            LoraConfig { r: request.rank, lora_alpha: 2.0 * request.rank as f64, ..LoraConfig::default() };
        let layout = AdapterLayout::new(c, &lora.resolve(c.num_hidden_layers)?);
        let storage = device::storage(&request.device);
        let footprint = Footprint::new(c, &layout, storage);
        let settings = TrainConfig {
            batch_size: lengths.len(),
            micro_batch_size: lengths.len(),
            recompute: request.recompute,
            seed: request.seed,
            ..TrainConfig::default()
        };
        Ok(Self {
            keep: MicroBatches::usual(&settings, &rows(&lengths).collect(), c.num_hidden_layers, 1).keep,
            request,
            lengths,
            lora,
            layout,
            footprint,
            settings,
        })
    }

    fn parameters(&self) -> u64 {
        self.request.config.parameter_count()
    }

    /// Bytes that the run takes, if the device has them.
    fn fits<K: Kernels>(&self, kernels: &K) -> Result<u64, CliError> {
        let f = &self.footprint;
        let tokens: usize = rows(&self.lengths).sum();
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let tokens = tokens.next_multiple_of(kernels.row_padding());
        let calls = f.calls(tokens, longest, false);
        let needed = f.weights().total()
            + f.parameters()
            + f.states()
            + f.copies()
            + f.training(tokens, &self.keep, false)
            + f.storage().logits_bytes(&calls)
            + f.storage().call_bytes(&calls);
        let free = match kernels.memory()? {
            Some(memory) => Some(memory.free),
            None => energy::free_bytes(),
        };
        match free {
            Some(free) if needed > free => Err(CliError::Unavailable {
                code: "insufficient_memory",
                message: format!(
                    "{} with steps of {tokens} tokens needs {:.1} GB on `{}`, and {:.1} GB are free",
                    self.request.name,
                    needed as f64 / 1e9,
                    self.request.device,
                    free as f64 / 1e9
                ),
                hint: Some("fewer --tokens, --recompute min, or a smaller --model need less".to_owned()),
            }),
            _ => Ok(needed),
        }
    }

    fn trainer<K: Kernels>(&self, kernels: K, progress: &mut Progress) -> Result<Trainer<K>, CliError> {
        let source = WeightSource::Random { seed: self.request.seed, std: STD };
        let mut show = |done, total| progress.loading(done, total);
        let config = self.request.config.clone();
        let mut decoder = Decoder::load(kernels, config, source, Some(&self.lora), &mut show)?;
        decoder.initialize(self.request.seed)?;
        Ok(Trainer::for_lengths(decoder, &self.settings, 0.0, rows(&self.lengths))?)
    }

    fn report(&self, found: Found) -> Report {
        let request = self.request;
        let tokens = request.tokens;
        let flops = Flops::of(&request.config, &self.layout, &self.lengths, &self.keep);
        let seconds = found.steps.median_seconds;
        let tokens_per_second = tokens as f64 / seconds;
        let peak = found.peak.tflop_s * 1e12;
        let datasheet = peak::datasheet(&found.name).map(|tflop_s| Datasheet {
            tflop_s,
            mfu_4n: 4.0 * self.parameters() as f64 * tokens_per_second / (tflop_s * 1e12),
        });
        Report {
            version: env!("CARGO_PKG_VERSION"),
            model: Model {
                name: request.name.clone(),
                parameters: self.parameters(),
                trainable_parameters: self.layout.len(),
                rank: request.rank,
            },
            device: Device {
                device: request.device.clone(),
                name: found.name,
                threads: found.on_cpu.then(rayon::current_num_threads),
            },
            batch: Batch {
                tokens,
                documents: self.lengths.len(),
                longest: self.lengths.iter().copied().max().unwrap_or(0),
                lengths: if request.each.is_some() { "equal" } else { "mix" },
            },
            // The word of job files.
            recompute: json!(request.recompute).as_str().unwrap_or_default().to_owned(),
            seed: request.seed,
            warmup: request.warmup,
            weights: found.weights,
            steps: found.steps,
            tokens_per_second,
            flops: StepFlops::of(&flops, tokens),
            peak: found.peak,
            mfu: flops.needed() / seconds / peak,
            hfu: flops.computed() / seconds / peak,
            datasheet,
            memory: found.memory,
            energy: found.energy,
            loss: found.losses,
            marked_steps: MARKED_STEPS,
            shares: report::shares(&found.marked, MARKED_STEPS),
        }
    }
}

//! Throughput of the CPU path on the shipped model and tickets: tokenising, batch making, a training step, an
//! evaluation, and generation. `cargo bench` prints time and tokens per second of each.

#![allow(missing_docs, clippy::expect_used, reason = "a bench has nobody to return an error to")]

use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tunesmith_data::{
    Columns, Dataset, Encoder, Example, Now, OverLong, PrepareOptions, Records, SourceOptions,
    TemplateChoice, load,
};
use tunesmith_infer::{Request, Sampling, generate};
use tunesmith_model::peft::LoraConfig;
use tunesmith_model::{Batch, Checkpoint, Decoder, Document, ModelConfig};
use tunesmith_ops::RefKernels;
use tunesmith_train::{Recompute, TrainConfig, Trainer};

const BATCH: usize = 8;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn model_dir() -> PathBuf {
    fixtures().join("support-base-4m")
}

fn encoder(config: &ModelConfig) -> Encoder {
    Encoder::from_dir(&model_dir(), TemplateChoice::Auto, &config.eos_token_ids, Now::utc())
        .expect("tokenizer")
}

fn examples(config: &ModelConfig) -> Vec<Example> {
    tickets(config, &encoder(config)).examples
}

fn tickets(config: &ModelConfig, encoder: &Encoder) -> Dataset {
    let options = PrepareOptions {
        columns: Columns::default(),
        max_seq_length: config.max_position_embeddings,
        over_long: OverLong::Drop,
        group: None,
    };
    let path = fixtures().join("tickets.jsonl").to_str().expect("UTF-8").to_owned();
    let mut records = Records::open(&[path], &SourceOptions::default()).expect("tickets");
    load(&mut records, encoder, &options).expect("tickets")
}

fn decoder(config: &ModelConfig) -> Decoder<RefKernels> {
    let checkpoint = Checkpoint::open(&model_dir()).expect("weights");
    let lora = LoraConfig::default();
    let mut decoder =
        Decoder::load(RefKernels, config.clone(), &checkpoint, Some(&lora), &mut |_, _| {}).expect("model");
    decoder.initialize(0).expect("adapter");
    decoder
}

fn tokens(examples: &[Example]) -> u64 {
    examples.iter().map(|e| e.ids.len() as u64).sum()
}

fn data(c: &mut Criterion) {
    let config = ModelConfig::from_dir(&model_dir()).expect("config");
    let (all, encoder) = (examples(&config), encoder(&config));
    let mut group = c.benchmark_group("data");
    group.throughput(Throughput::Elements(tokens(&all)));
    group.bench_function("read, render, tokenise, mask", |b| {
        b.iter(|| black_box(tickets(&config, &encoder)));
    });
    let documents: Vec<Document<'_>> =
        all.iter().map(|e| Document { ids: &e.ids, trained: &e.trained, number: 0 }).collect();
    group.bench_function("make batches", |b| {
        b.iter(|| documents.chunks(BATCH).map(|d| Batch::for_training(black_box(d)).tokens()).sum::<usize>());
    });
    group.finish();
}

fn train(c: &mut Criterion) {
    let config = ModelConfig::from_dir(&model_dir()).expect("config");
    let all = examples(&config);
    let rows: Vec<&Example> = all.iter().take(4 * BATCH).collect();
    let mut group = c.benchmark_group("train");
    group.sample_size(20).throughput(Throughput::Elements(rows.iter().map(|e| e.ids.len() as u64).sum()));
    for (name, recompute) in [("step", Recompute::None), ("step, recompute min", Recompute::Min)] {
        let settings = TrainConfig { batch_size: rows.len(), recompute, ..TrainConfig::default() };
        let mut trainer = Trainer::new(decoder(&config), &settings, 0.0, &all).expect("trainer");
        group.bench_function(name, |b| b.iter(|| trainer.step(&rows, 1e-4).expect("step")));
    }
    let settings = TrainConfig { batch_size: rows.len(), ..TrainConfig::default() };
    let mut trainer = Trainer::new(decoder(&config), &settings, 0.0, &all).expect("trainer");
    group.bench_function("evaluation", |b| b.iter(|| trainer.evaluate(&rows).expect("losses")));
    group.finish();
}

fn generation(c: &mut Criterion) {
    const NEW: usize = 64;
    let config = ModelConfig::from_dir(&model_dir()).expect("config");
    let all = examples(&config);
    let mut decoder = decoder(&config);
    let mut group = c.benchmark_group("generate");
    group.sample_size(20).throughput(Throughput::Elements(NEW as u64));
    group.bench_function("64 tokens, greedy", |b| {
        let prompt = &all[0].ids[..16];
        b.iter(|| {
            let sampling = Sampling::default();
            let request = Request { prompt, max_new_tokens: NEW, sampling, stop_ids: &[] };
            generate(&mut decoder, &request, &mut |_| true).expect("reply")
        });
    });
    group.finish();
}

criterion_group!(benches, data, train, generation);
criterion_main!(benches);

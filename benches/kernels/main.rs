//! How fast the kernels are on a GPU: each at the shapes of a training step, beside a copy and a large product measured
//! in the same run. `cargo bench -p tunesmith-emulator --features cuda --bench kernels [-- --json FILE] [-- FILTER]`.
//! Exits with 69 where no GPU can be used.

#![allow(missing_docs, clippy::print_stdout, clippy::print_stderr)]

mod cases;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs};

use tunesmith_kernels::gpu::cuda::{Cuda, Facts};
use tunesmith_kernels::gpu::{Driver, Result};

use cases::{Case, Sizes, Work};

/// Runs before the timed ones.
const WARM_UP: usize = 3;
/// Timed runs, of which the median counts.
const RUNS: usize = 20;
/// Mistral 7B and Llama 3 8B, with the vocabulary of the former, at 8 sequences of 2048 tokens.
const SIZES: Sizes = Sizes {
    tokens: 16_384,
    dim: 4096,
    ffn: 14_336,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocab: 32_000,
    rank: 64,
    chunk: 4096,
    document: 2048,
    trained: 41_943_040,
    square: 8192,
    beyond_cache: 256 << 20,
};

fn main() -> ExitCode {
    let (filter, json) = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(64);
        }
    };
    let d = match Cuda::new(0) {
        Ok(d) => d,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(69);
        }
    };
    // A step's shapes come back often enough to be worth a trial of cuBLASLt's candidates.
    d.set_gemm_trials(true);
    match measure(&d, &filter).map(|results| results.report(d.facts(), json)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("the results cannot be written: {error}");
            ExitCode::from(74)
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(70)
        }
    }
}

/// A part of the names to run, and where to write the results as JSON.
fn arguments() -> std::result::Result<(String, Option<PathBuf>), String> {
    let (mut filter, mut json) = (String::new(), None);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--json" => json = Some(arguments.next().ok_or("--json needs a file")?.into()),
            flag if flag.starts_with('-') => return Err(format!("unknown option `{flag}`")),
            _ => filter = argument,
        }
    }
    Ok((filter, json))
}

struct Results {
    /// GB/s of the faster copy: the driver's or our own kernel's.
    copy: f64,
    /// TFLOP/s of the large product, before the other cases and after.
    product: [f64; 2],
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    work: Work,
    time: Duration,
}

impl Row {
    /// GB/s or TFLOP/s.
    fn rate(&self) -> f64 {
        match self.work {
            Work::Bytes(bytes) => bytes as f64 / self.time.as_secs_f64() / 1e9,
            Work::Flops(flops) => flops as f64 / self.time.as_secs_f64() / 1e12,
        }
    }
}

fn measure(d: &Cuda, filter: &str) -> Result<Results> {
    let s = SIZES;
    let copy = driver_copy(d, &s)?.rate().max(time(d, "", cases::copy(d, &s)?)?.rate());
    let large_product = || Ok(time(d, "", cases::square(d, &s)?)?.rate());
    let before = large_product()?;
    let mut rows = Vec::new();
    for (name, make) in cases::all::<Cuda>() {
        if name.contains(filter) {
            rows.push(time(d, name, make(d, &s)?)?);
        }
    }
    Ok(Results { copy, product: [before, large_product()?], rows })
}

/// The median time of a case.
fn time(d: &Cuda, name: &'static str, mut case: Case<Cuda>) -> Result<Row> {
    let mut times = Vec::new();
    for i in 0..WARM_UP + RUNS {
        let ((), took) = d.time(|d| (case.run)(d, i % case.sets))?;
        if i >= WARM_UP {
            times.push(took);
        }
    }
    times.sort();
    Ok(Row { name, work: case.work, time: times[RUNS / 2] })
}

fn driver_copy(d: &Cuda, s: &Sizes) -> Result<Row> {
    let bytes = 2 * s.tokens * s.dim;
    let sets = s.beyond_cache / bytes + 2;
    let from = (0..sets).map(|_| d.alloc(bytes)).collect::<Result<Vec<_>>>()?;
    let mut to = (0..sets).map(|_| d.alloc(bytes)).collect::<Result<Vec<_>>>()?;
    let run = Box::new(move |d: &Cuda, set: usize| d.copy(&from[set], &mut to[set]));
    time(d, "", Case { work: Work::Bytes(2 * bytes), sets, run })
}

impl Results {
    /// The share of a rate in the copy's or the large product's.
    fn share(&self, row: &Row) -> f64 {
        let best = match row.work {
            Work::Bytes(_) => self.copy,
            Work::Flops(_) => self.product[0],
        };
        row.rate() / best
    }

    fn report(&self, facts: &Facts, json: Option<PathBuf>) -> std::io::Result<()> {
        let [before, after] = self.product;
        println!("{}, driver for CUDA {}.{}", facts.name, facts.driver.0, facts.driver.1);
        println!(
            "copy {:.0} GB/s, product of {}³ {before:.0} TFLOP/s (at the end {after:.0})",
            self.copy, SIZES.square
        );
        println!("median of {RUNS} runs; the share is that of the copy or of the product\n");
        println!("| kernel | µs | rate | share |\n|---|---:|---:|---:|");
        for row in &self.rows {
            let unit = if matches!(row.work, Work::Bytes(_)) { "GB/s" } else { "TFLOP/s" };
            let (micros, share) = (row.time.as_secs_f64() * 1e6, self.share(row) * 100.0);
            println!("| {} | {micros:.1} | {:.0} {unit} | {share:.0} % |", row.name, row.rate());
        }
        json.map_or(Ok(()), |file| fs::write(file, self.json(facts)))
    }

    fn json(&self, facts: &Facts) -> String {
        let Facts { name, capability, driver, .. } = facts;
        let mut out = format!(
            "{{\"device\": {name:?}, \"capability\": \"{}.{}\", \"driver\": \"{}.{}\", \"runs\": {RUNS},\n",
            capability.0, capability.1, driver.0, driver.1
        );
        let _ = writeln!(out, "\"copy_gb_s\": {:.1}, \"product_tflop_s\": {:.1?},", self.copy, self.product);
        out += "\"kernels\": [\n";
        for (i, row) in self.rows.iter().enumerate() {
            let (counted, amount, unit) = match row.work {
                Work::Bytes(bytes) => ("bytes", bytes, "gb_s"),
                Work::Flops(flops) => ("flops", flops, "tflop_s"),
            };
            let micros = row.time.as_secs_f64() * 1e6;
            let comma = if i + 1 < self.rows.len() { "," } else { "" };
            let _ = writeln!(
                out,
                "  {{\"name\": {:?}, \"us\": {micros:.2}, \"{counted}\": {amount}, \"{unit}\": {:.2}, \"share\": \
                 {:.4}}}{comma}",
                row.name,
                row.rate(),
                self.share(row)
            );
        }
        out + "]}\n"
    }
}

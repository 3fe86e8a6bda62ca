//! `tunesmith bench`.

use std::fmt::Write as _;

use tunesmith_model::ModelConfig;

use crate::args::BenchArgs;
use crate::commands::quote::bytes;
use crate::engine::bench::{BenchRequest, Report, Share, bench};
use crate::engine::{Stop, check_device, resolve_device};
use crate::error::CliError;
use crate::progress::{Progress, thousands};
use crate::{interrupt, out};

/// What is measured where nothing is said, on one kind of device.
struct Defaults {
    model: &'static str,
    tokens: usize,
    each: usize,
    steps: usize,
    warmup: usize,
}

const CPU: Defaults = Defaults { model: "llama-100m", tokens: 512, each: 512, steps: 5, warmup: 1 };
const GPU: Defaults = Defaults { model: "mistral-7b", tokens: 16_384, each: 2048, steps: 20, warmup: 5 };

/// Operations that are shown; smaller ones are summed up.
const SHOWN: f64 = 0.005;

/// Measures a training step and says what it found.
pub(crate) fn run(args: &BenchArgs) -> Result<(), CliError> {
    let device = resolve_device(&args.device, args.quiet)?;
    check_device(&device)?;
    let request = request(args, device)?;
    let stop = interrupt::install_stop("stopping", Stop::Cancel, 130)?;
    let mut progress = Progress::new(args.quiet);
    let report = bench(&request, &stop, &mut progress);
    progress.finish();
    let report = report?;
    if args.json { out::json(&report) } else { out::print(&text(&report)) }
}

fn request(args: &BenchArgs, device: String) -> Result<BenchRequest, CliError> {
    let defaults = if device == "cpu" { CPU } else { GPU };
    let (name, config) = sizes(args, defaults.model)?;
    let context = config.max_position_embeddings;
    let tokens = args.tokens.unwrap_or(defaults.tokens);
    Ok(BenchRequest {
        name,
        device,
        tokens,
        each: args.lengths.is_none().then(|| args.seq.unwrap_or(defaults.each.min(context)).min(tokens)),
        rank: args.rank,
        recompute: args.recompute,
        steps: args.steps.unwrap_or(defaults.steps),
        warmup: args.warmup.unwrap_or(defaults.warmup),
        seed: args.seed,
        config,
    })
}

/// The model's name and its sizes.
fn sizes(args: &BenchArgs, otherwise: &str) -> Result<(String, ModelConfig), CliError> {
    if let Some(path) = &args.config {
        // The folder will do, too.
        let file = if path.is_dir() { path.join("config.json") } else { path.clone() };
        if !file.exists() {
            return Err(CliError::Input {
                code: "unsupported_model",
                message: format!("`{}` does not exist", file.display()),
                hint: None,
            });
        }
        return Ok((path.display().to_string(), ModelConfig::from_file(&file)?));
    }
    let name = args.model.as_deref().unwrap_or(otherwise);
    let known = ModelConfig::named(name);
    Ok((name.to_owned(), known.ok_or_else(|| CliError::Internal(format!("no model is known as {name}")))?))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut say = |what: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:<16}{value}");
    };
    let (model, device, batch) = (&report.model, &report.device, &report.batch);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    say(
        "model",
        format!(
            "{}, {} random weights; {} trained ones, rank {}",
            model.name,
            thousands(model.parameters as usize),
            thousands(model.trainable_parameters),
            model.rank
        ),
    );
    let threads = device.threads.map(|n| format!(", {n} threads")).unwrap_or_default();
    say("device", format!("{} ({}{threads})", device.device, device.name));
    say(
        "step",
        format!(
            "{} tokens in {} of up to {}; recompute {}",
            thousands(batch.tokens),
            count(batch.documents, "document"),
            thousands(batch.longest),
            report.recompute
        ),
    );
    let steps = &report.steps;
    say(
        "time",
        format!(
            "{:.4} s, the median of {} after {}; {:.4} to {:.4} s, all of them {:.2} s by the clock on the wall",
            steps.median_seconds,
            count(steps.count, "step"),
            report.warmup,
            steps.least_seconds,
            steps.most_seconds,
            steps.wall_seconds
        ),
    );
    say("speed", format!("{} tokens a second", thousands(report.tokens_per_second.round() as usize)));
    let flops = &report.flops;
    let [m, n, k] = report.peak.shape;
    say(
        "arithmetic",
        format!(
            "{:.3} GFLOP a token, {} TFLOP/s",
            flops.per_token / 1e9,
            rate(flops.needed / steps.median_seconds)
        ),
    );
    say(
        "peak",
        format!(
            "{} TFLOP/s measured, in a product of [{m}, {k}] and [{k}, {n}]",
            rate(report.peak.tflop_s * 1e12)
        ),
    );
    let again = if flops.computed > flops.needed {
        format!(", {} with what is computed again", percent(report.hfu))
    } else {
        String::new()
    };
    say("share of it", percent(report.mfu) + &again);
    say(
        "datasheet",
        match &report.datasheet {
            Some(sheet) => format!(
                "{} of {:.0} TFLOP/s, counting four operations for each weight and token",
                percent(sheet.mfu_4n),
                sheet.tflop_s
            ),
            None => format!("unknown for {}", device.name),
        },
    );
    let memory = &report.memory;
    let host = memory.host_peak_bytes.map_or("unknown".to_owned(), bytes);
    let device_memory = memory.device_peak_bytes.map(|peak| format!("{} on the device, ", bytes(peak)));
    say("memory", format!("{}{host} on the host at the peak", device_memory.unwrap_or_default()));
    let energy = &report.energy;
    say(
        "power",
        match (energy.watts, &energy.unknown) {
            (Some(watts), None) => format!("{watts:.0} W of {}", energy.of.join(" and ")),
            (Some(watts), Some(why)) => {
                format!("{watts:.0} W of {} (not counted: {why})", energy.of.join(" and "))
            }
            (None, why) => format!("unknown: {}", why.as_deref().unwrap_or("not measured")),
        },
    );
    text.push('\n');
    text.push_str(&table(&report.shares));
    text
}

/// Where the time of a step went, the largest part of the step first.
fn table(shares: &[Share]) -> String {
    let mut text = String::new();
    let mut row = |phase: &str, op: &str, calls: &str, seconds: f64, share: f64| {
        let (ms, percent) = (1e3 * seconds, 100.0 * share);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{phase:<10}{op:<26}{calls:>7}{ms:>12.3} ms{percent:>8.1} %");
    };
    let small = |s: &&Share| s.share < SHOWN && s.phase != "rest";
    for s in shares.iter().filter(|s| !small(s)) {
        let calls = if s.calls > 0.0 { format!("{:.0} x", s.calls) } else { String::new() };
        row(s.phase, s.op, &calls, s.seconds, s.share);
    }
    let (seconds, share) =
        shares.iter().filter(small).fold((0.0, 0.0), |(a, b), s| (a + s.seconds, b + s.share));
    if shares.iter().any(|s| small(&s)) {
        row("", "smaller ones", "", seconds, share);
    }
    text
}

/// Operations a second in units of 10^12, with digits that say something.
fn rate(per_second: f64) -> String {
    let tera = per_second / 1e12;
    if tera >= 100.0 { format!("{tera:.0}") } else { format!("{tera:.3}") }
}

fn count(n: usize, what: &str) -> String {
    format!("{} {what}{}", thousands(n), if n == 1 { "" } else { "s" })
}

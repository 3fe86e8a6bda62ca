//! `tunesmith plan`.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tunesmith_train::plan::{Items, Shortage};

use crate::args::PlanArgs;
use crate::commands::quote::bytes;
use crate::commands::{load, train::Failed, train::preflight};
use crate::engine::{self, LayerRange, Report, Stop, Target};
use crate::error::CliError;
use crate::progress::thousands;
use crate::spec::JobSpec;
use crate::{interrupt, out};

/// Says how a job would use the memory of its device.
pub(crate) fn run(args: &PlanArgs) -> Result<(), Failed> {
    let mut spec = load(&args.job, &args.overrides)?.spec;
    // Nothing is written, so where it would go does not matter.
    spec.output = None;
    let target = target(args, &spec);
    let here = JobSpec { device: "cpu".to_owned(), ..spec.clone() };
    preflight(if matches!(target, Target::Device) { &spec } else { &here })?;
    let stop = interrupt::install_stop("stopping", Stop::Cancel, 130)?;
    let planned = engine::plan_job(&spec, target, &stop, args.json)?;
    match planned.outcome {
        Ok(report) => {
            if args.json {
                out::json(&fitting(&report)?)?
            } else {
                out::print(&text(&report))?
            }
            Ok(())
        }
        Err(shortage) => {
            let lacking = lacking(&planned.device, &shortage);
            if args.json {
                out::json(&lacking)?;
            } else {
                out::print(&lacking_text(&planned.device, &shortage))?;
            }
            let error = CliError::from(tunesmith_train::Error::NoRoom(shortage));
            Err(Failed { error, reported: args.json })
        }
    }
}

/// What the plan is for. A limit on the command line needs no GPU, unless one of those that are here is meant.
fn target(args: &PlanArgs, spec: &JobSpec) -> Target {
    if let Some(card) = args.card {
        return Target::Card(card);
    }
    let limited = spec.train.memory_limit.is_some();
    let elsewhere = match spec.device.as_str() {
        "cpu" => false,
        "auto" => args.overrides.memory_limit.is_some(),
        gpu => limited && engine::check_device(gpu).is_err(),
    };
    if elsewhere { Target::Limit } else { Target::Device }
}

fn fitting(report: &Report) -> Result<Value, CliError> {
    let mut value = serde_json::to_value(report).map_err(|e| CliError::Internal(e.to_string()))?;
    value["fits"] = json!(true);
    Ok(value)
}

fn lacking(device: &str, shortage: &Shortage) -> Value {
    json!({
        "fits": false,
        "device": device,
        "needed_bytes": shortage.items.needed(),
        "available_bytes": shortage.available,
        "bytes": shortage.items,
        "micro_batch_tokens": shortage.tokens,
        "longest_row_that_fits": shortage.fits,
        "message": shortage.to_string(),
        "advice": shortage.advice(),
    })
}

/// Lines of a name and a value.
struct Lines(String);

impl Lines {
    fn say(&mut self, what: &str, value: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{what:<16}{value}");
    }

    fn items(&mut self, items: &Items) {
        for (what, n) in [
            ("weights", items.weights),
            ("training states", items.states),
            ("activations", items.activations),
            ("shared buffers", items.shared),
            ("logits", items.logits),
            ("kernel scratch", items.scratch),
            ("previews", items.generation),
            ("left free", items.reserve),
        ] {
            if n > 0 {
                self.say(&format!("  {what}"), &format!("{:>10}", bytes(n)));
            }
        }
    }
}

fn text(report: &Report) -> String {
    let mut lines = Lines(String::new());
    lines.say("device", &device(report));
    let rows = report.micro_batch_rows.map(|rows| format!(", {rows} rows each")).unwrap_or_default();
    let tokens = thousands(report.micro_batch_tokens);
    lines.say(
        "micro-batch",
        &format!("up to {tokens} tokens{rows}, {} in a typical step", report.micro_batches),
    );
    lines.say("recompute", &layers(&report.layers));
    lines.say("extra compute", &format!("{:.1} %", 100.0 * report.extra_compute));
    lines.say("why", &report.why);
    let peak = bytes(report.predicted_peak_bytes);
    let of =
        report.available_bytes.map(|n| format!(" of {} that may be taken", bytes(n))).unwrap_or_default();
    lines.say("peak", &format!("{peak}{of}, by what it is for:"));
    lines.items(&report.bytes);
    lines.0
}

fn lacking_text(device: &str, shortage: &Shortage) -> String {
    let mut lines = Lines(String::new());
    lines.say("device", device);
    let (needed, there) = (bytes(shortage.items.needed()), bytes(shortage.available));
    lines.say("does not fit", &format!("{needed} needed, {there} there, by what it is for:"));
    lines.items(&shortage.items);
    lines.0
}

fn device(report: &Report) -> String {
    let stored = if report.device == "cpu" { "f32" } else { "bf16" };
    let mut text = format!("{}, {stored}", report.device);
    for (n, what) in [(report.total_bytes, "in all"), (report.free_bytes, "free")] {
        if let Some(n) = n {
            let _ = write!(text, ", {} {what}", bytes(n));
        }
    }
    if let Some(limit) = report.limit_bytes {
        let _ = write!(text, ", limited to {}", bytes(limit));
    }
    text
}

/// `layers 0-11: mlp, layers 12-31: none`.
fn layers(ranges: &[LayerRange]) -> String {
    let one = |range: &LayerRange| match (range.first, range.last) {
        (first, last) if first == last => format!("layer {first}: {}", range.recompute),
        (first, last) => format!("layers {first}-{last}: {}", range.recompute),
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(", ")
}

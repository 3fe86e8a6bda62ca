//! `tunesmith quote`.

use std::fmt::Write as _;
use std::time::Duration;

use crate::args::QuoteArgs;
use crate::commands::{load, train::preflight};
use crate::energy::watt_hours;
use crate::engine::{self, Stop};
use crate::error::CliError;
use crate::progress::{clock, thousands};
use crate::quote::Quote;
use crate::{interrupt, out};

pub(super) use tunesmith_train::plan::rounded as bytes;

/// Says what a job will take.
pub(crate) fn run(args: &QuoteArgs) -> Result<(), CliError> {
    let mut spec = load(&args.job, &args.overrides)?.spec;
    // A quote writes no adapter, so where it would go does not matter.
    spec.output = None;
    preflight(&spec)?;
    let stop = interrupt::install_stop("stopping", Stop::Cancel, 130)?;
    if !args.no_measure {
        spec.device = engine::resolve_device(&spec.device, args.json)?;
    }
    let measure = (!args.no_measure).then(|| Duration::from_secs(u64::from(args.measure_seconds)));
    let mut quote = engine::quote(&spec, measure, &stop, args.json)?;
    quote.costs = quote.costs.priced(args.price_per_million);
    if args.json { out::json(&quote) } else { out::print(&text(&quote)) }
}

fn text(quote: &Quote) -> String {
    let (plan, costs) = (&quote.plan, &quote.costs);
    let mut text = String::new();
    let mut say = |what: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:<16}{value}");
    };
    let epochs = |n: usize| if n == 1 { "1 epoch".to_owned() } else { format!("{n} epochs") };
    let rows = count_rows;
    say(
        "rows",
        format!("{} to train on, {} held out", thousands(plan.rows), thousands(plan.validation_rows)),
    );
    say("epochs", quote.epochs_rule.clone());
    let times = |each: usize, all: usize| {
        format!("{} ({} x {})", thousands(all), thousands(each), epochs(plan.epochs))
    };
    say("tokens", times(plan.tokens, costs.tokens));
    say("trained tokens", times(plan.trained_tokens, costs.trained_tokens));
    say("steps", format!("{} of up to {}", thousands(costs.steps), rows(plan.batch_size)));
    match (&quote.estimate, &quote.measured) {
        (Some(estimate), Some(measured)) => {
            let time = |seconds: f64| clock(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
            say(
                "time",
                format!(
                    "about {} (steps {}, evaluations {}), from {} {} in {:.1} s; previews not counted",
                    time(estimate.seconds),
                    time(estimate.train_seconds),
                    time(estimate.evaluation_seconds),
                    thousands(measured.steps),
                    if measured.steps == 1 { "step" } else { "steps" },
                    measured.seconds
                ),
            );
            let energy = match (estimate.joules, &measured.joules_unknown) {
                (Some(joules), why) => {
                    format!("about {}", watt_hours(joules, &measured.joules_of, why.as_deref()))
                }
                (None, why) => format!("unknown: {}", why.as_deref().unwrap_or("not measured")),
            };
            say("energy", energy);
            let memory = measured.peak_bytes.map_or("unknown: the system does not tell".to_owned(), bytes);
            say("memory", format!("{memory} at the peak, on the host"));
            if let Some(device) = measured.device_peak_bytes {
                say("device memory", format!("{} at the peak", bytes(device)));
            }
        }
        _ => {
            for what in ["time", "energy", "memory"] {
                say(what, "unknown: not measured".to_owned());
            }
        }
    }
    say(
        "disk",
        format!("{} of adapter, {} of rows", bytes(quote.disk.adapter_bytes), bytes(quote.disk.data_bytes)),
    );
    if let (Some(price), Some(per_million)) = (costs.price, costs.price_per_million) {
        say("price", format!("{price:.4} ({per_million} a million tokens)"));
    }
    text
}

/// `1 row`, `2,000 rows`.
pub(super) fn count_rows(n: usize) -> String {
    format!("{} {}", thousands(n), if n == 1 { "row" } else { "rows" })
}

//! `tunesmith data check`.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;
use tunesmith_data::check::{Check, CheckReport, Finding, Lengths, Severity, html, table, visible};
use tunesmith_data::{Columns, DataReport};

use super::mask;
use crate::args::CheckArgs;
use crate::commands::current_dir;
use crate::engine::{self, Checked, Source};
use crate::error::CliError;
use crate::out::Style;
use crate::progress::{Progress, thousands};
use crate::{interrupt, out};
use tunesmith_jobs::dir::write_atomic;

/// Columns of a histogram's bar.
const BAR: usize = 40;
/// Places printed with a finding.
const PLACES: usize = 5;

/// Checks rows and says what it found; `true` when a job would refuse them.
pub(crate) fn run(args: &CheckArgs) -> Result<bool, CliError> {
    let source = Source::locate(&args.base, args.hub.revision.as_deref(), args.hub.offline, &current_dir()?)?;
    let cancel = interrupt::install("stopping")?;
    let request = engine::CheckRequest {
        source,
        train: args.sources.clone(),
        validation: args.validation.clone(),
        format: args.format.map(Into::into),
        template: args.template,
        columns: Columns {
            prompt: args.prompt_col.clone(),
            completion: args.completion_col.clone(),
            messages: args.messages_col.clone(),
        },
        max_seq_length: args.max_seq_length.map(|tokens| tokens as usize),
        over_long: args.over_long,
        split_by: args.split_by.clone(),
        previews: args.show_mask,
    };
    let mut progress = Progress::new(args.json);
    let checked = engine::check(&request, &mut progress, &cancel)?;
    progress.finish();
    let Checked { check, previews } = &checked;
    if let Some(path) = &args.html {
        write(path, &html(check, previews))?;
    }
    let [errors, warnings, notes] =
        [Severity::Error, Severity::Warning, Severity::Note].map(|s| check.count(s));
    if args.json {
        out::json(&json!({
            "status": if errors > 0 { "error" } else { "ok" },
            "errors": errors, "warnings": warnings, "notes": notes,
            "check": check, "previews": previews,
        }))?;
        return Ok(errors > 0);
    }
    let style = Style::of_stdout();
    // Writing to a string cannot fail, here and below.
    let mut text = source_text(&check.train, "");
    if let Some(validation) = &check.validation {
        text.push('\n');
        text.push_str(&source_text(validation, "held out: "));
    }
    for preview in previews {
        let place = check.train.data.locate(preview.place);
        text.push('\n');
        text.push_str(&mask::text(preview, &clean(&place), args.show_tokens, style));
    }
    text.push('\n');
    text.push_str(&findings(check, style));
    let _ = writeln!(text, "errors: {errors}, warnings: {warnings}, notes: {notes}");
    if let Some(path) = &args.html {
        let _ = writeln!(text, "report: {}", path.display());
    }
    out::print(&text)?;
    Ok(errors > 0)
}

/// Shape, counts and lengths of one source.
fn source_text(report: &CheckReport, label: &str) -> String {
    let data = &report.data;
    let mut text = format!("{label}`{}`: {}\n\n", clean(&data.title()), clean(&data.shape));
    for (name, value) in table(report) {
        let _ = writeln!(text, "  {name:<28}{value:>12}");
    }
    let _ = writeln!(
        text,
        "\n  {:<10}{:>9}{:>9}{:>9}{:>9}{:>9}{:>12}",
        "tokens", "p5", "median", "p95", "p99", "longest", "all"
    );
    let lengths =
        [("row", &report.row_tokens), ("prompt", &report.prompt_tokens), ("trained", &report.trained_tokens)];
    for (name, l) in lengths {
        let [p5, p50, p95, p99, max, tokens] = [l.p5, l.p50, l.p95, l.p99, l.max, l.tokens].map(thousands);
        let _ = writeln!(text, "  {name:<10}{p5:>9}{p50:>9}{p95:>9}{p99:>9}{max:>9}{tokens:>12}");
    }
    text.push_str(&histogram(&report.row_tokens, report.max_seq_length));
    text
}

/// Rows by length, a bar each, with the limit drawn where rows go beyond it.
fn histogram(lengths: &Lengths, limit: usize) -> String {
    let highest = lengths.bins.iter().map(|b| b.rows).max().unwrap_or(0);
    if highest == 0 {
        return String::new();
    }
    let mut text = format!("\n  {:>15}  rows\n", "tokens of a row");
    let mut drawn = lengths.max <= limit;
    for bin in &lengths.bins {
        if !drawn && bin.to > limit {
            drawn = true;
            let _ = writeln!(text, "  {:>15}  {}", thousands(limit), "- ".repeat(BAR / 2 - 3) + "limit");
        }
        let range = match (bin.from, bin.to) {
            (from, to) if from == to => thousands(from),
            (from, to) => format!("{} - {}", thousands(from), thousands(to)),
        };
        let full = (bin.rows * BAR).div_ceil(highest);
        let bar = "█".repeat(full);
        let _ =
            writeln!(text, "  {range:>15}  {bar}{}{}", if full > 0 { " " } else { "" }, thousands(bin.rows));
    }
    text
}

/// Every finding, the worst first, with where and what.
fn findings(check: &Check, style: Style) -> String {
    check.findings().into_iter().map(|(finding, data)| one(finding, data, style)).collect()
}

fn one(finding: &Finding, data: &DataReport, style: Style) -> String {
    let word = match finding.severity {
        Severity::Error => style.paint(Style::RED, "error:"),
        Severity::Warning => style.paint(Style::YELLOW, "warning:"),
        Severity::Note => style.paint(Style::CYAN, "note:"),
    };
    let mut text = format!("{word} {} [{}]\n", clean(&finding.message), finding.code);
    let places: Vec<String> = finding.places.iter().take(PLACES).map(|p| clean(&data.locate(*p))).collect();
    if !places.is_empty() {
        let more = if finding.places.len() > PLACES { ", ..." } else { "" };
        let _ = writeln!(text, "  {}{more}", places.join(", "));
    }
    if !finding.snippet.is_empty() {
        let _ = writeln!(text, "  {}", clean(&finding.snippet));
    }
    text
}

/// A text of the data on one line that a terminal only shows.
fn clean(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    text.chars().for_each(|c| visible(c, &mut safe));
    safe
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), CliError> {
    write_atomic(&current_dir()?.join(path), text.as_bytes()).map_err(|error| match error {
        tunesmith_jobs::Error::Io { action, path, source } => CliError::Io { action, path, source },
        other => other.into(),
    })
}

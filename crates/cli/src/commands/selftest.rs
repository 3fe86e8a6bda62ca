//! `tunesmith selftest`.

use std::fmt::Write as _;
use std::process::ExitCode;

use crate::args::SelftestArgs;
use crate::commands::data::grid;
use crate::engine::{self, Facts, SelftestReport};
use crate::error::{CliError, WRONG};
use crate::out::{self, Style};
use crate::progress::Progress;

/// Checks a device and prints what it is, a table and a verdict. The exit code says whether all is well.
pub(crate) fn run(args: &SelftestArgs) -> Result<ExitCode, CliError> {
    let quiet = args.quiet || args.json;
    let device = engine::device_to_test(&args.device, quiet);
    let mut progress = Progress::new(quiet);
    let mut done = 0;
    let report = engine::selftest(&device, quiet, &mut |check| {
        done += 1;
        progress.checking(check.name, done);
    });
    progress.finish();
    let report = report?;
    if args.json {
        out::json(&report)?;
    } else {
        out::print(&text(&report, Style::of_stdout()))?;
    }
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}

fn text(report: &SelftestReport, style: Style) -> String {
    let mut text = String::new();
    let mut say = |what: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:<20}{}", grid::plain(value));
    };
    say("tunesmith", report.version);
    say("device", &report.device);
    match &report.facts {
        Facts::Cpu { name, instructions, threads } => {
            say("CPU", name.as_deref().unwrap_or("unknown: the system does not tell"));
            say("instructions", instructions);
            say("threads", &threads.to_string());
        }
        Facts::Gpu(gpu) => {
            say("GPU", &gpu.name);
            say("compute capability", &gpu.compute_capability);
            say("memory", &super::quote::bytes(gpu.memory_bytes));
            say("multiprocessors", &gpu.multiprocessors.to_string());
            say("driver", &format!("supports CUDA {}", gpu.driver_cuda));
            say("cuBLASLt", gpu.cublaslt.as_deref().unwrap_or("unknown"));
        }
    }
    text.push('\n');
    text.push_str(&table(report, style));
    text.push_str(&verdict(report));
    text.push('\n');
    text
}

/// A line for each check, and under one that failed what was wrong.
fn table(report: &SelftestReport, style: Style) -> String {
    let of = |part: &dyn Fn(&tunesmith_selftest::Check) -> usize, least: usize| {
        report.checks.iter().map(part).max().unwrap_or(0).max(least)
    };
    let names = of(&|check| check.name.len(), "check".len());
    let shapes = of(&|check| grid::measure(&check.shape), "shape".len());
    let mut text = format!("{:names$}  {:shapes$}  {:>8}  {:>8}  ok\n", "check", "shape", "error", "allowed");
    for check in &report.checks {
        let gap = " ".repeat(shapes - grid::measure(&check.shape));
        let numbers = format!("{:>8}  {:>8}", number(check.error), number(check.allowed));
        let (colour, mark) = if check.passed { ("", "yes") } else { (Style::RED, "NO") };
        let line = format!("{:names$}  {}{gap}  {numbers}  {mark}", check.name, check.shape);
        let _ = writeln!(text, "{}", style.paint(colour, &line));
        if let Some(detail) = &check.detail {
            let _ = writeln!(text, "{}", style.paint(colour, &format!("  {}", grid::plain(detail))));
        }
    }
    text.push('\n');
    text
}

/// A distance with as many digits as say something.
fn number(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if !value.is_finite() {
        "-".to_owned()
    } else if value >= 0.1 {
        format!("{value:.2}")
    } else {
        format!("{value:.1e}")
    }
}

fn verdict(report: &SelftestReport) -> String {
    let (all, failed) = (report.checks.len(), report.checks.iter().filter(|check| !check.passed).count());
    let device = &report.device;
    if report.passed() {
        return format!("all {all} checks passed on {device} in {:.1} s", report.seconds);
    }
    format!(
        "{failed} of {all} checks failed on {device}: do not train on it; nothing it computes can be relied on"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tunesmith_selftest::Check;

    fn report(passed: bool) -> SelftestReport {
        let check = Check {
            name: "gemm",
            shape: "[7, 24] x [65, 24]ᵀ".to_owned(),
            error: 1.7e-3,
            allowed: 2.5e-3,
            passed: true,
            detail: None,
        };
        let other =
            Check::failed("rope", "[5, 3 x 8]".to_owned(), 2.5e-3, "it wrote 3 outside\nof it".to_owned());
        SelftestReport {
            status: if passed { "ok" } else { "failed" },
            version: "1.2.3",
            device: "cpu".to_owned(),
            facts: Facts::Cpu { name: Some("A CPU".to_owned()), instructions: "AVX2", threads: 2 },
            checks: if passed { vec![check] } else { vec![check, other] },
            seconds: 1.25,
        }
    }

    #[test]
    fn facts_table_and_verdict() {
        let expected = "\
tunesmith           1.2.3
device              cpu
CPU                 A CPU
instructions        AVX2
threads             2

check  shape                   error   allowed  ok
gemm   [7, 24] x [65, 24]ᵀ    1.7e-3    2.5e-3  yes

all 1 checks passed on cpu in 1.2 s
";
        assert_eq!(text(&report(true), Style::plain()), expected);
        let failed = text(&report(false), Style::plain());
        assert!(
            failed.contains(
                "\nrope   [5, 3 x 8]                  -    2.5e-3  NO\n  it wrote 3 outside\\nof it\n"
            ),
            "{failed}"
        );
        assert!(failed.ends_with(
            "1 of 2 checks failed on cpu: do not train on it; nothing it computes can be relied on\n"
        ));
    }
}

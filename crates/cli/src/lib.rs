//! The tunesmith command line: job files, job directories, progress and reports around the engine.

mod args;
pub mod cards;
mod commands;
mod energy;
pub mod engine;
pub mod error;
mod interrupt;
mod out;
mod program;
pub mod progress;
pub mod quote;
pub mod spec;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use serde_json::json;
use tunesmith_jobs::Desired;

use args::{AdapterCommand, Cli, Command};
use commands::train::Failed;
use error::CliError;

/// Parses the process's arguments, runs the command and returns its exit code.
pub fn run() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(e) => return usage(&e),
    };
    let ended = catch_unwind(AssertUnwindSafe(|| dispatch(&command)))
        .unwrap_or_else(|panic| Err(CliError::from_panic(panic.as_ref()).into()));
    let Failed { error, reported } = match ended {
        Ok(code) => return code,
        Err(failed) => failed,
    };
    out::error(&error);
    if command.json() && !reported {
        let report = json!({
            "status": "error",
            "error": {
                "class": error.class(), "code": error.code(), "message": error.message(), "hint": error.hint(),
            },
        });
        // Nothing more can be done about an output that cannot be written.
        let _ = out::json(&report);
    }
    ExitCode::from(error.exit_code())
}

fn dispatch(command: &Command) -> Result<ExitCode, Failed> {
    match command {
        Command::Train(args) => commands::train::run(args)?,
        Command::Generate(args) => commands::generate::run(args)?,
        Command::Quote(args) => commands::quote::run(args)?,
        Command::Plan(args) => commands::plan::run(args)?,
        Command::Bench(args) => commands::bench::run(args)?,
        Command::Adapter(AdapterCommand::Inspect { dir, json }) => commands::inspect::run(dir, *json)?,
        Command::Config(command) => commands::config::run(command)?,
        // What is wrong with the rows is said in the report already.
        Command::Data(command) => {
            if !commands::data::run(command)? {
                return Ok(ExitCode::from(error::BAD_DATA));
            }
        }
        Command::Worker(args) => return Ok(commands::worker::run(args)),
        Command::Serve(args) => commands::serve::run(args)?,
        Command::Create(args) => return Ok(commands::jobs::create(args)?),
        Command::Show(args) => commands::jobs::list(args)?,
        Command::Describe(args) => return Ok(commands::jobs::describe(args)?),
        Command::Cancel(args) => commands::jobs::request(Desired::Cancel, args)?,
        Command::Pause(args) => commands::jobs::request(Desired::Pause, args)?,
        Command::Resume(args) => commands::jobs::request(Desired::Run, args)?,
        Command::Retry(args) => commands::jobs::retry(args)?,
        Command::Logs(args) => commands::jobs::logs(args)?,
        Command::Rm(args) => commands::jobs::remove(args)?,
        Command::Doctor(args) => return Ok(commands::jobs::doctor(args)?),
        Command::Selftest(args) => return Ok(commands::selftest::run(args)?),
        Command::TemplateHelper => {
            tunesmith_data::serve_templates().map_err(|e| CliError::Internal(e.to_string()))?;
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tunesmith", &mut script);
            out::print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What clap has to say: help and version on standard output, mistakes on standard error with exit code 2.
fn usage(message: &clap::Error) -> ExitCode {
    let printed = message.print();
    let broken_pipe = printed.is_err_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe);
    let code = if broken_pipe { 0 } else { message.exit_code() };
    ExitCode::from(u8::try_from(code).unwrap_or(2))
}

//! `tunesmith config`.

use crate::args::ConfigCommand;
use crate::commands::load;
use crate::error::CliError;
use crate::{out, spec};

/// Runs `config schema` and `config show`.
pub(crate) fn run(command: &ConfigCommand) -> Result<(), CliError> {
    match command {
        ConfigCommand::Schema => out::print(&spec::schema_text()),
        ConfigCommand::Show { job, overrides, json } => {
            let loaded = load(job, overrides)?;
            if *json { out::json(&loaded.spec) } else { out::print(&spec::show(&loaded)) }
        }
    }
}

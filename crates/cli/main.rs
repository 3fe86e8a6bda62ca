//! The `tunesmith` binary. Everything it does lives in the `tunesmith-cli` crate.

fn main() -> std::process::ExitCode {
    tunesmith_cli::run()
}

//! All writing to the terminal. A reader that went away (`tunesmith ... | head`) is no failure: the rest of the
//! output is dropped quietly and the work goes on.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::CliError;

static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Writes to standard output and flushes, so that streamed text shows at once.
///
/// # Errors
/// [`CliError::Io`] when standard output cannot take it, as when it is a file on a full disk.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    if stdout_closed() {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
            STDOUT_CLOSED.store(true, Ordering::Relaxed);
            Ok(())
        }
        Err(source) => Err(CliError::Io { action: "write", path: PathBuf::from("standard output"), source }),
        Ok(()) => Ok(()),
    }
}

/// Writes a line to standard output.
///
/// # Errors
/// As [`print`].
pub(crate) fn line(text: &str) -> Result<(), CliError> {
    print(&format!("{text}\n"))
}

/// Writes a JSON value to standard output, indented.
///
/// # Errors
/// As [`print`], and [`CliError::Internal`] when the value has no JSON form.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Internal(e.to_string()))?;
    line(&text)
}

/// Whether the reader of standard output has gone, so that making more output is wasted.
pub(crate) fn stdout_closed() -> bool {
    STDOUT_CLOSED.load(Ordering::Relaxed)
}

/// Writes a line to standard error; nobody is left to tell if that fails.
pub(crate) fn note(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "{text}");
}

/// Prints an error and its hint to standard error.
pub(crate) fn error(error: &CliError) {
    let (red, cyan, plain) =
        if colours() { ("\u{1b}[1;31m", "\u{1b}[1;36m", "\u{1b}[0m") } else { ("", "", "") };
    for line in error.message().lines() {
        note(&format!("{red}error:{plain} {line}"));
    }
    if let Some(hint) = error.hint() {
        note(&format!("{cyan}hint:{plain} {hint}"));
    }
}

/// Whether standard error is a terminal that wants colours (<https://no-color.org>).
fn colours() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    io::stderr().is_terminal() && !set("NO_COLOR") && !dumb
}

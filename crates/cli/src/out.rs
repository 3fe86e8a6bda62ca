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

/// Writes a JSON value to standard output as one line.
///
/// # Errors
/// As [`json`].
pub(crate) fn json_line(value: &impl serde::Serialize) -> Result<(), CliError> {
    line(&serde_json::to_string(value).map_err(|e| CliError::Internal(e.to_string()))?)
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
    failure(&error.message(), error.hint().as_deref());
}

/// Prints what went wrong, here or in a job, and what may help.
pub(crate) fn failure(message: &str, hint: Option<&str>) {
    let (red, cyan, plain) =
        if colours() { ("\u{1b}[1;31m", "\u{1b}[1;36m", "\u{1b}[0m") } else { ("", "", "") };
    for line in message.lines() {
        note(&format!("{red}error:{plain} {line}"));
    }
    if let Some(hint) = hint {
        note(&format!("{cyan}hint:{plain} {hint}"));
    }
}

/// Whether standard error is a terminal that wants colours.
fn colours() -> bool {
    wants_colours(io::stderr().is_terminal())
}

/// Whether a stream may have colours (<https://no-color.org>).
fn wants_colours(terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
    terminal && !set("NO_COLOR") && !dumb
}

/// Colours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    coloured: bool,
}

impl Style {
    pub(crate) const RED: &str = "1;31";
    pub(crate) const YELLOW: &str = "1;33";
    pub(crate) const CYAN: &str = "1;36";
    pub(crate) const MAGENTA: &str = "35";
    pub(crate) const DIM: &str = "2";
    /// Text that is trained.
    pub(crate) const TRAINED: &str = "4;32";
    /// A control token that is trained.
    pub(crate) const TRAINED_CONTROL: &str = "4;1;35";

    /// What standard output can show.
    pub(crate) fn of_stdout() -> Self {
        Self { coloured: wants_colours(io::stdout().is_terminal()) }
    }

    /// No colours.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { coloured: false }
    }

    pub(crate) fn is_coloured(self) -> bool {
        self.coloured
    }

    /// A text in a colour (one of the constants, or nothing). Each of its lines is painted by itself.
    pub(crate) fn paint(self, colour: &str, text: &str) -> String {
        if !self.coloured || colour.is_empty() {
            return text.to_owned();
        }
        let line = |line: &str| match line {
            "" => String::new(),
            line => format!("\u{1b}[{colour}m{line}\u{1b}[0m"),
        };
        text.split('\n').map(line).collect::<Vec<_>>().join("\n")
    }
}

//! Ctrl-C and termination: the first asks the work to stop at the next good place, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::{Stop, StopFlag};
use crate::error::CliError;
use crate::out;

/// Installs the handler; the flag it returns turns true at the first signal.
///
/// # Errors
/// [`CliError::Internal`] when the operating system refuses a handler.
pub(crate) fn install(stopping: &'static str) -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    handle(stopping, 130, move || seen.swap(true, Ordering::Relaxed))?;
    Ok(flag)
}

/// Installs the handler of a run: the first signal asks it to `stop`, the second ends the process with `code`.
///
/// # Errors
/// As [`install`].
pub(crate) fn install_stop(stopping: &'static str, stop: Stop, code: u8) -> Result<Arc<StopFlag>, CliError> {
    let flag = Arc::new(StopFlag::default());
    let seen = Arc::clone(&flag);
    handle(stopping, code, move || seen.signal(stop) != Stop::None)?;
    Ok(flag)
}

/// At a signal `again` says whether there was one before.
fn handle(
    stopping: &'static str,
    code: u8,
    again: impl Fn() -> bool + Send + 'static,
) -> Result<(), CliError> {
    let handler = move || {
        if again() {
            #[expect(clippy::exit, reason = "a second signal means now: nothing may be waited for")]
            std::process::exit(code.into());
        }
        out::note(stopping);
    };
    ctrlc::set_handler(handler).map_err(|e| CliError::Internal(format!("cannot handle Ctrl-C: {e}")))
}

//! Ctrl-C and termination: the first asks the work to stop at the next good place, the second ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::CliError;
use crate::out;

/// Installs the handler; the flag it returns turns true at the first signal.
///
/// # Errors
/// [`CliError::Internal`] when the operating system refuses a handler.
pub(crate) fn install(stopping: &'static str) -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    let handler = move || {
        if seen.swap(true, Ordering::Relaxed) {
            #[expect(clippy::exit, reason = "a second Ctrl-C means now: nothing may be waited for")]
            std::process::exit(130);
        }
        out::note(stopping);
    };
    ctrlc::set_handler(handler).map_err(|e| CliError::Internal(format!("cannot handle Ctrl-C: {e}")))?;
    Ok(flag)
}

//! Ctrl-C and termination: the first asks the work to stop at the next good place, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::CliError;
use crate::out;

/// Whom the next signal is for, and what is said then.
static CURRENT: Mutex<Option<(Arc<AtomicBool>, &'static str)>> = Mutex::new(None);

/// Installs the handler; the flag it returns turns true at the first signal from now on. A later call is for what a
/// command does next.
///
/// # Errors
/// [`CliError::Internal`] when the operating system refuses a handler.
pub(crate) fn install(stopping: &'static str) -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if current.replace((Arc::clone(&flag), stopping)).is_none() {
        ctrlc::set_handler(signalled)
            .map_err(|e| CliError::Internal(format!("cannot handle Ctrl-C: {e}")))?;
    }
    Ok(flag)
}

fn signalled() {
    let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some((flag, stopping)) = current else { return };
    if flag.swap(true, Ordering::Relaxed) {
        #[expect(clippy::exit, reason = "a second Ctrl-C means now: nothing may be waited for")]
        std::process::exit(130);
    }
    out::note(stopping);
}

//! Ctrl-C and termination: the first asks the work to stop at the next good place, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::{Stop, StopFlag};
use crate::error::CliError;
use crate::out;

/// Whom a signal is for.
struct Handler {
    /// Asks the work to stop; whether it was asked before.
    ask: Arc<dyn Fn() -> bool + Send + Sync>,
    /// What is said then.
    stopping: &'static str,
    /// Exit code of the second signal.
    code: u8,
}

/// Whom the next signal is for.
static CURRENT: Mutex<Option<Handler>> = Mutex::new(None);

/// Installs the handler; the flag it returns turns true at the first signal from now on. A later call is for what a
/// command does next.
///
/// # Errors
/// [`CliError::Internal`] when the operating system refuses a handler.
pub(crate) fn install(stopping: &'static str) -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    handle(Handler { ask: Arc::new(move || seen.swap(true, Ordering::Relaxed)), stopping, code: 130 })?;
    Ok(flag)
}

/// Installs the handler of a run: the first signal asks it to `stop`, the second ends the process with `code`.
///
/// # Errors
/// As [`install`].
pub(crate) fn install_stop(stopping: &'static str, stop: Stop, code: u8) -> Result<Arc<StopFlag>, CliError> {
    let flag = Arc::new(StopFlag::default());
    let seen = Arc::clone(&flag);
    handle(Handler { ask: Arc::new(move || seen.signal(stop) != Stop::None), stopping, code })?;
    Ok(flag)
}

/// From now on the first signal ends the process: nothing is at work any more.
pub(crate) fn at_once() {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    // Where no handler is installed it is so anyway.
    if let Some(handler) = &mut *current {
        handler.ask = Arc::new(|| true);
    }
}

fn handle(handler: Handler) -> Result<(), CliError> {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if current.replace(handler).is_none() {
        ctrlc::set_handler(signalled)
            .map_err(|e| CliError::Internal(format!("cannot handle Ctrl-C: {e}")))?;
    }
    Ok(())
}

fn signalled() {
    let current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Handler { ask, stopping, code }) = &*current else { return };
    if ask() {
        #[expect(clippy::exit, reason = "a second signal means now: nothing may be waited for")]
        std::process::exit((*code).into());
    }
    out::note(stopping);
}

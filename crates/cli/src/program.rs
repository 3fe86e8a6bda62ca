//! This program, for whoever starts it again.

use std::io;
use std::path::{Path, PathBuf};

/// Where it is. On Linux by a name that holds while its file is replaced: what is started is of the version that asked for
/// it.
///
/// # Errors
/// If the system does not tell.
pub(crate) fn own() -> io::Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if cfg!(target_os = "linux") && link.exists() { Ok(link.to_owned()) } else { std::env::current_exe() }
}

//! `supervisor.lock`: a workspace has one supervisor, and the kernel knows whether it lives.

use std::fs::{self, File, TryLockError};
use std::io::{self, Seek as _, Write as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;

/// Longest time to wait for the lock: whoever looks whether there is a supervisor holds it for a moment.
const PATIENCE: Duration = Duration::from_secs(1);

/// The right to supervise a workspace, as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// [`Error::Supervised`] when another process has it.
    pub(super) fn take(home: &Path) -> Result<Self, Error> {
        fs::create_dir_all(home).map_err(Error::at("create", home))?;
        let path = home.join("supervisor.lock");
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let mut file = open.map_err(Error::at("create", &path))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Supervised { home: home.to_owned(), pid: written(&path) });
                }
                Err(TryLockError::Error(e)) => return Err(Error::at("lock", &path)(e)),
            }
        }
        let write = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(Error::at("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// The process that supervises a workspace (0 if it has not said its number yet); none where nobody does.
pub fn running(home: &Path) -> Result<Option<u32>, Error> {
    let path = home.join("supervisor.lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::at("read", &path)(e)),
    };
    match file.try_lock() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(written(&path))),
        Err(TryLockError::Error(e)) => Err(Error::at("lock", &path)(e)),
    }
}

fn written(path: &Path) -> u32 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_at_a_time_and_a_look_tells_which() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().join("new");
        assert_eq!(running(&home).unwrap(), None);
        let lock = Lock::take(&home).unwrap();
        assert_eq!(running(&home).unwrap(), Some(std::process::id()));
        let error = Lock::take(&home).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        assert_eq!(running(&home).unwrap(), None);
        Lock::take(&home).unwrap();
    }
}

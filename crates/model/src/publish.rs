//! Directories that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Builds the directory `dir` through `fill`, which gets the path of `<dir>.tmp` to write into, and renames it into
/// place. If anything fails, nothing is left behind. An existing `dir` is never touched.
///
/// `fill` writes through [`write_file`] and [`copy_file`], which bring every file to the disk before it is renamed.
/// A `<dir>.tmp` that an interrupted run left is replaced if it holds only files named in `known`.
pub(crate) fn publish_dir(dir: &Path, known: &[&str], fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    if exists(dir) {
        let problem = "already exists; remove it or choose another directory".to_string();
        return Err(Error::Adapter { path: dir.to_path_buf(), problem });
    }
    let tmp = with_tmp_suffix(dir)?;
    if exists(&tmp) {
        remove_leftover(&tmp, known)?;
    }
    fs::create_dir(&tmp).map_err(Error::io("create the directory", &tmp))?;
    let result = fill(&tmp).and_then(|()| {
        sync_dir(&tmp)?;
        fs::rename(&tmp, dir).map_err(Error::io("create the directory", dir))?;
        sync_dir(parent(dir))
    });
    if result.is_err() {
        // The first error is the one to report; one from cleaning up would hide it.
        let _ = fs::remove_dir_all(&tmp);
    }
    result
}

/// Writes a new file through `fill` and waits until it is on the disk.
pub fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let write = || {
        let mut file = io::BufWriter::with_capacity(1 << 16, File::create(path)?);
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(Error::io("write", path))
}

/// Copies a file's content, not its permissions, and waits until it is on the disk.
pub(crate) fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(Error::io("read", from))?;
    write_file(to, |out| io::copy(&mut source, out).map(drop))
}

fn with_tmp_suffix(dir: &Path) -> Result<PathBuf> {
    let Some(name) = dir.file_name() else {
        return Err(Error::Adapter {
            path: dir.to_path_buf(),
            problem: "is not the name of a directory".into(),
        });
    };
    let mut name = OsString::from(name);
    name.push(".tmp");
    Ok(dir.with_file_name(name))
}

fn parent(dir: &Path) -> &Path {
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn remove_leftover(tmp: &Path, known: &[&str]) -> Result<()> {
    let foreign = || Error::Adapter {
        path: tmp.to_path_buf(),
        problem: "is in the way and holds files of another origin; remove it".to_string(),
    };
    if !tmp.symlink_metadata().is_ok_and(|about| about.is_dir()) {
        return Err(foreign());
    }
    for entry in fs::read_dir(tmp).map_err(Error::io("read the directory", tmp))? {
        let entry = entry.map_err(Error::io("read the directory", tmp))?;
        let name = entry.file_name();
        let ours = known.iter().any(|known| name == *known) && entry.file_type().is_ok_and(|t| t.is_file());
        if !ours {
            return Err(foreign());
        }
    }
    fs::remove_dir_all(tmp).map_err(Error::io("remove the directory", tmp))
}

/// Brings the names in a directory to the disk: a rename is durable only then. Windows has no such call.
#[cfg_attr(windows, allow(clippy::unnecessary_wraps))]
pub fn sync_dir(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(dir).and_then(|file| file.sync_all()).map_err(Error::io("write", dir))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

#[cfg(test)]
mod tests;

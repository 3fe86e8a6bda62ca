//! The finished adapter in the directory that the job asks for.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tunesmith_jobs::dir::{JobDir, sync_dir};

use crate::error::CliError;
use crate::out;
use crate::spec::JobSpec;

/// Copies the adapter to the output directory, if one is asked for: whole, or not at all. Returns where it is then.
///
/// Doing it again does no harm: an output that is the adapter, file by file, is what an attempt left that died before
/// it could say so.
///
/// # Errors
/// An output of another origin, which is never touched; a disk that is full.
pub(super) fn deliver(spec: &JobSpec, job: &JobDir) -> Result<PathBuf, CliError> {
    let adapter = job.adapter();
    let Some(output) = &spec.output else { return Ok(adapter) };
    let failed = |source| {
        out::note(&format!("note: the adapter is whole in `{}`", adapter.display()));
        CliError::Io { action: "write", path: output.clone(), source }
    };
    if output.is_dir() && same(&adapter, output).map_err(failed)? {
        return Ok(output.clone());
    }
    refuse_existing(output)?;
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", job.id()));
    let partial = output.with_file_name(name);
    if partial.symlink_metadata().is_ok() {
        fs::remove_dir_all(&partial).map_err(failed)?;
    }
    let parent = output.parent().unwrap_or(Path::new("."));
    let copied = fs::create_dir_all(parent)
        .and_then(|()| copy_dir(&adapter, &partial))
        .and_then(|()| fs::rename(&partial, output));
    if let Err(source) = copied {
        let _ = fs::remove_dir_all(&partial);
        return Err(failed(source));
    }
    sync_dir(parent)?;
    Ok(output.clone())
}

/// Refuses an output that is there already.
pub(super) fn refuse_existing(output: &Path) -> Result<(), CliError> {
    // A dangling link exists too.
    if fs::symlink_metadata(output).is_ok() {
        return Err(CliError::Input {
            code: "output_exists",
            message: format!("the output directory `{}` already exists", output.display()),
            hint: Some(
                "choose another one with `--output`, or move it away; it is never overwritten".to_owned(),
            ),
        });
    }
    Ok(())
}

/// Whether two directories hold the same files.
fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let names = |dir: &Path| -> io::Result<Vec<_>> {
        let mut names = fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    let listed = names(a)?;
    if listed != names(b)? {
        return Ok(false);
    }
    for name in listed {
        let (a, b) = (a.join(&name), b.join(&name));
        let equal = match (a.is_dir(), b.is_dir()) {
            (true, true) => same(&a, &b)?,
            (false, false) => {
                fs::metadata(&a)?.len() == fs::metadata(&b)?.len() && fs::read(&a)? == fs::read(&b)?
            }
            _ => false,
        };
        if !equal {
            return Ok(false);
        }
    }
    Ok(true)
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            File::options().write(true).open(&target)?.sync_all()?;
        }
    }
    sync_dir(to).map_err(io::Error::other)
}

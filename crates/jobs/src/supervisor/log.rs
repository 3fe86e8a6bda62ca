//! Logs that do not grow for ever.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::dir::rfc3339_now;

/// Length at which `supervisor.log` becomes `supervisor.log.1`.
const LONGEST: u64 = 1 << 20;

/// What the supervisor says: to `supervisor.log`, and to whoever listens.
pub(super) struct Voice {
    path: PathBuf,
    listener: Box<dyn FnMut(&str) + Send>,
    /// The last trouble of each subject, so that what goes on is said once.
    troubles: HashMap<String, String>,
}

impl std::fmt::Debug for Voice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Voice").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Voice {
    pub(super) fn new(home: &Path) -> Self {
        let path = home.join("supervisor.log");
        Self { path, listener: Box::new(|_| {}), troubles: HashMap::new() }
    }

    pub(super) fn listen(&mut self, listener: Box<dyn FnMut(&str) + Send>) {
        self.listener = listener;
    }

    /// Says a line.
    pub(super) fn say(&mut self, line: &str) {
        (self.listener)(line);
        rotate(&self.path, LONGEST);
        // Nobody is helped by a supervisor that stops because its log cannot be written.
        if let Ok(mut file) = File::options().create(true).append(true).open(&self.path) {
            let _ = file.write_all(format!("{} {line}\n", rfc3339_now()).as_bytes());
        }
    }

    /// Says what went wrong with a subject (a job, or the store), unless it was the last thing said of it.
    pub(super) fn trouble(&mut self, subject: &str, trouble: &str) {
        if self.troubles.get(subject).is_none_or(|last| last != trouble) {
            self.troubles.insert(subject.to_owned(), trouble.to_owned());
            self.say(&format!("{subject}: {trouble}"));
        }
    }

    /// Forgets the trouble of a subject: it is over.
    pub(super) fn well(&mut self, subject: &str) {
        if self.troubles.remove(subject).is_some() {
            self.say(&format!("{subject}: that is over"));
        }
    }
}

/// Renames a log that has become too long to `<name>.1`, in the place of the one that was there.
pub(super) fn rotate(path: &Path, longest: u64) {
    if path.metadata().is_ok_and(|about| about.len() >= longest) {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".1");
        let _ = fs::rename(path, path.with_file_name(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_trouble_is_said_once_until_it_changes() {
        let home = tempfile::tempdir().unwrap();
        let mut voice = Voice::new(home.path());
        let (sender, heard) = mpsc::channel();
        voice.listen(Box::new(move |line| sender.send(line.to_owned()).unwrap()));
        for trouble in ["full", "full", "gone", "full"] {
            voice.trouble("store", trouble);
        }
        voice.well("store");
        voice.well("store");
        let lines: Vec<_> = heard.try_iter().collect();
        assert_eq!(lines, ["store: full", "store: gone", "store: full", "store: that is over"]);
        let text = fs::read_to_string(home.path().join("supervisor.log")).unwrap();
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn a_log_that_is_too_long_makes_way() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        rotate(&path, 3);
        fs::write(&path, "ab").unwrap();
        rotate(&path, 3);
        assert!(path.exists());
        fs::write(&path, "abc").unwrap();
        rotate(&path, 3);
        assert!(!path.exists());
        assert_eq!(fs::read_to_string(home.path().join("log.1")).unwrap(), "abc");
    }
}

//! Running the binary in a directory of its own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shipped base model.
pub(crate) fn base() -> String {
    root().join("tests/fixtures/support-base-4m").to_str().unwrap().to_owned()
}

/// A scratch directory with a home for jobs, and the binary to run there.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Standard output as the one JSON object it must be.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("stdout is no JSON ({e}): {self:?}"))
    }

    /// Asserts the exit code and that standard error has a text.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, stderr: &str) -> &Self {
        assert!(
            self.code == code && self.stderr.contains(stderr),
            "expected {code} and {stderr:?}, got {self:?}"
        );
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }

    /// Asserts that it went well.
    #[track_caller]
    pub(crate) fn ok(&self) -> &Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where jobs are kept.
    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// Writes a file, making the directories on the way.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The binary, to be run in the scratch directory with nothing of the caller's settings.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tunesmith"));
        command.args(args).current_dir(self.dir.path()).env("TUNESMITH_HOME", self.home());
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        finish(&mut self.command(args))
    }

    /// Runs with a text on standard input.
    pub(crate) fn run_with_stdin(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that refuses its arguments does not read its input.
        let _ = child.stdin.take().unwrap().write_all(input);
        ran(child.wait_with_output().unwrap())
    }

    /// The one job directory under the home.
    #[track_caller]
    pub(crate) fn only_job(&self) -> PathBuf {
        let jobs = self.jobs();
        assert_eq!(jobs.len(), 1, "{jobs:?}");
        jobs.into_iter().next().unwrap()
    }

    /// All job directories under the home.
    pub(crate) fn jobs(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.home().join("jobs")) else { return Vec::new() };
        entries.map(|e| e.unwrap().path()).collect()
    }
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> Ran {
    ran(command.output().unwrap())
}

/// Runs a command with its standard output going to a file.
#[cfg(target_os = "linux")]
pub(crate) fn finish_with_stdout(mut command: Command, file: std::fs::File) -> Ran {
    ran(command.stdout(file).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap())
}

fn ran(output: std::process::Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A JSON file.
pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A job file for the shipped model and `rows.jsonl` in the scratch directory, small enough to train in seconds.
pub(crate) fn small_job(extra: &str) -> String {
    let base = base();
    format!(
        "base = '{base}'\n[data]\ntrain = \"rows.jsonl\"\nmax_seq_length = 128\n\
         [lora]\nr = 2\ntarget_modules = [\"q_proj\", \"v_proj\"]\n\
         [train]\nepochs = 1\nbatch_size = 4\n{extra}"
    )
}

/// So many prompt/completion rows.
pub(crate) fn rows(count: usize) -> String {
    (0..count).fold(String::new(), |text, i| {
        text + &format!(
            "{{\"prompt\": \"Where is order {i}?\", \"completion\": \"Order {i} is on its way.\"}}\n"
        )
    })
}

//! Reading a job file: defaults, then the file, then `--set`, then flags; every value remembers where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::keys::{self, KEYS, Key, Kind};
use super::show::toml;
use super::value::{line_of, to_json};
use super::{JobSpec, check};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// A line of the job file.
    File(PathBuf, usize),
    /// A `--set`, as typed.
    Set(String),
    /// A flag of its own, such as `--epochs`.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path, line) => write!(f, "`{}`, line {line}", path.display()),
            Self::Set(text) => write!(f, "`--set {text}`"),
            Self::Flag(flag) => write!(f, "`{flag}`"),
        }
    }
}

/// A key's value given by a flag of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// Dotted path of the key.
    pub key: &'static str,
    /// The value, checked like any other.
    pub value: Value,
    /// The flag, for messages.
    pub flag: &'static str,
}

/// One thing wrong with a job file, `--set` or flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What, and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// Why a job file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file could not be read.
    #[error("cannot read the job file `{}`", path.display())]
    Read {
        /// The job file.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The file is no UTF-8 text.
    #[error("`{}`, line {line}: not valid UTF-8; save the job file as UTF-8 text", path.display())]
    NotUtf8 {
        /// The job file.
        path: PathBuf,
        /// Line of the first bad byte.
        line: usize,
    },
    /// The file is no TOML.
    #[error("`{}`, line {line}: not valid TOML: {message}", path.display())]
    Syntax {
        /// The job file.
        path: PathBuf,
        /// Where the parser stopped.
        line: usize,
        /// What it says.
        message: String,
    },
    /// A `--set` that is no `key=value`.
    #[error("`--set {text}` is not of the form `key=value`, such as `--set train.epochs=2`")]
    Set {
        /// As typed.
        text: String,
    },
    /// Keys or values are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<Problem>),
}

/// A job file with everything applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The resolved spec; its paths are absolute.
    pub spec: JobSpec,
    /// Where each key's value came from, by dotted path.
    pub origins: BTreeMap<&'static str, Origin>,
}

/// Value and origin of every key.
pub(super) type Values = BTreeMap<&'static str, (Value, Origin)>;

/// Reads a job file and applies `sets` (each `a.b=c`) and `flags`, later ones over earlier ones.
///
/// Relative paths in it are taken from the current working directory `cwd`, like paths typed to any command.
///
/// # Errors
/// Everything that is wrong with keys and values, in one [`SpecError::Problems`]; the other variants stop at the
/// first trouble.
pub fn load(path: &Path, sets: &[String], flags: &[Assignment], cwd: &Path) -> Result<Loaded, SpecError> {
    load_over(Some(path), sets, flags, cwd)
}

/// [`load`] with or without a job file.
///
/// # Errors
/// As [`load`].
pub fn load_over(
    file: Option<&Path>,
    sets: &[String],
    flags: &[Assignment],
    cwd: &Path,
) -> Result<Loaded, SpecError> {
    let mut merge = Merge::new();
    if let Some(path) = file {
        merge.file(path)?;
    }
    for set in sets {
        merge.set(set)?;
    }
    for flag in flags {
        merge.assign(flag.key, &flag.value, Origin::Flag(flag.flag));
    }
    merge.finish(file, cwd)
}

/// The longest name of a job, in characters.
const LONGEST_NAME: usize = 64;

/// Whether a text may name a job: it is shown to people and is never the name of a file.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Err("must not be empty".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("must not hold control characters such as line ends".to_owned());
    }
    match text.chars().count() {
        long if long > LONGEST_NAME => {
            Err(format!("must have at most {LONGEST_NAME} characters, and this has {long}"))
        }
        _ => Ok(()),
    }
}

/// The name of a job that nobody named: that of its file, as far as it may be one.
fn name_of_file(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
    if check_name(&name).is_ok() { name } else { "job".to_owned() }
}

/// What a table is read from.
enum Source<'a> {
    File { path: &'a Path, text: &'a str },
    Set { text: &'a str },
}

impl Source<'_> {
    fn origin(&self, offset: usize) -> Origin {
        match self {
            Self::File { path, text } => Origin::File((*path).to_owned(), line_of(text.as_bytes(), offset)),
            Self::Set { text } => Origin::Set((*text).to_owned()),
        }
    }
}

struct Merge {
    values: Values,
    problems: Vec<Problem>,
}

impl Merge {
    fn new() -> Self {
        let defaults = keys::defaults();
        let default = |k: &Key| keys::get(&defaults, k.path).cloned().unwrap_or_default();
        let values = KEYS.iter().map(|k| (k.path, (default(k), Origin::Default))).collect();
        Self { values, problems: Vec::new() }
    }

    /// Reads a job file.
    fn file(&mut self, path: &Path) -> Result<(), SpecError> {
        let bytes =
            std::fs::read(path).map_err(|source| SpecError::Read { path: path.to_owned(), source })?;
        let text = std::str::from_utf8(&bytes).map_err(|e| SpecError::NotUtf8 {
            path: path.to_owned(),
            line: line_of(&bytes, e.valid_up_to()),
        })?;
        // Editors on Windows put a byte order mark first.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let root = DeTable::parse(text).map_err(|e| SpecError::Syntax {
            path: path.to_owned(),
            line: line_of(text.as_bytes(), e.span().map_or(text.len(), |s| s.start)),
            message: e.message().replace('\n', ", "),
        })?;
        self.table("", root.get_ref(), &Source::File { path, text });
        Ok(())
    }

    fn problem(&mut self, origin: Origin, message: String) {
        self.problems.push(Problem { origin, message });
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>, source: &Source<'_>) {
        for (name, item) in table {
            let at = source.origin(name.span().start);
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            if let Some(key) = keys::find(&path) {
                let at = source.origin(item.span().start);
                match to_json(item.get_ref()) {
                    Ok(value) => self.assign(key.path, &value, at),
                    Err(message) => self.problem(at, format!("`{path}`: {message}")),
                }
            } else if keys::is_table(&path) {
                match item.get_ref() {
                    DeValue::Table(inner) => self.table(&path, inner, source),
                    _ => self
                        .problem(at, format!("`{path}` is a table; write `[{path}]` and its keys below it")),
                }
            } else if item.get_ref().is_table() && prefix.is_empty() {
                let near = keys::nearest_table(&path);
                self.problem(at, format!("unknown table `{path}`; did you mean `{near}`?"));
            } else {
                let near = keys::nearest_key(&path);
                self.problem(at, format!("unknown key `{path}`; did you mean `{near}`?"));
            }
        }
    }

    /// Applies one `a.b=c`. What is no TOML value is taken as a string, so that quotes need no quoting.
    fn set(&mut self, text: &str) -> Result<(), SpecError> {
        let malformed = || SpecError::Set { text: text.to_owned() };
        let (left, right) = text.split_once('=').ok_or_else(malformed)?;
        let right = right.trim();
        let source = Source::Set { text };
        // `--set name=2024` means the text: a key that takes a string reads anything unquoted as one.
        let bare_text =
            keys::find(left.trim()).is_some_and(|k| k.kind == Kind::Text) && !right.starts_with(['"', '\'']);
        if !bare_text && let Ok(parsed) = DeTable::parse(text) {
            self.table("", parsed.get_ref(), &source);
            return Ok(());
        }
        let quoted = format!("{left}={}", toml(&Value::from(right)));
        let parsed = DeTable::parse(&quoted).map_err(|_| malformed())?;
        self.table("", parsed.get_ref(), &source);
        Ok(())
    }

    fn assign(&mut self, path: &'static str, given: &Value, origin: Origin) {
        let Some(key) = keys::find(path) else { return };
        let mut value = match check::value(key, given) {
            Ok(value) => value,
            Err(message) => return self.problem(origin, format!("`{path}`: {message}")),
        };
        // `--set lora.rank_pattern.q_proj=8` adds one entry to the pattern of the file.
        if matches!(key.kind, Kind::IntMap | Kind::RealMap)
            && matches!(origin, Origin::Set(_))
            && let Some((Value::Object(old), _)) = self.values.get(path)
            && let Value::Object(new) = &value
        {
            let merged: Map<_, _> = old.clone().into_iter().chain(new.clone()).collect();
            value = Value::Object(merged);
        }
        self.values.insert(path, (value, origin));
    }

    fn finish(mut self, file: Option<&Path>, cwd: &Path) -> Result<Loaded, SpecError> {
        let whole = || file.map_or(Origin::Default, |path| Origin::File(path.to_owned(), 1));
        for key in KEYS.iter().filter(|k| k.required) {
            let tried = self.problems.iter().any(|p| p.message.contains(&format!("`{}`", key.path)));
            if self.values[key.path].1 == Origin::Default && !tried {
                let message = format!("missing key `{}`: {}", key.path, key.doc);
                self.problem(whole(), message);
            }
        }
        for (path, message) in check::together(&self.values) {
            let origin = self.values[path].1.clone();
            self.problem(origin, format!("`{path}`: {message}"));
        }
        if !self.problems.is_empty() {
            return Err(SpecError::Problems(self.problems));
        }

        let mut root = Value::Object(Map::new());
        for key in KEYS {
            // What is null is not set: left out, so that the field's own default holds.
            if !self.values[key.path].0.is_null() {
                put(&mut root, key.path, self.values[key.path].0.clone());
            }
        }
        let spec: Result<JobSpec, _> = serde_json::from_value(root);
        let mut spec = spec.map_err(|e| one(whole(), e.to_string()))?;
        self.resolve(&mut spec, file, cwd)?;
        let origins = self.values.into_iter().map(|(path, (_, origin))| (path, origin)).collect();
        Ok(Loaded { spec, origins })
    }

    /// Makes paths absolute and fills in what depends on other keys.
    fn resolve(&self, spec: &mut JobSpec, file: Option<&Path>, cwd: &Path) -> Result<(), SpecError> {
        let origin = |key: &str| self.values[key].1.clone();
        spec.data.train = crate::engine::absolute(&spec.data.train, cwd);
        spec.data.validation = spec.data.validation.as_ref().map(|uri| crate::engine::absolute(uri, cwd));
        spec.output = spec.output.as_ref().map(|p| cwd.join(p));
        if spec.data.validation.is_some() {
            spec.data.validation_split = 0.0;
        }
        match &spec.name {
            Some(name) => check_name(name).map_err(|e| one(origin("name"), format!("`name`: {e}")))?,
            None => spec.name = file.map(name_of_file),
        }

        let dir = cwd.join(&spec.base);
        if dir.is_dir() {
            if spec.revision.is_some() {
                let message =
                    "`revision`: only a Hugging Face repo id has revisions, and `base` is a directory";
                return Err(one(origin("revision"), message.to_owned()));
            }
            let text = dir
                .to_str()
                .ok_or_else(|| one(origin("base"), "`base`: the path is not UTF-8".to_owned()))?;
            text.clone_into(&mut spec.base);
        } else if !is_repo_id(&spec.base) {
            let what = if dir.exists() { "is not a directory" } else { "does not exist" };
            let message = format!(
                "`base`: `{}` {what}, and `{}` is not a Hugging Face repo id (`owner/name`)",
                dir.display(),
                spec.base
            );
            return Err(one(origin("base"), message));
        }
        Ok(())
    }
}

/// Whether a text has the form of a Hugging Face repo id: `owner/name`, letters, digits, `-`, `_`, `.`.
pub fn is_repo_id(text: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with(['.', '-'])
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    text.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

fn one(origin: Origin, message: String) -> SpecError {
    SpecError::Problems(vec![Problem { origin, message }])
}

/// Indexing makes the tables on the way.
fn put(root: &mut Value, path: &str, value: Value) {
    match path.split_once('.') {
        Some((table, rest)) => put(&mut root[table], rest, value),
        None => root[path] = value,
    }
}

//! What `replay` and `logits` share: arguments, batches in safetensors files, models with adapters.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use tunesmith_data::{Example, Place};
use tunesmith_model::peft::{self, PeftConfig};
use tunesmith_model::{Checkpoint, Decoder, ModelConfig};
use tunesmith_ops::Kernels;
use tunesmith_testkit::tensors::read_int_tensors;

pub mod device;

/// Exit status of a program whose device has not enough memory for what was asked.
pub const OUT_OF_MEMORY: u8 = 3;

/// What can go wrong in these programs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line is not understood.
    #[error("{0}")]
    Usage(String),
    /// A file of the run is not as it should be.
    #[error("`{path}`: {what}")]
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The model refused.
    #[error(transparent)]
    Model(#[from] tunesmith_model::Error),
    /// The trainer refused.
    #[error(transparent)]
    Train(#[from] tunesmith_train::Error),
    /// The device refused.
    #[error(transparent)]
    Ops(#[from] tunesmith_ops::Error),
    /// A tensor file could not be read or written.
    #[error(transparent)]
    Kit(#[from] tunesmith_testkit::Error),
}

impl Error {
    /// For `map_err`: what went wrong with the file `path`.
    pub fn input<E: Display>(path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |what| Self::Input { path, what: what.to_string() }
    }

    /// Whether a device has not enough memory.
    fn is_out_of_memory(&self) -> bool {
        use tunesmith_ops::{DeviceError, Error as Ops};
        if matches!(
            self,
            Self::Train(tunesmith_train::Error::Memory { .. } | tunesmith_train::Error::NoRoom(_))
        ) {
            return true;
        }
        let ops = match self {
            Self::Ops(e) | Self::Train(tunesmith_train::Error::Ops(e)) => Some(e),
            Self::Model(e) | Self::Train(tunesmith_train::Error::Model(e)) => of_model(e),
            _ => None,
        };
        matches!(ops, Some(Ops::OutOfMemory { .. } | Ops::Device(DeviceError::OutOfMemory { .. })))
    }
}

/// What the device said, where that is what stopped the model.
fn of_model(error: &tunesmith_model::Error) -> Option<&tunesmith_ops::Error> {
    if let tunesmith_model::Error::Ops(e) = error { Some(e) } else { None }
}

/// Runs a program: its error goes to the standard error output and becomes exit status 1, or [`OUT_OF_MEMORY`].
pub fn run(main: impl FnOnce(Args) -> Result<(), Error>, known: &[&str]) -> ExitCode {
    match Args::parse(std::env::args().skip(1), known).and_then(main) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            if error.is_out_of_memory() { ExitCode::from(OUT_OF_MEMORY) } else { ExitCode::FAILURE }
        }
    }
}

/// `--name value` pairs.
#[derive(Debug)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    fn parse(mut args: impl Iterator<Item = String>, known: &[&str]) -> Result<Self, Error> {
        let mut out = BTreeMap::new();
        while let Some(arg) = args.next() {
            let name = arg.strip_prefix("--").filter(|n| known.contains(n));
            let usage = || Error::Usage(format!("`{arg}` is not known; there are --{}", known.join(", --")));
            let name = name.ok_or_else(usage)?.to_owned();
            let value = args.next().ok_or_else(|| Error::Usage(format!("`{arg}` needs a value")))?;
            out.insert(name, value);
        }
        Ok(Self(out))
    }

    /// The value of `--name`, if it is given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The path after `--name`, if it is given.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    /// The path after `--name`, which has to be given.
    ///
    /// # Errors
    /// If it is not.
    pub fn required(&self, name: &str) -> Result<PathBuf, Error> {
        self.path(name).ok_or_else(|| Error::Usage(format!("`--{name}` is missing")))
    }

    /// The number after `--name`, if it is given.
    ///
    /// # Errors
    /// If it is no number of that kind.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let parse = |text: &str| {
            text.parse().map_err(|_| Error::Usage(format!("`--{name} {text}` is no such number"))).map(Some)
        };
        self.get(name).map_or(Ok(None), parse)
    }
}

/// A base model with the adapter of a folder on it, and the adapter's settings.
///
/// # Errors
/// Whatever is wrong with either.
pub fn load<K: Kernels>(
    kernels: K,
    model: &Path,
    adapter: Option<&Path>,
) -> Result<(Decoder<K>, Option<PeftConfig>), Error> {
    let config = ModelConfig::from_dir(model)?;
    let checkpoint = Checkpoint::open(model)?;
    let decode = |lora| Decoder::load(kernels, config, &checkpoint, lora, &mut |_, _| ());
    let Some(adapter) = adapter else { return Ok((decode(None)?, None)) };
    let (settings, tensors) = peft::load(adapter)?;
    let mut decoder = decode(Some(&settings.lora))?;
    decoder.set_adapter(adapter, &tensors)?;
    Ok((decoder, Some(settings)))
}

/// The int64 tensor `name` of a file that holds it.
///
/// # Errors
/// If it is not there.
pub fn take(
    tensors: &mut BTreeMap<String, (Vec<usize>, Vec<i64>)>,
    name: &str,
    path: &Path,
) -> Result<(Vec<usize>, Vec<i64>), Error> {
    tensors.remove(name).ok_or_else(|| Error::input(path)(format!("tensor `{name}` is missing")))
}

/// A token id as the engine takes it. Ids outside the vocabulary are the engine's to refuse.
///
/// # Errors
/// If it is negative or beyond 32 bits.
pub fn token(id: i64, path: &Path) -> Result<u32, Error> {
    u32::try_from(id).map_err(|_| Error::input(path)(format!("{id} is no token id")))
}

/// The rows of `batches.safetensors` in a run folder, without their padding: `[micro-batches][rows]`.
///
/// # Errors
/// If a tensor is missing or has another shape, or a row is not padded on the right.
pub fn micro_batches(run: &Path) -> Result<Vec<Vec<Example>>, Error> {
    let path = run.join("batches.safetensors");
    let mut tensors = read_int_tensors(&path)?;
    let (shape, ids) = take(&mut tensors, "input_ids", &path)?;
    let (mask_shape, mask) = take(&mut tensors, "attention_mask", &path)?;
    let (label_shape, labels) = take(&mut tensors, "labels", &path)?;
    let &[_, rows, len] = shape.as_slice() else {
        return Err(Error::input(&path)(format!("`input_ids` has shape {shape:?}, not [N, B, T]")));
    };
    if mask_shape != shape || label_shape != shape || rows == 0 || len == 0 {
        return Err(Error::input(&path)("the three tensors are empty or differ in shape"));
    }
    let row = |n: usize| {
        let at = n * len;
        let used = mask[at..at + len].iter().take_while(|m| **m == 1).count();
        if mask[at + used..at + len].iter().any(|m| *m != 0) {
            return Err(Error::input(&path)(format!("row {n} is not padded on the right alone")));
        }
        let ids: Result<Vec<u32>, Error> = ids[at..at + used].iter().map(|id| token(*id, &path)).collect();
        let trained = (0..used).map(|t| t > 0 && labels[at + t] != -100).collect();
        Ok(Example { ids: ids?, trained, place: Place::line(n + 1) })
    };
    (0..ids.len() / (rows * len)).map(|n| (n * rows..(n + 1) * rows).map(row).collect()).collect()
}

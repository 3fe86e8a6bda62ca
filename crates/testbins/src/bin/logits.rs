//! Logits of a batch, with or without an adapter; with `--merge-out` from merged weights, which it also writes.
//!
//! ```text
//! logits --model DIR [--adapter DIR] --ids ids.safetensors --out logits.safetensors [--merge-out DIR]
//! ```
//!
//! `input_ids` int64 `[B, T]`, all of equal length, to `input_ids` and `logits` f32 `[B, T, V]`.

use std::path::Path;
use std::process::ExitCode;

use safetensors::tensor::{Dtype, TensorView};
use tunesmith_model::peft::Linear;
use tunesmith_model::{Batch, Checkpoint, Decoder};
use tunesmith_ops::RefKernels;
use tunesmith_testbins::{Args, Error, load, take, token};
use tunesmith_testkit::tensors::{StoredType, Tensor, Tensors, read_int_tensors, write_tensors};

fn main() -> ExitCode {
    tunesmith_testbins::run(logits, &["model", "adapter", "ids", "out", "merge-out"])
}

fn logits(args: Args) -> Result<(), Error> {
    let (model, path, out) = (args.required("model")?, args.required("ids")?, args.required("out")?);
    let (shape, ids) = take(&mut read_int_tensors(&path)?, "input_ids", &path)?;
    let &[rows, len] = shape.as_slice() else {
        return Err(Error::input(&path)(format!("`input_ids` has shape {shape:?}, not [B, T]")));
    };
    let ids: Vec<u32> = ids.iter().map(|id| token(*id, &path)).collect::<Result<_, _>>()?;
    let (mut decoder, adapter) = load(RefKernels, &model, args.path("adapter").as_deref())?;
    if let Some(dir) = args.path("merge-out") {
        if adapter.is_none() {
            return Err(Error::Usage("`--merge-out` needs `--adapter`".into()));
        }
        decoder.merge_adapter()?;
        write_merged(&decoder, &model, &dir)?;
    }
    decoder.prepare_positions(len);
    let documents: Vec<&[u32]> = ids.chunks_exact(len.max(1)).collect();
    let batch = Batch::for_logits(&documents);
    let mut workspace = decoder.evaluation_workspace(batch.tokens())?;
    let logits = decoder.logits(&mut workspace, &batch)?;
    let ids: Vec<u8> = ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
    let vocab = decoder.config().vocab_size;
    let logits: Vec<u8> = logits.iter().flat_map(|z| z.to_le_bytes()).collect();
    let views = [
        ("input_ids", TensorView::new(Dtype::I64, vec![rows, len], &ids).map_err(Error::input(&out))?),
        ("logits", TensorView::new(Dtype::F32, vec![rows, len, vocab], &logits).map_err(Error::input(&out))?),
    ];
    safetensors::serialize_to_file(views, None, &out).map_err(Error::input(&out))
}

/// The merged model as a Hugging Face folder, in the base model's element type.
fn write_merged(decoder: &Decoder<RefKernels>, model: &Path, dir: &Path) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(model)?;
    let mut tensors = Tensors::new();
    for (name, shape) in decoder.config().tensor_shapes() {
        let values = match linear(&name) {
            Some((layer, linear)) => decoder.linear_weight(layer, linear)?,
            None => checkpoint.read_f32(&name, &shape)?,
        };
        tensors.insert(name, Tensor::new(shape, values)?);
    }
    let stored = match checkpoint.dtype("model.embed_tokens.weight") {
        Some(Dtype::F16) => StoredType::F16,
        Some(Dtype::BF16) => StoredType::Bf16,
        _ => StoredType::F32,
    };
    std::fs::create_dir_all(dir).map_err(Error::input(dir))?;
    for name in ["config.json", "generation_config.json"] {
        let (from, to) = (model.join(name), dir.join(name));
        if from.is_file() {
            std::fs::copy(&from, &to).map_err(Error::input(&to))?;
        }
    }
    Ok(write_tensors(&dir.join("model.safetensors"), &tensors, stored)?)
}

/// Block and linear of a weight's name.
fn linear(name: &str) -> Option<(usize, Linear)> {
    let layer = name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()?;
    let linear = Linear::ALL.into_iter().find(|l| name == format!("{}.weight", l.module_path(layer)))?;
    Some((layer, linear))
}

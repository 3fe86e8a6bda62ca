//! The JSON files of golden cases and of the PEFT baseline runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, read_json};

/// Hyper-parameters of the optimizer steps of a case.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TrainConfig {
    /// Optimizer steps.
    pub steps: usize,
    /// Micro-batches per step; step k uses `accumulation * k ..`.
    pub accumulation: usize,
    /// Peak learning rate of AdamW.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Limit of the global gradient norm.
    pub max_grad_norm: f64,
    /// AdamW's betas.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
    /// AdamW's decoupled weight decay, on A and B.
    pub weight_decay: f64,
    /// The schedule in words; the rates themselves are in the steps.
    pub schedule: String,
}

/// One optimizer step as it was recorded.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StepRecord {
    /// From 1.
    pub step: usize,
    /// Learning rate of this step.
    pub lr: f64,
    /// Loss of the step, normalised as the run's name says.
    pub loss: f64,
    /// Mean loss of each micro-batch.
    pub micro_losses: Vec<f64>,
    /// Predicted tokens of each micro-batch.
    pub label_tokens: Vec<usize>,
    /// Global gradient norm before clipping.
    pub grad_norm_before_clip: f64,
}

/// `train_<name>.json`: a recorded run and, where it is there, the adapter at its end.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainRun {
    /// `token_mean` (losses summed over all tokens of a step, divided once) or `micro_mean` (mean of means).
    pub name: String,
    /// Hyper-parameters.
    pub config: TrainConfig,
    /// The steps, in order.
    pub steps: Vec<StepRecord>,
    /// `adapter_final_<name>`.
    pub final_adapter: Option<PathBuf>,
}

#[derive(Deserialize)]
struct TrainFile {
    config: TrainConfig,
    steps: Vec<StepRecord>,
}

impl TrainRun {
    /// Reads `train_<name>.json` of a case folder, if it is there.
    pub fn read(case: &Path, name: &str) -> Result<Option<Self>, Error> {
        let path = case.join(format!("train_{name}.json"));
        if !path.is_file() {
            return Ok(None);
        }
        let TrainFile { config, steps } = read_json(&path)?;
        if steps.len() != config.steps || steps.is_empty() {
            let what = format!("{} steps are recorded where `config` says {}", steps.len(), config.steps);
            return Err(Error::reference(&path, what));
        }
        if let Some(s) = steps.iter().find(|s| s.micro_losses.len() != config.accumulation) {
            return Err(Error::reference(
                &path,
                format!("step {} has another accumulation than `config`", s.step),
            ));
        }
        let adapter = case.join(format!("adapter_final_{name}"));
        let final_adapter = adapter.is_dir().then_some(adapter);
        Ok(Some(Self { name: name.to_owned(), config, steps, final_adapter }))
    }
}

/// `scalars.json`: losses on micro-batch 0 and how much float noise moves them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Scalars {
    /// Mean loss of the base model.
    pub base_loss: f64,
    /// Mean loss with `adapter_init`.
    pub lora_loss: f64,
    /// Predicted tokens of micro-batch 0.
    pub label_tokens: usize,
    /// Mean loss with the rsLoRA variant.
    pub rslora_loss: Option<f64>,
    /// Mean loss with the DoRA variant.
    pub dora_loss: Option<f64>,
    /// Mean loss after the token-mean run.
    pub final_loss_batch0: Option<f64>,
}

/// Greedy continuation of one prompt by one adapter.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Continuation {
    /// The prompt's tokens.
    pub prompt_ids: Vec<u32>,
    /// The tokens generated; end of text did not stop them.
    pub new_ids: Vec<u32>,
    /// `new_ids` as text, where the model has a tokenizer.
    pub text: Option<String>,
    /// Smallest difference between the two best logits on the way.
    pub smallest_top2_margin: f64,
}

/// One entry of `generation.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Generation {
    /// The prompt: null (only ids), a text, or `{"messages": [...]}`.
    pub prompt: Value,
    /// Continuations by what made them: `base`, `adapter_init`, `adapter_final`.
    #[serde(flatten)]
    pub by: BTreeMap<String, Continuation>,
}

/// A run of transformers + PEFT on real rows, step by step.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// Folder name.
    pub name: String,
    /// The folder.
    pub dir: PathBuf,
    /// Model folder, training rows and evaluation rows.
    pub paths: BaselinePaths,
    /// `hyper_parameters` of `result.json`.
    pub config: BaselineConfig,
    /// Losses by epoch.
    pub epochs: Vec<BaselineEpoch>,
    /// One entry per optimizer step.
    pub steps: Vec<BaselineStep>,
}

/// What a baseline run read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaselinePaths {
    /// Hugging Face folder of the base model.
    pub model: PathBuf,
    /// JSONL with `messages`.
    pub train: PathBuf,
    /// JSONL with `messages`.
    pub eval: PathBuf,
}

/// Hyper-parameters of a baseline run; the adapter's are in `adapter_init/adapter_config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BaselineConfig {
    model: String,
    train: String,
    eval: String,
    /// Peak learning rate.
    pub lr: f64,
    /// Passes over the training rows.
    pub epochs: usize,
    /// Rows per optimizer step.
    pub batch: usize,
    /// Tokens at which rows are cut.
    pub max_length: usize,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Limit of the global gradient norm.
    pub max_grad_norm: f64,
    /// AdamW's betas.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
}

/// Losses of one epoch; epoch 0 is the untrained adapter.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BaselineEpoch {
    /// From 0.
    pub epoch: usize,
    /// Mean over the tokens of the epoch.
    pub train_loss: Option<f64>,
    /// Mean over the tokens of the evaluation rows.
    pub eval_loss: f64,
}

/// One optimizer step of a baseline run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct BaselineStep {
    /// From 1.
    pub step: usize,
    /// From 1.
    pub epoch: usize,
    /// Numbers of the rows of this step, from 0.
    pub rows: Vec<usize>,
    /// Learning rate of this step.
    pub lr: f64,
    /// Mean loss over the predicted tokens of the step.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm_before_clip: f64,
    /// Tokens without padding.
    pub tokens: usize,
    /// Tokens with padding.
    pub padded_tokens: usize,
    /// Wall seconds of the step.
    pub seconds: f64,
}

impl Baseline {
    /// Reads every folder of `reference` that holds `steps.jsonl`, `result.json` and `adapter_init`, by name.
    pub fn read_all(reference: &Path) -> Result<Vec<Self>, Error> {
        let mut out = Vec::new();
        for entry in std::fs::read_dir(reference).map_err(Error::io(reference))? {
            let dir = entry.map_err(Error::io(reference))?.path();
            if dir.join("steps.jsonl").is_file()
                && dir.join("result.json").is_file()
                && dir.join("adapter_init").is_dir()
            {
                out.push(Self::read(dir, reference)?);
            }
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    fn read(dir: PathBuf, reference: &Path) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct ResultFile {
            hyper_parameters: BaselineConfig,
            epochs: Vec<BaselineEpoch>,
        }
        let ResultFile { hyper_parameters: config, epochs } = read_json(&dir.join("result.json"))?;
        let path = dir.join("steps.jsonl");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let steps = text.lines().map(serde_json::from_str).collect::<Result<Vec<BaselineStep>, _>>();
        let steps = steps.map_err(Error::json(&path))?;
        if steps.len() != config.total_steps {
            let what =
                format!("{} steps are recorded where `result.json` says {}", steps.len(), config.total_steps);
            return Err(Error::reference(&path, what));
        }
        // The run was started from the folder above; its paths are relative to that.
        let root = reference.join("..");
        let paths = BaselinePaths {
            model: root.join(&config.model),
            train: root.join(&config.train),
            eval: root.join(&config.eval),
        };
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, dir, paths, config, epochs, steps })
    }

    /// The adapter before the first step.
    pub fn adapter_init(&self) -> PathBuf {
        self.dir.join("adapter_init")
    }

    /// The adapter after the last step.
    pub fn adapter_final(&self) -> PathBuf {
        self.dir.join("adapter_final")
    }
}

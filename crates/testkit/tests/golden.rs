//! The oracle against values made with transformers and PEFT: a judge has to be right itself.

#![cfg(feature = "oracle")]
#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it inside test functions; helpers of tests are the same"
)]

use tunesmith_testkit::adapter::{LoraModule, read_adapter};
use tunesmith_testkit::cases::{self, Batch, Case};
use tunesmith_testkit::oracle::{Oracle, Output, Precision};
use tunesmith_testkit::spec::ModelSpec;
use tunesmith_testkit::tensors::{Tensor, assert_all_close_to_max, assert_logits_close, read_model_weights};

/// Tolerances of the reference's own description.
const LOGITS: f32 = 1e-3;
const GRADS: f32 = 1e-3;
const LOSS: f64 = 1e-3;

#[test]
fn golden_oracle_agrees() {
    let found = cases::find().unwrap();
    if let Some(notice) = &found.notice {
        eprintln!("{notice}");
    }
    for case in &found.cases {
        let mut check = Check::new(case);
        check.base();
        check.lora();
        check.rslora();
        check.micro_losses();
        assert!(
            !check.done.is_empty(),
            "golden: {}: nothing is recorded that the oracle computes",
            case.name
        );
        eprintln!("golden: {}: {}", case.name, check.done.join(", "));
    }
}

struct Check<'a> {
    case: &'a Case,
    oracle: Oracle,
    batch: Batch,
    done: Vec<String>,
}

impl<'a> Check<'a> {
    fn new(case: &'a Case) -> Self {
        let spec = ModelSpec::from_dir(&case.model_dir).unwrap();
        let weights = read_model_weights(&case.model_dir).unwrap();
        let oracle = Oracle::new(spec, &weights, Precision::F32).unwrap();
        Self { case, oracle, batch: case.batches().unwrap().get(0).unwrap(), done: Vec::new() }
    }

    fn run(&self, lora: &[LoraModule]) -> Output {
        self.oracle.run(lora, &self.batch).unwrap()
    }

    fn logits(&mut self, what: &str, got: &Output, want: &Tensor) {
        // A variant may have recorded the first rows alone.
        let positions = want.shape[0] * want.shape[1];
        let got = &got.logits[..want.data.len()];
        let name = format!("{}: {what}", self.case.name);
        let mask = &self.batch.attention_mask[..positions];
        let worst = assert_logits_close(&name, got, &want.data, mask, LOGITS).unwrap();
        self.done.push(format!("{what} {worst:.0e}"));
    }

    fn loss(&mut self, what: &str, got: f64, want: f64) {
        let diff = (got - want).abs();
        assert!(diff <= LOSS, "{}: {what} is {got} where {want} is expected", self.case.name);
        self.done.push(format!("{what} {diff:.0e}"));
    }

    fn base(&mut self) {
        let out = self.run(&[]);
        if let Some(forward) = self.case.forward().unwrap() {
            self.logits("base_logits", &out, &forward["base_logits"]);
        }
        if let Some(scalars) = self.case.scalars().unwrap() {
            assert_eq!(out.label_tokens, scalars.label_tokens);
            self.loss("base_loss", out.loss, scalars.base_loss);
        }
    }

    fn lora(&mut self) {
        let out = self.run(&read_adapter(&self.case.adapter_init()).unwrap());
        if let Some(forward) = self.case.forward().unwrap() {
            self.logits("lora_logits", &out, &forward["lora_logits"]);
        }
        if let Some(scalars) = self.case.scalars().unwrap() {
            self.loss("lora_loss", out.loss, scalars.lora_loss);
        }
        if let Some(want) = self.case.grads().unwrap() {
            let (worst, _) = assert_all_close_to_max(&self.case.name, &out.grads, &want, GRADS).unwrap();
            self.done.push(format!("grads {worst:.0e}"));
        }
        if let Some(run) = self.case.token_mean().unwrap()
            && let Some(folder) = run.final_adapter
            && let Some(forward) = self.case.forward().unwrap()
        {
            let out = self.run(&read_adapter(&folder).unwrap());
            self.logits("final_logits", &out, &forward["final_logits"]);
        }
    }

    fn rslora(&mut self) {
        let Some(variant) = self.case.rslora().unwrap() else { return };
        let out = self.run(&read_adapter(&variant.adapter).unwrap());
        self.logits("rslora logits", &out, &variant.forward["logits"]);
        if let Some(want) = self.case.scalars().unwrap().and_then(|s| s.rslora_loss) {
            self.loss("rslora_loss", out.loss, want);
        }
        let (worst, _) = assert_all_close_to_max(&self.case.name, &out.grads, &variant.grads, GRADS).unwrap();
        self.done.push(format!("rslora grads {worst:.0e}"));
    }

    /// The losses of the first optimizer step are taken before it changes the adapter.
    fn micro_losses(&mut self) {
        let Some(run) = self.case.token_mean().unwrap() else { return };
        let adapter = read_adapter(&self.case.adapter_init()).unwrap();
        let batches = self.case.batches().unwrap();
        let first = &run.steps[0];
        for (index, want) in first.micro_losses.iter().enumerate() {
            let out = self.oracle.run(&adapter, &batches.get(index).unwrap()).unwrap();
            assert_eq!(out.label_tokens, first.label_tokens[index]);
            self.loss("micro loss", out.loss, *want);
        }
    }
}

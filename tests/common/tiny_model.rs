//! Small random models on disk, as the engine reads them, with their weights for the oracle.

use std::path::Path;

use tempfile::TempDir;
use tunesmith_model::peft::{LoadedTensor, LoraConfig, ModuleNames, TargetModules};
use tunesmith_testkit::adapter::LoraModule;
use tunesmith_testkit::cases::Batch;
use tunesmith_testkit::spec::{Family, ModelSpec, RopeScaling};
use tunesmith_testkit::tensors::{StoredType, Tensors};
use tunesmith_testkit::tiny::{self, Random};

use super::{Engine, load};

/// All seven targets.
pub(crate) const TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// A random model in a folder of its own.
pub(crate) struct TinyModel {
    pub(crate) spec: ModelSpec,
    pub(crate) weights: Tensors,
    dir: TempDir,
}

impl TinyModel {
    pub(crate) fn new(spec: ModelSpec, seed: u64) -> Self {
        let weights = tiny::weights(&spec, seed).unwrap();
        Self::with_weights(spec, weights)
    }

    pub(crate) fn with_weights(spec: ModelSpec, weights: Tensors) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny::write_model(dir.path(), &spec, &weights, StoredType::F32).unwrap();
        Self { spec, weights, dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The engine with exactly `modules` as its adapter, which `config` has to ask for.
    pub(crate) fn engine(&self, config: &LoraConfig, modules: &[LoraModule]) -> Engine {
        let mut engine = load(self.path(), Some(config));
        let tensors: Vec<LoadedTensor> = modules
            .iter()
            .flat_map(|m| [(m.name_a(), &m.a), (m.name_b(), &m.b)])
            .map(|(key, t)| LoadedTensor { key, shape: t.shape.clone(), values: t.data.clone() })
            .collect();
        assert_eq!(engine.set_adapter(self.path(), &tensors).unwrap(), tensors.len());
        engine
    }

    /// The engine with a random adapter of rank `r` and scale `alpha / r` on `targets`, and the adapter.
    pub(crate) fn with_random_lora(
        &self,
        targets: &[&str],
        r: usize,
        alpha: f64,
    ) -> (Engine, Vec<LoraModule>) {
        let modules = tiny::lora(&self.spec, targets, r, alpha, 17).unwrap();
        (self.engine(&config(targets, r, alpha), &modules), modules)
    }
}

/// LoRA settings by names.
pub(crate) fn config(targets: &[&str], r: usize, alpha: f64) -> LoraConfig {
    let names = targets.iter().map(ToString::to_string).collect();
    LoraConfig {
        r,
        lora_alpha: alpha,
        target_modules: TargetModules::Named(ModuleNames::List(names)),
        ..LoraConfig::default()
    }
}

/// Models that differ in everything a configuration can say: tied or not, every kind of rotary scaling, a sliding
/// window shorter than the texts, 1, 2 and 4 query heads to a key head, head sizes that are not `D / H`.
pub(crate) fn specs() -> Vec<ModelSpec> {
    let llama3 = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16.0,
    };
    vec![
        ModelSpec { rope_scaling: Some(llama3), tie_word_embeddings: true, ..ModelSpec::tiny() },
        ModelSpec { num_key_value_heads: 4, ..ModelSpec::tiny() },
        ModelSpec {
            family: Family::Mistral,
            sliding_window: Some(3),
            head_dim: 10,
            num_key_value_heads: 1,
            tie_word_embeddings: true,
            ..ModelSpec::tiny()
        },
        ModelSpec {
            rope_scaling: Some(RopeScaling::Linear { factor: 2.5 }),
            num_hidden_layers: 3,
            ..ModelSpec::tiny()
        },
    ]
}

/// A random batch; with `all_labels` every token after the first is trained, otherwise a random part of them.
pub(crate) fn batch(spec: &ModelSpec, rows: usize, len: usize, all_labels: bool, seed: u64) -> Batch {
    let mut batch = tiny::batch(spec, rows, len, seed);
    let mut random = Random::new(seed ^ 0xBA7C);
    for i in 0..batch.labels.len() {
        let counts = batch.attention_mask[i] == 1 && (all_labels || random.uniform() < 0.4);
        batch.labels[i] = if counts { batch.input_ids[i] } else { -100 };
    }
    for row in 0..rows {
        // No row without a label, whatever was drawn; a row of one token has nothing to predict.
        let second = row * len + 1;
        if batch.attention_mask[second] == 1 {
            batch.labels[second] = batch.input_ids[second];
        }
    }
    batch
}

//! Small random models, adapters and batches, the same on every machine for a given seed.

use std::path::Path;

use crate::adapter::LoraModule;
use crate::cases::Batch;
use crate::error::Error;
use crate::spec::ModelSpec;
use crate::tensors::{StoredType, Tensor, Tensors, write_tensors};

/// `SplitMix64`: one multiplication chain per number, no state beyond a counter.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in 0..n; 0 where n is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }

    fn tensor(&mut self, shape: &[usize], mean: f64, deviation: f64) -> Result<Tensor, Error> {
        let count = shape.iter().product();
        Tensor::new(shape.to_vec(), (0..count).map(|_| (mean + deviation * self.normal()) as f32).collect())
    }
}

/// Random weights of a model by their Hugging Face names.
///
/// Larger than the usual initialisation, so that attention is far from uniform and every part shows in the
/// logits: linears N(0, 1/in), q and k 1.5 times that, embeddings N(0, 1), norms 1 + N(0, 0.04).
pub fn weights(spec: &ModelSpec, seed: u64) -> Result<Tensors, Error> {
    let mut random = Random::new(seed);
    let (v, d) = (spec.vocab_size, spec.hidden_size);
    let mut out = Tensors::new();
    out.insert("model.embed_tokens.weight".to_owned(), random.tensor(&[v, d], 0.0, 1.0)?);
    for (module, rows, columns) in spec.linears() {
        let sharper = module.ends_with("q_proj") || module.ends_with("k_proj");
        let deviation = if sharper { 1.5 } else { 1.0 } / (columns as f64).sqrt();
        out.insert(format!("{module}.weight"), random.tensor(&[rows, columns], 0.0, deviation)?);
    }
    for layer in 0..spec.num_hidden_layers {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            out.insert(format!("model.layers.{layer}.{norm}.weight"), random.tensor(&[d], 1.0, 0.2)?);
        }
    }
    out.insert("model.norm.weight".to_owned(), random.tensor(&[d], 1.0, 0.2)?);
    if !spec.tie_word_embeddings {
        out.insert("lm_head.weight".to_owned(), random.tensor(&[v, d], 0.0, 1.0 / (d as f64).sqrt())?);
    }
    Ok(out)
}

/// Writes `config.json` and `model.safetensors` into `dir`, which is made where it is missing.
pub fn write_model(dir: &Path, spec: &ModelSpec, weights: &Tensors, stored: StoredType) -> Result<(), Error> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let mut config = spec.to_config();
    let name = match stored {
        StoredType::F32 => "float32",
        StoredType::F16 => "float16",
        StoredType::Bf16 => "bfloat16",
    };
    config["torch_dtype"] = name.into();
    let path = dir.join("config.json");
    std::fs::write(&path, format!("{config:#}\n")).map_err(Error::io(&path))?;
    write_tensors(&dir.join("model.safetensors"), weights, stored)
}

/// Random A and B, neither zero, on every linear whose last path part is in `targets`; scale alpha / r.
///
/// The order is that of [`ModelSpec::linears`]. A target that the model lacks is an error.
pub fn lora(
    spec: &ModelSpec,
    targets: &[&str],
    r: usize,
    alpha: f64,
    seed: u64,
) -> Result<Vec<LoraModule>, Error> {
    let mut random = Random::new(seed);
    let mut out = Vec::new();
    let linears = spec.linears();
    let last = |module: &str| module.rsplit('.').next().unwrap_or_default().to_owned();
    if let Some(target) = targets.iter().find(|t| !linears.iter().any(|(m, _, _)| last(m) == **t)) {
        return Err(Error::Argument(format!("`{target}` names no linear of the model")));
    }
    for (module, rows, columns) in linears {
        if targets.contains(&last(&module).as_str()) {
            let a = random.tensor(&[r, columns], 0.0, 1.0 / (columns as f64).sqrt())?;
            let b = random.tensor(&[rows, r], 0.0, 0.3 / (r as f64).sqrt())?;
            out.push(LoraModule { module, a, b, scale: (alpha / r as f64) as f32 });
        }
    }
    Ok(out)
}

/// Random rows of `len` tokens: a prompt without labels, an answer with, and right padding on odd rows.
pub fn batch(spec: &ModelSpec, rows: usize, len: usize, seed: u64) -> Batch {
    let mut random = Random::new(seed);
    let mut out = Batch { rows, len, input_ids: Vec::new(), attention_mask: Vec::new(), labels: Vec::new() };
    for row in 0..rows {
        let prompt = 1 + random.below(len / 3);
        let end = len - if row % 2 == 1 { 1 + random.below(len / 4) } else { 0 };
        for t in 0..len {
            let id = if t < end { 3 + random.below(spec.vocab_size - 3) as i64 } else { 0 };
            out.input_ids.push(id);
            out.attention_mask.push(i64::from(t < end));
            out.labels.push(if t >= prompt && t < end { id } else { -100 });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::read_model_weights;

    #[test]
    fn a_seed_always_gives_the_same_numbers() {
        // Values of the published SplitMix64 for the seed 0.
        let mut random = Random::new(0);
        assert_eq!(random.bits(), 0xE220_A839_7B1D_CDAF);
        assert_eq!(random.bits(), 0x6E78_9E6A_A1B9_65F4);
        let spec = ModelSpec::tiny();
        assert_eq!(weights(&spec, 7).unwrap(), weights(&spec, 7).unwrap());
        assert_ne!(weights(&spec, 7).unwrap(), weights(&spec, 8).unwrap());
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut random = Random::new(3);
        let draws: Vec<f64> = (0..20_000).map(|_| random.normal()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn a_written_model_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let spec = ModelSpec { tie_word_embeddings: true, ..ModelSpec::tiny() };
        let made = weights(&spec, 1).unwrap();
        assert!(!made.contains_key("lm_head.weight"));
        write_model(dir.path(), &spec, &made, StoredType::F32).unwrap();
        assert_eq!(read_model_weights(dir.path()).unwrap(), made);
        assert_eq!(ModelSpec::from_dir(dir.path()).unwrap(), spec);
    }

    #[test]
    fn an_adapter_survives_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let mut made = lora(&ModelSpec::tiny(), &["q_proj", "down_proj"], 4, 8.0, 1).unwrap();
        assert_eq!(made.len(), 4);
        crate::adapter::write_adapter(dir.path(), &made, 4, 8.0).unwrap();
        let read = crate::adapter::read_adapter(dir.path()).unwrap();
        made.sort_by(|a, b| a.module.cmp(&b.module));
        assert_eq!(read, made);
        assert!(lora(&ModelSpec::tiny(), &["w_proj"], 4, 8.0, 1).is_err());
    }
}

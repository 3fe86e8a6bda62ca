//! `tunesmith adapter inspect`.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;
use tunesmith_model::peft::{self, LoadedTensor, LoraConfig, PeftConfig, Site};

use crate::error::CliError;
use crate::out;
use crate::progress::thousands;

/// One LoRA update: its two matrices and how large they are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SiteReport {
    /// `model.layers.0.self_attn.q_proj`.
    pub(crate) module: String,
    /// Rank.
    pub(crate) r: usize,
    /// Factor of `B A`.
    pub(crate) scaling: f32,
    /// `[r, in]`.
    pub(crate) a_shape: [usize; 2],
    /// `[out, r]`.
    pub(crate) b_shape: [usize; 2],
    /// Frobenius norm of A.
    pub(crate) a_norm: f64,
    /// Frobenius norm of B.
    pub(crate) b_norm: f64,
    /// Frobenius norm of `scaling · B A`, what is added to the weight.
    pub(crate) update_norm: f64,
}

/// Everything `inspect` tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Report<'a> {
    path: &'a Path,
    base_model_name_or_path: Option<String>,
    revision: Option<String>,
    /// The settings in PEFT's words.
    config: &'a LoraConfig,
    parameters: usize,
    tensors: usize,
    file_bytes: u64,
    sites: Vec<SiteReport>,
}

/// Prints what an adapter directory holds.
pub(crate) fn run(dir: &Path, json: bool) -> Result<(), CliError> {
    let (config, tensors) = peft::load(dir)?;
    let sites = sites(dir, &config, &tensors)?;
    let weights = dir.join("adapter_model.safetensors");
    let file_bytes = std::fs::metadata(&weights)
        .map_err(|source| CliError::Io { action: "read", path: weights.clone(), source })?
        .len();
    let report = Report {
        path: dir,
        base_model_name_or_path: config.base_model_name_or_path.clone(),
        revision: config.revision.clone(),
        config: &config.lora,
        parameters: tensors.iter().map(|t| t.values.len()).sum(),
        tensors: tensors.len(),
        file_bytes,
        sites,
    };
    if json { out::json(&report) } else { out::print(&text(&report)) }
}

/// Pairs the tensors of the file with the sites that its configuration names; both sides must come out even.
fn sites(dir: &Path, config: &PeftConfig, tensors: &[LoadedTensor]) -> Result<Vec<SiteReport>, CliError> {
    let bad = |message: String| CliError::Input {
        code: "invalid_file_format",
        message: format!("adapter `{}`: {message}", dir.display()),
        hint: None,
    };
    let mut by_key: BTreeMap<&str, &LoadedTensor> = tensors.iter().map(|t| (t.key.as_str(), t)).collect();
    let layers = by_key.keys().filter_map(|key| layer_of(key)).max().map_or(0, |last| last + 1);
    let expected = config.lora.resolve(layers)?;

    let mut pairs = Vec::new();
    for site in expected {
        let mut take = |key: String| {
            by_key.remove(key.as_str()).ok_or_else(|| bad(format!("tensor `{key}` is missing from the file")))
        };
        pairs.push((site, take(site.lora_a_key())?, take(site.lora_b_key())?));
    }
    if let Some(key) = by_key.keys().next() {
        return Err(bad(format!(
            "tensor `{key}` is in the file, but its adapter_config.json does not ask for it"
        )));
    }
    pairs.into_par_iter().map(|(site, a, b)| report(site, a, b).map_err(bad)).collect()
}

fn layer_of(key: &str) -> Option<usize> {
    key.split_once(".layers.")?.1.split('.').next()?.parse().ok()
}

fn report(site: Site, a: &LoadedTensor, b: &LoadedTensor) -> Result<SiteReport, String> {
    let r = site.rank;
    let shape = |tensor: &LoadedTensor| <[usize; 2]>::try_from(tensor.shape.as_slice()).ok();
    let (Some(a_shape @ [a_rank, inputs]), Some(b_shape @ [outputs, b_rank])) = (shape(a), shape(b)) else {
        return Err(format!("tensors `{}` and `{}` must have two dimensions", a.key, b.key));
    };
    if a_rank != r || b_rank != r {
        return Err(format!(
            "tensors `{}` and `{}` have ranks {a_rank} and {b_rank}, but adapter_config.json gives {r}",
            a.key, b.key
        ));
    }
    let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    Ok(SiteReport {
        module: site.linear.module_path(site.layer),
        r,
        scaling: site.scale,
        a_shape,
        b_shape,
        a_norm: norm(&a.values),
        b_norm: norm(&b.values),
        update_norm: f64::from(site.scale).abs() * product_norm(&a.values, &b.values, r, inputs, outputs),
    })
}

/// Frobenius norm of `B A` for A `[r, inputs]` and B `[outputs, r]`, without making the product:
/// the square is `tr(Aᵀ Bᵀ B A) = Σᵢⱼ (Bᵀ B)ᵢⱼ (A Aᵀ)ᵢⱼ`.
fn product_norm(a: &[f32], b: &[f32], r: usize, inputs: usize, outputs: usize) -> f64 {
    let mut sum = 0.0;
    for i in 0..r {
        for j in i..r {
            let (row_i, row_j) = (&a[i * inputs..(i + 1) * inputs], &a[j * inputs..(j + 1) * inputs]);
            let aa: f64 = row_i.iter().zip(row_j).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            let bb: f64 = (0..outputs).map(|o| f64::from(b[o * r + i]) * f64::from(b[o * r + j])).sum();
            sum += if i == j { aa * bb } else { 2.0 * aa * bb };
        }
    }
    // Rounding can leave a tiny negative sum where the product is zero.
    sum.max(0.0).sqrt()
}

fn text(report: &Report<'_>) -> String {
    use std::fmt::Write as _;
    let lora = report.config;
    let mut text = String::new();
    let base = report.base_model_name_or_path.as_deref().unwrap_or("(not named)");
    let divisor = if lora.use_rslora { "alpha / sqrt(r)" } else { "alpha / r" };
    let targets = match serde_json::to_value(&lora.target_modules) {
        Ok(serde_json::Value::Array(names)) => {
            names.iter().filter_map(|n| n.as_str()).collect::<Vec<_>>().join(", ")
        }
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "adapter      {}", report.path.display());
    let _ = writeln!(text, "base model   {base}");
    let _ = writeln!(text, "rank         {}", lora.r);
    let _ = writeln!(text, "alpha        {} (scaling {divisor})", lora.lora_alpha);
    let _ = writeln!(text, "dropout      {}", lora.lora_dropout);
    let _ = writeln!(text, "targets      {targets}");
    let _ = writeln!(text, "parameters   {} in {} tensors", thousands(report.parameters), report.tensors);
    let _ = writeln!(text, "file         {} bytes", thousands(report.file_bytes as usize));
    let width = report.sites.iter().map(|s| s.module.len()).max().unwrap_or(0);
    let _ = writeln!(
        text,
        "\n{:width$}  {:>4}  {:>8}  {:>14}  {:>14}  {:>10}  {:>10}  {:>10}",
        "module", "r", "scaling", "A", "B", "|A|", "|B|", "|s B A|"
    );
    for s in &report.sites {
        let _ = writeln!(
            text,
            "{:width$}  {:>4}  {:>8.4}  {:>14}  {:>14}  {:>10.4}  {:>10.4}  {:>10.4}",
            s.module,
            s.r,
            s.scaling,
            format!("{:?}", s.a_shape),
            format!("{:?}", s.b_shape),
            s.a_norm,
            s.b_norm,
            s.update_norm
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_norm_is_the_norm_of_the_product() {
        let (r, inputs, outputs) = (3, 5, 4);
        let a: Vec<f32> = (0..r * inputs).map(|i| (i as f32 * 0.7).sin()).collect();
        let b: Vec<f32> = (0..outputs * r).map(|i| (i as f32 * 1.3).cos()).collect();
        let mut square = 0.0;
        for o in 0..outputs {
            for i in 0..inputs {
                let x: f64 = (0..r).map(|k| f64::from(b[o * r + k]) * f64::from(a[k * inputs + i])).sum();
                square += x * x;
            }
        }
        let ours = product_norm(&a, &b, r, inputs, outputs);
        assert!((ours - square.sqrt()).abs() < 1e-12, "{ours} {}", square.sqrt());
        assert_eq!(product_norm(&a, &vec![0.0; outputs * r], r, inputs, outputs).to_bits(), 0);
    }

    #[test]
    fn layers_are_read_from_keys() {
        assert_eq!(layer_of("base_model.model.model.layers.12.mlp.up_proj.lora_A.weight"), Some(12));
        assert_eq!(layer_of("base_model.model.lm_head.lora_A.weight"), None);
    }
}

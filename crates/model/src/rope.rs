//! Rotary position embedding: its settings in `config.json` and the inverse frequencies they give.

// Settings are compared exactly as they were written, never as results of arithmetic.
#![allow(clippy::float_cmp)]

use crate::error::Result;
use crate::json::Object;

/// The base of the rotary frequencies and how they are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric sequence of frequencies.
    pub theta: f64,
    /// Change of the frequencies for contexts longer than the model was first trained on.
    pub scaling: RopeScaling,
}

/// The kinds of rotary scaling that are supported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Plain frequencies.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Stretch of the positions, above zero.
        factor: f64,
    },
    /// Llama 3.1's rule: low frequencies divided by `factor`, high ones kept, a linear blend between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low-frequency.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high-frequency.
        high_freq_factor: f64,
        /// Context length of the first training, in tokens.
        original_max_position_embeddings: usize,
    },
}

impl Default for Rope {
    fn default() -> Self {
        Self { theta: DEFAULT_THETA, scaling: RopeScaling::None }
    }
}

const DEFAULT_THETA: f64 = 10_000.0;

/// Keys that a supported `rope_scaling` or `rope_parameters` object may hold.
const KNOWN: [&str; 8] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
];

impl Rope {
    /// Reads both forms: `rope_theta` + `rope_scaling`, and the newer `rope_parameters`. A file that holds both
    /// must say the same in both, since which one wins differs between versions of transformers.
    pub(crate) fn from_config(config: &Object) -> Result<Self> {
        refuse_partial(config)?;
        let theta = config.positive_f64("rope_theta")?;
        let mut rope = Self::default();
        if let Some(parameters) = config.object("rope_parameters")? {
            rope.scaling = scaling(&parameters)?;
            rope.theta = match (parameters.positive_f64("rope_theta")?, theta) {
                (Some(inner), Some(outer)) if inner != outer => {
                    return Err(config.error(
                        "rope_theta",
                        format!("is {outer}, but rope_parameters.rope_theta is {inner}"),
                    ));
                }
                (inner, outer) => inner.or(outer).unwrap_or(DEFAULT_THETA),
            };
            if let Some(classic) = config.object("rope_scaling")?
                && scaling(&classic)? != rope.scaling
            {
                return Err(
                    config.error("rope_scaling", "contradicts rope_parameters; remove one of the two")
                );
            }
            return Ok(rope);
        }
        rope.theta = theta.unwrap_or(DEFAULT_THETA);
        if let Some(classic) = config.object("rope_scaling")? {
            rope.scaling = scaling(&classic)?;
            if let Some(inner) = classic.positive_f64("rope_theta")?
                && inner != rope.theta
            {
                if theta.is_some() {
                    return Err(classic.error("rope_theta", "contradicts the rope_theta beside rope_scaling"));
                }
                rope.theta = inner;
            }
        }
        Ok(rope)
    }

    /// The `head_dim / 2` inverse frequencies in radians per position, computed in f32 as transformers does.
    ///
    /// `1 / theta^(2i / head_dim)`, then the scaling's rule. `head_dim` must be even.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2).map(|i| self.scaled(plain_frequency(self.theta, i, head_dim))).collect()
    }

    fn scaled(&self, frequency: f32) -> f32 {
        match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let context = original_max_position_embeddings as f64;
                let wavelength = std::f32::consts::TAU / frequency;
                if wavelength > (context / low_freq_factor) as f32 {
                    return frequency / factor as f32;
                }
                if wavelength < (context / high_freq_factor) as f32 {
                    return frequency;
                }
                let smooth = (context as f32 / wavelength - low_freq_factor as f32)
                    / (high_freq_factor - low_freq_factor) as f32;
                (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
            }
        }
    }
}

/// The power is taken in f64 and rounded once, so that it does not depend on the platform's f32 `pow`; the
/// exponent and the reciprocal are f32 as in PyTorch.
fn plain_frequency(theta: f64, i: usize, head_dim: usize) -> f32 {
    let exponent = (2 * i) as f32 / head_dim as f32;
    1.0 / (f64::from(theta as f32).powf(f64::from(exponent)) as f32)
}

fn refuse_partial(object: &Object) -> Result<()> {
    match object.f64("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(object.error(
            "partial_rotary_factor",
            format!("is {factor}; only models that rotate the whole head (1.0) are supported"),
        )),
        _ => Ok(()),
    }
}

fn scaling(object: &Object) -> Result<RopeScaling> {
    refuse_partial(object)?;
    for (key, value) in object.iter() {
        if !KNOWN.contains(&key.as_str()) && !value.is_null() {
            return Err(object.error(key, "is not a known rotary setting, and ignoring it could be wrong"));
        }
    }
    let kind = match (object.string("rope_type")?, object.string("type")?) {
        (Some(new), Some(old)) if new != old => {
            return Err(object.error("rope_type", format!("is {new:?}, but type is {old:?}")));
        }
        (new, old) => new.or(old),
    };
    let required = |key: &str| object.positive_f64(key)?.ok_or_else(|| object.error(key, "is missing"));
    match kind {
        Some("default") => Ok(RopeScaling::None),
        // transformers 5 reads an absent type in `rope_parameters` as the plain one. With a factor beside it the
        // writer meant something else.
        None if object.get("factor").is_none() => Ok(RopeScaling::None),
        None => Err(object.error("rope_type", "is missing")),
        Some("linear") => Ok(RopeScaling::Linear { factor: required("factor")? }),
        Some("llama3") => {
            let low_freq_factor = required("low_freq_factor")?;
            let high_freq_factor = required("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                return Err(object.error("high_freq_factor", "must be above low_freq_factor"));
            }
            Ok(RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: object.required_size("original_max_position_embeddings")?,
            })
        }
        Some(other) => Err(object.error(
            "rope_type",
            format!("is {other:?}; supported are \"default\", \"linear\" and \"llama3\""),
        )),
    }
}

#[cfg(test)]
mod tests;

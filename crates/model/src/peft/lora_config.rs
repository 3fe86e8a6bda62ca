//! LoRA settings in PEFT's words, as a `[lora]` table of a job or as part of `adapter_config.json`.

use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};
use crate::peft::Linear;
use crate::peft::target;

/// The highest rank: more than any model is wide, and few enough that nothing overflows that is reckoned from it.
const MOST_RANKS: usize = 1 << 16;

/// What to train and how, in the words and with the meaning of PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the update, at least 1.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
    pub lora_alpha: f64,
    /// Probability with which an input element of the update is dropped in training, `0 <= p < 1`.
    pub lora_dropout: f64,
    /// The modules that get an update.
    pub target_modules: TargetModules,
    /// Modules left out although `target_modules` names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<ModuleNames>,
    /// Only these blocks get updates; None means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Layers>,
    /// Name of the module list that `layers_to_transform` counts in (`layers` in Llama and Mistral).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_pattern: Option<NameOrNames>,
    /// Ranks for modules whose path ends in a pattern; the first match in the order of writing wins.
    #[serde(skip_serializing_if = "Patterns::is_empty")]
    pub rank_pattern: Patterns<usize>,
    /// Alphas for modules whose path ends in a pattern; the first match in the order of writing wins.
    #[serde(skip_serializing_if = "Patterns::is_empty")]
    pub alpha_pattern: Patterns<f64>,
    /// Scale by `lora_alpha / sqrt(r)` (rsLoRA).
    pub use_rslora: bool,
    /// Weight-decomposed LoRA. Not supported yet: [`LoraConfig::resolve`] refuses it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub use_dora: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            use_rslora: false,
            use_dora: false,
        }
    }
}

/// One LoRA update: where it sits and how large it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Site {
    /// Block, from 0.
    pub layer: usize,
    /// Linear layer of the block.
    pub linear: Linear,
    /// Rank of this update.
    pub rank: usize,
    /// Factor of `B A x` in the output.
    pub scale: f32,
}

impl Site {
    /// Key of the `[rank, in]` matrix in `adapter_model.safetensors`.
    pub fn lora_a_key(&self) -> String {
        format!("base_model.model.{}.lora_A.weight", self.linear.module_path(self.layer))
    }

    /// Key of the `[out, rank]` matrix in `adapter_model.safetensors`.
    pub fn lora_b_key(&self) -> String {
        format!("base_model.model.{}.lora_B.weight", self.linear.module_path(self.layer))
    }
}

impl LoraConfig {
    /// The updates that these settings give in a model of `num_layers` blocks, sorted by layer and linear.
    ///
    /// Every name, pattern and layer index must match something; a setting that matches nothing is an error, as
    /// it would otherwise be ignored without a word.
    pub fn resolve(&self, num_layers: usize) -> Result<Vec<Site>> {
        self.validate()?;
        target::resolve(self, num_layers)
    }

    fn validate(&self) -> Result<()> {
        if self.use_dora {
            return Err(Error::lora("use_dora", "DoRA is not supported yet; set it to false"));
        }
        if self.r == 0 {
            return Err(Error::lora("r", "is 0; the rank must be at least 1"));
        }
        if let Some((pattern, _)) = self.rank_pattern.iter().find(|(_, rank)| *rank == 0) {
            return Err(Error::lora(
                "rank_pattern",
                format!("gives `{pattern}` rank 0; a rank must be at least 1"),
            ));
        }
        if self.r > MOST_RANKS {
            return Err(Error::lora("r", format!("is {}, and {MOST_RANKS} is the most", self.r)));
        }
        if let Some((pattern, rank)) = self.rank_pattern.iter().find(|(_, rank)| *rank > MOST_RANKS) {
            let problem = format!("gives `{pattern}` rank {rank}, and {MOST_RANKS} is the most");
            return Err(Error::lora("rank_pattern", problem));
        }
        for (name, alpha) in [("", self.lora_alpha)].into_iter().chain(self.alpha_pattern.iter()) {
            if !(alpha.is_finite() && alpha > 0.0) {
                let (key, subject) = match name {
                    "" => ("lora_alpha", String::new()),
                    pattern => ("alpha_pattern", format!("of `{pattern}` ")),
                };
                return Err(Error::lora(key, format!("{subject}is {alpha}; alpha must be above zero")));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            let p = self.lora_dropout;
            return Err(Error::lora("lora_dropout", format!("is {p}; it must be at least 0 and below 1")));
        }
        Ok(())
    }
}

/// `target_modules`: the text `all-linear`, a regular expression for whole module paths, or a list of names.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetModules {
    /// All seven linear layers of every block; never the output head.
    AllLinear,
    /// Names or a regular expression.
    Named(ModuleNames),
}

/// Module names as PEFT takes them.
#[derive(Clone, Debug, PartialEq)]
pub enum ModuleNames {
    /// A regular expression that must match the whole module path.
    Regex(String),
    /// Names that equal a module path or its end after a dot.
    List(Vec<String>),
}

/// One layer index or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// A single block.
    One(usize),
    /// Several blocks.
    Many(Vec<usize>),
}

impl Layers {
    /// The indices as a slice.
    pub fn as_slice(&self) -> &[usize] {
        match self {
            Self::One(layer) => std::slice::from_ref(layer),
            Self::Many(layers) => layers,
        }
    }
}

/// One name or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NameOrNames {
    /// A single name.
    One(String),
    /// Several names.
    Many(Vec<String>),
}

impl NameOrNames {
    /// The names as a slice.
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

impl Serialize for ModuleNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Regex(text) => serializer.serialize_str(text),
            Self::List(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ModuleNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = ModuleNames;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of module names or a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<ModuleNames, E> {
                Ok(ModuleNames::Regex(text.to_string()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<ModuleNames, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element()? {
                    names.push(name);
                }
                Ok(ModuleNames::List(names))
            }
        }
        deserializer.deserialize_any(Names)
    }
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => serializer.serialize_str("all-linear"),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Ok(match ModuleNames::deserialize(deserializer)? {
            ModuleNames::Regex(text) if text.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            names => Self::Named(names),
        })
    }
}

/// A map from module patterns to values that keeps the order of writing, since the first match wins.
#[derive(Clone, Debug, PartialEq)]
pub struct Patterns<V>(Vec<(String, V)>);

impl<V> Default for Patterns<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> From<Vec<(String, V)>> for Patterns<V> {
    fn from(pairs: Vec<(String, V)>) -> Self {
        Self(pairs)
    }
}

impl<V: Copy> Patterns<V> {
    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pairs in the order of writing.
    pub fn iter(&self) -> impl Iterator<Item = (&str, V)> {
        self.0.iter().map(|(pattern, value)| (pattern.as_str(), *value))
    }
}

impl<V: Serialize> Serialize for Patterns<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (pattern, value) in &self.0 {
            map.serialize_entry(pattern, value)?;
        }
        map.end()
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Patterns<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Pairs<V> {
            type Value = Patterns<V>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table from module patterns to numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Patterns<V>, A::Error> {
                let mut pairs: Vec<(String, V)> = Vec::new();
                while let Some((pattern, value)) = map.next_entry::<String, V>()? {
                    if pairs.iter().any(|(known, _)| *known == pattern) {
                        return Err(de::Error::custom(format!("the pattern `{pattern}` appears twice")));
                    }
                    pairs.push((pattern, value));
                }
                Ok(Patterns(pairs))
            }
        }
        deserializer.deserialize_map(Pairs(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests;

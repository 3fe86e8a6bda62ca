//! Which modules a LoRA configuration names, by the rules of PEFT.

use regex::Regex;

use crate::error::{Error, Result};
use crate::peft::Linear;
use crate::peft::lora_config::{LoraConfig, ModuleNames, Patterns, Site, TargetModules};

/// A module of the base model; `site` is None for those that cannot carry LoRA here.
struct Module {
    path: String,
    site: Option<(usize, Linear)>,
}

/// Everything that a name could match in transformers' module tree, so that a name that matches too much is seen.
fn modules(num_layers: usize) -> Vec<Module> {
    let other = |path: String| Module { path, site: None };
    let mut all: Vec<Module> =
        ["model", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"]
            .map(|path| other(path.to_string()))
            .into();
    for layer in 0..num_layers {
        all.push(other(format!("model.layers.{layer}")));
        for part in ["self_attn", "mlp", "mlp.act_fn", "input_layernorm", "post_attention_layernorm"] {
            all.push(other(format!("model.layers.{layer}.{part}")));
        }
        all.extend(
            Linear::ALL.map(|linear| Module { path: linear.module_path(layer), site: Some((layer, linear)) }),
        );
    }
    all
}

/// The settings have been range-checked by the caller.
pub(super) fn resolve(config: &LoraConfig, num_layers: usize) -> Result<Vec<Site>> {
    let modules = modules(num_layers);
    let targets = match &config.target_modules {
        TargetModules::AllLinear => Matcher::Linears,
        TargetModules::Named(names) => Matcher::new("target_modules", names, &modules)?,
    };
    let excluded = match &config.exclude_modules {
        Some(names) => Matcher::new("exclude_modules", names, &modules)?,
        None => Matcher::Nothing,
    };
    let layers = LayerFilter::new(config, num_layers)?;
    let ranks = CompiledPatterns::new("rank_pattern", &config.rank_pattern)?;
    let alphas = CompiledPatterns::new("alpha_pattern", &config.alpha_pattern)?;
    let mut sites = Vec::new();
    for module in &modules {
        let by_path = targets.is_whole_path(&module.path);
        let chosen =
            targets.matches(module) && (by_path || layers.admits(module)) && !excluded.matches(module);
        if !chosen {
            continue;
        }
        let Some((layer, linear)) = module.site else {
            return Err(Error::lora(
                "target_modules",
                format!(
                    "matches `{}`; only the seven linear layers of a block ({}) can carry LoRA",
                    module.path,
                    Linear::ALL.map(Linear::proj_name).join(", ")
                ),
            ));
        };
        let rank = ranks.get(&module.path).unwrap_or(config.r);
        let alpha = alphas.get(&module.path).unwrap_or(config.lora_alpha);
        let divisor = if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        sites.push(Site { layer, linear, rank, scale: (alpha / divisor) as f32 });
    }
    if sites.is_empty() {
        return Err(Error::lora(
            "target_modules",
            "together with the other settings leaves no module to train",
        ));
    }
    ranks.check_used(&sites)?;
    alphas.check_used(&sites)?;
    sites.sort_unstable_by_key(|site| (site.layer, site.linear));
    Ok(sites)
}

enum Matcher<'a> {
    Nothing,
    Linears,
    Regex(Regex),
    List(&'a [String]),
}

impl<'a> Matcher<'a> {
    /// Compiles `names` and checks that each of them matches at least one module.
    fn new(key: &'static str, names: &'a ModuleNames, modules: &[Module]) -> Result<Self> {
        match names {
            ModuleNames::Regex(text) => {
                let regex = whole_match(key, text)?;
                if !modules.iter().any(|module| regex.is_match(&module.path)) {
                    return Err(Error::lora(
                        key,
                        format!(
                            "a string is a regular expression for the whole module path, and `{text}` matches no \
                             module; write a list, such as [\"q_proj\", \"v_proj\"], to give names"
                        ),
                    ));
                }
                Ok(Self::Regex(regex))
            }
            ModuleNames::List(list) if list.is_empty() && key == "exclude_modules" => Ok(Self::Nothing),
            ModuleNames::List(list) if list.is_empty() => Err(Error::lora(key, "is an empty list")),
            ModuleNames::List(list) => {
                for name in list {
                    if !modules.iter().any(|module| ends_with_name(&module.path, name)) {
                        return Err(Error::lora(
                            key,
                            format!(
                                "`{name}` matches no module of this model; known are {}",
                                Linear::ALL.map(Linear::proj_name).join(", ")
                            ),
                        ));
                    }
                }
                Ok(Self::List(list))
            }
        }
    }

    fn matches(&self, module: &Module) -> bool {
        match self {
            Self::Nothing => false,
            Self::Linears => module.site.is_some(),
            Self::Regex(regex) => regex.is_match(&module.path),
            Self::List(names) => names.iter().any(|name| ends_with_name(&module.path, name)),
        }
    }

    /// PEFT takes a name that is a whole path without asking `layers_to_transform`.
    fn is_whole_path(&self, path: &str) -> bool {
        matches!(self, Self::List(names) if names.iter().any(|name| name == path))
    }
}

fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// `layers_to_transform` and `layers_pattern`.
struct LayerFilter<'a> {
    layers: &'a [usize],
    /// Whether the blocks' list (`model.layers`) is one of the lists that the indices count in.
    counts_blocks: bool,
}

impl<'a> LayerFilter<'a> {
    fn new(config: &'a LoraConfig, num_layers: usize) -> Result<Self> {
        let layers = config.layers_to_transform.as_ref().map_or(&[][..], |layers| layers.as_slice());
        let lists = config.layers_pattern.as_ref().map_or(&[][..], |lists| lists.as_slice());
        if layers.is_empty() {
            if lists.is_empty() {
                return Ok(Self { layers, counts_blocks: true });
            }
            return Err(Error::lora("layers_pattern", "has no meaning without layers_to_transform"));
        }
        if matches!(config.target_modules, TargetModules::Named(ModuleNames::Regex(_))) {
            return Err(Error::lora(
                "layers_to_transform",
                "cannot be used when target_modules is a regular expression; put the layers into the expression",
            ));
        }
        if let Some(layer) = layers.iter().find(|&&layer| layer >= num_layers) {
            return Err(Error::lora(
                "layers_to_transform",
                format!(
                    "names layer {layer}, but the model's layers are 0 to {}",
                    num_layers.saturating_sub(1)
                ),
            ));
        }
        let mut counts_blocks = lists.is_empty();
        for list in lists {
            counts_blocks |= whole_match("layers_pattern", list)?.is_match("layers");
        }
        Ok(Self { layers, counts_blocks })
    }

    fn admits(&self, module: &Module) -> bool {
        match module.site {
            _ if self.layers.is_empty() => true,
            Some((layer, _)) => self.counts_blocks && self.layers.contains(&layer),
            None => false,
        }
    }
}

/// `rank_pattern` or `alpha_pattern`, ready to match.
struct CompiledPatterns<'a, V> {
    key: &'static str,
    patterns: Vec<(&'a str, Regex, V)>,
}

impl<'a, V: Copy> CompiledPatterns<'a, V> {
    fn new(key: &'static str, patterns: &'a Patterns<V>) -> Result<Self> {
        let compile = |(text, value)| Ok((text, path_end(key, text)?, value));
        Ok(Self { key, patterns: patterns.iter().map(compile).collect::<Result<_>>()? })
    }

    /// Value of the first pattern that matches.
    fn get(&self, path: &str) -> Option<V> {
        self.patterns.iter().find(|(_, regex, _)| regex.is_match(path)).map(|(_, _, value)| *value)
    }

    fn check_used(&self, sites: &[Site]) -> Result<()> {
        let paths: Vec<String> = sites.iter().map(|site| site.linear.module_path(site.layer)).collect();
        match self.patterns.iter().find(|(_, regex, _)| !paths.iter().any(|path| regex.is_match(path))) {
            None => Ok(()),
            Some((text, _, _)) => {
                Err(Error::lora(self.key, format!("`{text}` matches no module that is trained")))
            }
        }
    }
}

/// Python's `re.fullmatch(text, path)`.
fn whole_match(key: &str, text: &str) -> Result<Regex> {
    compile(key, text, |text| format!(r"\A(?:{text})\z"))
}

/// PEFT's rule for `rank_pattern` and `alpha_pattern`: Python's `re.match(rf"(.*\.)?({text})$", path)`.
fn path_end(key: &str, text: &str) -> Result<Regex> {
    compile(key, text, |text| format!(r"\A(?:.*\.)?(?:{text})\z"))
}

/// The text is compiled alone first, so that an unbalanced parenthesis in it cannot pair with the ones around it.
fn compile(key: &str, text: &str, wrap: impl Fn(&str) -> String) -> Result<Regex> {
    let bad = |error: regex::Error| {
        // The crate's message draws the place on several lines; the last line holds the reason.
        let reason =
            error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_string();
        Error::lora(key, format!("`{text}` is not a regular expression that can be used: {reason}"))
    };
    Regex::new(text).map_err(bad)?;
    Regex::new(&wrap(text)).map_err(bad)
}

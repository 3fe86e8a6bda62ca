//! Recognises the parts of a `tokenizer.json` that the fast path knows how to do. What is not recognised to the last
//! key is left to the reference.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::Tokenizer;

/// What stands for a space in SentencePiece vocabularies.
pub(super) const META: char = '▁';

/// How text becomes words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Words {
    /// Bytes of words that a pattern cuts out; `None`: GPT-2's.
    ByteLevel {
        /// The pattern, unless it is the built-in one.
        pattern: Option<String>,
    },
    /// SentencePiece: spaces are letters.
    Spaces {
        /// Where a space is put in front.
        prefix: Prefix,
        /// Every space starts a word of its own.
        split: bool,
    },
}

/// Which texts between added tokens get a space in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    /// All, those that start with a space too.
    All,
    /// All that do not start with a space.
    Always,
    /// The start of the text, if it does not start with a space.
    First,
    /// None.
    Never,
}

/// What the post-processor does to a single text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Post {
    /// Ids put in front.
    pub(super) before: Vec<u32>,
    /// Ids put behind.
    pub(super) after: Vec<u32>,
    /// White space is taken out of the offsets; the value: but not a single space at the start.
    pub(super) trim: Option<bool>,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Normalizer {
    Prepend { prepend: String },
    Replace { pattern: Pattern, content: String },
    Sequence { normalizers: Vec<Normalizer> },
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum PreTokenizer {
    Split { pattern: Pattern, behavior: String, invert: bool },
    ByteLevel(ByteLevel),
    Metaspace { replacement: char, prepend_scheme: String, split: bool },
    Sequence { pretokenizers: Vec<PreTokenizer> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByteLevel {
    add_prefix_space: bool,
    trim_offsets: bool,
    use_regex: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum PostProcessor {
    ByteLevel(ByteLevel),
    TemplateProcessing {
        single: Vec<Piece>,
        #[serde(rename = "pair")]
        _pair: serde::de::IgnoredAny,
        special_tokens: std::collections::HashMap<String, Special>,
    },
    Sequence {
        processors: Vec<PostProcessor>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
enum Piece {
    SpecialToken {
        id: String,
        #[serde(rename = "type_id")]
        _type_id: u32,
    },
    Sequence {
        id: String,
        #[serde(rename = "type_id")]
        _type_id: u32,
    },
}

#[derive(Deserialize)]
struct Special {
    ids: Vec<u32>,
}

/// The part as the reference has read it, in our own terms; an error if it is something else.
fn part<T: DeserializeOwned>(part: &impl serde::Serialize) -> serde_json::Result<T> {
    serde_json::from_value(serde_json::to_value(part)?)
}

/// How the tokenizer cuts words, if that is known.
pub(super) fn words(tokenizer: &Tokenizer) -> Option<Words> {
    let normalizer: Option<Normalizer> = part(&tokenizer.get_normalizer()).ok()?;
    let pre: Option<PreTokenizer> = part(&tokenizer.get_pre_tokenizer()).ok()?;
    match (normalizer, pre) {
        (Some(Normalizer::Sequence { normalizers }), None) => legacy(&normalizers),
        (None, Some(PreTokenizer::Metaspace { replacement: META, prepend_scheme, split })) => {
            let prefix = match prepend_scheme.as_str() {
                "always" => Prefix::Always,
                "first" => Prefix::First,
                "never" => Prefix::Never,
                _ => return None,
            };
            Some(Words::Spaces { prefix, split })
        }
        (None, Some(PreTokenizer::ByteLevel(ByteLevel { add_prefix_space: false, use_regex: true, .. }))) => {
            Some(Words::ByteLevel { pattern: None })
        }
        (None, Some(PreTokenizer::Sequence { pretokenizers })) => byte_level(&pretokenizers),
        _ => None,
    }
}

fn legacy(normalizers: &[Normalizer]) -> Option<Words> {
    let [Normalizer::Prepend { prepend }, Normalizer::Replace { pattern: Pattern::String(space), content }] =
        normalizers
    else {
        return None;
    };
    let known = prepend == "▁" && space == " " && content == "▁";
    known.then_some(Words::Spaces { prefix: Prefix::All, split: false })
}

fn byte_level(steps: &[PreTokenizer]) -> Option<Words> {
    let [
        PreTokenizer::Split { pattern: Pattern::Regex(pattern), behavior, invert },
        PreTokenizer::ByteLevel(ByteLevel { add_prefix_space: false, use_regex: false, .. }),
    ] = steps
    else {
        return None;
    };
    // The known patterns leave no text between their matches, so what becomes of such text does not matter.
    let isolated = matches!((behavior.as_str(), invert), ("Isolated", _) | ("Removed", true));
    isolated.then(|| Words::ByteLevel { pattern: Some(pattern.clone()) })
}

/// What the post-processor does, if that is known.
pub(super) fn post(tokenizer: &Tokenizer) -> Option<Post> {
    let mut post = Post::default();
    match part::<Option<PostProcessor>>(&tokenizer.get_post_processor()).ok()? {
        None => {}
        Some(PostProcessor::Sequence { processors }) => match &processors[..] {
            [PostProcessor::ByteLevel(level), template @ PostProcessor::TemplateProcessing { .. }] => {
                post.trim = level.trim_offsets.then_some(level.add_prefix_space);
                add_template(&mut post, template)?;
            }
            [only] => add_step(&mut post, only)?,
            _ => return None,
        },
        Some(step) => add_step(&mut post, &step)?,
    }
    Some(post)
}

fn add_step(post: &mut Post, step: &PostProcessor) -> Option<()> {
    if let PostProcessor::ByteLevel(level) = step {
        post.trim = level.trim_offsets.then_some(level.add_prefix_space);
        return Some(());
    }
    add_template(post, step)
}

fn add_template(post: &mut Post, step: &PostProcessor) -> Option<()> {
    let PostProcessor::TemplateProcessing { single, special_tokens, .. } = step else { return None };
    let mut behind = false;
    for piece in single {
        match piece {
            Piece::Sequence { id, .. } if id == "A" && !behind => behind = true,
            Piece::Sequence { .. } => return None,
            Piece::SpecialToken { id, .. } => {
                let side = if behind { &mut post.after } else { &mut post.before };
                side.extend(&special_tokens.get(id)?.ids);
            }
        }
    }
    behind.then_some(())
}

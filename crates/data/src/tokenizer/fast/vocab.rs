//! The merges of a `tokenizer.json`, by ids.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, SeqAccess, Visitor};
use tokenizers::models::bpe::BPE;
use tokenizers::{Model, ModelWrapper, Tokenizer};

use super::merge::{Folded, Merges};

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Part<'a>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// One merge: two texts, or one with a space between the two.
struct Merge<'a>(Cow<'a, str>, Option<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Merge<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a merge")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Merge<'de>, E> {
                Ok(Merge(text.into(), None))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Merge<'de>, E> {
                Ok(Merge(text.to_owned().into(), None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge<'de>, A::Error> {
                let (Some(a), Some(b), None) = (
                    seq.next_element::<Text<'_>>()?,
                    seq.next_element::<Text<'_>>()?,
                    seq.next_element::<Text<'_>>()?,
                ) else {
                    return Err(de::Error::custom("not a pair"));
                };
                Ok(Merge(a.0, Some(b.0)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Merge<'_> {
    fn pair(&self) -> Option<(&str, &str)> {
        match &self.1 {
            Some(b) => Some((&self.0, b)),
            None => self.0.split_once(' ').filter(|(_, b)| !b.contains(' ')),
        }
    }
}

/// Texts by id: no two texts may share one, or a merge could not be told by its ids.
#[derive(Default)]
pub(super) struct Names {
    /// All texts, one behind the other.
    texts: String,
    /// Where each id's text is.
    spans: HashMap<u32, (u32, u32), Folded>,
}

impl Names {
    /// `None` when the id belongs to another text.
    pub(super) fn claim(&mut self, id: u32, text: &str) -> Option<u32> {
        let start = self.texts.len();
        let fresh = (u32::try_from(start).ok()?, u32::try_from(start + text.len()).ok()?);
        let (from, to) = *self.spans.entry(id).or_insert(fresh);
        if (from, to) == fresh {
            self.texts.push_str(text);
        }
        (self.texts.get(from as usize..to as usize)? == text).then_some(id)
    }
}

/// The BPE model, unless it has features that are not supported.
pub(super) fn bpe(tokenizer: &Tokenizer) -> Option<&BPE> {
    let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return None };
    let plain = bpe.dropout.is_none_or(|p| p == 0.0)
        && bpe.continuing_subword_prefix.as_deref().unwrap_or_default().is_empty()
        && bpe.end_of_word_suffix.as_deref().unwrap_or_default().is_empty();
    plain.then_some(bpe)
}

/// The merges of the file that `bpe` was read from. `see` is shown each one: both texts and their ids; it returns
/// `None` to refuse it.
pub(super) fn merges(
    json: &[u8],
    bpe: &BPE,
    names: &mut Names,
    mut see: impl FnMut([(&str, u32); 2]) -> Option<()>,
) -> Option<Merges> {
    let file: File<'_> = serde_json::from_slice(json).ok()?;
    let list = &file.model.merges;
    let mut merges = Merges::with_capacity(list.len());
    let mut joined = String::new();
    for (rank, merge) in list.iter().enumerate() {
        if merge.1.is_none() && merge.0.starts_with("#version") {
            continue;
        }
        let (a, b) = merge.pair()?;
        joined.clear();
        joined.push_str(a);
        joined.push_str(b);
        let mut id = |text: &str| names.claim(bpe.token_to_id(text)?, text);
        let (left, right, new) = (id(a)?, id(b)?, id(&joined)?);
        see([(a, left), (b, right)])?;
        merges.insert(left, right, rank as u32, new);
    }
    Some(merges)
}

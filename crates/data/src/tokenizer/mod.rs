//! The model's tokenizer: ids with byte offsets, decoding, and the rules of its special tokens.

mod fast;
mod stream;

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use self::fast::Fast;
pub use self::stream::DecodeStream;
use crate::error::{Error, RowError};
use crate::template::SpecialTokens;

/// The longest run of characters of one class (white space, letters, digits, others) that the reference tokenises. Its
/// splitting pattern gives up without a word after a million steps back inside one match, and would then give other
/// tokens.
const MAX_RUN: usize = 200_000;

/// Ids of a text, one entry per token in each list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// Byte range of the text that each token covers, `[T]`.
    pub offsets: Vec<(usize, usize)>,
    /// Whether the token was added by the tokenizer's post-processor and is not in the text, `[T]`.
    pub added: Vec<bool>,
}

impl Tokens {
    /// Empties the lists and keeps their memory.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.offsets.clear();
        self.added.clear();
    }
}

/// A Hugging Face tokenizer (`tokenizer.json`) with the special tokens of its configuration.
#[derive(Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
    /// `None` for a tokenizer with parts that are not known to the fast path.
    fast: Option<Fast>,
    path: PathBuf,
    special: SpecialTokens,
    bos: Option<(u32, String)>,
    eos: Option<(u32, String)>,
    /// Texts that turn into control tokens wherever they stand.
    control: Vec<String>,
    /// First bytes of `control`, each once.
    control_starts: Vec<u8>,
    max_id: (u32, String),
}

impl TextTokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` and `special_tokens_map.json` where they exist.
    ///
    /// # Errors
    /// [`Error::TokenizerFile`] when `tokenizer.json` is missing or malformed, or when a special token of the
    /// configuration is not in the vocabulary.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("tokenizer.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::tokenizer(
                    &path,
                    "the file does not exist; a model folder needs `tokenizer.json`",
                ));
            }
            Err(e) => return Err(Error::io(&path, e)),
        };
        let mut inner = Tokenizer::from_bytes(&bytes)
            .map_err(|e| Error::tokenizer(&path, format!("not a valid tokenizer ({e}); fetch it again")))?;
        // Stored padding or truncation would change what is trained on without a word.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::tokenizer(&path, e.to_string()))?;
        let config = dir.join("tokenizer_config.json");
        let map = dir.join("special_tokens_map.json");
        let mut special = special_tokens(read_json(&config)?.as_ref());
        for (key, text) in special_tokens(read_json(&map)?.as_ref()) {
            if special.iter().all(|(known, _)| *known != key) {
                special.push((key, text));
            }
        }
        let mut control: Vec<String> = inner
            .get_added_tokens_decoder()
            .values()
            .filter(|token| token.special && !token.content.is_empty())
            .map(|token| token.content.clone())
            .collect();
        control.sort_unstable();
        let mut control_starts: Vec<u8> = control.iter().map(|token| token.as_bytes()[0]).collect();
        control_starts.dedup();
        let max_id = inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).max();
        let max_id =
            max_id.ok_or_else(|| Error::tokenizer(&path, "the vocabulary is empty; fetch it again"))?;
        let fast = Fast::new(&inner, &bytes);
        let (bos, eos) = (None, None);
        let mut this = Self { inner, fast, path, special, bos, eos, control, control_starts, max_id };
        this.bos = this.resolve("bos_token", &config)?;
        this.eos = this.resolve("eos_token", &config)?;
        Ok(this)
    }

    fn resolve(&self, key: &str, config: &Path) -> Result<Option<(u32, String)>, Error> {
        let Some((_, text)) = self.special.iter().find(|(k, _)| k == key) else {
            return Ok(None);
        };
        let id = self.inner.token_to_id(text).ok_or_else(|| {
            let what = format!("`{key}` is `{text}`, which is not a token of `tokenizer.json`; correct it");
            Error::tokenizer(config, what)
        })?;
        Ok(Some((id, text.clone())))
    }

    /// Ids of `text` with byte offsets. `add_special_tokens`: whether the post-processor of `tokenizer.json` adds its
    /// own (BOS, for most models).
    ///
    /// # Errors
    /// [`RowError::Tokenizer`] when the text cannot be tokenised faithfully.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Tokens, RowError> {
        self.encode_literal(text, &[], add_special_tokens)
    }

    /// As [`TextTokenizer::encode`], but a control token whose span holds one of the byte positions `literal`
    /// (ascending) strictly inside is not recognised: its characters are ordinary text.
    ///
    /// # Errors
    /// [`RowError::Tokenizer`]; [`RowError::LiteralToken`] when there are such positions and the tokenizer has parts
    /// that only the reference knows, see [`TextTokenizer::is_fast`].
    pub fn encode_literal(
        &self,
        text: &str,
        literal: &[usize],
        add_special_tokens: bool,
    ) -> Result<Tokens, RowError> {
        let mut tokens = Tokens::default();
        self.encode_into(text, literal, add_special_tokens, &mut tokens)?;
        Ok(tokens)
    }

    /// As [`TextTokenizer::encode_literal`], into lists that are used again.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode_literal`]; `out` then holds nothing of use.
    pub fn encode_into(
        &self,
        text: &str,
        literal: &[usize],
        add_special_tokens: bool,
        out: &mut Tokens,
    ) -> Result<(), RowError> {
        if let Some(fast) = &self.fast {
            fast.encode(&self.inner, text, literal, add_special_tokens, out);
            return Ok(());
        }
        if let Some(position) = literal.first() {
            return Err(RowError::LiteralToken { token: self.spelled_over(text, *position) });
        }
        *out = self.encode_reference(text, add_special_tokens)?;
        Ok(())
    }

    /// What [`TextTokenizer::encode`] must give, as the original library computes it: slowly. For tests and for
    /// tokenizers with parts that are not known here.
    ///
    /// # Errors
    /// [`RowError::Tokenizer`], also for a run of characters that is too long for the library.
    pub fn encode_reference(&self, text: &str, add_special_tokens: bool) -> Result<Tokens, RowError> {
        check_runs(text)?;
        let encoding =
            self.inner.encode(text, add_special_tokens).map_err(|e| RowError::Tokenizer(e.to_string()))?;
        Ok(Tokens {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            added: encoding.get_special_tokens_mask().iter().map(|&m| m == 1).collect(),
        })
    }

    /// Whether every part of `tokenizer.json` is known, so that texts take the fast path.
    pub fn is_fast(&self) -> bool {
        self.fast.is_some()
    }

    /// The control token spelled out around a position, or the characters there.
    fn spelled_over(&self, text: &str, position: usize) -> String {
        let spelled = self.control.iter().find(|token| {
            let from = position.saturating_sub(token.len() - 1);
            (from..position).any(|start| {
                let rest = text.as_bytes().get(start..).unwrap_or_default();
                start + token.len() > position && rest.starts_with(token.as_bytes())
            })
        });
        let around = || {
            let near = |(i, c): &(usize, char)| i + c.len_utf8() + 8 > position && *i < position + 8;
            text.char_indices().filter(near).map(|(_, c)| c).collect()
        };
        spelled.cloned().unwrap_or_else(around)
    }

    /// Text of `ids`; control tokens are left out when `skip_special_tokens`.
    ///
    /// # Errors
    /// [`Error::Decode`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, Error> {
        if let Some(id) = ids.iter().find(|id| self.inner.id_to_token(**id).is_none()) {
            return Err(Error::Decode(format!("{id} is not a token of `{}`", self.path.display())));
        }
        self.inner.decode(ids, skip_special_tokens).map_err(|e| Error::Decode(e.to_string()))
    }

    /// A decoder that is fed one id after the other.
    pub fn stream(&self, skip_special_tokens: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special_tokens)
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id of a token by its exact text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token with this id, in the vocabulary's own spelling.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Every id must have a row in the model's embedding of `model_vocab_size` rows.
    ///
    /// # Errors
    /// [`Error::VocabTooSmall`] naming the largest token.
    pub fn check_vocab_size(&self, model_vocab_size: usize) -> Result<(), Error> {
        let (max_id, token) = &self.max_id;
        if (*max_id as usize) < model_vocab_size {
            return Ok(());
        }
        Err(Error::VocabTooSmall { max_id: *max_id, token: token.clone(), vocab_size: model_vocab_size })
    }

    /// Beginning-of-sequence token.
    pub fn bos(&self) -> Option<(u32, &str)> {
        self.bos.as_ref().map(|(id, text)| (*id, text.as_str()))
    }

    /// End-of-sequence token.
    pub fn eos(&self) -> Option<(u32, &str)> {
        self.eos.as_ref().map(|(id, text)| (*id, text.as_str()))
    }

    /// The ids that end an answer: those of the model's configuration and the tokenizer's EOS, ascending.
    ///
    /// # Errors
    /// [`Error::UnknownEos`] for an id that is not a token.
    pub fn stop_ids(&self, config_eos: &[u32]) -> Result<Vec<u32>, Error> {
        if let Some(&id) = config_eos.iter().find(|id| self.inner.id_to_token(**id).is_none()) {
            return Err(Error::UnknownEos { id });
        }
        let mut ids = config_eos.to_vec();
        ids.extend(self.eos.as_ref().map(|(id, _)| *id));
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Named special tokens (`bos_token`, …), as a chat template sees them.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// The texts that turn into control tokens wherever they stand, sorted.
    pub fn control_texts(&self) -> &[String] {
        &self.control
    }

    /// Whether a token, by its exact text, is a control token.
    pub fn is_control(&self, token: &str) -> bool {
        self.control.binary_search_by(|known| known.as_str().cmp(token)).is_ok()
    }

    /// The first control token that `text` spells out. Such text becomes the control token itself.
    pub fn control_token_in(&self, text: &str) -> Option<&str> {
        // Some tokenizers have hundreds of control tokens, nearly all with the same first byte.
        let bytes = text.as_bytes();
        let starts = |b: &u8| self.control_starts.contains(b);
        let mut places = bytes.iter().enumerate().filter(|(_, b)| starts(b)).map(|(i, _)| &bytes[i..]);
        let spelled = places.find_map(|rest| self.control.iter().find(|t| rest.starts_with(t.as_bytes())));
        spelled.map(String::as_str)
    }
}

pub(crate) fn read_json(path: &Path) -> Result<Option<Json>, Error> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|e| Error::tokenizer(path, format!("not valid JSON ({e}); fetch it again")))
}

/// `*_token` entries: a text, or an object with `content`.
fn special_tokens(config: Option<&Json>) -> SpecialTokens {
    let entries = config.and_then(Json::as_object).into_iter().flatten();
    entries
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, value)| {
            let text = value.as_str().or_else(|| value.get("content").and_then(Json::as_str))?;
            Some((key.clone(), text.to_owned()))
        })
        .collect()
}

fn check_runs(text: &str) -> Result<(), RowError> {
    if text.len() <= MAX_RUN {
        return Ok(());
    }
    let class = |c: char| (c.is_whitespace(), c.is_alphabetic(), c.is_numeric());
    let mut run = 0;
    let mut last = None;
    for c in text.chars() {
        let this = Some(class(c));
        run = if this == last { run + 1 } else { 1 };
        last = this;
        if run > MAX_RUN {
            return Err(RowError::Tokenizer(format!(
                "it has a run of more than {MAX_RUN} characters of one kind (such as {c:?}); remove it"
            )));
        }
    }
    Ok(())
}

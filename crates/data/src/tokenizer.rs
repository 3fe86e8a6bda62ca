//! The model's tokenizer: ids with byte offsets, decoding, and the rules of its special tokens.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use crate::error::{Error, RowError};
use crate::template::SpecialTokens;

/// The longest run of characters of one class (white space, letters, digits, others) that is tokenised. The splitting
/// pattern gives up without a word after a million steps back inside one match, and would then give other tokens.
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

/// A Hugging Face tokenizer (`tokenizer.json`) with the special tokens of its configuration.
#[derive(Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
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
        let mut this = Self { inner, path, special, bos: None, eos: None, control, control_starts, max_id };
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
        check_runs(text)?;
        let encoding =
            self.inner.encode(text, add_special_tokens).map_err(|e| RowError::Tokenizer(e.to_string()))?;
        Ok(Tokens {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            added: encoding.get_special_tokens_mask().iter().map(|&m| m == 1).collect(),
        })
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
        DecodeStream { tokenizer: self, skip_special_tokens, ids: Vec::new(), shown: String::new(), read: 0 }
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

/// Streaming decoder: see [`TextTokenizer::stream`].
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a TextTokenizer,
    skip_special_tokens: bool,
    /// The last ids that gave text, and those read since.
    ids: Vec<u32>,
    /// What `ids[..read]` decodes to.
    shown: String,
    read: usize,
}

impl DecodeStream<'_> {
    /// Ids after which incomplete bytes are given out as they are: no character needs more.
    const PATIENCE: usize = 16;

    /// Takes the next id; returns the text that is now certain: `None` while a character is incomplete.
    ///
    /// # Errors
    /// [`Error::Decode`] for an id outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, Error> {
        self.ids.push(id);
        let waiting = self.ids.len() - self.read <= Self::PATIENCE;
        self.advance(waiting)
    }

    /// What is left at the end: bytes that never became a character, as U+FFFD.
    ///
    /// # Errors
    /// [`Error::Decode`].
    pub fn finish(mut self) -> Result<Option<String>, Error> {
        self.advance(false)
    }

    fn advance(&mut self, wait: bool) -> Result<Option<String>, Error> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        if text.len() <= self.shown.len() || (wait && text.ends_with('\u{FFFD}')) {
            return Ok(None);
        }
        let fresh = text.get(self.shown.len()..).unwrap_or_default().to_owned();
        // The ids just shown stay as context: decoders treat the first token of a text differently.
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        self.shown = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        Ok(Some(fresh))
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

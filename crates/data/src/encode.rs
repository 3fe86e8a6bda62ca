//! From a row to ids and loss mask: the one path for training, evaluation and inference.

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, RowError};
use crate::example::Example;
use crate::rows::{Message, Row, RowContent};
use crate::source::Place;
use crate::template::{ChatTemplate, Now, Rendered, TemplateHelper};
use crate::tokenizer::{TextTokenizer, Tokens};

/// Whether rows go through the model's chat template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateChoice {
    /// With the template if the model has one.
    #[default]
    Auto,
    /// With the template; a model without one is an error.
    Chat,
    /// Without: prompt and completion are joined as they are.
    None,
}

/// Where the BOS token of the examples comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BosRule {
    /// The chat template writes it.
    Template,
    /// The tokenizer's post-processor adds it.
    Tokenizer,
    /// There is none.
    #[default]
    None,
}

/// What generation starts from.
#[derive(Debug, Clone, Copy)]
pub enum Prompt<'a> {
    /// A prompt as in prompt and completion rows.
    Text(&'a str),
    /// A conversation that the assistant is to continue.
    Messages(&'a [Message]),
}

/// Whether a row's own text spells out control tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlText {
    /// It does not.
    None,
    /// It does, and they stay text: inside a chat template only the template writes control tokens.
    Literal,
    /// It does, and they become control tokens.
    Control,
}

/// A tokenised row and what happened on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// Ids and mask.
    pub example: Example,
    /// Tokens that hold text from both sides of a trained span's edge. They are trained.
    pub boundary_merged: usize,
    /// Whether the tokenizer's EOS was appended because nothing else ended the answer.
    pub eos_appended: bool,
    /// Whether the row's own text spells out a control token, such as `</s>`.
    pub control_text: ControlText,
    /// Whether the template renders the prompt of the last trained turn differently when the answer is still to come,
    /// so that inference starts from another text than training (a template that drops the system message, say).
    pub prompt_differs: bool,
}

/// Tokenizer, chat template and stop ids of one model.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: TextTokenizer,
    template: Option<ChatTemplate>,
    stop_ids: Vec<u32>,
}

/// An assistant's stretch of the rendered text.
struct Turn {
    /// Byte range.
    range: Range<usize>,
    /// Whether it counts in the loss.
    trained: bool,
}

/// A rendered conversation with its assistant turns in order.
struct Conversation {
    text: String,
    /// See [`Rendered::literal`].
    literal: Vec<usize>,
    turns: Vec<Turn>,
    /// The conversation ends with the last of `turns`.
    open_end: bool,
    /// See [`EncodedRow::prompt_differs`].
    prompt_differs: bool,
}

impl Encoder {
    /// An encoder that renders with `template` (`None`: prompt and completion are joined as they are). `config_eos`
    /// is the `eos_token_id` list of the model's configuration.
    ///
    /// # Errors
    /// [`Error::UnknownEos`].
    pub fn new(
        tokenizer: TextTokenizer,
        template: Option<ChatTemplate>,
        config_eos: &[u32],
    ) -> Result<Self, Error> {
        let stop_ids = tokenizer.stop_ids(config_eos)?;
        Ok(Self { tokenizer, template, stop_ids })
    }

    /// Reads tokenizer and template of a model folder.
    ///
    /// # Errors
    /// Those of [`TextTokenizer::from_dir`], [`ChatTemplate::from_dir`] and [`Encoder::new`], and
    /// [`Error::NoTemplate`] when `choice` asks for a template that is not there.
    pub fn from_dir(dir: &Path, choice: TemplateChoice, config_eos: &[u32], now: Now) -> Result<Self, Error> {
        let tokenizer = TextTokenizer::from_dir(dir)?;
        let template = match choice {
            TemplateChoice::None => None,
            _ => ChatTemplate::from_dir(dir, tokenizer.special_tokens().clone(), now)?
                .map(|template| template.with_control_texts(tokenizer.control_texts())),
        };
        if choice == TemplateChoice::Chat && template.is_none() {
            return Err(Error::NoTemplate { path: dir.to_owned() });
        }
        Self::new(tokenizer, template, config_eos)
    }

    /// Has a template that is not a known one run by helper processes ([`ChatTemplate::with_helper`]).
    ///
    /// # Errors
    /// [`Error::TemplateHelper`].
    pub fn with_template_helper(mut self, helper: &TemplateHelper) -> Result<Self, Error> {
        self.template = self.template.map(|template| template.with_helper(helper)).transpose()?;
        Ok(self)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The chat template in use.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Ids that end an answer, ascending.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Where the BOS of an example comes from.
    pub fn bos_rule(&self, ids: &[u32]) -> BosRule {
        let Some((bos, _)) = self.tokenizer.bos() else {
            return BosRule::None;
        };
        match (ids.first() == Some(&bos), self.template.is_some()) {
            (false, _) => BosRule::None,
            (true, true) => BosRule::Template,
            (true, false) => BosRule::Tokenizer,
        }
    }

    /// Tokenises a row and marks what counts in the loss: the completion or the assistant's turns, and a stop token
    /// at their end.
    ///
    /// # Errors
    /// Everything of [`RowError`] that needs the template or the tokenizer to see.
    pub fn encode_row(&self, row: &Row) -> Result<EncodedRow, RowError> {
        let mut encoded = match (&row.content, &self.template) {
            (RowContent::PromptCompletion { prompt, completion }, None) => self.plain(prompt, completion)?,
            (RowContent::PromptCompletion { prompt, completion }, Some(template)) => {
                let messages = [Message::new("user", prompt), Message::new("assistant", completion)];
                self.chat(template, &messages)?
            }
            (RowContent::Messages(messages), Some(template)) => self.chat(template, messages)?,
            (RowContent::Messages(_), None) => return Err(RowError::NeedsTemplate),
        };
        if let Some(first) = encoded.example.trained.first_mut() {
            *first = false;
        }
        self.check_bos(&encoded.example.ids)?;
        encoded.example.place = row.place;
        Ok(encoded)
    }

    /// Ids that generation starts from: what training saw before the answer.
    ///
    /// # Errors
    /// As [`Encoder::encode_row`].
    pub fn encode_prompt(&self, prompt: Prompt<'_>) -> Result<Vec<u32>, RowError> {
        let ids = match (prompt, &self.template) {
            (Prompt::Text(text), None) => {
                let mut tokens = self.tokenizer.encode(text, true)?;
                // Some post-processors end every text with EOS; an answer is still to come here.
                let kept = tokens.added.iter().rposition(|added| !added).map_or(0, |last| last + 1);
                let leading = tokens.added.iter().take_while(|added| **added).count();
                tokens.ids.truncate(if kept == 0 { leading.min(self.leading_added()?) } else { kept });
                tokens.ids
            }
            (Prompt::Text(text), Some(template)) => {
                let messages = [Message::new("user", text)];
                self.rendered(&template.render(&messages, true)?)?
            }
            (Prompt::Messages(messages), Some(template)) => {
                self.rendered(&template.render(messages, true)?)?
            }
            (Prompt::Messages(_), None) => return Err(RowError::NeedsTemplate),
        };
        self.check_bos(&ids)?;
        Ok(ids)
    }

    /// Ids of a rendering, in which only the template writes control tokens.
    fn rendered(&self, rendered: &Rendered) -> Result<Vec<u32>, RowError> {
        Ok(self.tokenizer.encode_literal(&rendered.text, &rendered.literal, false)?.ids)
    }

    /// How many tokens the post-processor puts before a text.
    fn leading_added(&self) -> Result<usize, RowError> {
        let probe = self.tokenizer.encode("a", true)?;
        Ok(probe.added.iter().take_while(|added| **added).count())
    }

    fn check_bos(&self, ids: &[u32]) -> Result<(), RowError> {
        match (self.tokenizer.bos(), ids) {
            (Some((bos, token)), [a, b, ..]) if *a == bos && *b == bos => {
                Err(RowError::DoubleBos { token: token.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Prompt and completion as one text, tokenised once.
    fn plain(&self, prompt: &str, completion: &str) -> Result<EncodedRow, RowError> {
        let text = [prompt, completion].concat();
        let tokens = self.tokenizer.encode(&text, true)?;
        let turn = Turn { range: prompt.len()..text.len(), trained: true };
        let (mut trained, found) = mark(&tokens, std::slice::from_ref(&turn));
        let mut ids = tokens.ids;
        // What the post-processor puts behind the text ends the answer.
        let text_end = tokens.added.iter().rposition(|added| !added).map_or(0, |last| last + 1);
        for flag in &mut trained[text_end..] {
            *flag = true;
        }
        let eos_appended = !ids.last().is_some_and(|id| self.stop_ids.contains(id));
        if eos_appended {
            self.append_eos(&mut ids, &mut trained)?;
        }
        Ok(EncodedRow {
            example: Example { ids, trained, place: Place::default() },
            boundary_merged: found.merged,
            eos_appended,
            // Without a template the text is taken as it is written, its control tokens included.
            control_text: self.control_text([prompt, completion], ControlText::Control),
            prompt_differs: false,
        })
    }

    fn chat(&self, template: &ChatTemplate, messages: &[Message]) -> Result<EncodedRow, RowError> {
        let conversation = if template.has_generation_marks() {
            marked_turns(template, messages)?
        } else {
            prefix_turns(template, messages)?
        };
        let tokens = self.tokenizer.encode_literal(&conversation.text, &conversation.literal, false)?;
        let (mut trained, found) = mark(&tokens, &conversation.turns);
        let mut ids = tokens.ids.clone();
        let mut eos_appended = false;
        let mut ended = true;
        for (turn, last) in &found.turns {
            let turn = &conversation.turns[*turn];
            ended = self.end_turn(&tokens, &conversation.text, turn, *last, &mut trained);
        }
        if let (false, Some((turn, last))) = (ended, found.turns.last()) {
            // A stop token in the middle of a conversation would be one that inference never shows.
            if !conversation.open_end || *turn + 1 != conversation.turns.len() {
                return Err(RowError::NoStopToken { reason: "it is not the last turn" });
            }
            ids.truncate(last + 1);
            trained.truncate(last + 1);
            self.append_eos(&mut ids, &mut trained)?;
            eos_appended = true;
        }
        Ok(EncodedRow {
            example: Example { ids, trained, place: Place::default() },
            boundary_merged: found.merged,
            eos_appended,
            control_text: self
                .control_text(messages.iter().map(|m| m.content.as_str()), ControlText::Literal),
            prompt_differs: conversation.prompt_differs,
        })
    }

    /// Makes a trained turn end with its stop token, if it has one; says whether it does.
    fn end_turn(&self, tokens: &Tokens, text: &str, turn: &Turn, last: usize, trained: &mut [bool]) -> bool {
        // White space that a template writes behind the stop token is never generated.
        for i in (0..=last).rev() {
            if tokens.offsets[i].1 <= turn.range.start {
                break;
            }
            if self.stop_ids.contains(&tokens.ids[i]) {
                trained[i + 1..=last].fill(false);
                return true;
            }
            let (from, to) = tokens.offsets[i];
            if text.get(from..to).is_some_and(|t| !t.trim().is_empty()) {
                break;
            }
        }
        let next = tokens.ids.get(last + 1);
        let follows = next.is_some_and(|id| self.stop_ids.contains(id));
        if follows {
            trained[last + 1] = true;
        }
        follows
    }

    /// Ends an answer with a trained EOS: without one the model would never learn to stop.
    fn append_eos(&self, ids: &mut Vec<u32>, trained: &mut Vec<bool>) -> Result<(), RowError> {
        let reason = "the tokenizer has no EOS token";
        let (eos, _) = self.tokenizer.eos().ok_or(RowError::NoStopToken { reason })?;
        ids.push(eos);
        trained.push(true);
        Ok(())
    }

    fn control_text<'a>(
        &self,
        texts: impl IntoIterator<Item = &'a str>,
        spelled: ControlText,
    ) -> ControlText {
        let spells = texts.into_iter().any(|t| self.tokenizer.control_token_in(t).is_some());
        if spells { spelled } else { ControlText::None }
    }
}

/// What marking found: per trained turn its index and its last token, and the tokens that cross an edge.
struct Found {
    turns: Vec<(usize, usize)>,
    merged: usize,
}

/// `[T]`: the tokens that hold text of a trained turn.
///
/// Tokenizers may leave white space out of a token's offsets; such gaps belong to the token behind them.
fn mark(tokens: &Tokens, turns: &[Turn]) -> (Vec<bool>, Found) {
    let mut trained = vec![false; tokens.ids.len()];
    let mut found = Found { turns: Vec::new(), merged: 0 };
    let mut covered = 0;
    let mut at = 0;
    for i in 0..tokens.ids.len() {
        if tokens.added[i] {
            continue;
        }
        let (raw, end) = tokens.offsets[i];
        let start = raw.min(covered);
        covered = covered.max(end);
        while at < turns.len() && turns[at].range.end <= start {
            at += 1;
        }
        for (index, turn) in turns.iter().enumerate().skip(at) {
            if turn.range.start >= end {
                break;
            }
            if !turn.trained || turn.range.is_empty() {
                continue;
            }
            trained[i] = true;
            found.merged += usize::from(raw < turn.range.start || end > turn.range.end);
            match found.turns.last_mut() {
                Some((known, last)) if *known == index => *last = i,
                _ => found.turns.push((index, i)),
            }
        }
    }
    (trained, found)
}

/// Turns of a template that marks them itself.
fn marked_turns(template: &ChatTemplate, messages: &[Message]) -> Result<Conversation, RowError> {
    let rendered = template.render(messages, false)?;
    let assistants: Vec<&Message> = messages.iter().filter(|m| m.is_assistant()).collect();
    let spans = rendered.spans.len();
    if spans != assistants.len() && assistants.iter().any(|m| !m.trained) {
        return Err(RowError::WeightSpans { spans, turns: assistants.len() });
    }
    let last = messages.iter().rposition(|m| m.is_assistant() && m.trained);
    let prompt = last.map(|i| template.render(&messages[..i], true));
    // A template that refuses to render the prompt alone cannot be asked for the answer either.
    let prompt_differs = prompt.is_some_and(|p| !p.is_ok_and(|p| rendered.text.starts_with(p.text.as_str())));
    let weights = assistants.iter().map(|m| m.trained).chain(std::iter::repeat(true));
    let turns = rendered.spans.into_iter().zip(weights).map(|(range, trained)| Turn { range, trained });
    Ok(Conversation {
        text: rendered.text,
        literal: rendered.literal,
        turns: turns.collect(),
        open_end: messages.last().is_some_and(Message::is_assistant),
        prompt_differs,
    })
}

/// Turns of a template without marks: what each turn adds to the rendering of the conversation before it.
fn prefix_turns(template: &ChatTemplate, messages: &[Message]) -> Result<Conversation, RowError> {
    let Rendered { text, literal, .. } = template.render(messages, false)?;
    let mut turns = Vec::new();
    for (i, message) in messages.iter().enumerate().filter(|(_, m)| m.is_assistant()) {
        if !message.trained {
            continue;
        }
        let before = template.render(&messages[..i], true)?.text;
        let end = if i + 1 == messages.len() {
            text.len()
        } else {
            let after = template.render(&messages[..=i], false)?.text;
            if !text.starts_with(&after) {
                return Err(RowError::NotAPrefix { turn: i + 1 });
            }
            after.len()
        };
        if !text.starts_with(&before) || before.len() > end {
            return Err(RowError::NotAPrefix { turn: i + 1 });
        }
        turns.push(Turn { range: before.len()..end, trained: true });
    }
    let open_end = messages.last().is_some_and(|m| m.is_assistant() && m.trained);
    Ok(Conversation { text, literal, turns, open_end, prompt_differs: false })
}

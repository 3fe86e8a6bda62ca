//! Known chat templates, rendered without running them: the same text, in a fraction of the time, and none of a
//! template's power over the machine.
//!
//! A template is recognised by the SHA-256 of its text, which is not kept here. A renderer gives exactly what the
//! template gives or nothing: whatever is unusual, and everything that a template refuses, is left to the template.

mod chatml;
mod llama2;
mod llama3;
mod mistral;
mod phi3;
mod zephyr;

use sha2::{Digest, Sha256};

use super::{Now, Rendered, SpecialTokens};
use crate::rows::Message;

/// What is rendered.
pub(super) struct Talk<'a> {
    pub(super) messages: &'a [Message],
    pub(super) tokens: &'a SpecialTokens,
    pub(super) add_generation_prompt: bool,
    pub(super) now: Now,
}

impl<'a> Talk<'a> {
    fn token(&self, key: &str) -> Option<&'a str> {
        self.tokens.iter().rfind(|(k, _)| k == key).map(|(_, text)| text.as_str())
    }

    fn bos(&self) -> Option<&'a str> {
        self.token("bos_token")
    }

    fn eos(&self) -> Option<&'a str> {
        self.token("eos_token")
    }

    /// The content of a leading system message, and the messages behind it.
    fn system(&self) -> (Option<&'a str>, &'a [Message]) {
        match self.messages {
            [first, rest @ ..] if first.role == "system" => (Some(&first.content), rest),
            all => (None, all),
        }
    }
}

/// Writes a conversation's rendering; `None`: the template must do it.
pub(super) type Renderer = fn(&Talk<'_>, &mut Rendered) -> Option<()>;

/// Bytes that a template writes around a message, at most, for the known ones.
const AROUND: usize = 64;

/// Renders a conversation, if it is one that the renderer knows about.
pub(super) fn render(renderer: Renderer, talk: &Talk<'_>) -> Option<Rendered> {
    if talk.messages.is_empty() || talk.messages.iter().any(|m| !m.extra.is_empty()) {
        return None;
    }
    let bytes: usize = talk.messages.iter().map(|m| m.role.len() + m.content.len() + AROUND).sum();
    let mut out = Rendered { text: String::with_capacity(bytes + 2 * AROUND), ..Rendered::default() };
    renderer(talk, &mut out)?;
    Some(out)
}

/// Whether users and others take turns, the user first.
fn alternates(messages: &[Message]) -> bool {
    messages.iter().enumerate().all(|(i, m)| (m.role == "user") == (i % 2 == 0))
}

impl Rendered {
    fn put<const N: usize>(&mut self, pieces: [&str; N]) {
        for piece in pieces {
            self.text.push_str(piece);
        }
    }

    /// What stands between `{% generation %}` and `{% endgeneration %}`.
    fn generated<const N: usize>(&mut self, pieces: [&str; N]) {
        let start = self.text.len();
        self.put(pieces);
        self.spans.push(start..self.text.len());
    }
}

/// SHA-256 of a template's text, and who renders it.
const KNOWN: &[(&str, Renderer)] = &[
    ("e8d5b5a546d3f19df16a5320c614fab05bdc4edd50e850f1afd947b503ea41cf", llama2::plain),
    ("34475d25dd2826085e23d8d5b1c1d8262a88b41d50ed3c08913c32c50e23371a", llama2::marked),
    ("ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122", llama3::plain),
    ("512237bc047bc6de17025e6f7fd1a10340c9afcfaf8df56149f55c9a9f2da630", llama3::marked),
    ("e407323269d15bba92fc431b5b7d757e66d920d01b45cae58149a692d7697d3c", llama3::vision),
    // These two with and without the last line break.
    ("e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65", llama3::fixed_date),
    ("93c0e9aa3629bbd77e68dbc0f5621f6e6b23aa8d74b932595cdb8d64684526d7", llama3::fixed_date),
    ("5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4", llama3::dated),
    ("d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f", llama3::dated),
    ("7e995b379ec01747807246483647cd99030abf331653f1119e16d7ac041a3495", mistral::instruct),
    ("26a59556925c987317ce5291811ba3b7f32ec4c647c400c6cc7e3a9993007ba7", mistral::mixtral),
    ("1179ef1185daf6365ab990fbe8db38cc228e7c3c22548e404c923c87e11f450b", mistral::v1),
    ("ed63dcca56862720b78ab80429d92ab816c3a8f0616cd52bf24cdae8f108d5ce", mistral::v3),
    ("153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3", chatml::plain),
    ("268b6082ceb7176dc6ed80557a2f7837f9f0339592fbee677d405a553af15f88", phi3::v3),
    ("78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90", phi3::v35),
    // One text, with its line breaks written out or escaped, with one blank in a place or two.
    ("66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362", zephyr::plain),
    ("30d0ce3cc83b62196409165ef0b6c4eaf9678292a09562c1364382f23979e3cc", zephyr::plain),
    ("4f39e3a4b9e3d369b42fd00d93a78f171914bb4e58ec84fc420433d7a153288a", zephyr::plain),
    ("112b5754d363f314556a289b38a494f98c33af7d7afc2a88c9e15d0b3ee041fc", zephyr::plain),
];

/// The renderer of a template's source.
pub(super) fn find(source: &str) -> Option<Renderer> {
    let hex = crate::hex::hex(&Sha256::digest(source.as_bytes()));
    KNOWN.iter().find(|(hash, _)| *hash == hex).map(|(_, renderer)| *renderer)
}

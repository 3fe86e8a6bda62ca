//! Phi 3 and 3.5.

use super::{Rendered, Talk};

/// Phi 3: the answer's header stands behind each question.
pub(super) fn v3(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    out.put([talk.bos()?]);
    for m in talk.messages {
        match m.role.as_str() {
            "user" => out.put(["<|user|>\n", &m.content, "<|end|>\n<|assistant|>\n"]),
            "assistant" => out.put([&m.content, "<|end|>\n"]),
            _ => {}
        }
    }
    Some(())
}

/// Phi 3.5.
pub(super) fn v35(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    for m in talk.messages {
        match m.role.as_str() {
            "system" if !m.content.is_empty() => out.put(["<|system|>\n", &m.content, "<|end|>\n"]),
            "user" => out.put(["<|user|>\n", &m.content, "<|end|>\n"]),
            "assistant" => out.put(["<|assistant|>\n", &m.content, "<|end|>\n"]),
            _ => {}
        }
    }
    out.put([if talk.add_generation_prompt { "<|assistant|>\n" } else { talk.eos()? }]);
    Some(())
}

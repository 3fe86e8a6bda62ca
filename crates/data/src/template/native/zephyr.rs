//! Zephyr, and models that took its format over.

use super::{Rendered, Talk};

pub(super) fn plain(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    let eos = talk.eos()?;
    for m in talk.messages {
        if matches!(m.role.as_str(), "user" | "system" | "assistant") {
            out.put(["<|", &m.role, "|>\n", &m.content, eos, "\n"]);
        }
    }
    if talk.add_generation_prompt {
        out.put(["<|assistant|>\n"]);
    }
    Some(())
}

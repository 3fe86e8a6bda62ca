//! `ChatML`, as Qwen and many others have it.

use super::{Rendered, Talk};

/// In the form that the table of renderers has.
#[allow(clippy::unnecessary_wraps)]
pub(super) fn plain(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    for m in talk.messages {
        out.put(["<|im_start|>", &m.role, "\n", &m.content, "<|im_end|>\n"]);
    }
    if talk.add_generation_prompt {
        out.put(["<|im_start|>assistant\n"]);
    }
    Some(())
}

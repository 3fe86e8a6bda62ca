//! Llama 2: the system message stands inside the first `[INST]`.

use super::super::jinja::trim;
use super::{Rendered, Talk, alternates};

/// As Meta published it: text is trimmed once the system message is in it.
pub(super) fn plain(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    let (bos, eos) = (talk.bos()?, talk.eos()?);
    let (system, rest) = talk.system();
    if !alternates(rest) {
        return None;
    }
    for (i, m) in rest.iter().enumerate() {
        match (m.role.as_str(), system) {
            ("user", Some(system)) if i == 0 => {
                out.put([bos, "[INST] ", "<<SYS>>\n", system, "\n<</SYS>>\n\n", &m.content]);
                let kept = trim(&out.text, false, true).len();
                out.text.truncate(kept);
                out.put([" [/INST]"]);
            }
            ("user", _) => out.put([bos, "[INST] ", trim(&m.content, true, true), " [/INST]"]),
            ("assistant", _) => out.put([" ", trim(&m.content, true, true), " ", eos]),
            _ => return None,
        }
    }
    Some(())
}

/// With marks around the answers; system message and text are trimmed each.
pub(super) fn marked(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    let (bos, eos) = (talk.bos()?, talk.eos()?);
    let (system, rest) = talk.system();
    if !alternates(rest) {
        return None;
    }
    for (i, m) in rest.iter().enumerate() {
        let content = trim(&m.content, true, true);
        if m.role != "user" {
            out.generated([" ", content, " ", eos]);
            continue;
        }
        out.put([bos, "[INST] "]);
        if let (0, Some(system)) = (i, system) {
            out.put(["<<SYS>>\n", trim(system, true, true), "\n<</SYS>>\n\n"]);
        }
        out.put([content, " [/INST]"]);
    }
    Some(())
}

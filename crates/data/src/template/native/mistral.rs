//! Mistral: `[INST]` around what the user says. The versions differ in blanks and in the place of the system message.

use super::{Rendered, Talk, alternates};

/// Mistral 7B Instruct v0.1 and v0.2, without a system message.
pub(super) fn instruct(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    turns(talk, out, " ")
}

/// Mixtral 8x7B Instruct: no blank behind an answer.
pub(super) fn mixtral(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    turns(talk, out, "")
}

fn turns(talk: &Talk<'_>, out: &mut Rendered, behind: &str) -> Option<()> {
    let eos = talk.eos()?;
    if !alternates(talk.messages) {
        return None;
    }
    out.put([talk.bos()?]);
    for m in talk.messages {
        match m.role.as_str() {
            "user" => out.put(["[INST] ", &m.content, " [/INST]"]),
            "assistant" => out.put([&m.content, eos, behind]),
            _ => return None,
        }
    }
    Some(())
}

/// The format of the v1 tokenizer, with marks: blanks around `[INST]`, the system message in the first turn.
pub(super) fn v1(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    with_system(talk, out, " [INST] ", " [/INST]", |i, _| i == 0)
}

/// The format of the v3 tokenizer, with marks: the system message in the last turn.
pub(super) fn v3(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    with_system(talk, out, "[INST] ", "[/INST]", |i, count| i + 1 == count)
}

fn with_system(
    talk: &Talk<'_>,
    out: &mut Rendered,
    open: &str,
    close: &str,
    here: impl Fn(usize, usize) -> bool,
) -> Option<()> {
    let eos = talk.eos()?;
    let (system, rest) = talk.system();
    if !alternates(rest) {
        return None;
    }
    out.put([talk.bos()?]);
    for (i, m) in rest.iter().enumerate() {
        if m.role != "user" {
            out.generated([" ", &m.content, eos]);
            continue;
        }
        out.put([open]);
        if let (true, Some(system)) = (here(i, rest.len()), system) {
            out.put([system, "\n\n"]);
        }
        out.put([&m.content, close]);
    }
    Some(())
}

//! Llama 3 and its successors: a header before each message, `<|eot_id|>` behind it.

use super::super::jinja::trim;
use super::{Rendered, Talk};

const START: &str = "<|start_header_id|>";
const END: &str = "<|end_header_id|>\n\n";
const STOP: &str = "<|eot_id|>";

fn prompt(talk: &Talk<'_>, out: &mut Rendered) {
    if talk.add_generation_prompt {
        out.put([START, "assistant", END]);
    }
}

/// Llama 3.
pub(super) fn plain(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    out.put([talk.bos()?]);
    for m in talk.messages {
        out.put([START, &m.role, END, trim(&m.content, true, true), STOP]);
    }
    prompt(talk, out);
    Some(())
}

/// Llama 3 with marks around the answers.
pub(super) fn marked(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    out.put([talk.bos()?]);
    for m in talk.messages {
        let content = trim(&m.content, true, true);
        out.put([START, &m.role, END]);
        if m.role == "assistant" {
            out.generated([content, STOP]);
        } else {
            out.put([content, STOP]);
        }
    }
    prompt(talk, out);
    Some(())
}

/// The date that a template shows when it is given none.
const NO_DATE: &str = "26 Jul 2024";

/// Llama 3.1: the system message always stands there and tells a date, the same every day.
pub(super) fn fixed_date(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    with_date(talk, out, NO_DATE, |content| trim(content, true, true))
}

/// Llama 3.2: as before, with the date of the day.
pub(super) fn dated(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    let date = talk.now.format("%d %b %Y").ok()?;
    with_date(talk, out, &date, |content| trim(content, true, true))
}

/// Llama 3.2 with vision: as without, but messages are not trimmed.
pub(super) fn vision(talk: &Talk<'_>, out: &mut Rendered) -> Option<()> {
    let date = talk.now.format("%d %b %Y").ok()?;
    with_date(talk, out, &date, |content| content)
}

fn with_date(talk: &Talk<'_>, out: &mut Rendered, date: &str, cut: impl Fn(&str) -> &str) -> Option<()> {
    let (system, rest) = talk.system();
    let system = trim(system.unwrap_or_default(), true, true);
    out.put([talk.bos()?, START, "system", END]);
    out.put(["Cutting Knowledge Date: December 2023\nToday Date: ", date, "\n\n", system, STOP]);
    for m in rest {
        // The roles of tools have a form of their own.
        if m.role == "ipython" || m.role == "tool" {
            return None;
        }
        out.put([START, &m.role, END, cut(&m.content), STOP]);
    }
    prompt(talk, out);
    Some(())
}

//! The check as one HTML file: no script, nothing fetched, every text of the data escaped.

use std::fmt::Write as _;

use super::finding::{percent, thousands};
use super::mask::{MaskPreview, Piece};
use super::svg::histogram;
use super::{Check, CheckReport, Lengths, Severity};
use crate::dataset::DataReport;

/// Places listed with a finding.
const LISTED: usize = 5;
/// Characters of an untrained stretch that are shown, half in front and half at its end.
const PROMPT_SHOWN: usize = 2000;
/// Characters of a trained stretch that are shown.
const TRAINED_SHOWN: usize = 8000;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2126;--soft:#5d6770;--line:#d9dee3;--paper:#fff;--panel:#f5f7f9;--bar:#4a7fb5;\
--over:#c4603a;--trained:#d8efdc;--trained-ink:#0d4a20;--control:#6a4fa3;--error:#b3261e;--warning:#8a5a00;--note:#3d6488}\
@media(prefers-color-scheme:dark){:root{--ink:#e3e7ea;--soft:#9aa5ae;--line:#363d44;--paper:#15191c;--panel:#1e2327;\
--bar:#6ea3d8;--over:#e08a63;--trained:#173b22;--trained-ink:#b5e8c3;--control:#b9a3ea;--error:#ff8a80;\
--warning:#f2c063;--note:#8fbbe3}}\
*{box-sizing:border-box}body{margin:0 auto;max-width:62rem;padding:2rem 1.25rem 4rem;background:var(--paper);\
color:var(--ink);font:15px/1.5 system-ui,sans-serif}h1{font-size:1.5rem;margin:0 0 .25rem;overflow-wrap:anywhere}\
h2{font-size:1.15rem;margin:2.2rem 0 .6rem}h3{font-size:1rem;margin:1.4rem 0 .4rem;font-weight:600}p{margin:.3rem 0}\
.soft{color:var(--soft)}table{border-collapse:collapse;font-variant-numeric:tabular-nums}th{font-weight:500;\
text-align:left;color:var(--soft)}th,td{padding:.2rem 1.4rem .2rem 0;border-bottom:1px solid var(--line)}\
td.n,th.n{text-align:right}.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1rem;margin-top:1rem}\
figure{margin:0;padding:.7rem .8rem;background:var(--panel);border-radius:6px}figcaption{font-weight:600}\
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:11px}svg .end{text-anchor:end}\
svg .grid{stroke:var(--line)}svg .bar{fill:var(--bar)}svg .over{fill:var(--over)}svg .limit{stroke:var(--over);\
stroke-dasharray:4 3}ul.findings{list-style:none;margin:0;padding:0}ul.findings li{padding:.5rem .8rem;margin:.4rem 0;\
background:var(--panel);border-left:4px solid var(--note);border-radius:4px}ul.findings .error{border-color:var(--error)}\
ul.findings .warning{border-color:var(--warning)}.tag{font-weight:600;margin-right:.5rem}.error>.tag{color:var(--error)}\
.warning>.tag{color:var(--warning)}.note>.tag{color:var(--note)}code{font:13px/1.5 ui-monospace,monospace;\
overflow-wrap:anywhere}.mask{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);padding:.8rem;\
border-radius:6px;font:13px/1.6 ui-monospace,monospace}.mask mark{background:var(--trained);color:var(--trained-ink);\
text-decoration:underline}.mask .control{color:var(--control);font-weight:600}.mask .cut{color:var(--soft);\
font-style:italic}.mask .sp{opacity:.45}";

/// The report. `previews` are rows of `check.train`.
pub fn html(check: &Check, previews: &[MaskPreview]) -> String {
    let title = escaped(&check.train.data.title());
    let mut page = Page(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'\">\n<title>Data check: {title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    ));
    page.line(format!("<h1>Data check: {title}</h1>"));
    let [errors, warnings, notes] =
        [Severity::Error, Severity::Warning, Severity::Note].map(|severity| check.count(severity));
    page.line(format!("<p class=\"soft\">errors: {errors}, warnings: {warnings}, notes: {notes}</p>"));
    page.findings(check);
    page.source("Training rows", &check.train);
    if let Some(validation) = &check.validation {
        page.source("Validation rows", validation);
    }
    if !previews.is_empty() {
        page.line("<h2>What is trained</h2>\n<p>Marked text counts in the loss.</p>");
    }
    for preview in previews {
        page.preview(preview, &check.train.data);
    }
    page.line("</body>\n</html>");
    page.0
}

struct Page(String);

impl Page {
    fn line(&mut self, text: impl AsRef<str>) {
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }

    fn findings(&mut self, check: &Check) {
        self.line("<h2>Findings</h2>\n<ul class=\"findings\">");
        let findings = check.findings();
        if findings.is_empty() {
            self.line("<li class=\"note\">Nothing.</li>");
        }
        for (finding, data) in findings {
            let word = word(finding.severity);
            let places: Vec<_> =
                finding.places.iter().take(LISTED).map(|p| escaped(&data.locate(*p))).collect();
            let places = match places.as_slice() {
                [] => String::new(),
                some => format!("<br><span class=\"soft\">{}</span>", some.join(", ")),
            };
            let snippet = match finding.snippet.as_str() {
                "" => String::new(),
                text => format!("<br><code>{}</code>", escaped(text)),
            };
            let message = escaped(&finding.message);
            self.line(format!(
                "<li class=\"{word}\"><span class=\"tag\">{word}</span>{message}{places}{snippet}</li>"
            ));
        }
        self.line("</ul>");
    }

    fn source(&mut self, heading: &str, report: &CheckReport) {
        let data = &report.data;
        self.line(format!("<h2>{heading}</h2>\n<p>{}</p>", escaped(&data.shape)));
        self.line("<table>");
        for (name, value) in rows(report) {
            self.line(format!("<tr><th>{name}</th><td class=\"n\">{}</td></tr>", escaped(&value)));
        }
        self.line("</table>\n<h3>Lengths in tokens</h3>\n<table>\n<tr><th></th><th class=\"n\">p5</th><th class=\"n\">\
                   median</th><th class=\"n\">p95</th><th class=\"n\">p99</th><th class=\"n\">longest</th><th class=\"n\">\
                   all</th></tr>");
        let lengths = [
            ("whole row", &report.row_tokens),
            ("prompt", &report.prompt_tokens),
            ("trained", &report.trained_tokens),
        ];
        for (name, l) in lengths {
            let cells = [l.p5, l.p50, l.p95, l.p99, l.max, l.tokens].map(thousands);
            let cells = cells.map(|n| format!("<td class=\"n\">{n}</td>")).concat();
            self.line(format!("<tr><th>{name}</th>{cells}</tr>"));
        }
        self.line("</table>\n<div class=\"charts\">");
        self.chart(&report.row_tokens, "Tokens of a row", Some(report.max_seq_length));
        self.chart(&report.prompt_tokens, "Tokens of a prompt", None);
        self.chart(&report.trained_tokens, "Trained tokens of a row", None);
        self.line("</div>");
    }

    fn chart(&mut self, lengths: &Lengths, title: &str, limit: Option<usize>) {
        if lengths.rows > 0 {
            let drawing = histogram(lengths, title, limit);
            self.line(format!("<figure><figcaption>{title}</figcaption>\n{drawing}</figure>"));
        }
    }

    fn preview(&mut self, preview: &MaskPreview, data: &DataReport) {
        let place = escaped(&data.locate(preview.place));
        let trained = thousands(preview.trained_tokens);
        let mut about = format!("{place}: {trained} of {} tokens trained", thousands(preview.tokens));
        if preview.eos_appended {
            about.push_str(", the last one appended");
        }
        if preview.cut_tokens > 0 {
            let _ = write!(about, ", {} cut off in front", thousands(preview.cut_tokens));
        }
        let body: String = preview.spans().into_iter().map(span).collect();
        self.line(format!("<h3>{about}</h3>\n<div class=\"mask\">{body}</div>"));
    }
}

/// The table of counts: what and how many.
pub fn rows(report: &CheckReport) -> Vec<(&'static str, String)> {
    let data = &report.data;
    let mut rows = vec![("rows", thousands(data.rows)), ("used", thousands(data.kept))];
    let mut some = |name, count: usize| {
        if count > 0 {
            rows.push((name, thousands(count)));
        }
    };
    some("unusable", data.bad.count);
    some("left out: too long", data.dropped_over_long.count);
    some("left out: nothing trained", data.zero_trained.count);
    some("prompt cut to fit", data.truncated.count);
    some("exact duplicates", data.duplicates.count);
    rows.push(("tokens", thousands(data.tokens)));
    rows.push(("trained tokens", thousands(data.trained_tokens)));
    if data.kept > 0 {
        let stopped = report.stopped as f64 / data.kept as f64;
        rows.push(("end in a trained stop token", percent(stopped)));
    }
    if let Some(packing) = &report.packing {
        let budget = thousands(packing.budget);
        rows.push(("packs", format!("{} of {budget} tokens", thousands(packing.packs))));
        rows.push(("packs filled", percent(packing.share())));
    }
    rows
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    }
}

/// A stretch that is trained or not, cut in the middle when it is long.
fn span(pieces: &[Piece]) -> String {
    let trained = pieces.first().is_some_and(|p| p.trained);
    let (front, left_out, back) =
        super::mask::shortened(pieces, if trained { TRAINED_SHOWN } else { PROMPT_SHOWN }, usize::MAX);
    let mut text: String = front.iter().map(piece).collect();
    if !left_out.is_empty() {
        let tokens: usize = left_out.iter().map(|p| p.tokens).sum();
        let _ = write!(text, "<span class=\"cut\"> [{} tokens not shown] </span>", thousands(tokens));
    }
    text.extend(back.iter().map(piece));
    if trained { format!("<mark>{text}</mark>") } else { text }
}

fn piece(piece: &Piece) -> String {
    let text = escaped(&piece.text);
    if piece.control {
        return format!("<span class=\"control\">{text}</span>");
    }
    if piece.trained {
        return text.replace('\n', "<span class=\"sp\">↵</span>\n");
    }
    text
}

/// A text that cannot be taken for markup, with what does not show made to show.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            c => super::mask::visible(c, &mut safe),
        }
    }
    safe
}

//! From numbers to sentences.

use super::CheckReport;
use super::finding::{Finding, Findings, Severity, percent, rows, thousands};
use super::near::{Matches, Similar, Spot};
use crate::dataset::{Counted, DataReport, PrepareOptions};
use crate::encode::{BosRule, Encoder};

use Severity::{Error, Note, Warning};

/// Fewest rows that are worth training on, as `OpenAI` has it.
const FEW_ROWS: usize = 10;
/// Trained tokens under which little can be learnt.
const FEW_TRAINED_TOKENS: usize = 1000;

/// What is the matter with one source, the worst first.
pub(super) fn of(
    report: &CheckReport,
    unstopped: &Counted,
    options: &PrepareOptions,
    encoder: &Encoder,
) -> Vec<Finding> {
    let mut found = Findings::default();
    unusable(&mut found, &report.data, options);
    left_out(&mut found, report);
    learnt(&mut found, report, unstopped, encoder);
    texts(&mut found, report);
    for note in &report.data.notes {
        found.when(true, Note, "source", note.clone());
    }
    found.finish()
}

/// Rows that cannot be used, and sources without one that can.
fn unusable(found: &mut Findings, data: &DataReport, options: &PrepareOptions) {
    for bad in &data.bad_rows {
        let mut finding = Finding::new(Error, "bad_row", bad.message.clone()).at(&[bad.place]);
        finding.snippet.clone_from(&bad.snippet);
        found.0.push(finding);
    }
    let more = data.bad.count - data.bad_rows.len();
    let text =
        format!("{} beside those listed cannot be used; correct what is listed and check again", rows(more));
    found.when(more > 0, Error, "more_bad_rows", text);
    let limit = options.max_seq_length;
    let title = data.title();
    if data.rows == 0 {
        let text = format!(
            "`{title}` has no rows; give it at least one, with `prompt` and `completion` or with `messages`"
        );
        found.when(true, Error, "no_rows", text);
    } else if data.dropped_over_long.count == data.rows {
        let text = format!(
            "none of {} fits into {} tokens (the shortest has {}); raise max_seq_length or shorten the rows",
            rows(data.rows),
            thousands(limit),
            thousands(data.shortest_row)
        );
        found.when(true, Error, "all_over_long", text);
    } else if data.kept == 0 && data.bad.count == 0 {
        let text =
            "no row has a token that counts in the loss; give at least one assistant turn a weight of 1";
        found.when(true, Error, "nothing_trained", text.to_owned());
    }
}

/// Rows that are left out or changed.
fn left_out(found: &mut Findings, report: &CheckReport) {
    let data = &report.data;
    let limit = thousands(report.max_seq_length);
    if data.dropped_over_long.count < data.rows {
        let text = format!(
            "longer than {limit} tokens, left out (the longest has {}); raise max_seq_length, shorten them, or \
             set over_long to `truncate-prompt`",
            thousands(data.longest_row)
        );
        found.rows(&data.dropped_over_long, Warning, "over_long", &text);
    }
    let text = format!(
        "cut at the beginning of the prompt, by {} tokens in all, to fit {limit}; raise max_seq_length to keep them",
        thousands(data.truncated_tokens)
    );
    found.rows(&data.truncated, Warning, "truncated", &text);
    if data.kept > 0 {
        let text = "with no token that counts in the loss, left out; give an assistant turn a weight of 1";
        found.rows(&data.zero_trained, Warning, "zero_trained", text);
    }
    let repeats = data.duplicates.count;
    let share = percent(repeats as f64 / data.rows.max(1) as f64);
    let text = format!("equal to an earlier one ({share}), trained on every time; remove those not meant");
    let severity = if repeats * 10 > data.rows { Warning } else { Note };
    found.rows(&data.duplicates, severity, "duplicates", &text);
    let columns: Vec<_> = data.ignored_columns.iter().map(|c| format!("`{c}`")).collect();
    let text =
        format!("nothing reads {}; if the text to learn is there, name the columns", columns.join(", "));
    found.when(!columns.is_empty(), Note, "ignored_columns", text);
}

/// What the model is taught: stop tokens, control tokens, how much.
fn learnt(found: &mut Findings, report: &CheckReport, unstopped: &Counted, encoder: &Encoder) {
    let data = &report.data;
    let text = "without a trained stop token at the end, so the model would not learn to stop; use a chat template \
                that ends each answer with the model's EOS token";
    found.rows(unstopped, Error, "no_stop_token", text);
    let text =
        "with an answer before the last that no stop token ends; use a chat template that ends every turn";
    found.rows(&report.unstopped_turns, Warning, "turn_without_stop", text);
    let (eos, appended) = (encoder.tokenizer().eos().map_or("", |(_, eos)| eos), data.eos_appended);
    let text =
        format!("{} with a trained `{eos}` appended, because nothing else ends the answer", rows(appended));
    found.when(appended > 0, Note, "eos_appended", text);
    if let Some((_, bos)) = encoder.tokenizer().bos() {
        let holds = data.kept > 0 && data.bos == BosRule::None;
        let text = format!(
            "the rows do not begin with `{bos}`, which the tokenizer has; compare with how the base model was trained"
        );
        found.when(holds, Note, "no_bos", text);
    }
    let text = "whose text spells out a control token and becomes it; remove it \
                from the text unless it is meant";
    found.rows(&data.control_text, Warning, "control_text", text);
    let text = "whose text spells out a control token, which stays text";
    found.rows(&data.literal_control_text, Note, "literal_control_text", text);
    let text = "whose prompt the chat template renders differently at inference, so that the model is asked otherwise \
                than it was trained; look at the template";
    found.rows(&data.prompt_differs, Warning, "prompt_differs", text);
    let merged = data.boundary_merged;
    let text = format!(
        "{} tokens hold text of both prompt and answer; they are trained; end prompts with a space or a line break",
        thousands(merged)
    );
    found.when(merged > 0, Note, "boundary_merged", text);
    if data.kept > 0 {
        let text = format!("only {} to train on; 50 to 100 show a first effect", rows(data.kept));
        found.when(data.kept < FEW_ROWS, Note, "few_rows", text);
        let tokens = data.trained_tokens;
        let text =
            format!("only {} tokens count in the loss; expect little of the adapter", thousands(tokens));
        found.when(tokens < FEW_TRAINED_TOKENS, Note, "few_trained_tokens", text);
    }
}

/// What the texts look like.
fn texts(found: &mut Findings, report: &CheckReport) {
    let kept = report.data.kept;
    if let Some(repeated) = &report.repeated_completion {
        let shown: String = repeated.text.chars().take(60).collect();
        let text = format!("{shown:?}");
        let mut finding = None;
        if kept >= FEW_ROWS && repeated.rows == kept {
            let text = format!(
                "the same completion, {text}, in all {}; there is nothing to learn from them",
                rows(kept)
            );
            finding = Some(Finding::new(Error, "same_completion", text));
        } else if kept >= FEW_ROWS && repeated.share > 0.5 {
            let text = format!(
                "the same completion, {text}, in {} ({}); the model will lean to it",
                rows(repeated.rows),
                percent(repeated.share)
            );
            finding = Some(Finding::new(Note, "frequent_completion", text));
        }
        found.0.extend(finding.map(|f| f.at(&[repeated.place])));
    }
    let text = "with an empty prompt; the model learns to say the completion unasked";
    found.rows(&report.empty_prompts, Note, "empty_prompt", text);
    let text = "with white space at the beginning or end of a completion, which is learnt too; trim it unless it is meant";
    found.rows(&report.edge_space, Note, "edge_space", text);
    let text = "with nothing between the words of prompt and completion; end the prompt with a line break, or use a \
                chat template";
    found.rows(&report.unseparated, Note, "no_separator", text);
}

/// What is the matter with rows that are alike. `sources` are the reports of the sources in the order they were taken.
pub fn similar(similar: &Similar, sources: &[&DataReport]) -> Vec<Finding> {
    let mut found = Findings::default();
    let locate = |spot: Spot| match sources.get(spot.source) {
        Some(report) => report.locate(spot.place),
        None => format!("row {}", spot.place.number),
    };
    let mut say = |matches: &Matches, severity, code, message: String| {
        let Some(pair) = matches.pairs.first() else { return };
        let (row, like) = (locate(pair.row), locate(pair.like));
        let example = format!("{message}; {row} is like {like} ({:.2})", pair.similarity);
        let places =
            matches.pairs.iter().filter(|p| p.row.source == 0).map(|p| p.row.place).collect::<Vec<_>>();
        found.0.push(Finding::new(severity, code, example).at(&places));
    };
    let threshold = similar.threshold;
    let held = similar.validation_rows;
    let share = |n: usize| percent(n as f64 / held.max(1) as f64);
    let exact = similar.exact_across.rows;
    let text = format!(
        "{} held out ({}) equal to a training row, so the validation loss looks better than it is; remove them from one side",
        rows(exact),
        share(exact)
    );
    say(&similar.exact_across, Warning, "leaked_rows", text);
    let near = similar.near_across.rows;
    let cure = match sources {
        [_] => "keep them together with `data.split_by`",
        _ => "remove them from one side",
    };
    let text = format!(
        "at least {} held out ({}) nearly equal to a training row (Jaccard index {threshold} or more), so the validation \
         loss looks better than it is; {cure}",
        rows(near),
        share(near)
    );
    say(&similar.near_across, Warning, "near_leaked_rows", text);
    let within = similar.near_within.rows;
    let text = format!(
        "at least {} nearly equal to an earlier one (Jaccard index {threshold} or more)",
        rows(within)
    );
    say(&similar.near_within, Note, "near_duplicates", text);
    let text = format!(
        "near duplicates were looked for among {} of {} only: a sample",
        thousands(similar.compared),
        rows(similar.distinct)
    );
    found.when(similar.is_sample(), Note, "near_duplicates_sampled", text);
    found.finish()
}

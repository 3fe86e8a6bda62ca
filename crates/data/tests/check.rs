//! The data check: each finding on rows that have it and on none that has not; rows that are alike; what is trained.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use common::{EOS, data, encoder, with_template};
use serde_json::{Value, json};
use tunesmith_data::check::{
    Check, CheckReport, MaskPreview, NearDuplicates, NearOptions, Severity, Similar, StatOptions, Statistics,
    html, jaccard, shingles, similar_findings,
};
use tunesmith_data::{
    Columns, DataReport, Encoder, Error, Fate, Now, OverLong, Place, PrepareOptions, Prepared, Records, Row,
    RowContent, SourceOptions, TemplateChoice, prepare, utilisation,
};

fn options(max_seq_length: usize, over_long: OverLong) -> PrepareOptions {
    PrepareOptions { columns: Columns::default(), max_seq_length, over_long, group: None }
}

/// Prepares these rows, giving each to `each`.
fn read(
    rows: &str,
    encoder: &Encoder,
    options: &PrepareOptions,
    each: &mut (dyn FnMut(Prepared) -> Result<(), Error> + Send),
) -> DataReport {
    let (_dir, path) = data(rows);
    let mut records = Records::open(&[path.to_str().unwrap().to_owned()], &SourceOptions::default()).unwrap();
    prepare(&mut records, encoder, options, each).unwrap()
}

fn checked_with(rows: &str, encoder: &Encoder, options: &PrepareOptions) -> CheckReport {
    let mut statistics = Statistics::new(StatOptions::default(), encoder);
    let report = read(rows, encoder, options, &mut |row| {
        statistics.add(&row);
        Ok(())
    });
    statistics.finish(report, options, encoder)
}

fn checked(rows: &str, choice: TemplateChoice) -> CheckReport {
    checked_with(rows, &encoder(choice), &options(1024, OverLong::Drop))
}

fn row(prompt: &str, completion: &str) -> String {
    json!({ "prompt": prompt, "completion": completion }).to_string() + "\n"
}

/// Rows without a fault.
fn clean(count: usize) -> String {
    (0..count)
        .map(|i| {
            let prompt =
                format!("Where is my order number {i}? I have been waiting for it since the first of May.\n");
            let days = (i * 7919) % 97;
            row(
                &prompt,
                &format!(
                    "I am sorry that you had to wait. Parcel {i} of {days} will be with you in {days} days."
                ),
            )
        })
        .collect()
}

fn codes(report: &CheckReport) -> BTreeSet<String> {
    report.findings.iter().map(|f| f.code.to_string()).collect()
}

#[test]
fn clean_rows_have_no_finding() {
    let report = checked(&clean(60), TemplateChoice::Chat);
    assert_eq!(codes(&report), BTreeSet::new(), "{:#?}", report.findings);
    assert_eq!((report.stopped, report.data.kept), (60, 60));
    // Without a template the tokenizer's EOS is appended, and that is all there is to say.
    let report = checked(&clean(60), TemplateChoice::None);
    assert_eq!(codes(&report), BTreeSet::from(["eos_appended".to_owned()]), "{:#?}", report.findings);
}

#[test]
fn every_finding_is_found_where_it_is() {
    use Severity::{Error, Note, Warning};
    let clean = clean(60);
    let long = row(&"word ".repeat(2000), "Yes.");
    let same: String = (0..12).map(|i| row(&format!("Question {i}?"), "I do not know.")).collect();
    let weightless = json!({"messages": [
        {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi", "weight": 0}]})
    .to_string();
    let chat =
        json!({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]})
            .to_string();
    let auto = TemplateChoice::Chat;
    let cases = [
        ("bad_row", Error, auto, clean.clone() + "{\"prompt\": \"a\"}\n", "no `completion` column"),
        ("bad_row", Error, auto, clean.clone() + "{\"prompt\": \"a\", oops}\n", "invalid JSON at column 17"),
        ("all_over_long", Error, auto, long.clone(), "none of 1 row fits into 1,024 tokens"),
        ("nothing_trained", Error, auto, format!("{weightless}\n"), "no row has a token"),
        ("same_completion", Error, auto, same.clone(), "\"I do not know.\", in all 12 rows"),
        ("over_long", Warning, auto, clean.clone() + &long, "1 row longer than 1,024 tokens, left out"),
        ("zero_trained", Warning, auto, format!("{chat}\n{weightless}\n"), "1 row with no token that counts"),
        ("duplicates", Warning, auto, clean.clone() + &clean, "60 rows equal to an earlier one (50.0 %)"),
        (
            "duplicates",
            Note,
            auto,
            clean.clone() + clean.lines().next().unwrap(),
            "1 row equal to an earlier one (1.6 %)",
        ),
        (
            "control_text",
            Warning,
            TemplateChoice::None,
            clean.clone() + &row("a <|eot_id|> b ", "c"),
            "1 row whose text spells",
        ),
        ("frequent_completion", Note, auto, same.clone() + &self::clean(5), "in 12 rows (70.6 %)"),
        (
            "ignored_columns",
            Note,
            auto,
            clean.clone() + &clean.lines().next().unwrap().replace("{\"prompt", "{\"id\":1,\"prompt"),
            "nothing reads `id`",
        ),
        ("few_rows", Note, auto, self::clean(9), "only 9 rows to train on"),
        ("few_trained_tokens", Note, auto, self::clean(9), "tokens count in the loss"),
        ("empty_prompt", Note, auto, clean.clone() + &row(" ", "Good day."), "1 row with an empty prompt"),
        ("edge_space", Note, auto, clean.clone() + &row("a", " b"), "1 row with white space"),
        ("edge_space", Note, auto, clean.clone() + &row("a", "b\n"), "1 row with white space"),
        (
            "no_separator",
            Note,
            TemplateChoice::None,
            clean.clone() + &row("a?", "b"),
            "1 row with nothing between",
        ),
        ("eos_appended", Note, TemplateChoice::None, clean.clone(), "60 rows with a trained"),
    ];
    for (code, severity, choice, rows, said) in cases {
        let report = checked(&rows, choice);
        let found = report.findings.iter().find(|f| f.code == code);
        let Some(found) = found else { panic!("no {code} in {:#?}", report.findings) };
        assert_eq!(found.severity, severity, "{found:?}");
        assert!(found.message.contains(said), "{found:?}");
        assert!(report.findings.is_sorted_by_key(|f| f.severity));
        let errors = report.findings.iter().any(|f| f.severity == Error);
        assert_eq!(errors, severity == Error, "{:#?}", report.findings);
    }
}

/// So many conversations of two exchanges.
fn talks(count: usize) -> String {
    let turn = |role: &str, content: String| json!({ "role": role, "content": content });
    let talk = |i: usize| {
        let messages = [
            turn("system", "Be brief.".to_owned()),
            turn("user", format!("Where is order {i}?")),
            turn("assistant", format!("Order {i} is at the depot of town {}.", i * 31 % 17)),
            turn("user", "When does it come?".to_owned()),
            turn("assistant", format!("It comes in {i} days, by the van of driver {}.", i * 7919 % 97)),
        ];
        json!({ "messages": messages }).to_string() + "\n"
    };
    (0..count).map(talk).collect()
}

#[test]
fn what_a_template_does_is_found() {
    let options = options(1024, OverLong::Drop);
    let found =
        |template: &str| codes(&checked_with(&talks(60), &with_template(template).unwrap(), &options));
    let body = |assistant: &str| {
        format!(
            "{{% for m in messages %}}{{% if m['role'] == 'assistant' %}}{assistant}{{% else %}}\
             {{{{ m['role'] + ': ' + m['content'] + '\n' }}}}{{% endif %}}{{% endfor %}}\
             {{% if add_generation_prompt %}}{{{{ 'assistant:\\n' }}}}{{% endif %}}"
        )
    };
    let bos = "{{ bos_token }}";
    let good = body("{{ 'assistant:\\n' + m['content'] + '<|eot_id|>\n' }}");
    assert_eq!(found(&format!("{bos}{good}")), BTreeSet::new());
    assert_eq!(found(&good), BTreeSet::from(["no_bos".to_owned()]));
    let stopless = body("{{ 'assistant:\\n' + m['content'] + '\n' }}");
    let expected = ["eos_appended", "turn_without_stop"].map(str::to_owned);
    assert_eq!(found(&format!("{bos}{stopless}")), BTreeSet::from(expected));
    let marked = "{{ 'assistant:\\n' }}{% generation %}{{ m['content'] + '<|eot_id|>' }}{% endgeneration %}";
    assert_eq!(found(&format!("{bos}{}", body(marked))), BTreeSet::new());
    let forgetful = format!("{bos}{{% if not add_generation_prompt %}}now {{% endif %}}{}", body(marked));
    assert_eq!(found(&forgetful), BTreeSet::from(["prompt_differs".to_owned()]));
}

#[test]
fn an_answer_that_does_not_stop_is_an_error() {
    let (encoder, options) = (encoder(TemplateChoice::Chat), options(1024, OverLong::Drop));
    let mut statistics = Statistics::new(StatOptions::default(), &encoder);
    let mut rows = 0;
    let report = read(&clean(60), &encoder, &options, &mut |mut row| {
        // The encoder does not make such a row; if it ever does, the check must see it.
        rows += 1;
        if rows == 7 {
            let stop = row.encoded.example.trained.iter().rposition(|trained| *trained).unwrap();
            row.encoded.example.trained[stop] = false;
        }
        statistics.add(&row);
        Ok(())
    });
    let report = statistics.finish(report, &options, &encoder);
    assert_eq!((report.findings.len(), report.stopped), (1, 59));
    let finding = &report.findings[0];
    assert_eq!((finding.severity, finding.code.as_ref()), (Severity::Error, "no_stop_token"));
    assert_eq!(finding.places[0].number, 7);
}

#[test]
fn tokens_across_the_edge_are_counted() {
    let rows: String = (0..60)
        .map(|i| row(&format!("Where is my order {i}. "), &format!("Parcel {i} comes soon.")))
        .collect();
    let report = checked(&rows, TemplateChoice::None);
    let merged = report.findings.iter().find(|f| f.code == "boundary_merged").unwrap();
    assert_eq!(merged.severity, Severity::Note);
    assert!(merged.message.starts_with("60 tokens hold text of both prompt and answer"), "{merged:?}");
}

#[test]
fn findings_name_the_row_and_show_it() {
    let report = checked(&(clean(3) + "{\"prompt\": \"a\", oops}\n\n[1]\n"), TemplateChoice::Chat);
    let bad: Vec<_> = report.findings.iter().filter(|f| f.code == "bad_row").collect();
    let numbers: Vec<u64> = bad.iter().map(|f| f.places[0].number).collect();
    assert_eq!(numbers, [4, 6]);
    assert_eq!(bad[0].snippet, "{\"prompt\": \"a\", oops}");
    assert_eq!(bad[1].snippet, "[1]");
    let many = "[0]\n".repeat(150);
    let report = checked(&many, TemplateChoice::Chat);
    assert_eq!(report.findings.iter().filter(|f| f.code == "bad_row").count(), 100);
    assert_eq!(
        report.findings[100].message.split(',').next(),
        Some("50 rows beside those listed cannot be used; correct what is listed and check again")
    );
}

#[test]
fn over_long_rows_are_counted_whole_and_used_cut() {
    let encoder = encoder(TemplateChoice::None);
    let rows = clean(20) + &row(&"word ".repeat(300), "Yes, it is.");
    let cut = checked_with(&rows, &encoder, &options(64, OverLong::TruncatePrompt));
    assert_eq!((cut.data.kept, cut.data.truncated.count), (21, 1));
    assert!(codes(&cut).contains("truncated"));
    assert!(cut.row_tokens.max > 300 && cut.data.longest <= 64);
    let dropped = checked_with(&rows, &encoder, &options(64, OverLong::Drop));
    assert_eq!(dropped.row_tokens.max, cut.row_tokens.max);
    assert_eq!(dropped.trained_tokens.rows, 20);
    let failed = checked_with(&rows, &encoder, &options(64, OverLong::Fail));
    assert!(codes(&failed).contains("bad_row"));
}

#[test]
fn the_numbers_are_those_of_the_rows() {
    let rows = std::fs::read_to_string(common::base().parent().unwrap().join("tickets.jsonl")).unwrap();
    let encoder = encoder(TemplateChoice::Auto);
    let options = options(1024, OverLong::Drop);
    let (mut lengths, mut trained) = (Vec::new(), Vec::new());
    let data = read(&rows, &encoder, &options, &mut |row| {
        lengths.push(row.encoded.example.ids.len());
        trained.push(row.encoded.example.trained_tokens());
        Ok(())
    });
    let report = checked_with(&rows, &encoder, &options);
    assert_eq!(report.packing, Some(utilisation(&lengths, 2048).unwrap()));
    assert_eq!(report.row_tokens.tokens, lengths.iter().sum::<usize>());
    assert_eq!(report.trained_tokens.tokens, data.trained_tokens);
    assert_eq!(report.prompt_tokens.tokens + report.trained_tokens.tokens, data.tokens);
    trained.sort_unstable();
    let rank = |p: usize| trained[(trained.len() * p).div_ceil(100) - 1];
    let l = &report.trained_tokens;
    assert_eq!(
        [l.p5, l.p50, l.p95, l.p99, l.max],
        [rank(5), rank(50), rank(95), rank(99), *trained.last().unwrap()]
    );
    assert_eq!(report.stopped, lengths.len());
    // The JSON is the whole report.
    let text = serde_json::to_string(&Check::new(report.clone(), None, None)).unwrap();
    let back: Check = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), text);
}

/// Takes rows in two sources, or one whose rows from `held` on are validation rows.
fn similar(parts: &[&str], held: usize, max_rows: usize) -> (Similar, Vec<DataReport>) {
    let dir = tempfile::tempdir().unwrap();
    let encoder = encoder(TemplateChoice::None);
    let mut near =
        NearDuplicates::new(NearOptions { max_rows, ..NearOptions::new(dir.path().to_owned()) }).unwrap();
    let mut reports = Vec::new();
    for (i, rows) in parts.iter().enumerate() {
        if i > 0 {
            near.next_source();
        }
        reports.push(read(rows, &encoder, &options(1024, OverLong::Drop), &mut |row| near.add(&row)));
    }
    (near.finish(&|row| row >= held).unwrap(), reports)
}

/// A pseudo-random number that depends on both.
fn hash(salt: usize, i: usize) -> usize {
    let mut x = (salt as u64) << 32 | i as u64;
    for _ in 0..3 {
        x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    (x ^ (x >> 32)) as usize
}

/// Rows in families: each varies its family's text in a few words.
fn families(count: usize) -> Vec<String> {
    let texts = (0..count).map(|i| {
        let family = hash(1, i) % (count / 6);
        let length = 40 + hash(2, family) % 120;
        let changes = hash(3, i) % 5;
        let mut words: Vec<String> =
            (0..length).map(|w| format!("w{}", hash(family + 10, w) % 4000)).collect();
        for change in 0..changes {
            let at = hash(i + 10_000, change) % length;
            words[at] = format!("x{}", hash(i, change));
        }
        words.join(" ")
    });
    texts.collect()
}

#[test]
fn near_duplicates_agree_with_brute_force() {
    let texts = families(600);
    let rows: String = texts.iter().map(|t| row(t, "Yes.")).collect();
    let sets: Vec<Vec<u64>> = texts.iter().map(|t| shingles(&format!("{t}\nYes."))).collect();
    let train = 400;
    // The best match of each row: a validation row's among the training rows, any row's before it on its side.
    let best = |row: usize, across: bool| {
        let side = |i: usize| i >= train;
        let others =
            (0..texts.len()).filter(|o| if across { !side(*o) } else { *o < row && side(*o) == side(row) });
        others
            .map(|o| if sets[o] == sets[row] { 1.0 } else { jaccard(&sets[o], &sets[row]) })
            .fold(0f64, f64::max)
    };
    let (found, _) = similar(&[&rows], train, 100_000);
    assert_eq!((found.rows, found.validation_rows), (600, 200));
    for (matches, across, range) in
        [(&found.near_across, true, train..texts.len()), (&found.near_within, false, 0..texts.len())]
    {
        // Equal rows count as exact duplicates, not as near ones.
        let distinct = |i: &usize| (0..*i).all(|o| texts[o] != texts[*i]);
        let best: Vec<f64> = range.filter(distinct).map(|i| best(i, across)).collect();
        let (sure, possible) =
            (best.iter().filter(|j| **j >= 0.9).count(), best.iter().filter(|j| **j >= 0.8).count());
        assert!(sure > 20 && possible > sure, "{sure} {possible}");
        assert!(matches.rows as f64 >= 0.95 * sure as f64, "{} of {sure}", matches.rows);
        assert!(matches.rows as f64 >= 0.9 * possible as f64, "{} of {possible}", matches.rows);
        assert!(matches.rows <= possible, "{} of {possible}", matches.rows);
        for pair in &matches.pairs {
            let [a, b] = [pair.row, pair.like].map(|spot| spot.place.number as usize - 1);
            assert_eq!((a >= train) != (b >= train), across);
            let exact = jaccard(&sets[a], &sets[b]);
            assert!(exact >= 0.8 && (exact - pair.similarity).abs() < 1e-6, "{exact} {pair:?}");
        }
    }
}

#[test]
fn leaks_across_sources_are_named() {
    let train = clean(30);
    let first = train.lines().nth(7).unwrap();
    let held =
        row("Who are you, and what is it that you can do for me on a day like this one?", "I am a helper.")
            + first
            + "\n"
            + &first.replace("Where is", "WHERE is").replace("May.", "May!!");
    let (found, reports) = similar(&[&train, &held], 30, 100_000);
    assert_eq!((found.exact_across.rows, found.near_across.rows), (1, 1), "{found:#?}");
    let pair = found.near_across.pairs[0];
    assert_eq!((pair.row.source, pair.row.place.number), (1, 3));
    assert_eq!((pair.like.source, pair.like.place.number, pair.similarity), (0, 8, 1.0));
    let said = similar_findings(&found, &[&reports[0], &reports[1]]);
    let codes: Vec<_> = said.iter().map(|f| f.code.as_ref()).collect();
    assert_eq!(&codes[..2], ["leaked_rows", "near_leaked_rows"]);
    assert!(
        said[1].message.contains("data.jsonl`:3 is like `")
            && said[1].message.ends_with("data.jsonl`:8 (1.00)"),
        "{said:?}"
    );
    let (found, _) = similar(&[&train, &row("Who are you?", "I am a helper.")], 30, 100_000);
    assert_eq!((found.exact_across.rows, found.near_across.rows), (0, 0));
}

#[test]
fn of_too_many_rows_a_sample_is_compared_and_that_is_said() {
    let rows: String = families(400).iter().map(|t| row(t, "Yes.")).collect();
    let (all, _) = similar(&[&rows], 400, 100_000);
    assert!(!all.is_sample());
    let (some, reports) = similar(&[&(rows.clone() + &rows)], 800, 100);
    assert_eq!(some.rows, 800);
    assert_eq!(some.distinct, all.distinct);
    assert!(some.is_sample() && some.compared <= 100 && some.compared > 10, "{}", some.compared);
    let said = similar_findings(&some, &[&reports[0]]);
    assert!(said.iter().any(|f| f.code == "near_duplicates_sampled"));
}

/// The previews of rows.
fn previews(rows: &str, encoder: &Encoder, options: &PrepareOptions) -> Vec<(MaskPreview, Prepared)> {
    let mut previews = Vec::new();
    read(rows, encoder, options, &mut |row| {
        previews.push((MaskPreview::new(&row, encoder.tokenizer())?, row));
        Ok(())
    });
    previews
}

#[test]
fn a_preview_is_what_is_trained() {
    let texts = ["Grüße 👩‍🚀 from 東京", "two\n\n  lines\t", "<|eot_id|> is text", "a", "naïve — “quotes”"];
    for choice in [TemplateChoice::None, TemplateChoice::Chat] {
        let encoder = encoder(choice);
        let rows: String =
            texts.iter().flat_map(|a| texts.iter().map(move |b| row(&format!("{a} "), b))).collect();
        let previews = previews(&rows, &encoder, &options(1024, OverLong::Drop));
        assert_eq!(previews.len(), 25);
        for (i, (preview, row)) in previews.iter().enumerate() {
            let example = &row.encoded.example;
            let all: String = preview.pieces.iter().map(|p| p.text.as_str()).collect();
            assert_eq!(all, encoder.tokenizer().decode(&example.ids, false).unwrap());
            assert!(!all.contains('\u{fffd}'), "{preview:?}");
            assert_eq!(preview.pieces.iter().map(|p| p.tokens).sum::<usize>(), example.ids.len());
            let last = preview.pieces.last().unwrap();
            let stop = last.control && last.trained;
            assert_eq!(stop, choice == TemplateChoice::None || last.trained, "{last:?}");
            let trained: String =
                preview.pieces.iter().filter(|p| p.trained).map(|p| p.text.as_str()).collect();
            let eos = encoder
                .tokenizer()
                .id_to_token(*example.ids.iter().zip(&example.trained).rfind(|(_, t)| **t).unwrap().0)
                .unwrap();
            assert!([EOS, 4089].contains(&encoder.tokenizer().token_to_id(&eos).unwrap()));
            let completion = texts[i % 5];
            let completion = if choice == TemplateChoice::Chat { completion.trim() } else { completion };
            assert!(trained.ends_with(&format!("{completion}{eos}")), "{trained:?} {completion:?}");
        }
    }
}

/// Every tokenizer of the folder of golden files, on its golden texts: see `golden.rs`.
#[test]
fn previews_of_every_tokenizer_hold_the_whole_text() {
    let shared = std::env::var_os("TUNESMITH_SHARED").unwrap_or_else(|| "../shared".into());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(shared).join("tokenizers");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        let line =
            format!("SKIPPED previews of other tokenizers: no {} (set TUNESMITH_SHARED)\n", folder.display());
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    };
    let dirs = entries.map(|e| e.unwrap().path()).filter(|p| p.join("golden_encodings.json").is_file());
    let mut compared = 0;
    for dir in dirs {
        let encoder = Encoder::from_dir(&dir, TemplateChoice::None, &[], Now::utc()).unwrap();
        let golden: Value =
            serde_json::from_slice(&std::fs::read(dir.join("golden_encodings.json")).unwrap()).unwrap();
        for text in golden.as_array().unwrap().iter().map(|case| case["text"].as_str().unwrap()) {
            let content = RowContent::PromptCompletion { prompt: "ask: ".into(), completion: text.into() };
            let row = Row { content, place: Place::default() };
            // A text that begins with the model's BOS is refused.
            let Ok(encoded) = encoder.encode_row(&row) else { continue };
            let (fingerprint, fate) = (row.fingerprint(), Fate::Kept);
            let (group, ignored) = (fingerprint, BTreeSet::new());
            let row = Prepared { row, fingerprint, group, encoded, fate, ignored, repeats: false };
            let preview = MaskPreview::new(&row, encoder.tokenizer()).unwrap();
            let all: String = preview.pieces.iter().map(|p| p.text.as_str()).collect();
            let ids = &row.encoded.example.ids;
            assert_eq!(all, encoder.tokenizer().decode(ids, false).unwrap(), "{}: {text:?}", dir.display());
            assert_eq!(preview.pieces.iter().map(|p| p.tokens).sum::<usize>(), ids.len());
            assert!(!all.contains('\u{fffd}') || text.contains('\u{fffd}'), "{}: {text:?}", dir.display());
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn the_page_runs_nothing_and_fetches_nothing() {
    let attack = "</div><script>alert(1)</script><img src=x onerror=alert(2)>\u{1b}[31m\u{202e}";
    let rows = clean(20)
        + &row(attack, attack)
        + &format!("{{\"prompt\": \"a\", \"completion\": 1, \"x\": {}}}\n", json!(attack))
        + &format!("{{\"prompt\": {}, {attack}}}\n", json!(attack));
    let encoder = encoder(TemplateChoice::Chat);
    let options = options(1024, OverLong::Drop);
    let report = checked_with(&rows, &encoder, &options);
    let shown: Vec<_> = previews(&rows, &encoder, &options).into_iter().map(|(p, _)| p).collect();
    let page = html(&Check::new(report.clone(), Some(report), None), &shown);
    for bad in ["<script", "<img", "http:", "https:", "\u{1b}", "\u{202e}", "url("] {
        assert!(!page.contains(bad), "{bad:?} is in the page");
    }
    assert!(page.contains("&lt;script&gt;alert(1)"));
    for tag in ["svg", "div", "mark", "span", "li", "table", "tr", "td", "th", "figure", "code"] {
        let open = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert!(page.contains("prefers-color-scheme:dark") && page.contains("<mark>"));
}

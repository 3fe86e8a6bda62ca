//! The committed tickets are what the generator makes, and fit the shipped base model.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{load, read_rows};
use tunesmith_data::{Columns, Encoder, Now, Prompt, RowContent, TemplateChoice};

mod common;

#[allow(unreachable_pub)]
#[path = "../examples/make_tickets/tickets.rs"]
mod tickets;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

#[test]
fn the_committed_file_is_what_the_generator_makes() {
    let committed = std::fs::read_to_string(fixtures().join("tickets.jsonl")).unwrap();
    assert!(
        committed == tickets::tickets(tickets::ROWS, tickets::SEED),
        "run: cargo run -p tunesmith-data --example make_tickets > tests/fixtures/tickets.jsonl"
    );
    assert_ne!(committed, tickets::tickets(tickets::ROWS, tickets::SEED + 1));
}

#[test]
fn every_reply_has_the_format_and_repeats_its_slots() {
    let rows = read_rows(&fixtures().join("tickets.jsonl"), &Columns::default()).unwrap();
    assert_eq!(rows.len(), tickets::ROWS);
    let mut categories: BTreeMap<String, usize> = BTreeMap::new();
    for row in &rows {
        let RowContent::PromptCompletion { prompt, completion } = &row.content else { panic!("{row:?}") };
        let lines: Vec<&str> = completion.lines().collect();
        let [category, product, reply] = lines[..] else { panic!("{completion}") };
        *categories.entry(category.strip_prefix("Category: ").unwrap().to_owned()).or_default() += 1;
        let product = product.strip_prefix("Product: ").unwrap();
        assert!(prompt.contains(product) && reply.contains(product) && reply.starts_with("Reply: "));
        assert!(!completion.contains('{') && !prompt.contains('{'));
    }
    assert_eq!(categories.len(), 8);
    assert!(categories.values().all(|&n| n == tickets::ROWS / 8));
}

#[test]
fn tickets_are_short_for_the_shipped_model() {
    let encoder = Encoder::from_dir(
        &fixtures().join("support-base-4m"),
        TemplateChoice::Auto,
        &[4089, 4093],
        Now::utc(),
    )
    .unwrap();
    let path = fixtures().join("tickets.jsonl");
    let options = common::options(1024);
    let data = load(&path, &encoder, &options).unwrap();
    println!("{:#?}", data.report);
    assert_eq!(data.report.kept, tickets::ROWS);
    assert_eq!(
        (data.report.duplicates.count, data.report.eos_appended, data.report.boundary_merged),
        (0, 0, 0)
    );
    let rows = read_rows(&path, &Columns::default()).unwrap();
    for (example, row) in data.examples.iter().zip(&rows) {
        let RowContent::PromptCompletion { prompt, completion } = &row.content else { panic!("{row:?}") };
        assert!(example.trained_tokens() <= 50, "{completion}: {}", example.trained_tokens());
        assert!(encoder.tokenizer().encode(prompt, false).unwrap().ids.len() <= 32, "{prompt}");
        let start = encoder.encode_prompt(Prompt::Text(prompt)).unwrap();
        assert!(example.ids.starts_with(&start));
        let answer = encoder.tokenizer().decode(&example.ids[start.len()..], false).unwrap();
        assert_eq!(answer, format!("{completion}<|eot_id|>"));
    }
    let halves = tunesmith_data::split(&data.groups, 0.2, 0).unwrap();
    let (train, validation) = (halves.train, halves.validation);
    assert_eq!((train.len(), validation.len()), (243, 61));
}

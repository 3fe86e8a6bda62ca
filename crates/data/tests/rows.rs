//! What a JSONL file may look like, and the sentence for each way it may not.
#![allow(clippy::unwrap_used)]

mod common;

use common::{data, encoder, load, read_rows};
use tunesmith_data::{Columns, Dataset, Error, Message, PrepareOptions, RowContent, TemplateChoice};

fn options() -> PrepareOptions {
    common::options(1024)
}

/// The error of loading these bytes, with the file's path cut down to its name.
fn refusal(bytes: impl AsRef<[u8]>) -> String {
    let (dir, path) = data(bytes);
    let error = load(&path, &encoder(TemplateChoice::Auto), &options()).unwrap_err();
    // Both readers find the same fault.
    if !matches!(error, Error::AllOverLong { .. } | Error::ZeroTrainable { .. }) {
        let error = error.to_string();
        let first = error.lines().next().unwrap();
        assert_eq!(read_rows(&path, &Columns::default()).unwrap_err().to_string(), first);
    }
    error.to_string().replace(&format!("{}/", dir.path().display()), "")
}

fn loaded(bytes: &str) -> Dataset {
    let (_dir, path) = data(bytes);
    load(&path, &encoder(TemplateChoice::Auto), &options()).unwrap()
}

const GOOD_CHAT: &str = r#"{"messages": [{"role": "assistant", "content": "b"}]}"#;
const GOOD: &str = r#"{"prompt": "a", "completion": "b"}"#;

#[test]
#[allow(clippy::too_many_lines)]
fn every_bad_line_has_its_sentence() {
    let cases: &[(&[u8], &str)] = &[
        (
            b"",
            "`data.jsonl` has no rows; give it at least one, with `prompt` and `completion` or with `messages`",
        ),
        (
            b"{\"a\": 1, \"b\": 2}",
            "`data.jsonl`:1: the row has no `prompt` column and no `messages` (its columns: a, b); rename a column or set the column names",
        ),
        (
            b"{\"prompt\": \"x\", \"answer\": \"y\"}",
            "`data.jsonl`:1: the row has a prompt but no completion (looked for `completion`, `response`, `output`; its columns: prompt, answer); add one or set the column name",
        ),
        (
            b"{\"prompt\": \"x\", \"output\": \"y\", \"completion\": \"y\"}",
            "`data.jsonl`:1: the row has both `completion` and `output`; remove one or set the column name",
        ),
        (
            b"{\"prompt\": \"x\", \"completion\": \"y\", \"messages\": []}",
            "`data.jsonl`:1: the row has both `prompt` and `messages`; remove one or set the column name",
        ),
        (
            b"{\"prompt\": \"x\", \"completion\": \"\"}",
            "`data.jsonl`:1: `completion` is empty or only white space; remove the row or write the answer",
        ),
        (
            b"{\"prompt\": \"x\", \"response\": \" \\n\"}",
            "`data.jsonl`:1: `response` is empty or only white space; remove the row or write the answer",
        ),
        (
            b"{\"prompt\": 7, \"completion\": \"y\"}",
            "`data.jsonl`:1: `prompt` is a number, not a string; correct the value",
        ),
        (
            b"{\"prompt\": \"x\", \"completion\": null}",
            "`data.jsonl`:1: `completion` is null, not a string; correct the value",
        ),
        (
            b"{\"messages\": {}}",
            "`data.jsonl`:1: `messages` is an object, not a list of messages; correct the value",
        ),
        (
            b"{\"messages\": []}",
            "`data.jsonl`:1: `messages` is empty; remove the row or write the conversation",
        ),
        (
            b"{\"messages\": [true]}",
            "`data.jsonl`:1: `messages[0]` is a boolean, not an object; correct the value",
        ),
        (
            b"{\"messages\": [{\"content\": \"x\"}]}",
            "`data.jsonl`:1: `messages[0]` has no `role`; every message needs `role` and `content`",
        ),
        (
            b"{\"messages\": [{\"role\": \"assistant\", \"content\": null, \"tool_calls\": []}]}",
            "`data.jsonl`:1: `messages[0].content` is null, not a string; correct the value",
        ),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}",
            "`data.jsonl`:1: `messages` has no assistant turn, so there is nothing to train on; remove the row or add one",
        ),
        (
            b"{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\", \"weight\": 0.5}]}",
            "`data.jsonl`:1: `messages[0].weight` must be 0 or 1 and stand on an assistant turn; correct or remove it",
        ),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\", \"weight\": 1}]}",
            "`data.jsonl`:1: `messages[0].weight` must be 0 or 1 and stand on an assistant turn; correct or remove it",
        ),
        (
            b"{\"messages\": [{\"role\": \"assistant\", \"content\": \"\"}]}",
            "`data.jsonl`:1: `messages[0].content` is empty or only white space; remove the row or write the answer",
        ),
    ];
    for (bytes, sentence) in cases {
        assert_eq!(&refusal(bytes), sentence);
        // The same fault further down carries its own line: blank lines count.
        // What only the first row can be asked, which columns the file has, is another test.
        let first_only = sentence.contains("set the column name") || sentence.contains("`response`");
        if let Some(tail) = sentence.strip_prefix("`data.jsonl`:1: ").filter(|_| !first_only) {
            let good = if bytes.starts_with(b"{\"messages") { GOOD_CHAT } else { GOOD };
            let below = [good.as_bytes(), b"\r\n\n   \n", bytes].concat();
            assert_eq!(refusal(below), format!("`data.jsonl`:4: {tail}"));
        }
    }
}

#[test]
fn the_first_bad_line_is_the_one_named() {
    let refused = refusal(format!("{GOOD}\n{{\n{GOOD}\n[]\n"));
    assert!(refused.starts_with("`data.jsonl`:2: invalid JSON"), "{refused}");
    assert!(refused.ends_with("\n1 more row cannot be used; `tunesmith data check` lists them"), "{refused}");
}

#[test]
fn a_missing_file_is_named() {
    let encoder = encoder(TemplateChoice::Auto);
    let missing = load(std::path::Path::new("no/such.jsonl"), &encoder, &options()).unwrap_err().to_string();
    assert_eq!(
        missing,
        "cannot read `no/such.jsonl`: No such file or directory (os error 2); check the path and its permissions"
    );
}

#[test]
fn two_shapes_in_one_file_are_refused() {
    let chat = r#"{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}"#;
    assert_eq!(
        refusal(format!("\n{GOOD}\n{GOOD}\n\n{chat}\n{GOOD}")),
        "`data.jsonl`:5: the row has no `prompt` column (its columns: messages); every row needs the columns of the first, or set the column names"
    );
}

#[test]
fn a_line_without_end_is_refused() {
    let mut long = vec![b' '; tunesmith_data::MAX_LINE_BYTES + 3];
    long[0] = b'{';
    assert_eq!(
        refusal(long),
        "`data.jsonl`:1: the line is longer than 67108864 bytes; split the row or check that the file has line breaks"
    );
}

#[test]
fn byte_order_mark_and_windows_line_ends_are_read() {
    let plain = loaded(&format!("{GOOD}\n{GOOD}\n"));
    let windows = loaded(&format!("\u{feff}{GOOD}\r\n{GOOD}"));
    assert_eq!(plain.groups, windows.groups);
    assert_eq!(plain.report.duplicates.count, 1);
}

#[test]
fn columns_are_found_or_named() {
    for name in ["completion", "response", "output"] {
        let data = loaded(&format!(r#"{{"id": 3, "prompt": "a", "{name}": "b"}}"#));
        assert_eq!(data.examples, loaded(GOOD).examples);
        assert_eq!(data.report.ignored_columns.into_iter().collect::<Vec<_>>(), ["id"]);
    }
    let (_dir, path) = data(r#"{"prompt": "no", "messages": "no", "ask": "a", "say": "b", "output": 3}"#);
    let columns =
        Columns { prompt: Some("ask".into()), completion: Some("say".into()), ..Columns::default() };
    let rows = read_rows(&path, &columns).unwrap();
    let expected = RowContent::PromptCompletion { prompt: "a".into(), completion: "b".into() };
    assert_eq!(rows[0].content, expected);
    let columns = Columns { completion: Some("reply".into()), ..Columns::default() };
    assert!(read_rows(&path, &columns).unwrap_err().to_string().contains("looked for `reply`"));
}

#[test]
fn messages_keep_weight_and_further_keys() {
    let (_dir, path) = data(
        r#"{"chat": [{"role": "user", "content": "x", "name": "Ann"}, {"weight": 0, "role": "assistant", "content": ""}]}"#,
    );
    let columns = Columns { messages: Some("chat".into()), ..Columns::default() };
    let rows = read_rows(&path, &columns).unwrap();
    let mut first = Message::new("user", "x");
    first.extra.insert("name".into(), "Ann".into());
    let mut second = Message::new("assistant", "");
    second.trained = false;
    assert_eq!(rows[0].content, RowContent::Messages(vec![first, second]));
}

#[test]
fn fingerprints_see_content_and_not_the_line() {
    let text = format!("{GOOD}\n{GOOD}\n{}\n", r#"{"completion": "b", "x": 1, "prompt": "a"}"#);
    let (_dir, path) = data(text + r#"{"prompt": "", "completion": "ab"}"#);
    let prints: Vec<u128> =
        read_rows(&path, &Columns::default()).unwrap().iter().map(tunesmith_data::Row::fingerprint).collect();
    assert_eq!(prints[0], prints[1]);
    assert_eq!(prints[0], prints[2]);
    assert_ne!(prints[0], prints[3]);
}

//! Known templates rendered natively equal the same templates run; control-token text in messages stays text.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{base, shared};
use proptest::prelude::*;
use serde_json::{Value, json};
use tunesmith_data::{
    ChatTemplate, Encoder, Message, Now, Rendered, RowError, SpecialTokens, TemplateChoice, TextTokenizer,
};

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] \
                      + '<|im_end|>\n' }}{% endfor %}";

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn template(source: &str, control: &[&str]) -> ChatTemplate {
    let tokens =
        vec![("bos_token".to_owned(), "<s>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())];
    let template = ChatTemplate::new(source, tokens, Now::date(2025, 3, 9), Path::new("t")).unwrap();
    template.with_control_texts(control.iter().copied())
}

fn user(content: &str) -> Vec<Message> {
    vec![Message::new("user", content)]
}

/// The shipped model's template, those of `TUNESMITH_TEMPLATES`, and every template of the shared folder (`TUNESMITH_SHARED`), if that is there.
fn known() -> Vec<(String, ChatTemplate)> {
    let now = Now::date(2025, 3, 9);
    let mut dirs: Vec<PathBuf> = vec![base()];
    let mut found = Vec::new();
    if let Some(shared) = shared("tokenizers") {
        dirs.extend(std::fs::read_dir(&shared).unwrap().map(|e| e.unwrap().path()));
        for t in json(&shared.join("public_chat_templates/templates.json")).as_array().unwrap() {
            let text = |key: &str| t[key].as_str().unwrap().to_owned();
            let tokens: SpecialTokens =
                ["bos_token", "eos_token"].map(|key| (key.to_owned(), text(key))).to_vec();
            let chat = ChatTemplate::new(&text("chat_template"), tokens, now, Path::new("t")).unwrap();
            found.push((text("name"), chat.with_control_texts(["<s>", "</s>", "<|eot_id|>", "[INST]"])));
        }
    }
    for dir in dirs.iter().filter(|d| d.join("tokenizer_config.json").is_file()) {
        let config = json(&dir.join("tokenizer_config.json"));
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let tokens = ["bos_token", "eos_token"].map(|k| (k.to_owned(), text(&config[k]).unwrap())).to_vec();
        let chat = ChatTemplate::from_dir(dir, tokens, now).unwrap().unwrap();
        found.push((
            dir.display().to_string(),
            chat.with_control_texts(["<|eot_id|>", "<s>", "</s>", "[/INST]"]),
        ));
    }
    // Texts of known templates that cannot be kept here, one a file: `TUNESMITH_TEMPLATES` names their folder.
    if let Some(more) = std::env::var_os("TUNESMITH_TEMPLATES") {
        for file in std::fs::read_dir(more).unwrap().map(|e| e.unwrap().path()) {
            let chat = template(&std::fs::read_to_string(&file).unwrap(), &["<s>", "</s>", "<|eot_id|>"]);
            found.push((file.display().to_string(), chat));
        }
    }
    assert!(found.iter().all(|(name, t)| t.is_native() || ["default", "vicuna"].contains(&name.as_str())));
    found
}

fn assert_same(name: &str, chat: &ChatTemplate, talk: &[Message]) {
    for prompt in [false, true] {
        assert_eq!(chat.render(talk, prompt), chat.render_jinja(talk, prompt), "{name}: {talk:?}");
    }
}

fn conversations() -> impl Strategy<Value = Vec<Message>> {
    let role = prop_oneof![
        6 => Just("user"), 6 => Just("assistant"), 3 => Just("system"), 1 => Just("tool"), 1 => Just("ipython"),
        1 => Just(""), 1 => Just("a<s>")
    ];
    let piece = prop_oneof![
        Just(""),
        Just(" "),
        Just("\n"),
        Just("\u{1c}"),
        Just("\u{a0}"),
        Just("\t"),
        Just("word"),
        Just("é🙂"),
        Just("{{ x }}"),
        Just("{% raw %}"),
        Just("'\"\\"),
        Just("<s>"),
        Just("</s>"),
        Just("<|eot_id|>"),
        Just("<|eot"),
        Just("id|>"),
        Just("["),
        Just("]"),
        Just("[INST]"),
        Just("<<SYS>>"),
        Just(">"),
        Just("<"),
        Just("\r\n")
    ];
    let content = prop::collection::vec(piece, 0..5).prop_map(|p| p.concat());
    let free = prop::collection::vec((role, content.clone()).prop_map(|(r, c)| Message::new(r, c)), 0..5);
    let turns =
        (prop::option::of(content.clone()), prop::collection::vec(content, 0..5)).prop_map(|(s, list)| {
            let system = s.map(|s| Message::new("system", s));
            let rest = list.iter().enumerate().map(|(i, c)| Message::new(["user", "assistant"][i % 2], c));
            system.into_iter().chain(rest).collect()
        });
    prop_oneof![free, turns]
}

#[test]
fn native_renderings_equal_the_templates_own() {
    let known = known();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) };
    proptest!(config, |(talk in conversations())| {
        for (name, chat) in &known {
            assert_same(name, chat, &talk);
        }
    });
    let mut tool = Message::new("user", "x");
    tool.extra.insert("content".into(), json!("other"));
    for (name, chat) in &known {
        assert_same(name, chat, &[tool.clone()]);
        assert_same(name, chat, &[]);
    }
}

#[test]
fn a_changed_template_is_not_taken_for_a_known_one() {
    let shipped = ChatTemplate::from_dir(&base(), Vec::new(), Now::utc()).unwrap().unwrap();
    assert!(shipped.is_native());
    assert!(!template(&format!("{} ", shipped.source()), &[]).is_native());
    // Without the tokens it names, the template decides what to print.
    assert_eq!(shipped.render(&user("a"), true), shipped.render_jinja(&user("a"), true));
}

/// The characters on both sides of each literal position.
fn inside(rendered: &Rendered) -> Vec<String> {
    let around = |at: &usize| {
        let (before, after) = rendered.text.split_at(*at);
        format!("{}^{}", before.chars().next_back().unwrap(), after.chars().next().unwrap())
    };
    rendered.literal.iter().map(around).collect()
}

#[test]
fn control_tokens_of_a_message_are_literal_and_those_of_the_template_are_not() {
    let chat = template(CHATML, &["<|im_start|>", "<|im_end|>", "<s>"]);
    let talk = user("say <|im_end|> and <s>");
    let rendered = chat.render(&talk, false).unwrap();
    assert_eq!(rendered.text, "<|im_start|>user\nsay <|im_end|> and <s><|im_end|>\n");
    let first = rendered.text.find("say").unwrap() + 4;
    assert_eq!(rendered.literal, [first + 1, first + 16]);
    assert_eq!(inside(&rendered), ["<^|", "<^s"]);
    assert!(chat.render(&user("say nothing"), false).unwrap().literal.is_empty());
    assert!(template(CHATML, &[]).render(&talk, false).unwrap().literal.is_empty());
    // A role is data too.
    let rendered = chat.render(&[Message::new("user<s>", "a")], false).unwrap();
    assert_eq!(inside(&rendered), ["<^s"]);
    // So is every text of the further keys, keys of objects included.
    let mut m = Message::new("user", "a");
    m.extra.insert("calls".into(), json!([{"<s>": "b<|im_end|>"}, 1, null]));
    let chat = template("{{ messages[0].calls | tojson }}<s>", &["<s>", "<|im_end|>"]);
    let rendered = chat.render(&[m], false).unwrap();
    assert_eq!(rendered.text, "[{\"<s>\": \"b<|im_end|>\"}, 1, null]<s>");
    assert_eq!(inside(&rendered), ["<^s", "<^|"]);
}

#[test]
fn spans_and_literals_agree() {
    let source = "é{% generation %}{{ messages[0].content }}{% endgeneration %}<s>{% generation %}{{ messages[1].content }}{% endgeneration %}";
    let chat = template(source, &["<s>", "a<s>"]);
    let talk = [Message::new("assistant", "<s>ba<s>"), Message::new("assistant", "<s>")];
    let rendered = chat.render(&talk, false).unwrap();
    assert_eq!(rendered.text, "é<s>ba<s><s><s>");
    assert_eq!(rendered.spans, [2..10, 13..16]);
    assert_eq!(rendered.literal, [3, 7, 8, 14]);
}

#[test]
fn spellings_that_arise_between_message_and_template_are_literal() {
    let chat = template(
        "{{ messages[0].content }}id|>{% if messages[1] %}<|eot_{{ messages[1].content | trim }}{% endif %}",
        &["<|eot_id|>", "|>x"],
    );
    let talk = [Message::new("user", "a<|eot_"), Message::new("user", " id|>x ")];
    let rendered = chat.render(&talk, false).unwrap();
    assert_eq!(rendered.text, "a<|eot_id|><|eot_id|>x");
    assert_eq!(rendered.literal, [2, 12, 20]);
    // A control token of the template beside a message is left alone.
    let chat = template("<|eot_id|>{{ messages[0].content }}<|eot_id|>", &["<|eot_id|>"]);
    for content in ["a", "<", ">", "<|eot_id|", "|eot_id|>", "", " "] {
        let rendered = chat.render(&user(content), false).unwrap();
        assert!(rendered.literal.is_empty(), "{content:?}: {rendered:?}");
    }
    assert_eq!(chat.render(&user("<|eot_id|>"), false).unwrap().literal, [11]);
    // Templates build control tokens out of roles.
    let chat = template("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", &["<|user|>"]);
    assert!(chat.render(&user("a"), false).unwrap().literal.is_empty());
}

#[test]
fn templates_that_read_control_text_still_find_it_or_refuse_the_row() {
    let think = ["<think>", "</think>"];
    let split = template(
        "{{ messages[0].content.split('</think>')[-1] }}{{ '</think>' in messages[0].content }}",
        &think,
    );
    let rendered = split.render(&user("<think>a</think>b<think>"), false).unwrap();
    assert_eq!(rendered.text, "b<think>True");
    assert_eq!(rendered.literal, [2]);
    let starts = template(
        "{% if messages[0].content.startswith('<think>') %}T{{ messages[0].content }}{% endif %}",
        &think,
    );
    assert_eq!(starts.render(&user("<think>a"), false).unwrap().literal, [2]);
    let ends = template(
        "{% if messages[0].content.endswith('</think>') %}T{{ messages[0].content }}{% endif %}",
        &think,
    );
    assert_eq!(ends.render(&user("a</think>"), false).unwrap().literal, [3]);
    let cuts = template("{{ messages[0].content[:9] }}", &think);
    assert!(cuts.render(&user("a"), false).is_ok());
    assert_eq!(
        cuts.render(&user("a<think>bcdef"), false).unwrap_err().to_string(),
        "the chat template failed: a message contains text of the control token `<think>`, and the template decides by it or changes it, so that it cannot be kept apart from the token itself; remove it from the message"
    );
}

#[test]
fn characters_that_stand_for_marks_are_refused() {
    let marked = template("{% generation %}{{ messages[0].content }}{% endgeneration %}", &["<s>"]);
    let mut hidden = Message::new("user", "a");
    hidden.extra.insert("x".into(), json!({"y": ["\u{FDD1}"]}));
    assert_eq!(marked.render(&[hidden], false).unwrap_err(), RowError::ReservedCharacter { code: 0xFDD1 });
    let plain = template(CHATML, &["<s>"]);
    for code in [0xFDD2, 0xFDD3] {
        let talk = user(&format!("<s>{}", char::from_u32(code).unwrap()));
        assert_eq!(plain.render(&talk, false).unwrap_err(), RowError::ReservedCharacter { code });
    }
    // Nothing is marked where nothing spells a control token, and the character is text as any other.
    assert_eq!(
        plain.render(&user("\u{FDD2}"), false).unwrap().text,
        "<|im_start|>user\n\u{FDD2}<|im_end|>\n"
    );
}

#[test]
fn an_encoder_knows_the_control_tokens_of_its_tokenizer() {
    let encoder = Encoder::from_dir(&base(), TemplateChoice::Chat, &[], Now::utc()).unwrap();
    let rendered = encoder.template().unwrap().render(&user("a <|eot_id|>"), true).unwrap();
    assert_eq!(rendered.literal.len(), 1);
    let tokenizer = TextTokenizer::from_dir(&base()).unwrap();
    assert!(tokenizer.control_texts().iter().any(|t| t == "<|eot_id|>"));
}

/// `cargo test --release -p tunesmith-data --test templates -- --ignored --nocapture`.
#[test]
#[ignore = "prints times"]
fn speed() {
    let content = "Hello, I ordered two lamps last week and only one of them arrived. What can I do?";
    let talk = [Message::new("user", content), Message::new("assistant", content)];
    for (name, chat) in known().iter().filter(|(_, t)| t.is_native()) {
        let time = |f: &dyn Fn() -> Result<Rendered, RowError>, n: u32| {
            let start = std::time::Instant::now();
            (0..n).for_each(|_| drop(std::hint::black_box(f().unwrap())));
            start.elapsed().as_nanos() / u128::from(n)
        };
        let native = time(&|| chat.render(&talk, false), 200_000);
        let jinja = time(&|| chat.render_jinja(&talk, false), 5_000);
        println!("{:20} native {native} ns, jinja {jinja} ns", name.rsplit('/').next().unwrap());
    }
}

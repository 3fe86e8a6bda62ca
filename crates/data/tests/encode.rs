//! Masks, stop tokens, templates and the account of a whole file.
#![allow(clippy::unwrap_used)]

mod common;

use common::{EOS, base, data, encoder, folder, load, options, with_template};
use serde_json::json;
use tunesmith_data::{
    BosRule, ChatTemplate, ControlText, Encoder, Error, Message, Now, Place, Prompt, Row, RowContent,
    RowError, TemplateChoice, TextTokenizer,
};

const CHATML: &str = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<|eot_id|>\n' }}{% endfor %}\
                      {% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}";
const STOPLESS: &str = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}";

fn pair(prompt: &str, completion: &str) -> Row {
    Row {
        content: RowContent::PromptCompletion { prompt: prompt.into(), completion: completion.into() },
        place: Place::line(3),
    }
}

/// Turns of `user`, `assistant`, …; a leading `0` takes the weight away.
fn talk(turns: &[&str]) -> Row {
    let messages = turns.iter().enumerate().map(|(i, text)| {
        let mut m = Message::new(["user", "assistant"][i % 2], text.trim_start_matches('0'));
        m.trained = !text.starts_with('0');
        m
    });
    Row { content: RowContent::Messages(messages.collect()), place: Place::line(3) }
}

/// The text of each run of trained tokens.
fn trained(encoder: &Encoder, row: &Row) -> Vec<String> {
    let example = encoder.encode_row(row).unwrap().example;
    assert_eq!(example.ids.len(), example.trained.len());
    let mut runs: Vec<Vec<u32>> = Vec::new();
    for (i, id) in example.ids.iter().enumerate().filter(|(i, _)| example.trained[*i]) {
        if i > 0 && example.trained[i - 1] {
            runs.last_mut().unwrap().push(*id);
        } else {
            runs.push(vec![*id]);
        }
    }
    runs.iter().map(|ids| encoder.tokenizer().decode(ids, false).unwrap()).collect()
}

#[test]
fn without_template_the_joined_text_ends_with_a_trained_eos() {
    let encoder = encoder(TemplateChoice::None);
    for (prompt, completion) in
        [("Where is it?", " Here."), ("", "Only this, é🙂"), ("a\n\n", "\n b"), ("🙂", "🙂🙂"), ("x", "  ")]
    {
        let row = pair(prompt, completion);
        let encoded = encoder.encode_row(&row).unwrap();
        assert!(encoded.eos_appended);
        assert_eq!(encoded.example.place.number, 3);
        assert_eq!(encoded.example.ids[0], 4088);
        assert!(!encoded.example.trained[0]);
        if encoded.boundary_merged == 0 {
            assert_eq!(trained(&encoder, &row), [format!("{completion}<|eot_id|>")]);
            let start = encoder.encode_prompt(Prompt::Text(prompt)).unwrap();
            assert!(encoded.example.ids.starts_with(&start));
            assert_eq!(encoded.example.trained_tokens(), encoded.example.ids.len() - start.len());
        }
        assert_eq!(encoder.bos_rule(&encoded.example.ids), BosRule::Tokenizer);
    }
}

#[test]
fn a_token_over_the_boundary_is_trained_and_counted() {
    let encoder = encoder(TemplateChoice::None);
    let row = pair("I would like an ord", "er please");
    let encoded = encoder.encode_row(&row).unwrap();
    assert_eq!(encoded.boundary_merged, 1);
    assert_eq!(trained(&encoder, &row), [" order please<|eot_id|>"]);
}

#[test]
fn an_eos_in_the_completion_is_not_doubled() {
    let encoder = encoder(TemplateChoice::None);
    let encoded = encoder.encode_row(&pair("a", " b<|eot_id|>")).unwrap();
    assert!(!encoded.eos_appended && encoded.control_text == ControlText::Control);
    assert_eq!(encoded.example.ids.iter().filter(|&&id| id == EOS).count(), 1);
    assert_eq!(encoded.example.ids.last(), Some(&EOS));
    // Any stop id of the model's configuration ends an answer.
    assert!(!encoder.encode_row(&pair("a", " b<|end_of_text|>")).unwrap().eos_appended);
}

#[test]
fn a_post_processor_that_adds_eos_is_followed() {
    let dir = folder(|_| {});
    let path = dir.path().join("tokenizer.json");
    let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let template = &mut file["post_processor"]["processors"][1];
    template["single"]
        .as_array_mut()
        .unwrap()
        .push(json!({"SpecialToken": {"id": "<|eot_id|>", "type_id": 0}}));
    template["special_tokens"]["<|eot_id|>"] =
        json!({"id": "<|eot_id|>", "ids": [EOS], "tokens": ["<|eot_id|>"]});
    std::fs::write(&path, file.to_string()).unwrap();
    let encoder = Encoder::from_dir(dir.path(), TemplateChoice::None, &[EOS], Now::utc()).unwrap();
    let row = pair("Where is it?", " Here.");
    assert!(!encoder.encode_row(&row).unwrap().eos_appended);
    assert_eq!(trained(&encoder, &row), [" Here.<|eot_id|>"]);
    // The prompt of an answer still to come must not end the text.
    for prompt in ["Where is it?", ""] {
        let ids = encoder.encode_prompt(Prompt::Text(prompt)).unwrap();
        assert_eq!(ids[0], 4088);
        assert!(!ids.contains(&EOS));
    }
}

#[test]
fn turns_are_trained_with_their_stop_token_whether_marked_or_not() {
    let marked = encoder(TemplateChoice::Auto);
    let prefix = with_template(CHATML).unwrap();
    for encoder in [&marked, &prefix] {
        let (one, two) = (["a", "bé", "c", "d 🙂"], ["a", "0b", "c", "d"]);
        assert_eq!(trained(encoder, &talk(&one)), ["bé<|eot_id|>", "d 🙂<|eot_id|>"]);
        assert_eq!(trained(encoder, &talk(&two)), ["d<|eot_id|>"]);
        assert_eq!(trained(encoder, &talk(&["a", "b", "c", "0d"])), ["b<|eot_id|>"]);
        assert_eq!(trained(encoder, &talk(&["a", "b", "c"])), ["b<|eot_id|>"]);
        assert_eq!(trained(encoder, &talk(&["a", "0b"])), Vec::<String>::new());
        // The same words in the user's mouth are not trained: masks come from offsets.
        assert_eq!(
            trained(encoder, &talk(&["yes", "yes", "yes", "yes"])),
            ["yes<|eot_id|>", "yes<|eot_id|>"]
        );
        assert_eq!(trained(encoder, &pair("yes", "yes")), ["yes<|eot_id|>"]);
    }
}

#[test]
fn what_the_model_sees_at_inference_is_a_prefix_of_what_it_was_trained_on() {
    for encoder in [encoder(TemplateChoice::Auto), with_template(CHATML).unwrap()] {
        let row = talk(&["Where is my order?", "On its way.", " thanks ", "Welcome!"]);
        let RowContent::Messages(messages) = &row.content else { panic!() };
        let encoded = encoder.encode_row(&row).unwrap();
        assert_eq!((encoded.boundary_merged, encoded.prompt_differs), (0, false));
        for turn in [1, 3] {
            let start = encoder.encode_prompt(Prompt::Messages(&messages[..turn])).unwrap();
            assert!(encoded.example.ids.starts_with(&start));
            assert!(encoded.example.trained[start.len()] && !encoded.example.trained[start.len() - 1]);
        }
        let text = encoder.encode_prompt(Prompt::Text("Where is my order?")).unwrap();
        assert_eq!(text, encoder.encode_prompt(Prompt::Messages(&messages[..1])).unwrap());
    }
}

#[test]
fn a_template_that_loses_text_once_the_answer_is_there_is_reported() {
    let source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% if loop.last %}!{% endif %}\
                  {% else %}{% generation %}{{ m.content }}<|eot_id|>{% endgeneration %}{% endif %}{% endfor %}";
    let encoder = with_template(source).unwrap();
    assert!(encoder.encode_row(&pair("a", "b")).unwrap().prompt_differs);
    // Without marks there is nothing to tell the answer by.
    let bare = source.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    let error = with_template(&bare).unwrap().encode_row(&pair("a", "b")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template renders turn 2 differently once the conversation goes on, so its tokens cannot be told apart; mark the assistant's text with {% generation %} in the template"
    );
}

#[test]
fn a_template_without_stop_token_gets_one() {
    let encoder = with_template(STOPLESS).unwrap();
    let encoded = encoder.encode_row(&talk(&["a", "b", "c", "d"])).unwrap();
    assert!(encoded.eos_appended);
    assert_eq!(trained(&encoder, &talk(&["a", "b", "c", "d"])), ["b\n", "d\n<|eot_id|>"]);
    assert_eq!(
        encoder.encode_row(&talk(&["a", "b", "c"])).unwrap_err().to_string(),
        "no stop token follows the last trained turn and none can be appended (it is not the last turn); use a chat template that ends each turn with the model's EOS token"
    );
    // A stop token in the words of the answer does not end it.
    let row = pair("a", "say <|eot_id|> twice");
    let encoded = encoder.encode_row(&row).unwrap();
    assert!(encoded.eos_appended && encoded.control_text == ControlText::Literal);
    assert_eq!(encoded.example.ids.iter().filter(|&&id| id == EOS).count(), 1, "text stays text");
    assert_eq!(trained(&encoder, &row), ["say <|eot_id|> twice\n<|eot_id|>"]);
}

#[test]
fn a_stop_token_just_behind_the_marks_is_trained() {
    let source = "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                  {% endgeneration %}{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}";
    let encoder = with_template(source).unwrap();
    assert_eq!(trained(&encoder, &talk(&["a", "b", "c", "d"])), ["b<|eot_id|>", "d<|eot_id|>"]);
    let none = with_template(&source.replace("<|eot_id|>", "#")).unwrap();
    assert_eq!(trained(&none, &talk(&["a", "b", "c", "d"])), ["b", "d<|eot_id|>"]);
}

#[test]
fn two_bos_tokens_are_an_error() {
    let sentence = "the text starts with two `<|begin_of_text|>` tokens; remove the one written in the data or in the template";
    let plain = encoder(TemplateChoice::None);
    assert_eq!(plain.encode_row(&pair("<|begin_of_text|>a", "b")).unwrap_err().to_string(), sentence);
    assert!(plain.encode_prompt(Prompt::Text("<|begin_of_text|>a")).is_err());
    let chat = with_template(&format!("{{{{ bos_token }}}}{{{{ bos_token }}}}{CHATML}")).unwrap();
    assert_eq!(chat.encode_row(&pair("a", "b")).unwrap_err().to_string(), sentence);
}

#[test]
fn rows_that_need_a_template_say_so() {
    let plain = encoder(TemplateChoice::None);
    let error = plain.encode_row(&talk(&["a", "b"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the row has `messages`, but there is no chat template to render them with; use template = \"chat\" and a model that has one, or prompt and completion columns"
    );
    let dir = folder(|c| c["chat_template"] = json!(null));
    let error = Encoder::from_dir(dir.path(), TemplateChoice::Chat, &[], Now::utc()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` has no chat template (no `chat_template.jinja`, no `chat_template` in `tokenizer_config.json`); add one or use template = \"none\"",
            dir.path().display()
        )
    );
    assert!(
        Encoder::from_dir(dir.path(), TemplateChoice::Auto, &[], Now::utc()).unwrap().template().is_none()
    );
}

#[test]
fn a_model_without_eos_cannot_end_an_answer() {
    let dir = folder(|c| c["eos_token"] = json!(null));
    let encoder = Encoder::from_dir(dir.path(), TemplateChoice::None, &[], Now::utc()).unwrap();
    assert_eq!(
        encoder.encode_row(&pair("a", "b")).unwrap_err().to_string(),
        "no stop token follows the last trained turn and none can be appended (the tokenizer has no EOS token); use a chat template that ends each turn with the model's EOS token"
    );
}

#[test]
fn weights_need_marks_that_match_the_turns() {
    let source =
        "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}<|eot_id|>{% endgeneration %}";
    let encoder = with_template(source).unwrap();
    assert_eq!(
        encoder.encode_row(&talk(&["a", "0b", "c", "d"])).unwrap_err().to_string(),
        "the chat template marks 1 spans for 2 assistant turns, so `weight` cannot be applied; remove the weights or correct the template"
    );
}

#[test]
fn text_that_looks_like_a_mark_is_refused() {
    let row = talk(&["a \u{FDD1} b", "c"]);
    assert_eq!(
        encoder(TemplateChoice::Auto).encode_row(&row).unwrap_err(),
        RowError::ReservedCharacter { code: 0xFDD1 }
    );
    assert_eq!(
        RowError::ReservedCharacter { code: 0xFDD1 }.to_string(),
        "a message contains the noncharacter U+FDD1, which is reserved; remove it"
    );
    assert!(with_template(CHATML).unwrap().encode_row(&row).is_ok());
}

#[test]
fn templates_that_fail_say_why() {
    let fails =
        |source: &str| with_template(source).unwrap().encode_row(&pair("a", "b")).unwrap_err().to_string();
    assert_eq!(fails("{{ raise_exception('no ' + 'way') }}"), "the chat template failed: no way");
    assert_eq!(
        fails("{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}"),
        "the chat template failed: it did not finish within the step limit"
    );
    assert!(fails("{{ messages[0].nothing.more }}").contains("template line 1"));
    assert!(fails("{{ strftime_now('%Q') }}").contains("does not know a directive"));
    let error = with_template("{% for m in messages %}").unwrap_err();
    assert!(matches!(&error, Error::TemplateFile { .. }));
    assert!(error.to_string().contains("the chat template does not parse: "), "{error}");
    assert!(
        error.to_string().ends_with("; correct the template or train with template = \"none\""),
        "{error}"
    );
    let endless = "{% set ns = namespace(t='xxxxxxxx') %}{% for i in range(40) %}{% set ns.t = ns.t + ns.t %}{% endfor %}";
    assert!(fails(endless).starts_with("the chat template failed: "));
}

#[test]
fn templates_render_as_in_hugging_face() {
    let render = |source: &str| {
        let tokens = vec![("bos_token".to_owned(), "<s>".to_owned())];
        let template =
            ChatTemplate::new(source, tokens, Now::date(2024, 7, 26), std::path::Path::new("t")).unwrap();
        template.render(&[Message::new("user", "\u{1c} é<&'\" \u{1f}")], true).unwrap().text
    };
    assert_eq!(
        render("{{ messages[0].content | trim }}|{{ messages[0].content.strip() }}|"),
        "é<&'\"|é<&'\"|"
    );
    assert_eq!(render("{{ messages[0].content | trim | tojson }}"), r#""é<&'\"""#);
    assert_eq!(render("{{ 'é🙂' | tojson(ensure_ascii=true) }}"), r#""\u00e9\ud83d\ude42""#);
    assert_eq!(render("{{ {'b': [1, 2.0, none], 'a': {}} | tojson }}"), r#"{"b": [1, 2.0, null], "a": {}}"#);
    assert_eq!(
        render("{{ {'b': [], 'a': [true]} | tojson(indent=2, sort_keys=true) }}"),
        "{\n  \"a\": [\n    true\n  ],\n  \"b\": []\n}"
    );
    assert_eq!(
        render("{{ [1e16, 1e-5, 0.1, 123456789012345.0, 1.5e300] | tojson }}"),
        "[1e+16, 1e-05, 0.1, 123456789012345.0, 1.5e+300]"
    );
    assert_eq!(render("{{ bos_token }}{{ strftime_now('%d %b %Y') }}{{ eos_token }}"), "<s>26 Jul 2024");
    assert_eq!(
        render(
            "{% if tools is none and tools is defined %}n{% endif %}\n{% for i in [1,2,3] %}\n  {% if i == 2 %}{% continue %}{% endif %}\n{{ i }}\n{% endfor %}\n"
        ),
        "n1\n3\n"
    );
    assert_eq!(
        render(
            "{{ 'aaaa' | replace('a', 'b', 2) }}{{ 'aa' | replace('a', '', count=1) }}{{ 'x' | replace('x', 'y') }}"
        ),
        "bbaaay"
    );
    assert_eq!(
        render("{{ 'a,b,c' | split(',', 1) | join('|') }}{{ ' a b ' | split | join('|') }}"),
        "a|b,ca|b"
    );
    assert_eq!(
        render("{{ '%s %05.1f%%' | format('a', 2.25) }}{{ '{0} {0:>3}{{}} {x}'.format('b', x=1) }}"),
        "a 002.2%b   b{} 1"
    );
    assert_eq!(
        render(
            "{% macro m(a, b='c') -%}\n {{ a }}{{ b }}{% endmacro %}{{ m([1]) }}\n{% for a, b in [(1, 2)] -%}\n {{ a + b }}{% endfor %}\n{% with x = 3 %}\n{{ x }}{% endwith %}"
        ),
        "[1]c\n33"
    );
    assert_eq!(render("a\r\n  {% if true %}\r\nb{% endif %}"), "a\nb");
    assert_eq!(
        render("{{ true }} {{ none }} {{ 'a,b'.split(',')[1] }} {{ add_generation_prompt }}"),
        "True None b True"
    );
    assert_eq!(render("{% set x = 1 %}{% generation %}{% set x = 2 %}y{% endgeneration %}{{ x }}"), "y1");
    assert_eq!(render("a\n  {% generation %}\n  b\n  {% endgeneration %}\nc"), "a\n  b\nc");
    assert_eq!(render("a  {%- generation -%}  b  {%- endgeneration -%}  c"), "abc");
}

#[test]
fn templates_are_found_where_hugging_face_puts_them() {
    let text = |dir: &tempfile::TempDir| {
        let template = ChatTemplate::from_dir(dir.path(), Vec::new(), Now::utc())?.unwrap();
        Ok::<_, Error>(template.render(&[], false).unwrap().text)
    };
    let list = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    let dir = folder(|c| c["chat_template"] = list);
    assert_eq!(text(&dir).unwrap(), "D");
    std::fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(text(&dir).unwrap(), "J");
    let dir = folder(|c| c["chat_template"] = json!([{"name": "tool_use", "template": "T"}]));
    let error = text(&dir).unwrap_err().to_string();
    assert!(
        error.ends_with("`chat_template` is a list without an entry named `default`; add one"),
        "{error}"
    );
    let dir = folder(|c| c["chat_template"] = json!(7));
    assert!(text(&dir).unwrap_err().to_string().contains("neither a text nor a list"));
}

#[test]
fn tokenizer_folders_are_checked() {
    let fails = |dir: &std::path::Path| TextTokenizer::from_dir(dir).unwrap_err().to_string();
    let dir = tempfile::tempdir().unwrap();
    assert!(fails(dir.path()).ends_with("the file does not exist; a model folder needs `tokenizer.json`"));
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": ").unwrap();
    assert!(fails(dir.path()).contains("tokenizer.json`: not a valid tokenizer ("));
    let dir = folder(|c| c["eos_token"] = json!({"content": "<|nope|>"}));
    assert!(fails(dir.path()).ends_with(
        "tokenizer_config.json`: `eos_token` is `<|nope|>`, which is not a token of `tokenizer.json`; correct it"
    ));
    let dir = folder(|c| c["eos_token"] = json!(null));
    std::fs::write(
        dir.path().join("special_tokens_map.json"),
        r#"{"eos_token": {"content": "<|end_of_text|>"}}"#,
    )
    .unwrap();
    let tokenizer = TextTokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.eos(), Some((4089, "<|end_of_text|>")));
    assert_eq!(tokenizer.bos(), Some((4088, "<|begin_of_text|>")));
    assert_eq!(tokenizer.stop_ids(&[EOS, 4089]).unwrap(), [4089, EOS]);
    assert_eq!(
        tokenizer.stop_ids(&[5000]).unwrap_err().to_string(),
        "eos_token_id 5000 of the model's configuration is not a token of the tokenizer; use the tokenizer that belongs to the model"
    );
    assert_eq!(tokenizer.vocab_size(), 4096);
    assert!(tokenizer.check_vocab_size(4096).is_ok());
    assert_eq!(
        tokenizer.check_vocab_size(4095).unwrap_err().to_string(),
        "the tokenizer has token id 4095 (`<|reserved_special_token_1|>`), but the model's vocab_size is 4095; use the tokenizer that belongs to the model"
    );
    assert!(
        tokenizer
            .decode(&[4096], false)
            .unwrap_err()
            .to_string()
            .starts_with("cannot decode token ids: 4096 is not")
    );
}

#[test]
fn stored_truncation_and_padding_do_not_act() {
    let dir = folder(|_| {});
    let path = dir.path().join("tokenizer.json");
    let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    file["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                             "pad_id": 4090, "pad_type_id": 0, "pad_token": "<|pad|>"});
    std::fs::write(&path, file.to_string()).unwrap();
    let text = "Where is my order? I have been waiting for two weeks now.";
    let stored = TextTokenizer::from_dir(dir.path()).unwrap().encode(text, true).unwrap();
    assert_eq!(stored, TextTokenizer::from_dir(&base()).unwrap().encode(text, true).unwrap());
}

#[test]
fn runs_that_the_splitting_pattern_cannot_follow_are_refused_where_it_is_used() {
    let tokenizer = TextTokenizer::from_dir(&base()).unwrap();
    let most = " ".repeat(200_000);
    assert_eq!(tokenizer.encode_reference(&most, false).unwrap().offsets.last().unwrap().1, 200_000);
    let text = format!("a{}b", " ".repeat(200_001));
    assert_eq!(tokenizer.encode(&text, false).unwrap().offsets.last().unwrap().1, 200_003);
    assert_eq!(
        tokenizer.encode_reference(&text, false).unwrap_err().to_string(),
        "the text cannot be tokenised: it has a run of more than 200000 characters of one kind (such as ' '); remove it"
    );
}

#[test]
fn streams_hold_back_incomplete_characters_only() {
    let tokenizer = TextTokenizer::from_dir(&base()).unwrap();
    let text = "Añ 🙂🦙 order\n\n  x";
    let ids = tokenizer.encode(text, false).unwrap().ids;
    let mut stream = tokenizer.stream(true);
    let mut out = String::new();
    for id in ids.iter().chain(&[EOS]) {
        let piece = stream.push(*id).unwrap().unwrap_or_default();
        assert!(!piece.contains('\u{FFFD}'));
        out.push_str(&piece);
        assert!(text.starts_with(&out));
    }
    assert_eq!(stream.finish().unwrap(), None);
    assert_eq!(out, text);
    // Half a character at the end is shown as such, and an endless run of halves does not wait for ever.
    let half = tokenizer.encode("🙂", false).unwrap().ids[0];
    let mut stream = tokenizer.stream(true);
    assert_eq!(stream.push(half).unwrap(), None);
    assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{FFFD}"));
    let mut stream = tokenizer.stream(true);
    assert!((0..40).any(|_| stream.push(half).unwrap().is_some()));
    assert!(tokenizer.stream(true).push(99_999).is_err());
}

fn load_text(text: &str, max_seq_length: usize) -> Result<tunesmith_data::Dataset, String> {
    let (dir, path) = data(text);
    load(&path, &encoder(TemplateChoice::Auto), &options(max_seq_length))
        .map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

fn numbers(counted: &tunesmith_data::Counted) -> Vec<u64> {
    counted.places.iter().map(|p| p.number).collect()
}

#[test]
fn every_row_is_accounted_for() {
    let short = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let idle = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}"#;
    let long = format!(
        r#"{{"id": 1, "messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "b </s> <|pad|>"}}]}}"#,
        "word ".repeat(50)
    );
    let text = format!("{short}\n\n{idle}\n{long}\n{short}\n{long}\n");
    let data = load_text(&text, 40).unwrap();
    let r = &data.report;
    assert_eq!((r.rows, r.kept, r.duplicates.count), (5, 2, 2));
    assert_eq!((r.dropped_over_long.count, numbers(&r.dropped_over_long)), (2, vec![4, 6]));
    assert_eq!((r.zero_trained.count, numbers(&r.zero_trained)), (1, vec![3]));
    assert_eq!(data.examples.iter().map(|e| e.place.number).collect::<Vec<_>>(), [1, 5]);
    assert_eq!(r.tokens, data.examples.iter().map(|e| e.ids.len()).sum::<usize>());
    assert_eq!(r.trained_tokens, 4);
    assert_eq!(r.longest, data.examples[0].ids.len());
    assert_eq!(r.bos, BosRule::Template);
    assert_eq!(
        (r.eos_appended, r.boundary_merged, r.control_text.count, r.prompt_differs.count),
        (0, 0, 0, 0)
    );
    assert_eq!(data.groups[0], data.groups[1]);
    let all = load_text(&text, 1024).unwrap().report;
    assert_eq!((all.kept, all.dropped_over_long.count), (4, 0));
    assert_eq!(numbers(&all.literal_control_text), [4, 6]);
    let back: tunesmith_data::DataReport =
        serde_json::from_str(&serde_json::to_string(&all).unwrap()).unwrap();
    assert_eq!(back, all);
    // A limit is the longest length that is kept.
    let exact = load_text(&text, r.longest).unwrap();
    assert_eq!(exact.report.kept, 2);
    assert_eq!(
        load_text(&text, 3).unwrap_err(),
        format!(
            "`data.jsonl`: all 5 rows are longer than max_seq_length 3 (shortest {}, longest {} tokens); raise max_seq_length or shorten the rows",
            r.longest, all.longest
        )
    );
    assert_eq!(
        load_text(&format!("{idle}\n{idle}\n{long}"), 40).unwrap_err(),
        "`data.jsonl`: zero trainable tokens: 2 of 3 rows train nothing and 1 are over-long; give at least one assistant turn a weight of 1"
    );
}

#[test]
fn many_rows_keep_their_order_and_encode_as_one_by_one() {
    let rows: Vec<String> = (0..9000)
        .map(|i| format!(r#"{{"prompt": "ticket {i}", "completion": "answer {}"}}"#, i * 7 % 4000))
        .collect();
    let data = load_text(&rows.join("\n"), 1024).unwrap();
    assert_eq!(data.examples.len(), rows.len());
    let encoder = encoder(TemplateChoice::Auto);
    for i in (0..rows.len()).step_by(997) {
        let one =
            encoder.encode_row(&pair(&format!("ticket {i}"), &format!("answer {}", i * 7 % 4000))).unwrap();
        assert_eq!(data.examples[i].ids, one.example.ids);
        assert_eq!(data.examples[i].trained, one.example.trained);
        assert_eq!(data.examples[i].place.number, i as u64 + 1);
    }
}

#[test]
fn a_template_error_names_the_row() {
    let dir = folder(|c| {
        c["chat_template"] = json!(
            "{% if messages[0].content == 'bad' %}{{ raise_exception('roles must alternate') }}{% endif %}x"
        );
    });
    let encoder = Encoder::from_dir(dir.path(), TemplateChoice::Auto, &[EOS], Now::utc()).unwrap();
    let (_data, path) = data("{\"prompt\": \"bad\", \"completion\": \"b\"}\n");
    let error = load(&path, &encoder, &options(9)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("`{}`:1: the chat template failed: roles must alternate", path.display())
    );
}

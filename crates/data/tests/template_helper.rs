//! Templates that nobody knows, run in a process of their own: the same text, and no way out of its limits.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{base, shared};
use serde_json::{Value, json};
use tunesmith_data::{ChatTemplate, Message, Now, RowError, TemplateHelper};

/// Tells a test run from a helper.
const MARKER: &str = "serve-as-a-template-helper";

/// This program as a helper: the test below.
fn helper() -> TemplateHelper {
    let args = ["helper_process", MARKER, "--exact", "--nocapture"];
    TemplateHelper {
        program: std::env::current_exe().unwrap(),
        args: args.iter().map(|arg| (*arg).into()).collect(),
    }
}

/// Not a test of its own: what a helper process runs.
#[test]
fn helper_process() {
    if std::env::args().any(|arg| arg == MARKER) {
        tunesmith_data::serve_templates().unwrap();
    }
}

fn template(source: &str) -> ChatTemplate {
    let tokens =
        vec![("bos_token".to_owned(), "<s>".to_owned()), ("eos_token".to_owned(), "</s>".to_owned())];
    ChatTemplate::new(source, tokens, Now::date(2025, 3, 9), Path::new("t")).unwrap()
}

fn user(content: &str) -> Vec<Message> {
    vec![Message::new("user", content)]
}

/// Every template at hand, each with a comment that makes it an unknown one.
fn unknown() -> Vec<String> {
    let json = |path: &Path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
    let mut found = vec![
        "{{ messages | tojson(indent=1) }}{{ strftime_now('%d %b %Y') }}{{ bos_token }}".to_owned(),
        "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}|{% endfor %}"
            .to_owned(),
    ];
    let mut dirs: Vec<PathBuf> = vec![base()];
    if let Some(shared) = shared("tokenizers") {
        dirs.extend(std::fs::read_dir(&shared).unwrap().map(|e| e.unwrap().path()));
        for t in json(&shared.join("public_chat_templates/templates.json")).as_array().unwrap() {
            found.push(t["chat_template"].as_str().unwrap().to_owned());
        }
    }
    for dir in dirs.iter().filter(|d| d.join("tokenizer_config.json").is_file()) {
        let chat = ChatTemplate::from_dir(dir, Vec::new(), Now::utc()).unwrap().unwrap();
        found.push(chat.source().to_owned());
    }
    found.into_iter().map(|source| source + "{# mine #}").collect()
}

#[test]
fn ordinary_templates_render_as_in_this_process() {
    let mut rich = Message::new("assistant", "é\u{2028}\"\\\n<|eot_id|>\u{0}");
    rich.extra.insert("tool_calls".to_owned(), json!([{ "b": 0.1, "a": [u64::MAX, -1, null, true] }]));
    let conversations = [
        user("Where is it?"),
        vec![
            Message::new("system", "Be short."),
            Message::new("user", " a "),
            Message::new("assistant", "b"),
        ],
        vec![Message::new("user", "a"), rich],
        // Refused by some with words of their own.
        vec![Message::new("assistant", "a"), Message::new("assistant", "b")],
        user(&"long ".repeat(100_000)),
        Vec::new(),
    ];
    let mut refused = 0;
    for source in unknown() {
        let here = template(&source).with_control_texts(["<|eot_id|>", "</s>"]);
        let there =
            template(&source).with_control_texts(["<|eot_id|>", "</s>"]).with_helper(&helper()).unwrap();
        assert!(!there.is_native());
        for messages in &conversations {
            for prompt in [false, true] {
                let found = there.render(messages, prompt);
                let expected = here.render(messages, prompt);
                refused += usize::from(expected.is_err());
                let words = |e: RowError| e.to_string();
                assert_eq!(found.map_err(words), expected.map_err(words), "{source}");
            }
        }
    }
    assert!(refused > 0, "no template raised anything");
}

/// Templates that the engine's own counting does not stop in time.
fn bombs() -> Vec<(&'static str, String)> {
    let thousand = vec!["t"; 900].join(", ");
    let grid = "([[0] * 99999] * 99999)";
    vec![
        ("many", format!("{{% set t = 'x' * 9000000 %}}{{{{ [{thousand}] ~ '' }}}}")),
        ("block", format!("{{% set t = 'x' * 9000000 %}}{{% set u %}}{{{{ [{thousand}] }}}}{{% endset %}}")),
        ("string", format!("{{{{ {grid} | string | length }}}}")),
        ("equal", format!("{{{{ {grid} == {grid} }}}}")),
    ]
}

/// Which of the two comes first depends on the build.
fn is_limit(words: &str) -> bool {
    [
        "it asked for more than 512 MiB of memory",
        "it took more than 5 seconds of computing for one conversation",
    ]
    .iter()
    .any(|limit| words.ends_with(limit))
}

#[test]
fn what_the_engine_does_not_stop_the_limits_do() {
    for (name, source) in bombs() {
        let template = template(&source).with_helper(&helper()).unwrap();
        let ended = template.render(&user("a"), false).unwrap_err().to_string();
        assert!(ended.starts_with("the chat template failed: it ") && is_limit(&ended), "{name}: {ended}");
        if name == "equal" {
            assert!(ended.contains("seconds of computing"), "{ended}");
        }
    }
}

#[test]
fn rows_after_a_broken_one_render_until_it_is_too_often() {
    let thousand = vec!["t"; 900].join(", ");
    let source = format!(
        "{{% set t = 'x' * 9000000 %}}{{% if messages[0].content == 'bomb' %}}{{{{ [{thousand}] ~ '' }}}}\
         {{% else %}}{{{{ messages[0].content }}}}{{% endif %}}"
    );
    let template = template(&source).with_helper(&helper()).unwrap();
    for _ in 0..3 {
        assert_eq!(template.render(&user("well"), false).unwrap().text, "well");
        let ended = template.render(&user("bomb"), false).unwrap_err().to_string();
        assert!(is_limit(&ended), "{ended}");
    }
    let ended = template.render(&user("well"), false).unwrap_err().to_string();
    assert!(ended.contains("3 times, and is not run again"), "{ended}");
}

#[test]
fn many_threads_share_a_few_helpers() {
    let template = template("{{ messages[0].content }}").with_helper(&helper()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let template = &template;
            scope.spawn(move || {
                for i in 0..50 {
                    let text = format!("{thread} {i}");
                    assert_eq!(template.render(&user(&text), false).unwrap().text, text);
                }
            });
        }
    });
}

#[test]
fn a_program_that_is_no_helper_is_told() {
    for (program, words) in [("/nowhere/program", "No such file"), ("/bin/echo", "end of file")] {
        let helper = TemplateHelper { program: program.into(), args: Vec::new() };
        let error = template("{{ 1 }}").with_helper(&helper).unwrap_err().to_string();
        assert!(error.contains(program) && error.contains(words), "{error}");
    }
}

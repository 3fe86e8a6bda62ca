//! Encodings, conversations and templates as the original libraries give them. The folder of golden files is named by
//! `TUNESMITH_SHARED` (default `../shared` beside the workspace).
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::shared;
use serde_json::Value;
use tunesmith_data::{
    ChatTemplate, Encoder, Message, Now, Place, Prompt, Row, RowContent, SpecialTokens, TemplateChoice,
    TextTokenizer,
};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Folders that hold `file`.
fn cases(file: &str) -> Vec<PathBuf> {
    let Some(folder) = shared("tokenizers") else { return Vec::new() };
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join(file).is_file())
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no {file} in the folder of golden files");
    found
}

fn messages(list: &Value) -> Vec<Message> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|m| Message::new(m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
        .collect()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn golden_encodings() {
    for dir in cases("golden_encodings.json") {
        let tokenizer = TextTokenizer::from_dir(&dir).unwrap();
        let golden = json(&dir.join("golden_encodings.json"));
        let golden = golden.as_array().unwrap();
        println!("{}: {} texts", dir.display(), golden.len());
        for case in golden {
            let text = case["text"].as_str().unwrap();
            let expected = ids(case.get("ids_tokenizer_json").unwrap_or(&case["ids"]));
            let tokens = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokens.ids, expected, "{}: {text:?}", dir.display());
            assert!(tokens.offsets.iter().all(|&(a, b)| text.get(a..b).is_some()), "{text:?}");
            // One id after the other gives the same text as all at once.
            let mut stream = tokenizer.stream(false);
            let mut streamed = String::new();
            for id in &tokens.ids {
                streamed.extend(stream.push(*id).unwrap());
            }
            streamed.extend(stream.finish().unwrap());
            assert_eq!(
                streamed,
                tokenizer.decode(&tokens.ids, false).unwrap(),
                "{}: {text:?}",
                dir.display()
            );
        }
    }
}

#[test]
fn golden_chats() {
    for dir in cases("golden_chat.json") {
        let encoder = Encoder::from_dir(&dir, TemplateChoice::Chat, &[], Now::date(2024, 7, 26)).unwrap();
        println!("{}", dir.display());
        let mut parity = 0;
        for case in json(&dir.join("golden_chat.json")).as_array().unwrap() {
            let conversation = messages(&case["messages"]);
            let prompt = case["add_generation_prompt"].as_bool().unwrap();
            let rendered = encoder.template().unwrap().render(&conversation, prompt).unwrap();
            assert_eq!(rendered.text, case["text"].as_str().unwrap());
            let expected = ids(&case["input_ids"]);
            if prompt {
                assert_eq!(encoder.encode_prompt(Prompt::Messages(&conversation)).unwrap(), expected);
            } else {
                assert_eq!(encoder.tokenizer().encode(&rendered.text, false).unwrap().ids, expected);
            }
            let Some(mask) = case.get("assistant_mask") else { continue };
            let row = Row { content: RowContent::Messages(conversation.clone()), place: Place::line(1) };
            let encoded = encoder.encode_row(&row).unwrap();
            assert_eq!(encoded.example.ids, expected);
            let mask: Vec<bool> = ids(mask).iter().map(|&m| m == 1).collect();
            assert_eq!(encoded.example.trained, mask, "{conversation:?}");
            assert!(!encoded.eos_appended);
            // Every trained turn starts where the prompt for it ends; a template may render that prompt differently
            // while the answer is still to come, and then says so.
            let mut stable = true;
            for (i, _) in conversation.iter().enumerate().filter(|(_, m)| m.is_assistant()) {
                let alone = encoder.template().unwrap().render(&conversation[..i], true).unwrap().text;
                stable = rendered.text.starts_with(&alone);
                if stable {
                    let prompt = encoder.encode_prompt(Prompt::Messages(&conversation[..i])).unwrap();
                    assert!(expected.starts_with(&prompt), "{conversation:?}");
                    assert!(mask[prompt.len()] && !mask[prompt.len() - 1]);
                    parity += 1;
                }
            }
            assert_eq!(encoded.prompt_differs, !stable);
        }
        assert!(parity > 0, "no prompt was compared in {}", dir.display());
    }
}

#[test]
fn golden_public_templates() {
    let Some(folder) = shared("tokenizers") else { return };
    let folder = folder.join("public_chat_templates");
    let templates = json(&folder.join("templates.json"));
    let golden = json(&folder.join("golden_rendered.json"));
    let golden = golden.as_array().unwrap();
    for template in templates.as_array().unwrap() {
        let name = template["name"].as_str().unwrap();
        let tokens: SpecialTokens = ["bos_token", "eos_token"]
            .map(|key| (key.to_owned(), template[key].as_str().unwrap().to_owned()))
            .to_vec();
        let source = template["chat_template"].as_str().unwrap();
        let chat = ChatTemplate::new(source, tokens, Now::date(2024, 7, 26), Path::new(name)).unwrap();
        let mut seen = 0;
        for case in golden.iter().filter(|c| c["template"] == name) {
            seen += 1;
            assert_eq!(case["date_string"], "26 Jul 2024");
            let got =
                chat.render(&messages(&case["messages"]), case["add_generation_prompt"].as_bool().unwrap());
            match (case.get("text"), got) {
                (Some(text), Ok(rendered)) => assert_eq!(rendered.text, text.as_str().unwrap(), "{name}"),
                (None, Err(error)) => {
                    let words = case["error"].as_str().unwrap();
                    assert_eq!(error.to_string(), format!("the chat template failed: {words}"));
                }
                (expected, got) => panic!("{name}: expected {expected:?}, got {got:?}"),
            }
        }
        println!("{name}: {seen} renderings");
        assert!(seen > 0, "{name} has no golden rendering");
    }
}

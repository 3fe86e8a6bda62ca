//! The fast path gives what the original library gives: ids, offsets and which tokens were added.
#![allow(clippy::unwrap_used)]

mod awkward;
mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use awkward::awkward;
use common::{base, shared};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rayon::prelude::*;
use serde_json::{Value, json};
use tunesmith_data::{RowError, TextTokenizer, Tokens};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Folders with a `tokenizer.json`: the shipped one, and the public ones where they are at hand.
fn folders() -> Vec<PathBuf> {
    let mut all = vec![base()];
    if let Some(tokenizers) = shared("tokenizers") {
        let found = std::fs::read_dir(tokenizers).unwrap().map(|e| e.unwrap().path());
        all.extend(found.filter(|p| p.join("tokenizer.json").is_file()));
        assert!(all.len() > 6);
    }
    all.sort();
    all
}

/// A change to a `tokenizer.json`.
type Edit<'a> = &'a dyn Fn(&mut Value);

/// The tokenizer of `dir` after `edit` changed its file.
fn edited(dir: &Path, edit: impl FnOnce(&mut Value)) -> TextTokenizer {
    let mut file = read(&dir.join("tokenizer.json"));
    edit(&mut file);
    let new = tempfile::tempdir().unwrap();
    std::fs::write(new.path().join("tokenizer.json"), file.to_string()).unwrap();
    TextTokenizer::from_dir(new.path()).unwrap()
}

fn added(id: u32, content: &str, special: bool, normalized: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": normalized, "special": special})
}

fn byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets,
           "use_regex": use_regex})
}

/// The known ways to set up a tokenizer that the public ones do not show, each with a name.
fn variants() -> Vec<(String, TextTokenizer)> {
    let mut all = Vec::new();
    let mut add = |name: &str, dir: &Path, edit: Edit<'_>| {
        all.push((name.to_owned(), edited(dir, edit)));
    };
    add("GPT-2's pattern, trimmed", &base(), &|file| {
        file["pre_tokenizer"] = byte_level(false, true, true);
        file["post_processor"] = byte_level(false, true, true);
        file["model"]["ignore_merges"] = json!(false);
    });
    add("single digits, overlapping tokens, legacy merges, empty affixes", &base(), &|file| {
        let split = &mut file["pre_tokenizer"]["pretokenizers"][0];
        let pattern = split["pattern"]["Regex"].as_str().unwrap().replace(r"\p{N}{1,3}", r"\p{N}");
        split["pattern"]["Regex"] = json!(pattern);
        split["behavior"] = json!("Removed");
        split["invert"] = json!(true);
        let tokens = file["added_tokens"].as_array_mut().unwrap();
        for (i, (content, special, normalized)) in [
            (" foo ", false, false),
            ("\u{a0}x\t", false, true),
            ("<|eot_id|><|eot_id|>", true, false),
            ("_id|><|eot", true, false),
            ("é", false, true),
            ("'s", true, true),
        ]
        .into_iter()
        .enumerate()
        {
            tokens.push(added(4096 + i as u32, content, special, normalized));
        }
        file["post_processor"]["processors"][0] = byte_level(true, true, true);
        file["model"]["ignore_merges"] = json!(false);
        file["model"]["continuing_subword_prefix"] = json!("");
        file["model"]["end_of_word_suffix"] = json!("");
        let merges = file["model"]["merges"].as_array_mut().unwrap();
        for merge in merges {
            *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
        }
    });
    add("a template alone, with an end", &base(), &|file| {
        let mut template = file["post_processor"]["processors"][1].take();
        let end = template["single"][0].clone();
        template["single"].as_array_mut().unwrap().push(end);
        file["post_processor"] = template;
    });
    add("no post-processor", &base(), &|file| file["post_processor"] = Value::Null);
    let Some(tokenizers) = shared("tokenizers") else { return all };
    for (scheme, split) in [("always", true), ("always", false), ("first", true), ("never", false)] {
        add(&format!("Metaspace {scheme} {split}"), &tokenizers.join("mistral-v1-32k"), &|file| {
            file["pre_tokenizer"]["prepend_scheme"] = json!(scheme);
            file["pre_tokenizer"]["split"] = json!(split);
            let tokens = file["added_tokens"].as_array_mut().unwrap();
            tokens.push(added(32000, "▁", false, true));
            tokens.push(added(32001, "[é", true, false));
            // Merges with a space at their end, which no public vocabulary has.
            let merges = file["model"]["merges"].as_array_mut().unwrap();
            merges.extend([json!(["é", "▁"]), json!(["e", "▁"])]);
            file["model"]["vocab"]["é▁"] = json!(32002);
            file["model"]["vocab"]["e▁"] = json!(32003);
        });
    }
    all
}

static TOKENIZERS: LazyLock<Vec<(String, TextTokenizer)>> = LazyLock::new(|| {
    let of = |dir: &PathBuf| (dir.display().to_string(), TextTokenizer::from_dir(dir).unwrap());
    let mut all: Vec<_> = folders().iter().map(of).collect();
    all.extend(variants());
    all
});

fn check(name: &str, tokenizer: &TextTokenizer, text: &str) {
    check_as(name, tokenizer, text, false);
    check_as(name, tokenizer, text, true);
}

fn check_as(name: &str, tokenizer: &TextTokenizer, text: &str, special: bool) {
    let got = tokenizer.encode(text, special).unwrap();
    let expected = tokenizer.encode_reference(text, special).unwrap();
    let shown = || text.chars().take(300).collect::<String>();
    assert_eq!(got.ids, expected.ids, "{name}: {:?}", shown());
    assert_eq!(got, expected, "{name}: {:?}", shown());
}

#[test]
fn every_known_tokenizer_takes_the_fast_path() {
    for (name, tokenizer) in TOKENIZERS.iter() {
        assert!(tokenizer.is_fast(), "{name}");
    }
}

#[test]
fn awkward_texts() {
    let texts = awkward();
    TOKENIZERS.par_iter().for_each(|(name, tokenizer)| {
        for text in &texts {
            check(name, tokenizer, text);
        }
    });
}

#[test]
fn golden_texts() {
    for dir in folders().iter().filter(|dir| dir.join("golden_encodings.json").is_file()) {
        let golden = read(&dir.join("golden_encodings.json"));
        for case in golden.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            TOKENIZERS.iter().for_each(|(name, tokenizer)| check(name, tokenizer, text));
        }
    }
}

#[test]
fn very_long_words() {
    let mut random = 1_u32;
    let mut letters = |of: &[char]| -> String {
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            of[(random >> 16) as usize % of.len()]
        };
        (0..100_000).map(|_| next()).collect()
    };
    let mut texts =
        vec![letters(&['a', 'b', 'e', 'h', 'i', 'n', 'o', 'r', 's', 't']), letters(&['=', '-', '.'])];
    texts.push(letters(&['日', '本', 'é', 'a']));
    texts.extend(["a", " ", "\n", "0", "🙂"].map(|unit| format!("x {}y", unit.repeat(100_000))));
    let pairs: Vec<_> = TOKENIZERS.iter().flat_map(|t| texts.iter().map(move |text| (t, text))).collect();
    pairs.par_iter().for_each(|((name, tokenizer), text)| check_as(name, tokenizer, text, false));
}

/// Every text in the test data, once.
fn corpus() -> Vec<String> {
    fn texts(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::String(text) => {
                found.insert(text.clone());
            }
            Value::Array(list) => list.iter().for_each(|v| texts(v, found)),
            Value::Object(map) => map.values().for_each(|v| texts(v, found)),
            _ => {}
        }
    }
    let Some(data) = shared("data") else { return Vec::new() };
    let mut found = BTreeSet::new();
    for folder in ["chat", "instructions", "licences", "structured", "support"] {
        for entry in std::fs::read_dir(data.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => texts(&read(&path), &mut found),
                Some("jsonl") => {
                    for line in std::fs::read_to_string(&path).unwrap().lines() {
                        texts(&serde_json::from_str(line).unwrap(), &mut found);
                    }
                }
                Some("txt") => drop(found.insert(std::fs::read_to_string(&path).unwrap())),
                // Tables of the same rows.
                _ => {}
            }
        }
    }
    found.into_iter().collect()
}

#[test]
fn every_text_of_the_test_data() {
    let texts = corpus();
    let bytes: usize = texts.iter().map(String::len).sum();
    println!("{} texts, {bytes} bytes", texts.len());
    for (i, (name, tokenizer)) in TOKENIZERS.iter().enumerate() {
        // The reference takes its time: the variants see some of the texts.
        let step = if i < folders().len() { 1 } else { 20 };
        texts.par_iter().step_by(step).for_each(|text| check_as(name, tokenizer, text, false));
    }
}

#[test]
fn random_texts() {
    let unit = prop_oneof![
        4 => "[ \\t\\r\\n\u{a0}\u{85}\u{3000}\u{feff}a-eilmrstvSLRTVſK'’.,!?<>|\\[\\]_/0-9٣½éß\u{301}你好🙂\u{200d}👩▁\u{0}Ġ]{1,4}",
        2 => "[ \\n]{1,5}|[a-z]{1,9}|[A-Z][a-z]{1,6}|[0-9]{1,5}|[日本語韓国文字]{1,5}|[а-я]{1,6}",
        1 => prop::sample::select(vec![
            "<s>", "</s>", "[INST]", "[/INST]", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<unk>", "<0x0A>", "'s",
            "'LL", " foo ", "\u{a0}x\t", "[é", " the", " order", "▁▁", "  ",
        ])
        .prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    let texts = prop::collection::vec(unit, 0..24).prop_map(|parts| parts.concat());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) };
    TestRunner::new(config)
        .run(&texts, |text| {
            TOKENIZERS.iter().for_each(|(name, tokenizer)| check(name, tokenizer, &text));
            Ok(())
        })
        .unwrap();
}

#[test]
fn threads_and_used_lists_do_not_matter() {
    let texts = awkward();
    let mut out = Tokens::default();
    // More tokenizers in turn than a thread keeps words of.
    for text in &texts {
        for (name, tokenizer) in TOKENIZERS.iter().take(6) {
            tokenizer.encode_into(text, &[], true, &mut out).unwrap();
            assert_eq!(out, tokenizer.encode_reference(text, true).unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn control_tokens_that_must_stay_text_do() {
    for dir in folders() {
        let tokenizer = TextTokenizer::from_dir(&dir).unwrap();
        let mut plain = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
        plain.set_encode_special_tokens(true);
        let (eos, token) = tokenizer.eos().unwrap();
        for (before, after) in [("", ""), ("a", "b"), ("Hello, ", " there"), (" ", "\n"), ("é", "🙂")] {
            let text = [before, token, after].concat();
            let inside = before.len() + 1;
            let kept = tokenizer.encode_literal(&text, &[inside], false).unwrap();
            let expected = plain.encode(text.as_str(), false).unwrap();
            assert_eq!(
                (&kept.ids[..], &kept.offsets[..]),
                (expected.get_ids(), expected.get_offsets()),
                "{text:?}"
            );
            assert!(!kept.ids.contains(&eos));
            // Positions at its edges do not touch it, nor does what is kept touch its neighbour.
            let edges = [before.len(), before.len() + token.len()];
            assert_eq!(
                tokenizer.encode_literal(&text, &edges, true).unwrap(),
                tokenizer.encode(&text, true).unwrap()
            );
            let twice = [before, token, token, after].concat();
            let one = tokenizer.encode_literal(&twice, &[inside], false).unwrap();
            let found: Vec<_> = one.ids.iter().zip(&one.offsets).filter(|(id, _)| **id == eos).collect();
            let start = before.len() + token.len();
            assert_eq!(found, [(&eos, &(start, start + token.len()))]);
        }
    }
}

#[test]
fn what_is_not_known_is_left_to_the_reference() {
    let refused: [(&str, Edit<'_>); 9] = [
        ("normaliser", &|f| f["normalizer"] = json!({"type": "NFC"})),
        ("pattern", &|f| f["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({"Regex": r"\p{L}+|\s+"})),
        ("space in front", &|f| f["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true)),
        ("behaviour", &|f| f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = json!("Removed")),
        ("order", &|f| f["post_processor"]["processors"].as_array_mut().unwrap().reverse()),
        ("stripping token", &|f| f["added_tokens"][5]["lstrip"] = json!(true)),
        ("word token", &|f| f["added_tokens"][5]["single_word"] = json!(true)),
        ("dropout", &|f| f["model"]["dropout"] = json!(0.5)),
        ("two texts of one id", &|f| f["model"]["vocab"]["Ġt"] = f["model"]["vocab"]["st"].clone()),
    ];
    for (name, edit) in refused {
        assert!(!edited(&base(), edit).is_fast(), "{name}");
    }
    let slow = edited(&base(), refused[0].1);
    let fast = TextTokenizer::from_dir(&base()).unwrap();
    for text in ["Where is my order?", "", "a<|eot_id|> 123\n\n x"] {
        assert_eq!(slow.encode(text, true).unwrap(), fast.encode(text, true).unwrap());
        assert_eq!(slow.encode(text, true).unwrap(), slow.encode_reference(text, true).unwrap());
    }
    assert_eq!(slow.encode("e\u{301}", false).unwrap().ids, fast.encode("é", false).unwrap().ids);
    assert_ne!(slow.encode("e\u{301}", false).unwrap().ids, fast.encode("e\u{301}", false).unwrap().ids);
    let error = slow.encode_literal("é <|eot_id|>", &[7], false).unwrap_err();
    assert_eq!(error, RowError::LiteralToken { token: "<|eot_id|>".into() });
    assert_eq!(
        error.to_string(),
        "a message spells out the control token `<|eot_id|>`, and this model's tokenizer cannot keep it as text; change the text of the row"
    );
}

#[test]
fn sentencepiece_tokenizers_with_unknown_parts_are_left_to_the_reference() {
    let Some(tokenizers) = shared("tokenizers") else { return };
    let refused: [(&str, Edit<'_>); 5] = [
        ("merged bytes", &|f| {
            f["model"]["vocab"]["<0xE2><0x96>"] = json!(600);
            f["model"]["merges"].as_array_mut().unwrap().push(json!(["<0xE2>", "<0x96>"]));
        }),
        ("no byte tokens", &|f| f["model"]["byte_fallback"] = json!(false)),
        ("a byte without token", &|f| {
            drop(f["model"]["vocab"].as_object_mut().unwrap().remove("<0x07>"));
        }),
        ("normalised token", &|f| f["added_tokens"][1]["normalized"] = json!(true)),
        ("another space", &|f| f["normalizer"]["normalizers"][1]["content"] = json!("_")),
    ];
    for (name, edit) in refused {
        let slow = edited(&tokenizers.join("stories-512"), edit);
        assert!(!slow.is_fast(), "{name}");
        check(name, &slow, "Once upon a time\u{7}<s> there");
    }
}

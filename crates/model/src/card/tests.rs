use super::*;

#[test]
fn the_front_matter_names_a_repository_only() {
    let mut card = ModelCard { name: "n".into(), base_model: "org/base-1.0".into(), facts: vec![] };
    let text = card.to_markdown();
    let front = text.strip_prefix("---\n").unwrap().split_once("\n---\n").unwrap().0;
    assert!(front.starts_with("base_model: \"org/base-1.0\"\nlibrary_name: peft\n"), "{front}");
    assert!(front.contains("- \"base_model:adapter:org/base-1.0\"\n- lora"), "{front}");
    card.base_model = "/models/base".into();
    let text = card.to_markdown();
    let front = text.split_once("\n---\n").unwrap().0;
    assert!(!front.contains("base_model"), "{front}");
    assert!(text.contains("`/models/base`"));
}

#[test]
fn facts_cannot_break_the_table() {
    let facts = vec![("a|b".into(), "x\n---\ny".into()), ("steps".into(), "3".into())];
    let text = ModelCard { name: "two\nlines".into(), base_model: "o/b".into(), facts }.to_markdown();
    assert!(text.contains("\n| a\\|b | x --- y |\n| steps | 3 |\n"), "{text}");
    assert!(text.contains("\n# two lines\n"));
}

#[test]
fn repository_ids() {
    for id in ["a/b", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-3.2-1B", "o_x/y_z"] {
        assert!(is_repo_id(id), "{id}");
    }
    let long = format!("a/{}", "b".repeat(96));
    for text in [
        "", "/", "a", "a/", "/b", "a/b/c", "./a", "../a", "a/..", "a/b c", "a/b\n", "~/b", "a\\b", "a/-b",
        &long,
    ] {
        assert!(!is_repo_id(text), "{text}");
    }
}

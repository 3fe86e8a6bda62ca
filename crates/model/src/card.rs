//! The model card that goes with a saved adapter.

/// What an adapter's `README.md` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelCard {
    /// Name of the adapter, the card's heading.
    pub name: String,
    /// Repository id or directory of the base model.
    pub base_model: String,
    /// Facts of the training in the order to print them, such as ("examples", "240").
    pub facts: Vec<(String, String)>,
}

impl ModelCard {
    /// The card as Markdown with Hugging Face's front matter.
    ///
    /// A base model that is a directory is left out of the front matter, where only repository ids are valid.
    pub fn to_markdown(&self) -> String {
        let mut lines = vec!["---".to_string()];
        let is_repository = is_repo_id(&self.base_model);
        if is_repository {
            lines.push(format!("base_model: {}", quoted(&self.base_model)));
        }
        lines.push("library_name: peft".into());
        lines.push("pipeline_tag: text-generation".into());
        lines.push("tags:".into());
        if is_repository {
            lines.push(format!("- {}", quoted(&format!("base_model:adapter:{}", self.base_model))));
        }
        lines.extend(["- lora", "- tunesmith", "---", ""].map(String::from));
        lines.extend([format!("# {}", one_line(&self.name)), String::new()]);
        lines.push(format!("A LoRA adapter for `{}`, trained with tunesmith.", one_line(&self.base_model)));
        if !self.facts.is_empty() {
            lines.extend(["", "## Training", "", "| | |", "|---|---|"].map(String::from));
            lines.extend(
                self.facts.iter().map(|(name, value)| format!("| {} | {} |", cell(name), cell(value))),
            );
        }
        lines.extend(["", "## Use", "", "```python"].map(String::from));
        lines.extend(["from peft import AutoPeftModelForCausalLM", ""].map(String::from));
        lines.push("model = AutoPeftModelForCausalLM.from_pretrained(\"path/to/this/adapter\")".into());
        lines.extend(["```", ""].map(String::from));
        lines.join("\n")
    }
}

/// Whether `text` has the form `organisation/name` of a Hugging Face repository id.
pub(crate) fn is_repo_id(text: &str) -> bool {
    let valid = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("..")
            && !part.contains("--")
    };
    text.len() <= 96 && text.split_once('/').is_some_and(|(owner, name)| valid(owner) && valid(name))
}

/// A YAML string in double quotes; JSON's escapes are valid in it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cell(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}

#[cfg(test)]
mod tests;

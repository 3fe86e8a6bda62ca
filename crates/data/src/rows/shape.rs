//! Which columns hold what: recognised from the first row, or as the user says.

use std::fmt;

use serde_json::{Map, Value};

use crate::error::RowError;

/// Names of columns that hold an answer, the likeliest first.
const COMPLETION_NAMES: [&str; 3] = ["completion", "response", "output"];
/// Names of columns that hold a conversation.
const CHAT_NAMES: [&str; 3] = ["messages", "conversations", "conversation"];
/// Pairs of columns that are as good as prompt and completion.
const PAIRS: [(&str, &str); 3] = [("question", "answer"), ("query", "response"), ("input", "output")];

/// Which columns hold what. `None` means the names that are recognised without being told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// Column of the prompt; default `prompt`.
    pub prompt: Option<String>,
    /// Column of the completion; default `completion`, `response` or `output`.
    pub completion: Option<String>,
    /// Column of the conversation; default `messages`.
    pub messages: Option<String>,
}

/// The shape of a data set's rows. Every row has the shape of the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// A prompt and a completion in two columns.
    PromptCompletion {
        /// Column of the prompt.
        prompt: String,
        /// Column of the completion.
        completion: String,
    },
    /// A list of `{role, content}`, as `OpenAI` has it.
    Messages {
        /// Column of the list.
        column: String,
    },
    /// `instruction`, sometimes `input`, and an answer: the prompt is the instruction, then a blank line and the input
    /// where there is one. A `system` column becomes a system message.
    Alpaca {
        /// Column of the answer.
        output: String,
    },
    /// A list of `{from, value}`; a `system` column becomes a system message.
    ShareGpt {
        /// Column of the list.
        column: String,
    },
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PromptCompletion { prompt, completion } => {
                write!(f, "prompt and completion: columns `{prompt}` and `{completion}`")
            }
            Self::Messages { column } => {
                write!(f, "messages: column `{column}` holds a list of {{role, content}}")
            }
            Self::Alpaca { output } => {
                write!(f, "alpaca: columns `instruction`, `input` where there is one, and `{output}`")
            }
            Self::ShareGpt { column } => {
                write!(f, "ShareGPT: column `{column}` holds a list of {{from, value}}")
            }
        }
    }
}

impl Shape {
    /// One word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PromptCompletion { .. } => "prompt_completion",
            Self::Messages { .. } => "messages",
            Self::Alpaca { .. } => "alpaca",
            Self::ShareGpt { .. } => "sharegpt",
        }
    }

    /// The shape of a row, by its column names and by what the user said of them.
    ///
    /// # Errors
    /// Columns that say nothing, or that say two things.
    pub fn recognise(row: &Map<String, Value>, columns: &Columns) -> Result<Self, RowError> {
        let has = |name: &str| row.contains_key(name);
        if let Some(column) = &columns.messages {
            return Self::conversation(row, column);
        }
        if columns.prompt.is_some() || columns.completion.is_some() {
            let prompt = columns.prompt.as_deref().unwrap_or("prompt");
            return Self::pair(row, prompt, columns.completion.as_deref());
        }
        let chats: Vec<&str> = CHAT_NAMES.into_iter().filter(|n| has(n)).collect();
        match (chats.as_slice(), has("prompt")) {
            ([column], false) => return Self::conversation(row, column),
            ([column, ..], true) => return Err(ambiguous("prompt", column)),
            ([first, second, ..], false) => return Err(ambiguous(first, second)),
            ([], true) => return Self::pair(row, "prompt", None),
            ([], false) => {}
        }
        if has("instruction") {
            return match completion(row, &["output", "response", "completion"])? {
                Some(output) => Ok(Self::Alpaca { output }),
                None => Err(no_completion(row, "an `instruction`", &["output", "response", "completion"])),
            };
        }
        let pairs: Vec<_> = PAIRS.into_iter().filter(|(p, c)| has(p) && has(c)).collect();
        match pairs.as_slice() {
            [(prompt, completion)] => Ok(Self::PromptCompletion {
                prompt: (*prompt).to_owned(),
                completion: (*completion).to_owned(),
            }),
            [(first, _), (second, _), ..] => Err(ambiguous(first, second)),
            [] => Err(RowError::NoPrompt {
                wanted: "prompt".to_owned(),
                messages: "messages".to_owned(),
                columns: listed(row),
            }),
        }
    }

    fn conversation(row: &Map<String, Value>, column: &str) -> Result<Self, RowError> {
        let Some(value) = row.get(column) else {
            return Err(RowError::missing(column, row));
        };
        let first = value.as_array().and_then(|items| items.first()).and_then(Value::as_object);
        let sharegpt = first.is_some_and(|m| m.contains_key("from") && !m.contains_key("role"));
        let column = column.to_owned();
        Ok(if sharegpt { Self::ShareGpt { column } } else { Self::Messages { column } })
    }

    fn pair(row: &Map<String, Value>, prompt: &str, chosen: Option<&str>) -> Result<Self, RowError> {
        if !row.contains_key(prompt) {
            return Err(RowError::NoPrompt {
                wanted: prompt.to_owned(),
                messages: "messages".to_owned(),
                columns: listed(row),
            });
        }
        let names: Vec<&str> = match chosen {
            Some(name) => vec![name],
            None => COMPLETION_NAMES.into_iter().filter(|n| *n != prompt).collect(),
        };
        match completion(row, &names)? {
            Some(completion) => Ok(Self::PromptCompletion { prompt: prompt.to_owned(), completion }),
            None => Err(no_completion(row, "a prompt", &names)),
        }
    }
}

/// The one of these columns that the row has.
fn completion(row: &Map<String, Value>, names: &[&str]) -> Result<Option<String>, RowError> {
    let mut present = names.iter().filter(|n| row.contains_key(**n));
    match (present.next(), present.next()) {
        (Some(first), Some(second)) => Err(ambiguous(first, second)),
        (first, _) => Ok(first.map(|n| (*n).to_owned())),
    }
}

fn ambiguous(first: &str, second: &str) -> RowError {
    RowError::Ambiguous { first: first.to_owned(), second: second.to_owned() }
}

fn no_completion(row: &Map<String, Value>, what: &'static str, names: &[&str]) -> RowError {
    let wanted = names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    RowError::NoCompletion { what, wanted, columns: listed(row) }
}

/// The names of a row's columns, for a sentence.
fn listed(row: &Map<String, Value>) -> String {
    row.keys().cloned().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn recognised(row: &Value, columns: &Columns) -> String {
        match Shape::recognise(row.as_object().unwrap(), columns) {
            Ok(shape) => shape.to_string(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn shapes_are_known_by_their_columns() {
        let none = Columns::default();
        for (row, said) in [
            (json!({"id": 1, "prompt": "", "response": ""}), "columns `prompt` and `response`"),
            (json!({"messages": [{"role": "user"}]}), "messages: column `messages`"),
            (json!({"conversations": [{"from": "human", "value": ""}]}), "ShareGPT: column `conversations`"),
            (json!({"conversations": [{"role": "user"}]}), "messages: column `conversations`"),
            (json!({"instruction": "", "input": "", "output": ""}), "alpaca: "),
            (json!({"instruction": "", "category": "", "response": ""}), "and `response`"),
            (json!({"question": "", "answer": ""}), "columns `question` and `answer`"),
            (json!({"input": "", "output": ""}), "columns `input` and `output`"),
            (json!({"instruction": ""}), "the row has an `instruction` but no completion"),
            (json!({"messages": [], "prompt": ""}), "both `prompt` and `messages`"),
            (json!({"prompt": "", "output": "", "response": ""}), "both `response` and `output`"),
            (json!({"question": "", "answer": "", "input": "", "output": ""}), "both `question` and `input`"),
            (json!({"text": ""}), "its columns: text"),
        ] {
            let found = recognised(&row, &none);
            assert!(found.contains(said), "{row}: {found}");
        }
    }

    #[test]
    fn what_the_user_says_wins() {
        let row = json!({"prompt": "", "completion": "", "ask": "", "reply": "", "talk": [{"from": "x"}]});
        let columns = |prompt: &str, completion: &str| Columns {
            prompt: Some(prompt.to_owned()),
            completion: Some(completion.to_owned()),
            messages: None,
        };
        assert!(recognised(&row, &columns("ask", "reply")).contains("columns `ask` and `reply`"));
        assert!(recognised(&row, &columns("ask", "answer")).contains("no completion (looked for `answer`"));
        assert!(recognised(&row, &columns("request", "reply")).contains("no `request` column"));
        let talk = Columns { messages: Some("talk".to_owned()), ..Columns::default() };
        assert!(recognised(&row, &talk).starts_with("ShareGPT"));
        let none = Columns { messages: Some("chat".to_owned()), ..Columns::default() };
        assert!(recognised(&row, &none).contains("no `chat` column"));
    }
}

//! From a record to a row.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Message, Row, RowContent, Shape};
use crate::error::RowError;
use crate::source::Place;

/// A row, and the columns that nothing read.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The row.
    pub row: Row,
    /// Names of the columns that nothing read.
    pub ignored: BTreeSet<String>,
}

impl Shape {
    /// The row that a record of this shape holds.
    ///
    /// # Errors
    /// A column that is missing, of the wrong type, or empty where something is to be learnt.
    pub fn parse(&self, mut object: Map<String, Value>, place: Place) -> Result<Parsed, RowError> {
        // Before any column is taken out: the error lists those the row has.
        for column in self.columns() {
            if !object.contains_key(column) {
                return Err(RowError::missing(column, &object));
            }
        }
        let content = match self {
            Self::PromptCompletion { prompt, completion } => {
                let prompt = take_text(&mut object, prompt)?;
                RowContent::PromptCompletion { prompt, completion: take_answer(&mut object, completion)? }
            }
            Self::Messages { column } => {
                let value = take(&mut object, column)?;
                RowContent::Messages(messages(value, column, parse_message)?)
            }
            Self::ShareGpt { column } => {
                let value = take(&mut object, column)?;
                let mut turns = messages(value, column, parse_turn)?;
                if let Some(system) = take_optional(&mut object, "system")? {
                    turns.insert(0, Message::new("system", system));
                }
                RowContent::Messages(turns)
            }
            Self::Alpaca { output } => alpaca(&mut object, output)?,
        };
        let ignored = object.into_iter().map(|(name, _)| name).collect();
        Ok(Parsed { row: Row { content, place }, ignored })
    }
}

impl Shape {
    /// The columns that every row must have.
    fn columns(&self) -> Vec<&str> {
        match self {
            Self::PromptCompletion { prompt, completion } => vec![prompt, completion],
            Self::Messages { column } | Self::ShareGpt { column } => vec![column],
            Self::Alpaca { output } => vec!["instruction", output],
        }
    }
}

fn alpaca(object: &mut Map<String, Value>, output: &str) -> Result<RowContent, RowError> {
    let mut prompt = take_text(object, "instruction")?;
    if let Some(input) = take_optional(object, "input")? {
        prompt = format!("{prompt}\n\n{input}");
    }
    let completion = take_answer(object, output)?;
    Ok(match take_optional(object, "system")? {
        None => RowContent::PromptCompletion { prompt, completion },
        Some(system) => RowContent::Messages(vec![
            Message::new("system", system),
            Message::new("user", prompt),
            Message::new("assistant", completion),
        ]),
    })
}

fn take(object: &mut Map<String, Value>, name: &str) -> Result<Value, RowError> {
    object.shift_remove(name).ok_or_else(|| RowError::missing(name, object))
}

fn take_text(object: &mut Map<String, Value>, name: &str) -> Result<String, RowError> {
    text(take(object, name)?, name)
}

fn take_answer(object: &mut Map<String, Value>, name: &str) -> Result<String, RowError> {
    let completion = take_text(object, name)?;
    if completion.trim().is_empty() {
        return Err(RowError::EmptyCompletion { column: name.to_owned() });
    }
    Ok(completion)
}

/// A text that may be missing, null or empty.
fn take_optional(object: &mut Map<String, Value>, name: &str) -> Result<Option<String>, RowError> {
    match object.shift_remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Ok(Some(text(value, name)?).filter(|t| !t.is_empty())),
    }
}

fn text(value: Value, column: &str) -> Result<String, RowError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(column, &other, "a string")),
    }
}

fn wrong_type(column: &str, value: &Value, expected: &'static str) -> RowError {
    RowError::WrongType { column: column.to_owned(), found: json_type(value), expected }
}

/// The turns of a conversation, each read by `parse`, which is told where it stands.
fn messages(
    value: Value,
    column: &str,
    parse: impl Fn(Map<String, Value>, &str) -> Result<Message, RowError>,
) -> Result<Vec<Message>, RowError> {
    let Value::Array(items) = value else {
        return Err(wrong_type(column, &value, "a list of messages"));
    };
    if items.is_empty() {
        return Err(RowError::NoMessages);
    }
    let mut turns = Vec::with_capacity(items.len());
    for (i, item) in items.into_iter().enumerate() {
        let at = format!("{column}[{i}]");
        let Value::Object(object) = item else { return Err(wrong_type(&at, &item, "an object")) };
        let message = parse(object, &at)?;
        if message.is_assistant() && message.trained && message.content.trim().is_empty() {
            return Err(RowError::EmptyCompletion { column: format!("{at}.content") });
        }
        turns.push(message);
    }
    if !turns.iter().any(Message::is_assistant) {
        return Err(RowError::NoAssistant);
    }
    Ok(turns)
}

/// A message of the `OpenAI` format.
fn parse_message(mut object: Map<String, Value>, at: &str) -> Result<Message, RowError> {
    let mut field = |key: &'static str| {
        object.shift_remove(key).ok_or_else(|| RowError::MessageKey { message: at.to_owned(), key })
    };
    let role = text(field("role")?, &format!("{at}.role"))?;
    let content = content(field("content")?, &format!("{at}.content"))?;
    let weight = object.shift_remove("weight").filter(|w| !w.is_null());
    let trained = match weight.as_ref().map(Value::as_f64) {
        None => true,
        Some(Some(w)) if role == "assistant" && (w == 0.0 || w == 1.0) => w == 1.0,
        Some(_) => return Err(RowError::Weight { message: at.to_owned() }),
    };
    Ok(Message { role, content, trained, extra: object })
}

/// A text, or the list of text parts that the `OpenAI` format also knows.
fn content(value: Value, at: &str) -> Result<String, RowError> {
    let Value::Array(parts) = value else { return text(value, at) };
    let mut whole = String::new();
    for (i, mut part) in parts.into_iter().enumerate() {
        let at = format!("{at}[{i}]");
        if part.get("type").and_then(Value::as_str) != Some("text") {
            return Err(RowError::ContentPart { at });
        }
        whole.push_str(&text(part.get_mut("text").map(Value::take).unwrap_or_default(), &at)?);
    }
    Ok(whole)
}

/// A turn of the `ShareGPT` format. `weight` counts there too.
fn parse_turn(mut object: Map<String, Value>, at: &str) -> Result<Message, RowError> {
    let mut field = |key: &'static str| {
        object.shift_remove(key).ok_or_else(|| RowError::TurnKey { message: at.to_owned(), key })
    };
    let from = text(field("from")?, &format!("{at}.from"))?;
    let value = field("value")?;
    let role = match from.as_str() {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "model" | "bot" | "function_call" => "assistant",
        "system" => "system",
        "tool" | "observation" | "function_response" => "tool",
        _ => return Err(RowError::Speaker { message: at.to_owned(), from }),
    };
    object.insert("role".to_owned(), Value::from(role));
    object.insert("content".to_owned(), value);
    parse_message(object, at)
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

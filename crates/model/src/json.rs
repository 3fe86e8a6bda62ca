//! Typed access to one JSON object whose every complaint names the file and the key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A JSON object read from a file. Keys that hold `null` count as absent.
#[derive(Debug)]
pub(crate) struct Object {
    path: PathBuf,
    /// Dotted prefix of the keys when this object is nested in another, else empty.
    prefix: String,
    map: Map<String, Value>,
}

impl Object {
    /// Reads a file that must hold one JSON object.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        Self::parse(path, &text)
    }

    /// As [`Object::read`], from bytes already read; `path` is only for messages.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(map)) => Ok(Self { path: path.to_path_buf(), prefix: String::new(), map }),
            Ok(_) => Err(Error::weights(path, "the file must hold one JSON object")),
            Err(source) => Err(Error::Json { path: path.to_path_buf(), source }),
        }
    }

    pub(crate) fn error(&self, key: &str, problem: impl Into<String>) -> Error {
        let key = format!("{}{key}", self.prefix);
        Error::Config { path: self.path.clone(), key, problem: problem.into() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there at all, be it with `null`.
    pub(crate) fn holds(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self {
                path: self.path.clone(),
                prefix: format!("{}{key}.", self.prefix),
                map: map.clone(),
            })),
            Some(other) => Err(self.error(key, format!("must be an object, found {other}"))),
        }
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, format!("must be a string, found {other}"))),
        }
    }

    pub(crate) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.error(key, format!("must be true or false, found {other}"))),
        }
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(self.error(key, format!("must be a finite number, found {value}"))),
            },
        }
    }

    /// A number above zero.
    pub(crate) fn positive_f64(&self, key: &str) -> Result<Option<f64>> {
        match self.f64(key)? {
            Some(number) if number <= 0.0 => {
                Err(self.error(key, format!("must be above zero, found {number}")))
            }
            other => Ok(other),
        }
    }

    /// A whole number of at least 1. `2048.0` is accepted, as some files write counts that way.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // 2^32 bounds every size of a decoder, so that products of two sizes cannot overflow 64 bits.
        let whole = value.as_u64().or_else(|| {
            value
                .as_f64()
                .filter(|x| x.fract() == 0.0 && (0.0..4_294_967_296.0).contains(x))
                .map(|x| x as u64)
        });
        match whole {
            Some(number) if (1..1 << 32).contains(&number) => Ok(Some(number as usize)),
            _ => Err(self.error(key, format!("must be a whole number from 1 to 2^32 - 1, found {value}"))),
        }
    }

    pub(crate) fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// Token ids: one number or a list. Negative numbers stand for "none" in old files and are left out.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = match value {
            Value::Array(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        let mut ids = Vec::with_capacity(list.len());
        for item in list {
            match item.as_i64() {
                Some(id) if id < 0 => {}
                Some(id) if u32::try_from(id).is_ok() => ids.push(id as u32),
                _ => {
                    return Err(
                        self.error(key, format!("must be a token id or a list of them, found {value}"))
                    );
                }
            }
        }
        Ok(Some(ids))
    }
}

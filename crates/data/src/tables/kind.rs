//! What a column holds, and how a JSON value becomes a cell and comes back as it was.

use rusqlite::types::{ToSqlOutput, Value as Cell, ValueRef};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// The kind of a column, from all its rows.
///
/// Integers and reals together are `real`, each kept as it was. Any other mixture is `json`: every cell is then a
/// JSON text, strings in quotes, so that nothing is taken for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Strings; also a column without a value.
    Text,
    /// Integers of 64 bits.
    Integer,
    /// Numbers, at least one of them with a fraction or an exponent.
    Real,
    /// `true` and `false`, as 1 and 0 in SQL.
    Boolean,
    /// Lists, objects, integers beyond 64 bits with sign, and mixtures; JSON text in SQL.
    Json,
}

impl Kind {
    /// The kind of one value; none for null.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Null => None,
            Value::Bool(_) => Some(Self::Boolean),
            Value::String(_) => Some(Self::Text),
            Value::Number(n) if n.is_i64() => Some(Self::Integer),
            Value::Number(n) if n.is_f64() => Some(Self::Real),
            Value::Number(_) | Value::Array(_) | Value::Object(_) => Some(Self::Json),
        }
    }

    /// The kind of a column that holds both.
    pub(super) fn with(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Integer | Self::Real, Self::Integer | Self::Real) => Self::Real,
            _ => Self::Json,
        }
    }

    /// The type in `CREATE TABLE`. None may have an affinity that changes what is stored: a real column has no
    /// type at all, for SQLite's `REAL` would turn integers into floats and lose the sign of -0.0.
    pub(super) fn declared(self) -> &'static str {
        match self {
            Self::Text => "TEXT",
            Self::Integer => "INTEGER",
            Self::Real => "",
            Self::Boolean => "BOOLEAN",
            Self::Json => JSON_TYPE,
        }
    }

    /// The kind that a result column's declared type tells, where cells of it are not what they seem.
    pub(super) fn of_declared(declared: Option<&str>) -> Option<Self> {
        match declared {
            Some("BOOLEAN") => Some(Self::Boolean),
            Some(JSON_TYPE) => Some(Self::Json),
            _ => None,
        }
    }

    /// The kind's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Real => "real",
            Self::Boolean => "boolean",
            Self::Json => "json",
        }
    }
}

const JSON_TYPE: &str = "JSON TEXT";

/// The cell that holds a value in a column of a kind that takes it.
pub(super) fn cell(kind: Kind, value: &Value) -> ToSqlOutput<'_> {
    let text = |text: String| ToSqlOutput::Owned(Cell::Text(text));
    match (kind, value) {
        (_, Value::Null) => ToSqlOutput::Owned(Cell::Null),
        (Kind::Json, value) => text(value.to_string()),
        (_, Value::String(text)) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        (_, Value::Bool(value)) => ToSqlOutput::Owned(Cell::Integer(i64::from(*value))),
        (_, Value::Number(n)) => match (n.as_i64(), n.as_f64()) {
            (Some(n), _) => ToSqlOutput::Owned(Cell::Integer(n)),
            (None, Some(n)) => ToSqlOutput::Owned(Cell::Real(n)),
            (None, None) => text(n.to_string()),
        },
        (_, value) => text(value.to_string()),
    }
}

/// The value that a cell holds. `kind` is told where the cell alone does not tell: booleans and JSON.
///
/// # Errors
/// What is wrong with the cell, and what to do.
pub(super) fn value(kind: Option<Kind>, cell: ValueRef<'_>) -> Result<Value, String> {
    match (kind, cell) {
        (_, ValueRef::Null) => Ok(Value::Null),
        (Some(Kind::Boolean), ValueRef::Integer(n @ (0 | 1))) => Ok(Value::Bool(n == 1)),
        (Some(Kind::Boolean), _) => {
            Err("is declared boolean but holds something else; use an expression such as `+x` to see it"
                .into())
        }
        (Some(Kind::Json), ValueRef::Text(text)) => serde_json::from_slice(text).map_err(|_| {
            "is declared json but holds text that is no JSON; use `cast(x as text)` for the text".into()
        }),
        (Some(Kind::Json), _) => {
            Err("is declared json but holds a number; use an expression such as `+x` to see it".into())
        }
        (_, ValueRef::Integer(n)) => Ok(Value::Number(n.into())),
        (_, ValueRef::Real(x)) => Number::from_f64(x)
            .map(Value::Number)
            .ok_or_else(|| format!("is the number {x}, which JSON does not have; leave such rows out")),
        (_, ValueRef::Text(text)) => std::str::from_utf8(text)
            .map(|text| Value::String(text.to_owned()))
            .map_err(|_| "is not valid UTF-8; use `hex(x)` for its bytes".into()),
        (_, ValueRef::Blob(_)) => {
            Err("is a blob, which JSON does not have; use `hex(x)` or `cast(x as text)`".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn integers_widen_and_everything_else_mixed_is_json() {
        use Kind::{Boolean, Integer, Json, Real, Text};
        for (a, b, both) in [
            (Integer, Real, Real),
            (Integer, Integer, Integer),
            (Text, Integer, Json),
            (Boolean, Integer, Json),
            (Json, Text, Json),
            (Real, Boolean, Json),
        ] {
            assert_eq!((a.with(b), b.with(a)), (both, both));
        }
    }

    #[test]
    fn no_declared_type_changes_what_is_stored() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let values = [
            (Kind::Text, json!("007")),
            (Kind::Text, json!("1e3")),
            (Kind::Text, json!("a\0b")),
            (Kind::Integer, json!(i64::MIN)),
            (Kind::Real, json!(-0.0)),
            (Kind::Real, json!(3.0)),
            (Kind::Real, json!(9_007_199_254_740_993_i64)),
            (Kind::Real, json!(5e-324)),
            (Kind::Boolean, json!(false)),
            (Kind::Json, json!("12")),
            (Kind::Json, json!(12)),
            (Kind::Json, json!(u64::MAX)),
            (Kind::Json, json!([true, null, {"x": 0.1}])),
        ];
        for (kind, stored) in values {
            connection.execute_batch(&format!("create table t (x {})", kind.declared())).unwrap();
            connection.execute("insert into t values (?1)", [cell(kind, &stored)]).unwrap();
            let back = connection
                .query_row("select x from t", [], |row| Ok(value(Some(kind), row.get_ref(0)?)))
                .unwrap()
                .unwrap();
            assert_eq!(back.to_string(), stored.to_string(), "{kind:?}");
            connection.execute_batch("drop table t").unwrap();
        }
    }
}

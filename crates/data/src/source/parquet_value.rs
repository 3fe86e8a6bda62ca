//! Values of a Parquet file as JSON, and the types that have no faithful JSON form.

use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical};
use parquet::record::Field;
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

/// A column or a path below it, and what is wrong there.
type Fault = (String, String);

/// Every column must have a type that [`convert`] reads faithfully.
///
/// # Errors
/// The dotted path and the type of the first that has not.
pub(super) fn check_schema(schema: &Type) -> Result<(), Fault> {
    if schema.get_fields().is_empty() {
        return Err(("(none)".to_owned(), "of a file without columns".to_owned()));
    }
    schema.get_fields().iter().try_for_each(|field| check(field, field.name(), false))
}

fn check(node: &Type, path: &str, in_list: bool) -> Result<(), Fault> {
    if node.is_group() {
        if node.get_fields().is_empty() {
            return Err((path.to_owned(), "of a group without fields".to_owned()));
        }
        let info = node.get_basic_info();
        if let Some(logical @ (LogicalType::Variant(_) | LogicalType::_Unknown { .. })) =
            info.logical_type_ref()
        {
            return Err((path.to_owned(), format!("{logical:?}")));
        }
        let listed = info.converted_type() != ConvertedType::NONE
            || matches!(info.logical_type_ref(), Some(LogicalType::List | LogicalType::Map));
        return node
            .get_fields()
            .iter()
            .try_for_each(|f| check(f, &format!("{path}.{}", f.name()), in_list || listed));
    }
    let info = node.get_basic_info();
    let (physical, converted) = (node.get_physical_type(), info.converted_type());
    let read = match (physical, converted) {
        (_, ConvertedType::NONE) => match info.logical_type_ref() {
            None
            | Some(LogicalType::String | LogicalType::Enum | LogicalType::Json | LogicalType::Float16) => {
                true
            }
            // Told apart from plain numbers by the schema alone, which is followed through structs only.
            Some(LogicalType::Timestamp(_) | LogicalType::Unknown) => !in_list,
            Some(_) => false,
        },
        (Physical::INT32, c) => matches!(
            c,
            ConvertedType::INT_8
                | ConvertedType::INT_16
                | ConvertedType::INT_32
                | ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
                | ConvertedType::DATE
                | ConvertedType::TIME_MILLIS
                | ConvertedType::DECIMAL
        ),
        (Physical::INT64, c) => matches!(
            c,
            ConvertedType::INT_64
                | ConvertedType::UINT_64
                | ConvertedType::TIME_MICROS
                | ConvertedType::TIMESTAMP_MILLIS
                | ConvertedType::TIMESTAMP_MICROS
                | ConvertedType::DECIMAL
        ),
        (Physical::BYTE_ARRAY, c) => matches!(
            c,
            ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON | ConvertedType::DECIMAL
        ),
        (Physical::FIXED_LEN_BYTE_ARRAY, c) => c == ConvertedType::DECIMAL,
        _ => false,
    };
    if read {
        return Ok(());
    }
    let kind =
        info.logical_type_ref().map_or_else(|| converted.to_string(), |logical| format!("{logical:?}"));
    Err((path.to_owned(), format!("{physical} ({kind})")))
}

/// The JSON object of a row or struct.
pub(super) fn convert(
    fields: Vec<(String, Field)>,
    schema: Option<&Type>,
) -> Result<Map<String, Value>, Fault> {
    let mut out = Map::new();
    for (name, field) in fields {
        let kind = schema.and_then(|s| s.get_fields().iter().find(|f| f.name() == name)).map(AsRef::as_ref);
        let value = value(field, kind).map_err(|(path, what)| (join(&name, &path), what))?;
        if out.contains_key(&name) {
            return Err((name, "stands twice in the schema; rename one".to_owned()));
        }
        out.insert(name, value);
    }
    Ok(out)
}

fn join(name: &str, below: &str) -> String {
    match below {
        "" => name.to_owned(),
        _ if below.starts_with('[') => format!("{name}{below}"),
        _ => format!("{name}.{below}"),
    }
}

fn value(field: Field, kind: Option<&Type>) -> Result<Value, Fault> {
    let here = |what: String| (String::new(), what);
    let logical = kind.and_then(|k| k.get_basic_info().logical_type_ref());
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(b),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => match logical {
            Some(LogicalType::Timestamp(t)) => Value::String(match t.unit {
                TimeUnit::MILLIS => stamp(n, 3),
                TimeUnit::MICROS => stamp(n, 6),
                TimeUnit::NANOS => stamp(n, 9),
            }),
            _ => n.into(),
        },
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        // The shortest decimal that names the number: what other writers of JSON give for it.
        Field::Float16(n) => float(n.to_string().parse()).map_err(here)?,
        Field::Float(n) => float(n.to_string().parse()).map_err(here)?,
        Field::Double(n) => float(Ok(n)).map_err(here)?,
        Field::Decimal(decimal) => {
            let digits = integer(decimal.data()).map_err(here)?;
            Value::String(scaled(digits, decimal.scale().max(0) as usize))
        }
        Field::Str(text) => Value::String(text),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => {
                return Err(here(format!(
                    "holds {} bytes that are not text; leave the column out of the file",
                    bytes.data().len()
                )));
            }
        },
        Field::Date(days) => Value::String(date(i64::from(days))),
        Field::TimeMillis(n) => Value::String(time(i64::from(n), 3)),
        Field::TimeMicros(n) => Value::String(time(n, 6)),
        Field::TimestampMillis(n) => Value::String(stamp(n, 3)),
        Field::TimestampMicros(n) => Value::String(stamp(n, 6)),
        Field::Group(row) => Value::Object(convert(row.into_columns(), kind.filter(|k| k.is_group()))?),
        Field::ListInternal(list) => {
            let items = list.elements().iter().enumerate();
            let items = items.map(|(i, item)| {
                value(item.clone(), None).map_err(|(path, what)| (join(&format!("[{i}]"), &path), what))
            });
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        Field::MapInternal(map) => {
            let mut out = Map::new();
            for (key, item) in map.entries() {
                let key = match value(key.clone(), None)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                let item = value(item.clone(), None).map_err(|(path, what)| (join(&key, &path), what))?;
                if out.contains_key(&key) {
                    return Err(here(format!("has the key `{key}` twice; remove one")));
                }
                out.insert(key, item);
            }
            Value::Object(out)
        }
    })
}

fn float(n: Result<f64, std::num::ParseFloatError>) -> Result<Value, String> {
    let number = n.ok().and_then(Number::from_f64);
    number.map(Value::Number).ok_or_else(|| "is not a finite number; write null or a number".to_owned())
}

/// A big-endian two's complement number.
fn integer(bytes: &[u8]) -> Result<i128, String> {
    let negative = bytes.first().is_some_and(|b| b & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let excess = bytes.len().saturating_sub(16);
    if bytes[..excess].iter().any(|&b| b != fill)
        || bytes.get(excess).is_some_and(|b| (b & 0x80 != 0) != negative)
    {
        return Err("is a decimal of more than 38 digits; convert the column to text".to_owned());
    }
    let mut wide = [fill; 16];
    wide[16 - (bytes.len() - excess)..].copy_from_slice(&bytes[excess..]);
    Ok(i128::from_be_bytes(wide))
}

fn scaled(number: i128, scale: usize) -> String {
    let digits = format!("{:0width$}", number.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if number < 0 { "-" } else { "" };
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// `2024-07-26` of a number of days since 1970-01-01, in the proleptic Gregorian calendar.
fn date(days: i64) -> String {
    // Years that start in March have their leap day last.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// `13:05:09.250` of a number of units (10^-`digits` seconds) since midnight.
fn time(units: i64, digits: usize) -> String {
    let per_second = 10_i64.pow(digits as u32);
    let (seconds, fraction) = (units.div_euclid(per_second), units.rem_euclid(per_second));
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { clock } else { format!("{clock}.{fraction:0digits$}") }
}

/// `2024-07-26T13:05:09.250` of a number of units since 1970.
fn stamp(units: i64, digits: usize) -> String {
    let per_day = 86_400 * 10_i64.pow(digits as u32);
    format!("{}T{}", date(units.div_euclid(per_day)), time(units.rem_euclid(per_day), digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_times_are_iso_8601() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(19_930), "2024-07-26");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(-1), "1969-12-31");
        assert_eq!(stamp(1_721_999_109_250, 3), "2024-07-26T13:05:09.250");
        assert_eq!(stamp(1_721_999_109_000_000_001, 9), "2024-07-26T13:05:09.000000001");
        assert_eq!(stamp(-1, 6), "1969-12-31T23:59:59.999999");
        assert_eq!(stamp(i64::MIN, 3).len(), "-292275055-05-16T16:47:04.192".len());
        assert_eq!(date(i64::from(i32::MAX)), "5881580-07-11");
    }

    #[test]
    fn decimals_keep_every_digit() {
        assert_eq!(scaled(integer(&[0x30, 0x39]).unwrap_or(0), 2), "123.45");
        assert_eq!(scaled(integer(&[0xff]).unwrap_or(0), 3), "-0.001");
        assert_eq!(scaled(integer(&[0; 20]).unwrap_or(1), 0), "0");
        assert_eq!(integer(&[0xff; 20]), Ok(-1));
        assert!(integer(&[1; 20]).is_err());
        assert_eq!(integer(&[]), Ok(0));
    }
}

//! The walk of an object beside its type.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::Value;

use super::definitions::{Definition, Shape, definition, short};
use crate::quantity::Quantity;

/// Why a value cannot be decoded into its type; the texts are those of Go's decoders.
#[derive(Debug, thiserror::Error)]
pub(super) enum TypeError {
    #[error("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {expected}")]
    Mismatch {
        found: String,
        owner: &'static str,
        path: String,
        expected: String,
    },
    #[error("json: cannot unmarshal {found} into Go value of type {expected}")]
    Root { found: String, expected: String },
    #[error("{0}")]
    Quantity(#[from] crate::quantity::QuantityError),
    #[error("parsing time {0:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {0:?} as \"2006\"")]
    Time(String),
    #[error("illegal base64 data at input byte {0}")]
    Base64(usize),
}

/// Go's zero time. Go's JSON has null in its place, which only Go reads back: typed clients in other languages refuse
/// an object without a time that its type requires, and the whole list or watch with it.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Where the walk is: Go's errors name fields without indexes, findings name them with.
struct Place {
    owner: &'static str,
    fields: String,
    indexed: String,
}

/// Checks `obj`, pruning as it goes; answers the unknown fields in the order found.
pub(super) fn object(definition: &'static Definition, obj: &mut Value) -> Result<Vec<String>, TypeError> {
    let mut unknown = Vec::new();
    let place = Place {
        owner: definition.short_name(),
        fields: String::new(),
        indexed: String::new(),
    };
    fields(definition, obj, &place, &mut unknown)?;
    Ok(unknown)
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

fn fields(
    definition: &'static Definition,
    value: &mut Value,
    place: &Place,
    unknown: &mut Vec<String>,
) -> Result<(), TypeError> {
    let Value::Object(map) = value else {
        return Err(mismatch(value, place, &Shape::Object(definition.name)));
    };
    let mut failed = None;
    map.retain(|key, value| {
        if failed.is_some() {
            return true;
        }
        let indexed = join(&place.indexed, key);
        let Some(field) = definition.field(key) else {
            unknown.push(format!("unknown field {indexed:?}"));
            return false;
        };
        // Go decodes null as "absent" everywhere but in free-form JSON.
        if value.is_null() {
            return field.shape == Shape::Any;
        }
        let below = Place {
            owner: definition.short_name(),
            fields: join(&place.fields, key),
            indexed,
        };
        failed = check(&field.shape, value, &below, unknown).err();
        true
    });
    if let Some(error) = failed {
        return Err(error);
    }
    for field in definition.required_times() {
        map.entry(field).or_insert_with(|| ZERO_TIME.into());
    }
    Ok(())
}

fn check(
    shape: &Shape,
    value: &mut Value,
    place: &Place,
    unknown: &mut Vec<String>,
) -> Result<(), TypeError> {
    let fits = match (shape, &mut *value) {
        (Shape::Any, _) | (Shape::String, Value::String(_)) | (Shape::Bool, Value::Bool(_)) => true,
        (Shape::Number, Value::Number(_)) => true,
        (Shape::Int32, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        (Shape::Int64, Value::Number(n)) => n.as_i64().is_some(),
        (Shape::IntOrString, Value::String(_)) => true,
        (Shape::IntOrString, Value::Number(n)) => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        (Shape::Time | Shape::MicroTime, Value::String(text)) => {
            if text.parse::<Timestamp>().is_err() {
                return Err(TypeError::Time(text.clone()));
            }
            true
        }
        (Shape::Bytes, Value::String(text)) => {
            check_base64(text)?;
            true
        }
        (Shape::Quantity, Value::String(_) | Value::Number(_)) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            *value = Value::String(Quantity::parse(&text)?.to_string());
            true
        }
        (Shape::List(inner), Value::Array(items)) => {
            for (i, item) in items.iter_mut().enumerate() {
                let below = Place {
                    owner: place.owner,
                    fields: place.fields.clone(),
                    indexed: format!("{}[{i}]", place.indexed),
                };
                // A null element is the element type's zero value.
                if item.is_null() {
                    *item = zero(inner);
                }
                check(inner, item, &below, unknown)?;
            }
            true
        }
        (Shape::Map(inner), Value::Object(entries)) => {
            for (key, entry) in entries.iter_mut() {
                let below = Place {
                    owner: place.owner,
                    fields: place.fields.clone(),
                    indexed: format!("{}.{key}", place.indexed),
                };
                if entry.is_null() {
                    *entry = zero(inner);
                }
                check(inner, entry, &below, unknown)?;
            }
            true
        }
        (Shape::Object(name), Value::Object(_)) => {
            let Some(definition) = definition(name) else {
                return Ok(());
            };
            return fields(definition, value, place, unknown);
        }
        _ => false,
    };
    if fits {
        Ok(())
    } else {
        Err(mismatch(value, place, shape))
    }
}

fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::Object(_) => Value::Object(Default::default()),
        Shape::String | Shape::Bytes => "".into(),
        Shape::Quantity => "0".into(),
        Shape::Int32 | Shape::Int64 | Shape::IntOrString | Shape::Number => 0.into(),
        Shape::Bool => false.into(),
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Map(_) => Value::Object(Default::default()),
        Shape::Any | Shape::Time | Shape::MicroTime => Value::Null,
    }
}

fn check_base64(text: &str) -> Result<(), TypeError> {
    use base64::DecodeError;
    // Go skips line breaks inside base64.
    let joined: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    match base64::engine::general_purpose::STANDARD.decode(&joined) {
        Ok(_) => Ok(()),
        Err(DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _)) => {
            Err(TypeError::Base64(at))
        }
        Err(_) => Err(TypeError::Base64(joined.len() / 4 * 4)),
    }
}

fn mismatch(value: &Value, place: &Place, shape: &Shape) -> TypeError {
    let numeric = matches!(shape, Shape::Int32 | Shape::Int64 | Shape::IntOrString);
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(n) if numeric => format!("number {n}"),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    let expected = go_type(shape);
    if place.fields.is_empty() || *shape == Shape::IntOrString {
        return TypeError::Root { found, expected };
    }
    TypeError::Mismatch {
        found,
        owner: place.owner,
        path: place.fields.clone(),
        expected,
    }
}

fn go_type(shape: &Shape) -> String {
    match shape {
        Shape::Any => "interface {}".to_owned(),
        Shape::String | Shape::Time | Shape::MicroTime | Shape::Quantity => "string".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 | Shape::IntOrString => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Number => "float64".to_owned(),
        Shape::List(inner) => format!("[]{}", go_type(inner)),
        Shape::Map(inner) => format!("map[string]{}", go_type(inner)),
        Shape::Object(name) => {
            let package = name.rsplit('.').nth(1).unwrap_or("v1");
            format!("{package}.{}", short(name))
        }
    }
}

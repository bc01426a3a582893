//! Kubernetes' protobuf bodies to the objects that the same bodies in JSON would be.
//!
//! A body is the bytes `k8s\0` and a `runtime.Unknown` message with apiVersion, kind and the object's own
//! message; <https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding>. Messages are
//! read beside the types of [`crate::schema`]. Unknown fields are skipped, as protobuf does: clients may be
//! newer. Go writes scalars that nobody set as zeros: those go, unless JSON would have them too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::wire::{Fields, Wire, WireError, packed};
use crate::kind::split_api_version;
use crate::schema::definitions::{Field, Shape};
use crate::schema::numbers::{Found, message};
use crate::{ApiError, KINDS, Kind, Subresource};

/// The media type of these bodies.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";

/// More than the types nest; a bound that does not depend on them.
const MAX_DEPTH: usize = 64;

/// Why bytes are not the message they should be. The texts are close to those of Go's decoders.
#[derive(Debug, thiserror::Error)]
enum ProtoError {
    #[error("proto: {0}")]
    Wire(#[from] WireError),
    #[error("proto: wrong wireType for field {0}")]
    WrongWireType(&'static str),
    #[error("proto: field {0} contains invalid UTF-8")]
    Utf8(&'static str),
    #[error("proto: field {0} holds no point in time")]
    Time(&'static str),
    #[error("proto: field {name} holds no JSON: {source}")]
    Json {
        name: &'static str,
        source: serde_json::Error,
    },
    #[error("proto: exceeded max depth of {MAX_DEPTH}")]
    Depth,
}

/// Reads the body of a request.
pub(super) fn decode(body: &[u8]) -> Result<Value, ApiError> {
    let Some(envelope) = body.strip_prefix(MAGIC) else {
        return Err(ApiError::bad_request(format!(
            "the provided data does not appear to be a protobuf message, expected prefix {MAGIC:?}"
        )));
    };
    let malformed = |what: &str, why: ProtoError| {
        ApiError::bad_request(format!("the protobuf body cannot be read: {what}: {why}"))
    };
    let unknown = Unknown::read(envelope).map_err(|e| malformed("runtime.Unknown", e))?;
    let Unknown {
        api_version, kind, ..
    } = unknown;
    if kind.is_empty() {
        return Err(ApiError::bad_request(
            "Object 'Kind' is missing in the protobuf body".to_owned(),
        ));
    }
    if api_version.is_empty() {
        return Err(ApiError::bad_request(
            "Object 'apiVersion' is missing in the protobuf body".to_owned(),
        ));
    }
    if !unknown.encoding.is_empty() || !matches!(unknown.content_type, "" | MEDIA_TYPE) {
        return Err(ApiError::bad_request(format!(
            "the protobuf body holds an object with content type {:?} and encoding {:?}, which is not read",
            unknown.content_type, unknown.encoding
        )));
    }
    let Some(definition) = definition_of(api_version, kind) else {
        return Err(ApiError::bad_request(format!(
            "no kind {kind:?} is registered for version {api_version:?}"
        )));
    };
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    read_object(definition, unknown.raw, &mut object, MAX_DEPTH).map_err(|e| malformed(kind, e))?;
    Ok(Value::Object(object))
}

/// The type of objects with this apiVersion and kind that are bodies of requests.
fn definition_of(api_version: &str, kind: &str) -> Option<&'static str> {
    // These belong to every group, and clients name the group they talk to.
    match kind {
        "DeleteOptions" => return Some("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
        "Status" => return Some("io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
        _ => {}
    }
    if let Some(kind) = Kind::by_gvk(api_version, kind) {
        return Some(kind.schema);
    }
    let (group, version) = split_api_version(api_version);
    let named = |s: &Subresource, k: &Kind| s.gvk(k) == (group, version, kind);
    KINDS
        .iter()
        .find_map(|k| k.subresources.iter().find(|s| named(s, k))?.schema())
}

/// `runtime.Unknown`.
#[derive(Default)]
struct Unknown<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
    encoding: &'a str,
    content_type: &'a str,
}

impl<'a> Unknown<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ProtoError> {
        let mut out = Self::default();
        for field in Fields::new(bytes) {
            match field? {
                (1, wire) => {
                    for field in Fields::new(bytes_of("typeMeta", wire)?) {
                        match field? {
                            (1, wire) => out.api_version = text_of("apiVersion", wire)?,
                            (2, wire) => out.kind = text_of("kind", wire)?,
                            _ => {}
                        }
                    }
                }
                (2, wire) => out.raw = bytes_of("raw", wire)?,
                (3, wire) => out.encoding = text_of("contentEncoding", wire)?,
                (4, wire) => out.content_type = text_of("contentType", wire)?,
                _ => {}
            }
        }
        Ok(out)
    }
}

fn bytes_of<'a>(name: &'static str, wire: Wire<'a>) -> Result<&'a [u8], ProtoError> {
    match wire {
        Wire::Bytes(bytes) => Ok(bytes),
        _ => Err(ProtoError::WrongWireType(name)),
    }
}

fn text_of<'a>(name: &'static str, wire: Wire<'a>) -> Result<&'a str, ProtoError> {
    std::str::from_utf8(bytes_of(name, wire)?).map_err(|_| ProtoError::Utf8(name))
}

fn varint_of(name: &'static str, wire: Wire<'_>) -> Result<u64, ProtoError> {
    match wire {
        Wire::Varint(value) => Ok(value),
        _ => Err(ProtoError::WrongWireType(name)),
    }
}

/// Reads a message of the type `definition` into `object`. A message that comes in parts is merged.
fn read_object(
    definition: &str,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    let depth = depth.checked_sub(1).ok_or(ProtoError::Depth)?;
    let Some(message) = message(definition) else {
        return Ok(());
    };
    for field in Fields::new(bytes) {
        let (number, wire) = field?;
        match message.field(number) {
            Found::Field(found) => read_field(found.field, found.pointer, wire, object, depth)?,
            Found::Inlined => {
                for field in Fields::new(bytes_of("of an inlined message", wire)?) {
                    let (inner, wire) = field?;
                    if let Some(found) = message.inner(number, inner) {
                        read_field(found.field, found.pointer, wire, object, depth)?;
                    }
                }
            }
            Found::Unknown => {}
        }
    }
    Ok(())
}

fn read_field(
    field: &'static Field,
    pointer: bool,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    let name = field.name;
    match &field.shape {
        Shape::List(inner) => {
            let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(items) = list {
                match (&**inner, wire) {
                    (Shape::Int32 | Shape::Int64, Wire::Bytes(bytes)) => {
                        for value in packed(bytes)? {
                            items.push(read_value(name, inner, Wire::Varint(value), depth)?);
                        }
                    }
                    _ => items.push(read_value(name, inner, wire, depth)?),
                }
            }
        }
        Shape::Map(inner) => {
            let (key, value) = read_entry(name, inner, wire, depth)?;
            let map = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = map {
                entries.insert(key, value);
            }
        }
        Shape::Object(definition) => {
            let bytes = bytes_of(name, wire)?;
            let below = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(below) = below {
                read_object(definition, bytes, below, depth)?;
            }
        }
        shape => {
            let value = read_value(name, shape, wire, depth)?;
            if value.is_null() || (!pointer && !field.required && is_zero(shape, &value)) {
                object.remove(name);
            } else {
                object.insert(name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// Whether Go's JSON leaves out this value of a field that is no pointer.
fn is_zero(shape: &Shape, value: &Value) -> bool {
    match value {
        Value::Bool(set) => !set,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(text) => text.is_empty() || (*shape == Shape::Quantity && text == "0"),
        _ => false,
    }
}

fn read_value(name: &'static str, shape: &Shape, wire: Wire<'_>, depth: usize) -> Result<Value, ProtoError> {
    Ok(match shape {
        Shape::String => text_of(name, wire)?.into(),
        Shape::Bool => (varint_of(name, wire)? != 0).into(),
        // Negative numbers of 32 bits are written with 64.
        Shape::Int32 => (varint_of(name, wire)? as i32).into(),
        Shape::Int64 => (varint_of(name, wire)? as i64).into(),
        Shape::Number => match wire {
            Wire::Fixed64(bits) => f64::from_bits(bits).into(),
            Wire::Fixed32(bits) => f64::from(f32::from_bits(bits)).into(),
            _ => return Err(ProtoError::WrongWireType(name)),
        },
        Shape::Bytes => BASE64.encode(bytes_of(name, wire)?).into(),
        Shape::Time | Shape::MicroTime => read_time(name, shape, bytes_of(name, wire)?)?,
        Shape::Quantity => {
            let mut text = "";
            for field in Fields::new(bytes_of(name, wire)?) {
                if let (1, wire) = field? {
                    text = text_of(name, wire)?;
                }
            }
            if text.is_empty() { "0" } else { text }.into()
        }
        Shape::IntOrString => read_int_or_string(name, bytes_of(name, wire)?)?,
        Shape::Any => read_raw(name, bytes_of(name, wire)?)?,
        Shape::Object(definition) => {
            let mut object = Map::new();
            read_object(definition, bytes_of(name, wire)?, &mut object, depth)?;
            Value::Object(object)
        }
        // A list that is a map's value is a message with one repeated field, as `ExtraValue`.
        Shape::List(inner) => {
            let depth = depth.checked_sub(1).ok_or(ProtoError::Depth)?;
            let mut items = Vec::new();
            for field in Fields::new(bytes_of(name, wire)?) {
                if let (1, wire) = field? {
                    items.push(read_value(name, inner, wire, depth)?);
                }
            }
            Value::Array(items)
        }
        Shape::Map(inner) => {
            let depth = depth.checked_sub(1).ok_or(ProtoError::Depth)?;
            let (key, value) = read_entry(name, inner, wire, depth)?;
            Value::Object(Map::from_iter([(key, value)]))
        }
    })
}

/// An entry of a map: a message with the key at 1 and the value at 2, either left out if empty.
fn read_entry(
    name: &'static str,
    shape: &Shape,
    wire: Wire<'_>,
    depth: usize,
) -> Result<(String, Value), ProtoError> {
    let (mut key, mut value) = ("", None);
    for field in Fields::new(bytes_of(name, wire)?) {
        match field? {
            (1, wire) => key = text_of(name, wire)?,
            (2, wire) => value = Some(read_value(name, shape, wire, depth)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        None => {
            let zero = match shape {
                Shape::Bool | Shape::Int32 | Shape::Int64 => Wire::Varint(0),
                Shape::Number => Wire::Fixed64(0),
                _ => Wire::Bytes(&[]),
            };
            read_value(name, shape, zero, depth)?
        }
    };
    Ok((key.to_owned(), value))
}

/// `Time` and `MicroTime`: seconds at 1, nanoseconds at 2. Empty is Go's zero time, null in JSON.
fn read_time(name: &'static str, shape: &Shape, bytes: &[u8]) -> Result<Value, ProtoError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::new(bytes) {
        match field? {
            (1, wire) => seconds = varint_of(name, wire)? as i64,
            (2, wire) => nanos = varint_of(name, wire)? as i32,
            _ => {}
        }
    }
    if !(0..1_000_000_000).contains(&nanos) {
        return Err(ProtoError::Time(name));
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| ProtoError::Time(name))?;
    let format = match shape {
        Shape::MicroTime => "%Y-%m-%dT%H:%M:%S.%6fZ",
        _ => "%Y-%m-%dT%H:%M:%SZ",
    };
    Ok(time.strftime(format).to_string().into())
}

/// `IntOrString`: which of both at 1 (0 is the integer), the integer at 2, the text at 3.
fn read_int_or_string(name: &'static str, bytes: &[u8]) -> Result<Value, ProtoError> {
    let (mut is_text, mut int, mut text) = (false, 0, "");
    for field in Fields::new(bytes) {
        match field? {
            (1, wire) => is_text = varint_of(name, wire)? != 0,
            (2, wire) => int = varint_of(name, wire)? as i32,
            (3, wire) => text = text_of(name, wire)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { int.into() })
}

/// `FieldsV1` and `RawExtension`: JSON as bytes at 1.
fn read_raw(name: &'static str, bytes: &[u8]) -> Result<Value, ProtoError> {
    let mut raw: &[u8] = &[];
    for field in Fields::new(bytes) {
        if let (1, wire) = field? {
            raw = bytes_of(name, wire)?;
        }
    }
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(raw).map_err(|source| ProtoError::Json { name, source })
}

#[cfg(test)]
mod tests;

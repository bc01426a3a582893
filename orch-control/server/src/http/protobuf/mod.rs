//! Reads `application/vnd.kubernetes.protobuf`: what kubectl's typed commands (`create`, `auth`) send.
//!
//! The wire format is Protocol Buffers' (proto2 as gogo writes it) inside Kubernetes' envelope: the four bytes
//! `k8s\0`, then a `runtime.Unknown`. Field numbers come from the table beside this file, their types from the same
//! schemas that check JSON. Answers are never protobuf: whoever sends it also accepts JSON.

mod wire;

use std::{collections::HashMap, sync::OnceLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use orch_api::{
    ApiError,
    schema::definitions::{Definition, Shape, definition},
};
use serde_json::{Map, Value, json};
use wire::{Field, Malformed, fields};

/// What an encoded object begins with.
const MAGIC: &[u8] = b"k8s\0";
/// No type of the API is nested deeper.
const MAX_DEPTH: usize = 32;
/// Fields that are pointers in Go: a zero was put there on purpose. Elsewhere Go writes zeros it means as absent.
const POINTERS: &[&str] = &[
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "blockOwnerDeletion",
    "controller",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "expirationSeconds",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "leaseTransitions",
    "mode",
    "optional",
    "orphanDependents",
    "priority",
    "privileged",
    "procMount",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "terminating",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "value",
];

/// Reads an object in the envelope, with its `apiVersion` and `kind`. `definition_of` names the type of a body by them.
///
/// # Errors
/// 400 when the bytes are malformed or the type is unknown.
pub fn decode(
    body: &[u8],
    definition_of: impl Fn(&str, &str) -> Option<&'static str>,
) -> Result<Value, ApiError> {
    let refuse = |why: String| ApiError::bad_request(format!("unable to decode the protobuf body: {why}"));
    let unknown = body.strip_prefix(MAGIC).ok_or_else(|| {
        refuse(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into(),
        )
    })?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let malformed = |error: Malformed| refuse(error.to_string());
    for field in fields(unknown) {
        match field.map_err(malformed)? {
            (1, Field::Bytes(meta)) => {
                for field in fields(meta) {
                    match field.map_err(malformed)? {
                        (1, Field::Bytes(text)) => api_version = utf8(text).map_err(malformed)?,
                        (2, Field::Bytes(text)) => kind = utf8(text).map_err(malformed)?,
                        _ => {}
                    }
                }
            }
            (2, Field::Bytes(bytes)) => raw = bytes,
            (3, Field::Bytes(encoding)) if !encoding.is_empty() => {
                return Err(refuse("the content is encoded once more".into()));
            }
            _ => {}
        }
    }
    let definition = definition_of(&api_version, &kind)
        .and_then(definition)
        .ok_or_else(|| {
            refuse(format!(
                "no kind {kind:?} is registered for version {api_version:?}"
            ))
        })?;
    let mut object = message(raw, definition, MAX_DEPTH).map_err(malformed)?;
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    Ok(object)
}

/// Numbers to JSON names of one type; inlined messages are reached through a path of two or three numbers.
type Numbers = HashMap<&'static str, &'static str>;

fn numbers(definition: &str) -> Option<&'static Numbers> {
    static TABLE: OnceLock<HashMap<&'static str, Numbers>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let lines = include_str!("fields.txt")
            .lines()
            .filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| {
                let mut words = line.split(' ');
                Some((
                    words.next()?,
                    words.filter_map(|word| word.split_once('=')).collect(),
                ))
            })
            .collect()
    });
    table.get(definition)
}

fn message(bytes: &[u8], definition: &'static Definition, depth: usize) -> Result<Value, Malformed> {
    let mut object = Map::new();
    if let Some(numbers) = numbers(definition.name) {
        read_into(&mut object, bytes, definition, numbers, "", depth)?;
    }
    Ok(Value::Object(object))
}

fn read_into(
    object: &mut Map<String, Value>,
    bytes: &[u8],
    definition: &'static Definition,
    numbers: &Numbers,
    prefix: &str,
    depth: usize,
) -> Result<(), Malformed> {
    let depth = depth.checked_sub(1).ok_or(Malformed("nested too deeply"))?;
    for field in fields(bytes) {
        let (number, content) = field?;
        let path = format!("{prefix}{number}");
        let Some(name) = numbers.get(path.as_str()) else {
            let inlined = format!("{path}.");
            if let Field::Bytes(bytes) = content
                && numbers.keys().any(|key| key.starts_with(&inlined))
            {
                read_into(object, bytes, definition, numbers, &inlined, depth)?;
            }
            continue;
        };
        let Some(field) = definition.field(name) else {
            continue;
        };
        match (&field.shape, content) {
            (Shape::List(item), content) => {
                let item = value(item, content, depth)?;
                if let Value::Array(list) = object.entry(*name).or_insert_with(|| json!([])) {
                    list.push(item);
                }
            }
            (Shape::Map(item), Field::Bytes(entry)) => {
                let (key, item) = map_entry(entry, item, depth)?;
                if let Value::Object(map) = object.entry(*name).or_insert_with(|| json!({})) {
                    map.insert(key, item);
                }
            }
            (shape, content) => {
                let value = value(shape, content, depth)?;
                let zero =
                    value == json!("") || value == json!(0) || value == json!(false) || value.is_null();
                if !zero || (POINTERS.contains(name) && !value.is_null()) {
                    object.insert((*name).to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

fn map_entry(entry: &[u8], shape: &Shape, depth: usize) -> Result<(String, Value), Malformed> {
    let (mut key, mut item) = (String::new(), None);
    for field in fields(entry) {
        match field? {
            (1, Field::Bytes(text)) => key = utf8(text)?,
            (2, content) => item = Some(value(shape, content, depth)?),
            _ => {}
        }
    }
    Ok((key, item.unwrap_or_else(|| json!(""))))
}

fn value(shape: &Shape, content: Field<'_>, depth: usize) -> Result<Value, Malformed> {
    Ok(match (shape, content) {
        (Shape::String, Field::Bytes(text)) => json!(utf8(text)?),
        (Shape::Bytes, Field::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        (Shape::Bool, Field::Varint(number)) => json!(number != 0),
        (Shape::Int32 | Shape::Int64, Field::Varint(number)) => json!(number.cast_signed()),
        (Shape::Number, Field::Fixed64(bits)) => json!(f64::from_bits(bits)),
        (Shape::Time | Shape::MicroTime, Field::Bytes(bytes)) => time(bytes, *shape == Shape::MicroTime)?,
        (Shape::Quantity, Field::Bytes(bytes)) => {
            let text = first_text(bytes)?;
            if text.is_empty() { json!("0") } else { json!(text) }
        }
        (Shape::IntOrString, Field::Bytes(bytes)) => int_or_string(bytes)?,
        // A list as a map's value is a message whose first field repeats (authorization's ExtraValue).
        (Shape::List(item), Field::Bytes(bytes)) => {
            let mut list = Vec::new();
            for field in fields(bytes) {
                if let (1, content) = field? {
                    list.push(value(item, content, depth)?);
                }
            }
            json!(list)
        }
        // Raw JSON (FieldsV1, RawExtension).
        (Shape::Any, Field::Bytes(bytes)) => {
            serde_json::from_str(&first_text(bytes)?).map_err(|_| Malformed("embedded JSON is malformed"))?
        }
        (Shape::Object(name), Field::Bytes(bytes)) => match definition(name) {
            Some(definition) => message(bytes, definition, depth)?,
            None => return Err(Malformed("a type is unknown")),
        },
        _ => return Err(Malformed("a field has the wrong wire type")),
    })
}

/// `metav1.Time`: seconds, nanoseconds; a missing or zero one is no time.
fn time(bytes: &[u8], micro: bool) -> Result<Value, Malformed> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in fields(bytes) {
        match field? {
            (1, Field::Varint(number)) => seconds = number.cast_signed(),
            (2, Field::Varint(number)) => nanos = i32::try_from(number.cast_signed()).unwrap_or(0),
            _ => {}
        }
    }
    // Go's zero time is in the year 1.
    if bytes.is_empty() || seconds < -62_135_000_000 {
        return Ok(Value::Null);
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| Malformed("a time is out of range"))?;
    let format = if micro {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    Ok(json!(time.strftime(format).to_string()))
}

/// `intstr.IntOrString`: type (0 is a number), number, text.
fn int_or_string(bytes: &[u8]) -> Result<Value, Malformed> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in fields(bytes) {
        match field? {
            (1, Field::Varint(kind)) => is_text = kind == 1,
            (2, Field::Varint(value)) => number = value.cast_signed(),
            (3, Field::Bytes(value)) => text = utf8(value)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

fn first_text(bytes: &[u8]) -> Result<String, Malformed> {
    for field in fields(bytes) {
        if let (1, Field::Bytes(text)) = field? {
            return utf8(text);
        }
    }
    Ok(String::new())
}

fn utf8(bytes: &[u8]) -> Result<String, Malformed> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| Malformed("text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length-delimited field.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [
            MAGIC,
            &field(1, &meta),
            &field(2, raw),
            &field(3, b""),
            &field(4, b""),
        ]
        .concat()
    }

    fn secret(_: &str, _: &str) -> Option<&'static str> {
        Some("io.k8s.api.core.v1.Secret")
    }

    #[test]
    fn an_object_is_read_as_its_json_would_be() {
        let entry = [field(1, b"a"), field(2, &[1, 2, 3])].concat();
        let label = [field(1, b"k"), field(2, b"v")].concat();
        let metadata = [field(1, b"s"), field(2, b""), field(8, b""), field(11, &label)].concat();
        let raw = [
            field(1, &metadata),
            field(2, &entry),
            field(3, b"Opaque"),
            vec![5 << 3, 0],
        ]
        .concat();
        let object = decode(&envelope("v1", "Secret", &raw), secret).unwrap();
        let expect = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": "s", "labels": { "k": "v" } },
            "data": { "a": "AQID" },
            "type": "Opaque",
            "immutable": false,
        });
        assert_eq!(object, expect);
    }

    #[test]
    fn inlined_messages_are_part_of_their_parent() {
        let source = field(2, &field(1, b"Memory"));
        let volume = [field(1, b"v"), field(2, &source)].concat();
        let definition = definition("io.k8s.api.core.v1.Volume").unwrap();
        let expect = json!({ "name": "v", "emptyDir": { "medium": "Memory" } });
        assert_eq!(message(&volume, definition, 8).unwrap(), expect);
    }

    #[test]
    fn every_cut_is_refused_or_read_but_never_panics() {
        let metadata = [
            field(1, b"s"),
            field(11, &[field(1, b"k"), field(2, b"v")].concat()),
        ]
        .concat();
        let whole = envelope("v1", "Secret", &field(1, &metadata));
        for end in 0..whole.len() {
            let _ = decode(&whole[..end], secret);
        }
        assert!(decode(b"{}", secret).is_err());
        let mut deep = Vec::new();
        for _ in 0..20 {
            deep = field(1, &deep);
        }
        let _ = decode(&envelope("v1", "Secret", &deep), secret);
    }
}

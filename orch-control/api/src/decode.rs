//! Bodies to objects: JSON, YAML and protobuf, with the duplicate fields that strict decoding reports.

mod protobuf;
mod wire;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};

use crate::ApiError;

/// The media types of bodies that are read.
pub const ACCEPTED: [&str; 3] = ["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// Reads the body of a create or update. An empty media type means JSON, as in Kubernetes.
///
/// The second part lists findings such as `duplicate field "spec.a"`; the last value wins. Protobuf has none.
pub fn decode(body: &[u8], content_type: &str) -> Result<(Value, Vec<String>), ApiError> {
    match media_type(content_type).as_str() {
        "" | "application/json" => json(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(body),
        protobuf::MEDIA_TYPE => Ok((protobuf::decode(body)?, Vec::new())),
        _ => Err(ApiError::unsupported_media_type(&ACCEPTED)),
    }
}

/// The media type without its parameters, in lower case.
pub(crate) fn media_type(content_type: &str) -> String {
    content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Reads JSON.
pub fn json(body: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    let findings = Findings::default();
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Node::root(&findings)
        .deserialize(&mut reader)
        .and_then(|v| reader.end().map(|()| v));
    match value {
        Ok(value) => Ok((value, findings.take())),
        Err(error) => Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type Object): couldn't get version/kind; json parse error: {error}"
        ))),
    }
}

/// Reads one YAML document.
pub fn yaml(body: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    let refuse = |why: String| ApiError::bad_request(format!("error converting YAML to JSON: yaml: {why}"));
    let text = std::str::from_utf8(body).map_err(|_| refuse("invalid UTF-8".to_owned()))?;
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Merge,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
    };
    let findings = Findings::default();
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        Node::root(&findings).deserialize(reader)
    });
    match value {
        Ok(value) => Ok((value, findings.take())),
        // The library's text goes on with an excerpt of the document on lines of its own.
        Err(error) => Err(refuse(
            error.to_string().lines().next().unwrap_or("malformed").to_owned(),
        )),
    }
}

#[derive(Clone, Default)]
struct Findings(Rc<RefCell<Vec<String>>>);

impl Findings {
    fn take(&self) -> Vec<String> {
        self.0.take()
    }
}

/// A value at a path, being read.
struct Node<'a> {
    path: String,
    findings: &'a Findings,
}

impl<'a> Node<'a> {
    fn root(findings: &'a Findings) -> Self {
        Self {
            path: String::new(),
            findings,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can hold")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v)
            .map(Value::Number)
            .ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        self.deserialize(reader)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, items.len());
            match seq.next_element_seed(Node {
                path,
                findings: self.findings,
            })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(Key(key)) = map.next_key()? {
            let path = if self.path.is_empty() {
                key.clone()
            } else {
                format!("{}.{key}", self.path)
            };
            if out.contains_key(&key) {
                self.findings
                    .0
                    .borrow_mut()
                    .push(format!("duplicate field {path:?}"));
            }
            let value = map.next_value_seed(Node {
                path,
                findings: self.findings,
            })?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// A key of a mapping: YAML allows numbers and truth values there, JSON only text.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        match Node::root(&Findings::default()).deserialize(reader)? {
            Value::String(text) => Ok(Self(text)),
            other @ (Value::Number(_) | Value::Bool(_)) => Ok(Self(other.to_string())),
            other => Err(D::Error::custom(format!("invalid map key: {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_json_and_yaml() {
        let want = json!({"a": {"b": [1, "x", null, true, 1.5]}, "c": "80", "d": "yes\n"});
        let j = br#"{"a":{"b":[1,"x",null,true,1.5]},"c":"80","d":"yes\n"}"#;
        assert_eq!(
            decode(j, "application/json; charset=utf-8").unwrap(),
            (want.clone(), vec![])
        );
        let y = b"a:\n  b: [1, x, null, true, 1.5]\nc: \"80\"\nd: |\n  yes\n";
        assert_eq!(decode(y, "application/yaml").unwrap(), (want, vec![]));
        let y = b"---\na: ~\nb: {}\n80: eighty\n";
        assert_eq!(
            decode(y, "application/yaml").unwrap().0,
            json!({"a": null, "b": {}, "80": "eighty"})
        );
    }

    #[test]
    fn duplicates_are_found_and_the_last_wins() {
        let want = (
            json!({"a": 2, "l": [{"x": 1}]}),
            vec![
                "duplicate field \"a\"".to_owned(),
                "duplicate field \"l[0].x\"".to_owned(),
            ],
        );
        assert_eq!(decode(br#"{"a":1,"a":2,"l":[{"x":0,"x":1}]}"#, "").unwrap(), want);
        assert_eq!(
            decode(b"a: 1\na: 2\nl:\n- x: 0\n  x: 1\n", "application/yaml").unwrap(),
            want
        );
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        for (body, media, code) in [
            (&b"{\"a\":"[..], "application/json", 400),
            (b"{} {}", "application/json", 400),
            (b"\xff", "application/yaml", 400),
            (b"a: b: c\n  - d", "application/yaml", 400),
            (b"a: [1,", "application/yaml", 400),
            (b"{}", "application/vnd.kubernetes.protobuf", 400),
            (b"{}", "application/cbor", 415),
        ] {
            assert_eq!(
                decode(body, media).unwrap_err().code(),
                code,
                "{:?}",
                String::from_utf8_lossy(body)
            );
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(100_000);
        assert_eq!(
            decode(deep.as_bytes(), "application/json").unwrap_err().code(),
            400
        );
        assert_eq!(
            decode(deep.as_bytes(), "application/yaml").unwrap_err().code(),
            400
        );
    }
}

//! One object as every reader shares it: its encoded bytes and the little that lists and watches select by.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;

use crate::{KeyValue, Revision};

/// Field-selector values of an object, by field path (`spec.nodeName`).
pub type Fields = Vec<(&'static str, String)>;

/// Reads the fields of an object that its kind can be selected by.
pub type Extract = dyn Fn(&serde_json::Value) -> Fields + Send + Sync;

/// An object at a revision. Shared, never changed.
#[derive(Debug)]
pub struct Object {
    /// Its key in the store.
    pub key: String,
    /// `metadata.namespace`; empty for cluster-scoped objects.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// What field selectors can ask for.
    pub fields: Fields,
    /// When it was last written, or deleted.
    pub revision: Revision,
    /// The JSON, with `metadata.resourceVersion`: encoded once, for every reader and watcher.
    pub json: Bytes,
}

#[derive(Default, Deserialize)]
struct Head {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Object {
    /// Reads a stored value as of `revision`.
    ///
    /// # Errors
    /// When it is not the JSON of an object with metadata.
    pub fn parse(kv: &KeyValue, revision: Revision, extract: &Extract) -> Result<Self, serde_json::Error> {
        let value: serde_json::Value = serde_json::from_slice(&kv.value)?;
        let fields = extract(&value);
        drop(value);
        let head: Head = serde_json::from_slice(&kv.value)?;
        Ok(Self {
            key: kv.key.clone(),
            namespace: head.metadata.namespace,
            name: head.metadata.name,
            labels: head.metadata.labels.unwrap_or_default(),
            fields,
            revision,
            json: with_revision(&kv.value, revision),
        })
    }

    /// The same object with another revision, for the event of its delete.
    #[must_use]
    pub fn at(&self, revision: Revision) -> Self {
        let start = metadata_start(&self.json).filter(|at| self.json[*at..].starts_with(FIELD.as_bytes()));
        let json = start.and_then(|from| {
            let value = from + FIELD.len();
            let mut to = value + string_length(&self.json[value..])?;
            if self.json.get(to) == Some(&b',') {
                to += 1;
            }
            Some(splice(&self.json, from, to, revision))
        });
        Self {
            key: self.key.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            revision,
            json: json.unwrap_or_else(|| self.json.clone()),
        }
    }
}

/// Puts `resourceVersion` first into the object's top-level `metadata`; the stored bytes have none.
#[must_use]
pub fn with_revision(json: &Bytes, revision: Revision) -> Bytes {
    match metadata_start(json) {
        Some(at) => splice(json, at, at, revision),
        None => json.clone(),
    }
}

/// Writes the revision in place of `json[from..to]`.
fn splice(json: &[u8], from: usize, to: usize, revision: Revision) -> Bytes {
    let (head, tail) = (&json[..from], &json[to..]);
    let comma = if tail.first() == Some(&b'}') { "" } else { "," };
    let field = format!("{FIELD}\"{}\"{comma}", revision.0);
    let mut bytes = Vec::with_capacity(head.len() + field.len() + tail.len());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(field.as_bytes());
    bytes.extend_from_slice(tail);
    bytes.into()
}

const FIELD: &str = "\"resourceVersion\":";

/// Where the first field of the top-level `metadata` object begins. The bytes are what our encoder wrote: JSON
/// without white space.
fn metadata_start(json: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"\"metadata\":{";
    let (mut depth, mut at) = (0_usize, 0_usize);
    while at < json.len() {
        match json.get(at)? {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                if depth == 1 && json[at..].starts_with(NAME) {
                    return Some(at + NAME.len());
                }
                at += string_length(&json[at..])? - 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The length of the string that begins here, with both quotes.
fn string_length(json: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        match json.get(at)? {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &'static str, expect: &str) {
        assert_eq!(
            with_revision(&Bytes::from_static(given.as_bytes()), Revision(7)),
            expect
        );
    }

    #[test]
    fn the_revision_goes_into_the_top_level_metadata_only() {
        check(
            r#"{"metadata":{"name":"a"}}"#,
            r#"{"metadata":{"resourceVersion":"7","name":"a"}}"#,
        );
        check(r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"7"}}"#);
        check(
            r#"{"a":{"metadata":{"name":"\"metadata\":{"}},"metadata":{"name":"b"}}"#,
            r#"{"a":{"metadata":{"name":"\"metadata\":{"}},"metadata":{"resourceVersion":"7","name":"b"}}"#,
        );
        check(
            r#"{"data":{"x":"\\"},"metadata":{"name":"c"}}"#,
            r#"{"data":{"x":"\\"},"metadata":{"resourceVersion":"7","name":"c"}}"#,
        );
        check(r#"{"kind":"metadata"}"#, r#"{"kind":"metadata"}"#);
    }
}

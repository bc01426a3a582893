//! What the server does to every object's metadata, and how objects become bytes.

use bytes::Bytes;
use jiff::Timestamp;
use orch_api::{ApiError, Kind, kind::split_api_version};
use orch_store::{KeyValue, Revision, StoreError};
use rand::Rng as _;
use serde_json::{Map, Value, json};

/// The alphabet of generated names: no vowels, so no words, and nothing that looks like something else
/// (`k8s.io/apimachinery/pkg/util/rand`).
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Generated suffixes have this length.
const SUFFIX_LENGTH: usize = 5;
/// A generated name is never longer than this: the suffix replaces the rest of longer prefixes.
const MAX_GENERATED: usize = 63;

/// Random text for the end of a generated name.
#[must_use]
pub fn suffix() -> String {
    let mut rng = rand::rng();
    (0..SUFFIX_LENGTH)
        .map(|_| char::from(NAME_ALPHABET[rng.random_range(0..NAME_ALPHABET.len())]))
        .collect()
}

/// A name that begins with `prefix`.
#[must_use]
pub fn generate_name(prefix: &str) -> String {
    let mut end = prefix.len().min(MAX_GENERATED - SUFFIX_LENGTH);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &prefix[..end], suffix())
}

/// `timestamp` as Kubernetes writes times: UTC, whole seconds.
#[must_use]
pub fn time(timestamp: Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The object's metadata; made when it is missing.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    match &mut object["metadata"] {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// A text of the object's metadata, or "".
#[must_use]
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// Whether the object is being deleted.
#[must_use]
pub fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// The object's finalizers.
#[must_use]
pub fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// Checks that a body is of `kind` and gives it its type when it has none.
///
/// # Errors
/// 400 when it is of another kind.
pub fn check_type(object: &mut Value, group: &str, version: &str, kind: &str) -> Result<(), ApiError> {
    if !object.is_object() {
        return Err(ApiError::bad_request(
            "couldn't get version/kind; the body is not an object",
        ));
    }
    let expected = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    match object["kind"].as_str() {
        None | Some("") => object["kind"] = json!(kind),
        Some(other) if other != kind => {
            let version = split_api_version(object["apiVersion"].as_str().unwrap_or(version)).1;
            return Err(ApiError::bad_request(format!(
                "{other} in version {version:?} cannot be handled as a {kind}: converting ({other}) to ({kind}): unknown conversion"
            )));
        }
        Some(_) => {}
    }
    match object["apiVersion"].as_str() {
        None | Some("") => object["apiVersion"] = json!(expected),
        Some(other) if other != expected => {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({other}) does not match the expected API version ({expected})"
            )));
        }
        Some(_) => {}
    }
    Ok(())
}

/// The stored form: without its resource version, which the store knows, and without managed fields.
#[must_use]
pub fn encode(object: &Value) -> Bytes {
    let mut object = object.clone();
    let metadata = metadata(&mut object);
    for field in ["resourceVersion", "managedFields", "selfLink"] {
        metadata.remove(field);
    }
    object.to_string().into()
}

/// The object of a stored value, with its resource version.
///
/// # Errors
/// When the stored bytes are no JSON.
pub fn decode(kv: &KeyValue) -> Result<Value, ApiError> {
    let mut object: Value = serde_json::from_slice(&kv.value).map_err(|error| {
        ApiError::internal(format!("the stored value of {} cannot be read: {error}", kv.key))
    })?;
    set_revision(&mut object, kv.mod_revision);
    Ok(object)
}

/// Sets `metadata.resourceVersion`.
pub fn set_revision(object: &mut Value, revision: Revision) {
    metadata(object).insert("resourceVersion".into(), json!(revision.0.to_string()));
}

/// Reads a resource version.
///
/// # Errors
/// 400 when it is no number.
pub fn parse_revision(text: &str) -> Result<Revision, ApiError> {
    text.parse().map(Revision).map_err(|_| {
        ApiError::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// What the store refused, as the client is told.
#[must_use]
pub fn store_error(error: &StoreError, kind: &Kind, name: &str) -> ApiError {
    match error {
        StoreError::Conflict { current: None, .. } => ApiError::not_found(kind, name),
        StoreError::Conflict { .. } => ApiError::modified(kind, name),
        StoreError::Compacted { .. } => ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        ),
        StoreError::Future { asked, current } => ApiError::too_large_resource_version(asked.0, current.0),
        StoreError::Unavailable(_) => ApiError::service_unavailable(error.to_string()),
        StoreError::Corrupt(_) => ApiError::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit_into_a_label() {
        let name = generate_name(&"a".repeat(80));
        assert_eq!(name.len(), 63);
        assert!(
            generate_name("web-")
                .strip_prefix("web-")
                .is_some_and(|s| s.len() == 5)
        );
    }

    #[test]
    fn a_body_of_another_kind_is_refused() {
        let mut pod = json!({ "kind": "Pod", "apiVersion": "v1" });
        assert!(check_type(&mut pod, "", "v1", "Pod").is_ok());
        assert_eq!(
            check_type(&mut pod, "apps", "v1", "Deployment")
                .unwrap_err()
                .code(),
            400
        );
        let mut wrong = json!({ "kind": "Deployment", "apiVersion": "v1" });
        assert_eq!(
            check_type(&mut wrong, "apps", "v1", "Deployment")
                .unwrap_err()
                .message(),
            "the API version in the data (v1) does not match the expected API version (apps/v1)"
        );
        let mut bare = json!({});
        check_type(&mut bare, "apps", "v1", "Deployment").unwrap();
        assert_eq!(bare["apiVersion"], "apps/v1");
    }
}

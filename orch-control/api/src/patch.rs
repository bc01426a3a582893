//! Patches: JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.

pub mod strategic;

use json_patch::{Patch, PatchErrorKind};
use serde_json::Value;

use crate::decode::media_type;
use crate::{ApiError, Kind};

/// The kinds of patch that are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902, `application/json-patch+json`.
    Json,
    /// RFC 7386, `application/merge-patch+json`.
    Merge,
    /// Kubernetes' own, `application/strategic-merge-patch+json`.
    Strategic,
}

/// The media types of patches that are read.
pub const ACCEPTED: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// The most operations that a JSON patch may have, as in Kubernetes.
const MAX_OPERATIONS: usize = 10_000;

impl PatchType {
    /// The patch type of a media type (parameters ignored). Server-side apply is not supported yet and
    /// is refused by name.
    pub fn from_content_type(content_type: &str) -> Result<Self, ApiError> {
        match media_type(content_type).as_str() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            apply @ ("application/apply-patch+yaml" | "application/apply-patch+cbor") => Err(
                ApiError::media_type_not_yet_supported(format!("{apply} is not supported yet")),
            ),
            _ => Err(ApiError::unsupported_media_type(&ACCEPTED)),
        }
    }
}

/// Applies `body` to `current`, an object of `kind`. The result is neither checked nor defaulted.
pub fn apply(kind: &Kind, current: &Value, patch_type: PatchType, body: &Value) -> Result<Value, ApiError> {
    match patch_type {
        PatchType::Json => json(current, body),
        PatchType::Merge => {
            require_object(body)?;
            let mut patched = current.clone();
            json_patch::merge(&mut patched, body);
            Ok(patched)
        }
        PatchType::Strategic => {
            require_object(body)?;
            strategic::apply(kind.schema, current, body)
        }
    }
}

fn require_object(body: &Value) -> Result<(), ApiError> {
    if body.is_object() {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "error decoding patch: json: cannot unmarshal the body into Go value of type map[string]interface {}",
    ))
}

fn json(current: &Value, body: &Value) -> Result<Value, ApiError> {
    let patch: Patch = serde_json::from_value(body.clone())
        .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
    if patch.len() > MAX_OPERATIONS {
        return Err(ApiError::request_entity_too_large(MAX_OPERATIONS));
    }
    let mut patched = current.clone();
    json_patch::patch(&mut patched, &patch).map_err(|e| {
        let path = e.path.to_string();
        ApiError::unprocessable(match e.kind {
            PatchErrorKind::TestFailed => {
                format!("the server rejected our request due to an error in our request: testing value {path} failed")
            }
            kind => format!(
                "the server rejected our request due to an error in our request: operation {} on {path}: {kind}",
                e.operation
            ),
        })
    })?;
    Ok(patched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(patch_type: PatchType, current: Value, body: Value, want: Result<Value, u16>) {
        let pods = Kind::find("", "v1", "pods").unwrap();
        let got = apply(pods, &current, patch_type, &body).map_err(|e| e.code());
        assert_eq!(got, want);
    }

    #[test]
    fn json_patches() {
        let t = PatchType::Json;
        check(
            t,
            json!({"a": 1}),
            json!([{"op": "add", "path": "/b", "value": 2}]),
            Ok(json!({"a": 1, "b": 2})),
        );
        check(
            t,
            json!({"a": 1}),
            json!([{"op": "test", "path": "/a", "value": 2}]),
            Err(422),
        );
        check(
            t,
            json!({"a": 1}),
            json!([{"op": "remove", "path": "/c"}]),
            Err(422),
        );
        check(t, json!({"a": 1}), json!({"a": 2}), Err(400));
    }

    #[test]
    fn merge_patches() {
        let t = PatchType::Merge;
        check(
            t,
            json!({"a": {"b": 1, "c": 2}}),
            json!({"a": {"b": null}}),
            Ok(json!({"a": {"c": 2}})),
        );
        check(t, json!({"a": [1]}), json!({"a": [2]}), Ok(json!({"a": [2]})));
        check(t, json!({}), json!([]), Err(400));
    }

    #[test]
    fn media_types() {
        assert_eq!(
            PatchType::from_content_type("application/merge-patch+json; x=y"),
            Ok(PatchType::Merge)
        );
        let error = PatchType::from_content_type("application/apply-patch+yaml").unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (415, "application/apply-patch+yaml is not supported yet")
        );
        assert_eq!(
            PatchType::from_content_type("text/plain").unwrap_err().code(),
            415
        );
    }
}

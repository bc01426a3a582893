//! [`ApiError`]: every answer that is not a success, with the texts of `k8s.io/apimachinery/pkg/api/errors`.

use serde_json::{Value, json};

use crate::field::FieldError;
use crate::kind::Kind;

/// One entry of `details.causes` of a Status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable, e.g. `FieldValueInvalid`; may be empty.
    pub reason: String,
    /// For a person.
    pub message: String,
    /// The field at fault; may be empty.
    pub field: String,
}

/// `details` of a Status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// The object's name, if one is meant.
    pub name: String,
    /// Its API group; empty for the core group.
    pub group: String,
    /// Its resource (`pods`), or for invalid objects its kind (`Pod`).
    pub kind: String,
    /// The object's uid, where the error is about one incarnation of it.
    pub uid: String,
    /// The single faults.
    pub causes: Vec<Cause>,
    /// When to ask again, in seconds; zero for "not said".
    pub retry_after_seconds: u32,
}

/// A failed request: an HTTP status code, a machine-readable reason and a message.
///
/// The message is complete in itself and is what `kubectl` prints after `Error from server (Reason):`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    code: u16,
    reason: &'static str,
    message: String,
    details: Option<Box<Details>>,
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = Some(Box::new(Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            ..Details::default()
        }));
        self
    }

    fn with_cause(mut self, cause: Cause) -> Self {
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// 404: `pods "x" not found`
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::resource_not_found(kind.group, kind.plural, name)
    }

    /// 404 for a resource that is not in the table of kinds.
    pub fn resource_not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} {name:?} not found", qualified(resource, group)),
        )
        .about(group, resource, name)
    }

    /// 404: `the server could not find the requested resource`, for paths that name no kind.
    pub fn no_such_resource() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
        .about("", "", "")
    }

    /// 409: `deployments.apps "x" already exists`
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.qualified_resource());
        Self::new(409, "AlreadyExists", message).about(kind.group, kind.plural, name)
    }

    /// 409: `Operation cannot be fulfilled on pods "x": <detail>`
    pub fn conflict(kind: &Kind, name: &str, detail: &str) -> Self {
        let resource = kind.qualified_resource();
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {detail}");
        Self::new(409, "Conflict", message).about(kind.group, kind.plural, name)
    }

    /// [`Self::conflict`] for a stale resourceVersion.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422: `Pod "x" is invalid: spec.containers[0].image: Required value`
    pub fn invalid(kind: &Kind, name: &str, errors: Vec<FieldError>) -> Self {
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for error in &errors {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = if texts.len() == 1 {
            texts.swap_remove(0)
        } else {
            format!("[{}]", texts.join(", "))
        };
        let message = format!("{} {name:?} is invalid: {list}", qualified(kind.kind, kind.group));
        let mut error = Self::new(422, "Invalid", message).about(kind.group, kind.kind, name);
        error.details.get_or_insert_default().causes = errors
            .iter()
            .map(|e| Cause {
                reason: e.kind.reason().to_owned(),
                message: e.body(),
                field: e.field.clone(),
            })
            .collect();
        error
    }

    /// 422 with a plain message and no kind: what a patch that cannot be applied gets.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// 400 with `message`.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 403: `pods "x" is forbidden: <detail>`, or `pods is forbidden: <detail>` without a name.
    pub fn forbidden(kind: &Kind, name: &str, detail: &str) -> Self {
        Self::forbidden_resource(kind.group, kind.plural, name, detail)
    }

    /// 403 for a resource (or `resource/subresource`) that need not be in the table of kinds.
    pub fn forbidden_resource(group: &str, resource: &str, name: &str, detail: &str) -> Self {
        let subject = match (resource.is_empty(), name.is_empty()) {
            (true, _) => "forbidden".to_owned(),
            (false, true) => format!("{} is forbidden", qualified(resource, group)),
            (false, false) => format!("{} {name:?} is forbidden", qualified(resource, group)),
        };
        Self::new(403, "Forbidden", format!("{subject}: {detail}")).about(group, resource, name)
    }

    /// 401: who is asking is not known.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405 for a verb that the resource does not have.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).about("", "", "")
    }

    /// 405: `delete is not supported on resources of kind "bindings"`
    pub fn verb_not_supported(kind: &Kind, verb: &str) -> Self {
        let resource = kind.qualified_resource();
        let message = format!("{verb} is not supported on resources of kind {resource:?}");
        Self::new(405, "MethodNotAllowed", message).about(kind.group, kind.plural, "")
    }

    /// 406: none of the media types asked for can be given; `accepted` are those that can.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!(
            "only the following media types are accepted: {}",
            accepted.join(", ")
        );
        Self::new(406, "NotAcceptable", message)
    }

    /// 415: the body is of a type that is not read; `accepted` are those that are.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 415 for a media type that Kubernetes has and orch does not yet; `message` says so.
    pub fn media_type_not_yet_supported(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 413: the body has more than `limit` bytes.
    pub fn request_entity_too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 410 with reason `Expired`: a resourceVersion or continue token is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 with reason `Gone`.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(410, "Gone", message)
    }

    /// 504: `Timeout: <detail>`; the client may retry after `retry_after` seconds.
    pub fn timeout(detail: &str, retry_after: u32) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {detail}")).retry_after(retry_after)
    }

    /// 504 for a resourceVersion that the server has not seen yet:
    /// `Too large resource version: 12, current: 7`.
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {requested}, current: {current}");
        Self::timeout(&message, 1).with_cause(Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        })
    }

    /// 429 with `message`; the client may retry after `retry_after` seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        Self::new(429, "TooManyRequests", message).retry_after(retry_after)
    }

    /// 503 with `message`.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 500: `Internal error occurred: <detail>`
    pub fn internal(detail: impl std::fmt::Display) -> Self {
        let detail = detail.to_string();
        Self::new(500, "InternalError", format!("Internal error occurred: {detail}")).with_cause(Cause {
            reason: String::new(),
            message: detail,
            field: String::new(),
        })
    }

    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The machine-readable reason (`metav1.StatusReason`).
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The message for a person.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What `Retry-After` should say, in seconds.
    pub fn retry_after_seconds(&self) -> Option<u32> {
        self.details
            .as_ref()
            .map(|d| d.retry_after_seconds)
            .filter(|s| *s > 0)
    }

    /// The `metav1.Status` that a client gets.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        });
        if let Some(details) = &self.details {
            status["details"] = details.to_value();
        }
        status["code"] = json!(self.code);
        status
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut out = serde_json::Map::new();
        for (key, text) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ] {
            if !text.is_empty() {
                out.insert(key.to_owned(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            out.insert(
                "causes".to_owned(),
                self.causes.iter().map(Cause::to_value).collect(),
            );
        }
        if self.retry_after_seconds > 0 {
            out.insert("retryAfterSeconds".to_owned(), json!(self.retry_after_seconds));
        }
        Value::Object(out)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        [
            ("reason", &self.reason),
            ("message", &self.message),
            ("field", &self.field),
        ]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(key, text)| (key.to_owned(), json!(text)))
        .collect()
    }
}

/// `name.group`, or `name` alone in the core group, as GroupResource and GroupKind print.
pub(crate) fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;

    fn kind(group: &str, plural: &str) -> &'static Kind {
        Kind::find(group, "v1", plural).unwrap()
    }

    #[test]
    fn messages_are_those_of_apimachinery() {
        let pods = kind("", "pods");
        let deployments = kind("apps", "deployments");
        let image = Path::new("spec").child("containers").index(0).child("image");
        let cases = [
            (ApiError::not_found(pods, "x"), 404, r#"pods "x" not found"#),
            (
                ApiError::already_exists(deployments, "x"),
                409,
                r#"deployments.apps "x" already exists"#,
            ),
            (
                ApiError::modified(pods, "x"),
                409,
                r#"Operation cannot be fulfilled on pods "x": the object has been modified; please apply your changes to the latest version and try again"#,
            ),
            (
                ApiError::invalid(pods, "x", vec![FieldError::required(&image, "")]),
                422,
                r#"Pod "x" is invalid: spec.containers[0].image: Required value"#,
            ),
            (
                ApiError::invalid(
                    deployments,
                    "x",
                    vec![
                        FieldError::required(&image, ""),
                        FieldError::duplicate(&image, "y"),
                    ],
                ),
                422,
                r#"Deployment.apps "x" is invalid: [spec.containers[0].image: Required value, spec.containers[0].image: Duplicate value: "y"]"#,
            ),
            (ApiError::forbidden(pods, "", "no"), 403, "pods is forbidden: no"),
            (ApiError::timeout("slow", 2), 504, "Timeout: slow"),
        ];
        for (error, code, message) in cases {
            assert_eq!((error.code(), error.message()), (code, message));
            let status = error.to_status();
            assert_eq!(status["code"], code);
            assert_eq!(status["message"], message);
            assert_eq!(status["kind"], "Status");
        }
    }

    #[test]
    fn details_name_the_object_and_the_causes() {
        let image = Path::new("spec").child("image");
        let status = ApiError::invalid(
            kind("apps", "deployments"),
            "x",
            vec![FieldError::required(&image, "")],
        )
        .to_status();
        assert_eq!(
            status["details"],
            json!({
                "name": "x", "group": "apps", "kind": "Deployment",
                "causes": [{"reason": "FieldValueRequired", "message": "Required value", "field": "spec.image"}],
            })
        );
        assert_eq!(
            ApiError::not_found(kind("", "pods"), "p").to_status()["details"],
            json!({"name": "p", "kind": "pods"})
        );
    }
}

//! Field paths and field errors, printed as `k8s.io/apimachinery/pkg/util/validation/field` prints them.

use std::fmt;

use serde_json::{Value, json};

/// A path to a field of an object: `spec.containers[0].image`, `metadata.labels[app]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path that starts at a top-level field; an empty name is the object itself.
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The named field below this one; `name` may itself be dotted.
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Self(name.to_owned())
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }

    /// The element of this list at `index`.
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The entry of this map under `key`.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a field (`field.ErrorType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// A value is required and missing.
    Required,
    /// The value is malformed or out of bounds.
    Invalid,
    /// The value is not one of a fixed set.
    NotSupported,
    /// The value must be unique and is not.
    Duplicate,
    /// The value may not be set, or not be changed.
    Forbidden,
    /// The value is too long, in bytes.
    TooLong,
    /// The list or map has too many entries.
    TooMany,
    /// The value names something that does not exist.
    NotFound,
}

impl FieldErrorKind {
    /// The text that opens the message, e.g. `Required value`.
    pub fn text(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::NotFound => "Not found",
        }
    }

    /// The machine-readable reason of a status cause, e.g. `FieldValueRequired`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong)
    }
}

/// One fault of an object, at one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: FieldErrorKind,
    /// Where.
    pub field: String,
    /// The offending value; shown by the kinds of fault that show one.
    pub value: Value,
    /// More words; may be empty.
    pub detail: String,
}

impl FieldError {
    fn new(kind: FieldErrorKind, path: &Path, value: Value, detail: impl Into<String>) -> Self {
        Self {
            kind,
            field: path.0.clone(),
            value,
            detail: detail.into(),
        }
    }

    /// `path: Required value[: detail]`
    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, path, Value::Null, detail)
    }

    /// `path: Invalid value: <value>: detail`
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, path, value.into(), detail)
    }

    /// `path: Unsupported value: <value>: supported values: "a", "b"`
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if list.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", list.join(", "))
        };
        Self::new(FieldErrorKind::NotSupported, path, value.into(), detail)
    }

    /// `path: Duplicate value: <value>`
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, path, value.into(), "")
    }

    /// `path: Forbidden: detail`
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, path, Value::Null, detail)
    }

    /// `path: Too long: may not be more than <max> bytes`
    pub fn too_long(path: &Path, max: usize) -> Self {
        Self::new(
            FieldErrorKind::TooLong,
            path,
            Value::Null,
            format!("may not be more than {max} bytes"),
        )
    }

    /// `path: Too many: <actual>: must have at most <max> items`
    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        Self::new(
            FieldErrorKind::TooMany,
            path,
            json!(actual),
            format!("must have at most {max} items"),
        )
    }

    /// `path: Not found: <value>`
    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, path, value.into(), "")
    }

    /// The message without the path (`field.Error.ErrorBody`).
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        if self.kind.shows_value() {
            text.push_str(": ");
            match &self.value {
                Value::String(s) => text.push_str(&format!("{s:?}")),
                other => text.push_str(&other.to_string()),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_field_error_does() {
        let p = Path::new("spec").child("containers").index(0).child("image");
        let cases = [
            (
                FieldError::required(&p, ""),
                "spec.containers[0].image: Required value",
            ),
            (
                FieldError::invalid(&p, "a b", "no spaces"),
                r#"spec.containers[0].image: Invalid value: "a b": no spaces"#,
            ),
            (
                FieldError::invalid(&p, -1, "must be positive"),
                "spec.containers[0].image: Invalid value: -1: must be positive",
            ),
            (
                FieldError::not_supported(&p, "x", &["a", "b"]),
                r#"spec.containers[0].image: Unsupported value: "x": supported values: "a", "b""#,
            ),
            (
                FieldError::duplicate(&p, "x"),
                r#"spec.containers[0].image: Duplicate value: "x""#,
            ),
            (
                FieldError::too_long(&p, 3),
                "spec.containers[0].image: Too long: may not be more than 3 bytes",
            ),
            (
                FieldError::too_many(&p, 5, 3),
                "spec.containers[0].image: Too many: 5: must have at most 3 items",
            ),
            (
                FieldError::invalid(&p, json!({"a": "b"}), "d"),
                r#"spec.containers[0].image: Invalid value: {"a":"b"}: d"#,
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }
}

//! Field selectors: `metadata.name=a,spec.nodeName!=b`.

use serde_json::Value;

use crate::{ApiError, Kind};

/// A field selector: all its terms must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<Term>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    field: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// Parses the `fieldSelector` parameter for objects of `kind`.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, ApiError> {
        let known = kind.strategy.fields(&Value::Null);
        let mut terms = Vec::new();
        for part in split_terms(text).into_iter().filter(|p| !p.is_empty()) {
            let Some((field, equal, value)) = split_term(&part) else {
                return Err(ApiError::bad_request(format!(
                    "unable to parse field selector: invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            let applies = field != "metadata.namespace" || kind.namespaced;
            if !(applies && known.iter().any(|(name, _)| *name == field)) {
                return Err(ApiError::bad_request(format!(
                    "field label not supported: {field}"
                )));
            }
            terms.push(Term {
                field: field.to_owned(),
                equal,
                value: unescape(value),
            });
        }
        Ok(Self(terms))
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that `field` must equal, if the selector says so (e.g. `metadata.name`).
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|t| t.equal && t.field == field)
            .map(|t| t.value.as_str())
    }

    /// Whether an object of `kind` is selected.
    pub fn matches(&self, kind: &Kind, obj: &Value) -> bool {
        if self.0.is_empty() {
            return true;
        }
        self.matches_fields(&kind.strategy.fields(obj))
    }

    /// Whether an object with these values of its kind's [`crate::Strategy::fields`] is selected.
    pub fn matches_fields(&self, fields: &[(&'static str, String)]) -> bool {
        self.0.iter().all(|term| {
            let value = fields
                .iter()
                .find(|(name, _)| *name == term.field)
                .map_or("", |(_, v)| v.as_str());
            (value == term.value) == term.equal
        })
    }
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

fn split_term(part: &str) -> Option<(&str, bool, &str)> {
    let at = part.find(['=', '!'])?;
    let (field, rest) = part.split_at(at);
    let (equal, value) = match (
        rest.strip_prefix("!="),
        rest.strip_prefix("=="),
        rest.strip_prefix('='),
    ) {
        (Some(value), ..) => (false, value),
        (_, Some(value), _) | (_, _, Some(value)) => (true, value),
        _ => return None,
    };
    Some((field.trim(), equal, value))
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' {
            chars.next().unwrap_or('\\')
        } else {
            c
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selects_pods() {
        let pods = Kind::find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"nodeName": "w"}, "status": {"phase": "Running"}});
        for (selector, matches) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,spec.nodeName=w", true),
            ("metadata.name!=a", false),
            ("spec.nodeName=", false),
            ("status.phase!=Succeeded,status.phase!=Failed", true),
        ] {
            let parsed = FieldSelector::parse(pods, selector).unwrap();
            assert_eq!(parsed.matches(pods, &pod), matches, "{selector}");
        }
        assert_eq!(
            FieldSelector::parse(pods, "metadata.name=a")
                .unwrap()
                .exact("metadata.name"),
            Some("a")
        );
    }

    #[test]
    fn refuses_other_fields() {
        let pods = Kind::find("", "v1", "pods").unwrap();
        let nodes = Kind::find("", "v1", "nodes").unwrap();
        for (kind, selector, message) in [
            (pods, "spec.foo=a", "field label not supported: spec.foo"),
            (
                nodes,
                "metadata.namespace=a",
                "field label not supported: metadata.namespace",
            ),
            (
                pods,
                "x",
                "unable to parse field selector: invalid selector: 'x'; can't understand 'x'",
            ),
        ] {
            let error = FieldSelector::parse(kind, selector).unwrap_err();
            assert_eq!((error.code(), error.message()), (400, message));
        }
    }
}

//! Rules of label selectors in objects (`metav1.LabelSelector`).

use serde_json::Value;

use super::{faults, metadata, names};
use crate::field::{FieldError, Path};
use crate::value::{list, text};

/// The faults of a selector; an absent or empty one has none.
pub(crate) fn label_selector(selector: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    metadata::labels(&selector["matchLabels"], &path.child("matchLabels"), errors);
    for (i, expression) in list(selector, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = list(expression, &["values"]);
        match text(expression, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(&path.child("values"), why));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(&path.child("values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid(
                    &path.child("operator"),
                    other,
                    "not a valid selector operator",
                ));
            }
        }
        let key = text(expression, &["key"]);
        faults(&path.child("key"), key, names::label_key_faults(key), errors);
        for (i, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            faults(
                &path.child("values").index(i),
                value,
                names::label_value_faults(value),
                errors,
            );
        }
    }
}

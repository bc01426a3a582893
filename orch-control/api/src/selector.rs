//! Label and field selectors: the query parameters and `metav1.LabelSelector`.

mod fields;
mod labels;

pub use fields::FieldSelector;
pub use labels::{LabelSelector, Operator, Requirement};

use serde_json::Value;

use crate::value::text;

/// The fields that objects of every kind can be selected by.
pub(crate) fn metadata_fields(obj: &Value) -> Vec<(&'static str, String)> {
    vec![
        ("metadata.name", text(obj, &["metadata", "name"]).to_owned()),
        (
            "metadata.namespace",
            text(obj, &["metadata", "namespace"]).to_owned(),
        ),
    ]
}

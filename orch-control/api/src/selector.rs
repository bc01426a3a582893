//! Selectors.
use serde_json::Value;
use crate::{ApiError, Kind};
/// The fields every kind can be selected by.
pub(crate) fn metadata_fields(obj: &Value) -> Vec<(&'static str, String)> {
    let _ = obj; vec![]
}
/// A label selector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector;
impl LabelSelector {
    /// Parses the `labelSelector` parameter.
    pub fn parse(text: &str) -> Result<Self, ApiError> { let _ = text; Ok(Self) }
    /// From a `metav1.LabelSelector`; null selects nothing, an empty one everything.
    pub fn from_value(selector: &Value) -> Result<Self, ApiError> { let _ = selector; Ok(Self) }
    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool { true }
    /// Whether `labels` (an object of strings, or null) are selected.
    pub fn matches(&self, labels: &Value) -> bool { let _ = labels; true }
}
/// A field selector.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector;
impl FieldSelector {
    /// Parses the `fieldSelector` parameter for objects of `kind`.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, ApiError> { let _ = (kind, text); Ok(Self) }
    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool { true }
    /// The value that `field` must equal, if the selector says so (e.g. `metadata.name`).
    pub fn exact(&self, field: &str) -> Option<&str> { let _ = field; None }
    /// Whether an object of `kind` is selected.
    pub fn matches(&self, kind: &Kind, obj: &Value) -> bool { let _ = (kind, obj); true }
}

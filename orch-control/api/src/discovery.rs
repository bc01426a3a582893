//! Discovery documents, legacy and aggregated.
use serde_json::{Value, json};
/// `/api`: APIVersions. `server_address` is `host:port`.
pub fn api_versions(server_address: &str) -> Value { json!({"a":server_address}) }
/// `/apis`: APIGroupList.
pub fn api_groups() -> Value { json!({}) }
/// `/apis/GROUP`: APIGroup.
pub fn api_group(group: &str) -> Option<Value> { let _ = group; None }
/// `/api/v1`, `/apis/GROUP/VERSION`: APIResourceList.
pub fn resources(group: &str, version: &str) -> Option<Value> { let _ = (group, version); None }
/// `/api` in the aggregated form (`apidiscovery.k8s.io/v2` APIGroupDiscoveryList).
pub fn aggregated_api() -> Value { json!({}) }
/// `/apis` in the aggregated form (`apidiscovery.k8s.io/v2` APIGroupDiscoveryList).
pub fn aggregated_apis() -> Value { json!({}) }

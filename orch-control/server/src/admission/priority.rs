//! Priority: the number behind `priorityClassName`.
//!
//! PriorityClass objects are not served yet, so only the two system classes have a number besides zero.

use orch_api::ApiError;
use serde_json::json;

use super::{Attempt, Operation};

/// The classes that always exist (`k8s.io/kubernetes/pkg/apis/scheduling`).
const SYSTEM: [(&str, i64); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

/// Sets `spec.priority` and `spec.preemptionPolicy`.
pub(super) fn admit(attempt: &mut Attempt<'_>) -> Result<(), ApiError> {
    if !attempt.is("pods", Operation::Create) {
        return Ok(());
    }
    let class = attempt.object["spec"]["priorityClassName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let priority = match SYSTEM.iter().find(|(name, _)| *name == class) {
        Some((_, priority)) => *priority,
        None if class.is_empty() => 0,
        None => return Err(attempt.forbidden(&format!("no PriorityClass with name {class} was found"))),
    };
    if attempt.object["spec"]["priority"]
        .as_i64()
        .is_some_and(|asked| asked != priority)
    {
        return Err(attempt.forbidden(&format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name",
            attempt.object["spec"]["priority"]
        )));
    }
    let spec = &mut attempt.object["spec"];
    spec["priority"] = json!(priority);
    if !spec["preemptionPolicy"].is_string() {
        spec["preemptionPolicy"] = json!("PreemptLowerPriority");
    }
    Ok(())
}

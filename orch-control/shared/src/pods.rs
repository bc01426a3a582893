//! Reading a pod: its conditions, whether it is over, who controls it.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;

/// The pod's condition of this type.
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == type_)
}

/// Whether the pod's Ready condition is True, whatever else is happening to it.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Whether the pod has been ready for `min_ready_seconds` at `now`; if it is ready but not for long enough, the
/// second value is how many seconds are missing.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> (bool, Option<i64>) {
    let Some(ready) = condition(pod, "Ready").filter(|c| c.status == "True") else {
        return (false, None);
    };
    if min_ready_seconds <= 0 {
        return (true, None);
    }
    let Some(since) = &ready.last_transition_time else {
        return (false, None);
    };
    let missing = i64::from(min_ready_seconds) - (now.as_second() - since.0.as_second());
    if missing <= 0 {
        (true, None)
    } else {
        (false, Some(missing))
    }
}

/// The pod's phase; empty before the first status.
pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or_default()
}

/// Whether no container of the pod runs or will run again.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether somebody asked for the object's deletion.
pub fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// The node the pod is bound to.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

/// The owner that controls the object; an object has at most one.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .as_ref()?
        .iter()
        .find(|o| o.controller == Some(true))
}

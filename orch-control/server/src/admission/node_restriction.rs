//! NodeRestriction: what of a node's writes only shows once the object is known.

use orch_api::ApiError;
use serde_json::Value;

use super::{Attempt, Operation};
use crate::object::{Call, meta};

/// The annotation of pods that come from a folder on the node.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Refuses nodes that write for others.
pub(super) fn admit(attempt: &mut Attempt<'_>) -> Result<(), ApiError> {
    let Some(node) = attempt.call.user.node() else {
        return Ok(());
    };
    let kind = attempt.call.stored();
    let name = meta::text(attempt.object, "name");
    let created = attempt.operation == Operation::Create;
    match (kind.group, kind.plural) {
        ("", "nodes") if name != node => {
            Err(attempt.forbidden(&format!("node {node:?} is not allowed to modify node {name:?}")))
        }
        ("coordination.k8s.io", "leases") if name != node => {
            Err(attempt.forbidden("can only access node lease with the same name as the requesting node"))
        }
        // The pod may have come after the authorizer looked.
        ("", "pods") if attempt.old.is_some_and(|old| old["spec"]["nodeName"] != node) => Err(attempt
            .forbidden(&format!(
                "node {node:?} can only update pods with spec.nodeName set to itself"
            ))),
        ("", "pods") if created => {
            if !attempt.object["metadata"]["annotations"][MIRROR].is_string() {
                return Err(attempt.forbidden(&format!(
                    "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
                )));
            }
            if attempt.object["spec"]["nodeName"] != node {
                return Err(attempt.forbidden(&format!(
                    "node {node:?} can only create pods with spec.nodeName set to itself"
                )));
            }
            for volume in attempt.object["spec"]["volumes"].as_array().into_iter().flatten() {
                if ["secret", "configMap", "persistentVolumeClaim"]
                    .iter()
                    .any(|source| !volume[*source].is_null())
                {
                    return Err(
                        attempt.forbidden("a mirror pod may not reference secrets, configmaps or claims")
                    );
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Refuses nodes that delete pods of others.
pub(super) fn admit_delete(call: &Call, object: &Value) -> Result<(), ApiError> {
    let Some(node) = call.user.node() else {
        return Ok(());
    };
    let kind = call.stored();
    if (kind.group, kind.plural) == ("", "pods") && object["spec"]["nodeName"] != node {
        let detail = format!("node {node:?} can only delete pods with spec.nodeName set to itself");
        return Err(ApiError::forbidden(call.kind, &call.name, &detail));
    }
    Ok(())
}

//! NamespaceLifecycle: nothing is created in a namespace that is not there or is going, and some never go.

use orch_api::ApiError;
use serde_json::Value;

use super::{Attempt, Operation};
use crate::object::{Call, meta};

/// Namespaces without which the cluster does not work.
const PROTECTED: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Refuses to create in a namespace that cannot take it.
pub(super) async fn admit(attempt: &mut Attempt<'_>) -> Result<(), ApiError> {
    let call = attempt.call;
    if attempt.operation != Operation::Create || !call.kind.namespaced {
        return Ok(());
    }
    let namespaces = call.state.core("namespaces")?;
    // It may have been created, or deleted, a moment ago.
    namespaces.fresh().await?;
    let namespace = namespaces
        .get_value("", &call.namespace)
        .ok_or_else(|| ApiError::not_found(namespaces.kind, &call.namespace))?;
    if is_going(&namespace) {
        let detail = format!(
            "unable to create new content in namespace {} because it is being terminated",
            call.namespace
        );
        return Err(attempt.forbidden(&detail));
    }
    Ok(())
}

fn is_going(namespace: &Value) -> bool {
    meta::is_terminating(namespace) || namespace["status"]["phase"] == "Terminating"
}

/// Refuses to delete the namespaces that must stay.
pub(super) fn admit_delete(call: &Call) -> Result<(), ApiError> {
    let kind = call.stored();
    if (kind.group, kind.plural) == ("", "namespaces") && PROTECTED.contains(&call.name.as_str()) {
        return Err(ApiError::forbidden(
            call.kind,
            &call.name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}

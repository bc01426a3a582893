//! DefaultIngressClass: an Ingress that names no class gets the one that is marked as the default.

use orch_api::{ApiError, Kind};
use serde_json::{Value, json};

use super::{Attempt, Operation};

/// The annotation that marks a class.
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// The annotation from before `spec.ingressClassName`.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";

/// Sets `spec.ingressClassName`. Of several default classes the newest is taken, then the first by name.
pub(super) async fn admit(attempt: &mut Attempt<'_>) -> Result<(), ApiError> {
    let kind = attempt.call.stored();
    let is_new = attempt.subresource.is_none() && attempt.operation == Operation::Create;
    if !is_new || (kind.group, kind.plural) != ("networking.k8s.io", "ingresses") {
        return Ok(());
    }
    let object = &mut *attempt.object;
    let old = object["metadata"]["annotations"][OLD_CLASS].as_str();
    // What is malformed is refused by validation, in its own words.
    if !object["spec"]["ingressClassName"].is_null()
        || old.is_some_and(|class| !class.is_empty())
        || !object["spec"].is_object()
    {
        return Ok(());
    }
    let classes = Kind::find("networking.k8s.io", "v1", "ingressclasses")
        .ok_or_else(|| ApiError::internal("no kind is called ingressclasses"))?;
    let classes = attempt.call.state.collection(classes)?;
    classes.fresh().await?;
    let (found, _) = classes.cache.list(&classes.kind.key_prefix(None), |_| true);
    let mut defaults: Vec<(String, String)> = Vec::new();
    for class in found {
        let class: Value = serde_json::from_slice(&class.json).map_err(ApiError::internal)?;
        let metadata = &class["metadata"];
        if metadata["annotations"][IS_DEFAULT] == "true" {
            let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
            defaults.push((text("creationTimestamp"), text("name")));
        }
    }
    defaults.sort_by(|(time, name), (other, its)| other.cmp(time).then_with(|| name.cmp(its)));
    if let Some((_, name)) = defaults.first() {
        object["spec"]["ingressClassName"] = json!(name);
    }
    Ok(())
}

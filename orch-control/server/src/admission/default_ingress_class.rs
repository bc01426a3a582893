//! DefaultIngressClass: an Ingress that names no class gets the one that is marked as the default.

use orch_api::{ApiError, Kind};
use serde_json::{Value, json};

use super::{Attempt, Operation};

/// The annotation that marks a class.
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// The annotation from before `spec.ingressClassName`.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";

/// Sets `spec.ingressClassName`.
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
    if let Some(name) = choose(defaults) {
        object["spec"]["ingressClassName"] = json!(name);
    }
    Ok(())
}

/// The newest of (time of creation, name); of equally old ones the first by name.
fn choose(defaults: Vec<(String, String)>) -> Option<String> {
    let order = |(time, name): &(String, String)| (std::cmp::Reverse(time.clone()), name.clone());
    defaults.into_iter().min_by_key(order).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_default_counts() {
        let of = |all: &[(&str, &str)]| {
            choose(
                all.iter()
                    .map(|(time, name)| ((*time).into(), (*name).into()))
                    .collect(),
            )
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
        assert_eq!(of(&[(old, "a"), (new, "b")]).as_deref(), Some("b"));
        assert_eq!(of(&[(new, "c"), (old, "a"), (new, "b")]).as_deref(), Some("b"));
        assert_eq!(of(&[]), None);
    }
}

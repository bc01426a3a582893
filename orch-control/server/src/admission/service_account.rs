//! ServiceAccount: every pod runs as one, and finds a token of it in `/var/run/secrets`.

use std::time::Duration;

use orch_api::ApiError;
use serde_json::{Value, json};

use super::{Attempt, Operation};
use crate::object::meta;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long the mounted token lasts: an hour and a little, so that who checks at the full hour still has one.
const TOKEN_SECONDS: u32 = 3607;
/// A namespace's default account is made by a controller a moment after the namespace.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// The annotation of pods that come from a folder on the node: they get no account.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Gives the pod its account, its pull secrets and its token volume.
pub(super) async fn admit(attempt: &mut Attempt<'_>) -> Result<(), ApiError> {
    if !attempt.is("pods", Operation::Create) || attempt.object["metadata"]["annotations"][MIRROR].is_string()
    {
        return Ok(());
    }
    let spec = &mut attempt.object["spec"];
    let name = ["serviceAccountName", "serviceAccount"]
        .iter()
        .find_map(|field| spec[*field].as_str().filter(|name| !name.is_empty()))
        .unwrap_or("default")
        .to_owned();
    spec["serviceAccountName"] = json!(name);
    spec["serviceAccount"] = json!(name);
    let account = find(attempt, &name).await?;

    let spec = &mut attempt.object["spec"];
    if spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && account["imagePullSecrets"]
            .as_array()
            .is_some_and(|secrets| !secrets.is_empty())
    {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let mounts = spec["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if mounts {
        mount(spec);
    }
    Ok(())
}

async fn find(attempt: &Attempt<'_>, name: &str) -> Result<Value, ApiError> {
    let call = attempt.call;
    let accounts = call.state.core("serviceaccounts")?;
    accounts.fresh().await?;
    for _ in 0..TRIES {
        if let Some(account) = accounts.get_value(&call.namespace, name) {
            return Ok(account);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(attempt.forbidden(&format!(
        "error looking up service account {}/{name}: serviceaccount {name:?} not found",
        call.namespace
    )))
}

fn has_mount(container: &Value) -> bool {
    container["volumeMounts"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|mount| mount["mountPath"] == MOUNT_PATH)
}

fn mount(spec: &mut Value) {
    let volume = format!("kube-api-access-{}", meta::suffix());
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if !container.is_object() || has_mount(container) {
                continue;
            }
            used = true;
            if !container["volumeMounts"].is_array() {
                container["volumeMounts"] = json!([]);
            }
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({ "name": volume, "readOnly": true, "mountPath": MOUNT_PATH }));
            }
        }
    }
    if !used {
        return;
    }
    if !spec["volumes"].is_array() {
        spec["volumes"] = json!([]);
    }
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        let namespace = json!({ "apiVersion": "v1", "fieldPath": "metadata.namespace" });
        volumes.push(json!({
            "name": volume,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
                    { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                    { "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": namespace }] } },
                ],
            },
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_mounts_its_own_keeps_it() {
        let own = json!([{ "name": "mine", "mountPath": MOUNT_PATH }]);
        let mut spec = json!({ "containers": [{ "name": "a" }, { "name": "b", "volumeMounts": own }] });
        mount(&mut spec);
        let name = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(name.starts_with("kube-api-access-"));
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], name);
        assert_eq!(spec["containers"][1]["volumeMounts"], own);
    }
}

//! Which pods run where and refer to what, read from the pod cache.

use serde_json::Value;

use super::node::NodeGraph;
use crate::state::State;

impl NodeGraph for State {
    fn node_of(&self, namespace: &str, pod: &str) -> Option<String> {
        let pod = self.core("pods").ok()?.get_value(namespace, pod)?;
        Some(pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
    }

    fn pod_refers_to(&self, node: &str, namespace: &str, resource: &str, name: &str) -> bool {
        let Ok(pods) = self.core("pods") else { return false };
        let bound = |field: &(&'static str, String)| field.0 == "spec.nodeName" && field.1 == node;
        let prefix = pods.kind.key_prefix(Some(namespace));
        let (objects, _) = pods.cache.list(&prefix, |object| object.fields.iter().any(bound));
        objects.iter().any(|object| {
            serde_json::from_slice::<Value>(&object.json)
                .is_ok_and(|pod| refers(&pod["spec"], resource, name))
        })
    }
}

/// Whether a pod's spec names the config map, secret or service account.
fn refers(spec: &Value, resource: &str, name: &str) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    if resource == "serviceaccounts" {
        return spec["serviceAccountName"] == name;
    }
    let (volume, volume_name, env, env_from) = match resource {
        "configmaps" => ("configMap", "name", "configMapKeyRef", "configMapRef"),
        "secrets" => ("secret", "secretName", "secretKeyRef", "secretRef"),
        _ => return false,
    };
    let volumes = list(&spec["volumes"]).iter().any(|v| {
        v[volume][volume_name] == name
            || list(&v["projected"]["sources"])
                .iter()
                .any(|source| source[volume]["name"] == name)
    });
    let containers = ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .any(|field| {
            list(&spec[*field]).iter().any(|container| {
                list(&container["env"])
                    .iter()
                    .any(|e| e["valueFrom"][env]["name"] == name)
                    || list(&container["envFrom"])
                        .iter()
                        .any(|e| e[env_from]["name"] == name)
            })
        });
    let pulls = resource == "secrets"
        && list(&spec["imagePullSecrets"])
            .iter()
            .any(|secret| secret["name"] == name);
    volumes || containers || pulls
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_way_to_refer_counts() {
        let spec = json!({
            "serviceAccountName": "sa",
            "imagePullSecrets": [{ "name": "pull" }],
            "volumes": [
                { "configMap": { "name": "cm" } },
                { "projected": { "sources": [{ "secret": { "name": "projected" } }] } },
            ],
            "containers": [{
                "env": [{ "valueFrom": { "secretKeyRef": { "name": "env" } } }],
                "envFrom": [{ "configMapRef": { "name": "from" } }],
            }],
        });
        for (resource, name) in [
            ("serviceaccounts", "sa"),
            ("secrets", "pull"),
            ("secrets", "projected"),
            ("secrets", "env"),
            ("configmaps", "cm"),
            ("configmaps", "from"),
        ] {
            assert!(refers(&spec, resource, name), "{resource} {name}");
            assert!(!refers(&spec, resource, "other"), "{resource}");
        }
        assert!(!refers(&spec, "secrets", "cm"));
    }
}

//! Defaults of networking.k8s.io.

use serde_json::{Value, json};

use crate::value::{child_mut, is_empty, list_mut, object_mut, set_default};

/// networking.k8s.io/v1 NetworkPolicy: it is about ingress, and about egress if it has rules for that.
pub(crate) fn network_policy(obj: &mut Value) {
    let spec = object_mut(obj).entry("spec").or_insert_with(|| json!({}));
    for direction in ["ingress", "egress"] {
        for rule in list_mut(spec, direction) {
            for port in list_mut(rule, "ports") {
                set_default(object_mut(port), "protocol", "TCP");
            }
        }
    }
    let spec = child_mut(obj, "spec");
    // The Go type always prints the selector.
    spec.entry("podSelector").or_insert_with(|| json!({}));
    if spec.get("policyTypes").is_none_or(is_empty) {
        let types = if spec.get("egress").is_none_or(is_empty) {
            json!(["Ingress"])
        } else {
            json!(["Ingress", "Egress"])
        };
        spec.insert("policyTypes".to_owned(), types);
    }
}

/// networking.k8s.io/v1 IngressClass: its parameters are the cluster's unless they say otherwise.
pub(crate) fn ingress_class(obj: &mut Value) {
    let parameters = child_mut(obj, "spec").get_mut("parameters");
    if let Some(parameters) = parameters.filter(|p| p.is_object()) {
        set_default(object_mut(parameters), "scope", "Cluster");
    }
}

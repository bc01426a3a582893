//! What of an object nobody on a node reads, which is dropped before it is kept: there are tens of thousands of them.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// The label that ties a slice to its service (`EndpointSlice` API).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Start of the labels by which a service says who is to serve it.
const SERVED_BY: &str = "service.kubernetes.io/";

/// Leaves of a service's labels those that say who serves it.
pub(crate) fn service(service: &mut Service) {
    meta(&mut service.metadata);
    only(&mut service.metadata.labels, |name| name.starts_with(SERVED_BY));
    if let Some(spec) = &mut service.spec {
        fit(&mut spec.ports);
        fit(&mut spec.cluster_ips);
        fit(&mut spec.ip_families);
        fit(&mut spec.external_ips);
        fit(&mut spec.load_balancer_source_ranges);
    }
    if let Some(status) = &mut service.status {
        status.conditions = None;
    }
}

/// Leaves of a slice's labels the one that names its service.
pub(crate) fn slice(slice: &mut EndpointSlice) {
    meta(&mut slice.metadata);
    only(&mut slice.metadata.labels, |name| name == SERVICE_NAME_LABEL);
    fit(&mut slice.ports);
    fit(&mut slice.endpoints);
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.addresses.shrink_to_fit();
        endpoint.deprecated_topology = None;
        if let Some(target) = &mut endpoint.target_ref {
            target.api_version = None;
            target.field_path = None;
            target.resource_version = None;
        }
    }
}

/// Drops what a node's own kubelet alone cares for.
pub(crate) fn node(node: &mut Node) {
    meta(&mut node.metadata);
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

fn meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.annotations = None;
    meta.owner_references = None;
    meta.generate_name = None;
    meta.self_link = None;
}

fn only(labels: &mut Option<BTreeMap<String, String>>, read: impl Fn(&str) -> bool) {
    if let Some(all) = labels {
        all.retain(|name, _| read(name));
    }
    // An empty map whose entries were removed keeps their memory.
    if labels.as_ref().is_some_and(BTreeMap::is_empty) {
        *labels = None;
    }
}

/// A decoder does not know how many are to come, and makes room for twice as many as there were.
fn fit<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_read_stays() {
        let mut object: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "annotations": {"a": "b"}, "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "s"}],
                "labels": {"kubernetes.io/service-name": "web", "app": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "z", "hostname": "h",
                "targetRef": {"kind": "Pod", "name": "web-a", "namespace": "shop", "uid": "p", "resourceVersion": "3"},
                "hints": {"forZones": [{"name": "z"}]}, "conditions": {"ready": true}}],
        }))
        .unwrap();
        slice(&mut object);
        assert_eq!(
            serde_json::to_value(&object).unwrap(),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": "web-1", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                    "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
                "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1", "zone": "z", "hostname": "h",
                    "targetRef": {"kind": "Pod", "name": "web-a", "namespace": "shop", "uid": "p"},
                    "hints": {"forZones": [{"name": "z"}]}, "conditions": {"ready": true}}],
            })
        );
        for (labels, left) in [
            (json!({"app": "web"}), json!(null)),
            (
                json!({"app": "web", "service.kubernetes.io/headless": ""}),
                json!({"service.kubernetes.io/headless": ""}),
            ),
        ] {
            let mut object: Service =
                serde_json::from_value(json!({"metadata": {"name": "web", "labels": labels}})).unwrap();
            service(&mut object);
            assert_eq!(serde_json::to_value(&object.metadata.labels).unwrap(), left);
        }
    }
}

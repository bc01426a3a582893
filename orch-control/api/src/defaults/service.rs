//! Defaults of services. Addresses, node ports and IP families come from the allocator, not from here.

use serde_json::{Value, json};

use crate::value::{child_mut, list_mut, object_mut, set_default, text};

/// How long a client sticks to a backend, in seconds.
const STICKY_SECONDS: i64 = 10800;

/// core/v1 Service.
pub(crate) fn service(obj: &mut Value) {
    let spec = child_mut(obj, "spec");
    set_default(spec, "sessionAffinity", "None");
    set_default(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "None" {
        spec.remove("sessionAffinityConfig");
    } else {
        let config = object_mut(spec.entry("sessionAffinityConfig").or_insert(Value::Null));
        let client = object_mut(config.entry("clientIP").or_insert(Value::Null));
        set_default(client, "timeoutSeconds", STICKY_SECONDS);
    }
    for port in spec
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let port = object_mut(port);
        set_default(port, "protocol", "TCP");
        let unset = match port.get("targetPort") {
            None | Some(Value::Null) => true,
            Some(target) => *target == json!(0) || *target == json!(""),
        };
        if unset && let Some(number) = port.get("port").cloned() {
            port.insert("targetPort".to_owned(), number);
        }
    }
    let service_type = spec["type"].as_str().unwrap_or_default().to_owned();
    let external_ips = spec
        .get("externalIPs")
        .and_then(Value::as_array)
        .is_some_and(|a| !a.is_empty());
    if matches!(service_type.as_str(), "NodePort" | "LoadBalancer") || external_ips {
        set_default(spec, "externalTrafficPolicy", "Cluster");
    }
    if service_type != "ExternalName" {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    if service_type == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
        let ingress = obj
            .get_mut("status")
            .and_then(|s| s.get_mut("loadBalancer"))
            .map(|l| list_mut(l, "ingress"));
        for one in ingress.unwrap_or_default() {
            if !text(one, &["ip"]).is_empty() {
                set_default(object_mut(one), "ipMode", "VIP");
            }
        }
    }
}

//! Defaults of services. Addresses, node ports and IP families come from the allocator, not from here.

use serde_json::{Value, json};

use crate::value::{at, child_mut, is_empty, object_mut, set_default, text};

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
    }
}

/// Carries over what the allocator gave `old` where an update does not name it (`patchAllocatedValues`).
pub(crate) fn keep_allocations(new: &mut Value, old: &Value) {
    let external = |o: &Value| o["spec"]["type"] == "ExternalName";
    if external(new) || external(old) {
        return;
    }
    let spec = child_mut(new, "spec");
    if spec.get("clusterIP").is_none_or(is_empty) && spec.get("clusterIPs").is_none_or(is_empty) {
        for key in ["clusterIP", "clusterIPs"] {
            let before = at(old, &["spec", key]);
            if !is_empty(before) {
                spec.insert(key.to_owned(), before.clone());
            }
        }
    }
    for key in ["ipFamilies", "ipFamilyPolicy"] {
        let before = at(old, &["spec", key]);
        if spec.get(key).is_none_or(is_empty) && !is_empty(before) {
            spec.insert(key.to_owned(), before.clone());
        }
    }
    if !matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
        // The ports go with the type, unless the request names them, which validation refuses.
        for port in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let kept = crate::value::list(old, &["spec", "ports"]).iter();
            let fields = object_mut(port);
            if kept
                .into_iter()
                .any(|o| o.get("nodePort").is_some() && o.get("nodePort") == fields.get("nodePort"))
            {
                fields.remove("nodePort");
            }
        }
        return;
    }
    for port in spec
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let same =
            |o: &&Value| text(o, &["protocol"]) == text(port, &["protocol"]) && o["port"] == port["port"];
        let number = crate::value::list(old, &["spec", "ports"])
            .iter()
            .find(same)
            .map(|o| o["nodePort"].clone());
        if let Some(number) = number.filter(Value::is_number)
            && port["nodePort"].as_i64().unwrap_or(0) == 0
        {
            object_mut(port).insert("nodePort".to_owned(), number);
        }
    }
}

//! Rules of services. What the cluster has of families, addresses and node ports is the allocator's to say.

mod addresses;
mod status;
mod traffic;

pub(crate) use addresses::cluster_ips;

use serde_json::Value;

use super::address::shared_address_fault;
use super::{faults, immutable_forbidden, metadata, names, one_of, port_number, port_or_name};
use crate::field::{FieldError, Path};
use crate::service::{is_headless, needs_health_check, service_type};
use crate::value::{is_empty, list, text};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
/// Where a kubelet listens: a load balancer on a node's own addresses may not hide it.
const KUBELET_PORT: i64 = 10250;
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";

/// core/v1 Service.
pub(crate) fn service(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_label_faults);
    let (path, spec) = (Path::new("spec"), &obj["spec"]);
    traffic::topology_annotations(obj, &mut errors);
    if list(spec, &["ports"]).is_empty() && !is_headless(obj) && service_type(obj) != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    of_type(obj, &path, &mut errors);
    ports(obj, &path.child("ports"), &mut errors);
    metadata::labels(&spec["selector"], &path.child("selector"), &mut errors);
    traffic::session_affinity(spec, &path, &mut errors);
    errors.extend(cluster_ips(obj));
    for (i, ip) in list(spec, &["externalIPs"]).iter().enumerate() {
        let path = path.child("externalIPs").index(i);
        let ip = ip.as_str().unwrap_or_default();
        errors.extend(shared_address_fault(ip).map(|why| FieldError::invalid(&path, ip, why)));
    }
    one_of(&path.child("type"), &spec["type"], &TYPES, true, &mut errors);
    addresses::source_ranges(obj, &path, &mut errors);
    load_balancer(obj, &path, &mut errors);
    traffic::policies(obj, &path, &mut errors);
    status::load_balancer(obj, &mut errors);
    errors
}

/// The faults of an update. Addresses and networks that were there before the rules for them became as strict as they
/// are may stay.
pub(crate) fn service_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = service(new);
    for field in ["externalIPs", "loadBalancerSourceRanges"] {
        if new["spec"][field] == old["spec"][field] {
            let element = format!("spec.{field}[");
            errors.retain(|error| !error.field.starts_with(&element));
        }
    }
    errors.extend(update(new, old));
    errors
}

/// What an update may not change.
fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    errors.extend(addresses::update(new, old));
    let path = Path::new("spec");
    let is_balancer = |o: &Value| service_type(o) == "LoadBalancer";
    let class = |o: &Value| text(o, &["spec", "loadBalancerClass"]).to_owned();
    if is_balancer(new) && is_balancer(old) && class(new) != class(old) {
        errors.push(FieldError::invalid(
            &path.child("loadBalancerClass"),
            new["spec"]["loadBalancerClass"].clone(),
            "may not change once set",
        ));
    }
    if needs_health_check(new) && needs_health_check(old) {
        let field = "healthCheckNodePort";
        immutable_forbidden(
            &path.child(field),
            &new["spec"][field],
            &old["spec"][field],
            &mut errors,
        );
    }
    errors
}

fn of_type(obj: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let (spec, kind) = (&obj["spec"], service_type(obj));
    if kind == "LoadBalancer" {
        for (i, port) in list(spec, &["ports"]).iter().enumerate() {
            if port["port"].as_i64() == Some(KUBELET_PORT) {
                let path = path.child("ports").index(i).child("port");
                let why =
                    format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
                errors.push(FieldError::invalid(&path, KUBELET_PORT, why));
            }
        }
    }
    if matches!(kind, "NodePort" | "LoadBalancer") && is_headless(obj) {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid(
            &path.child("clusterIPs").index(0),
            "None",
            why,
        ));
    }
    if kind == "ExternalName" {
        for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if !is_empty(&spec[field]) {
                let why = "may not be set for ExternalName services";
                errors.push(FieldError::forbidden(&path.child(field), why));
            }
        }
        let path = path.child("externalName");
        let name = text(spec, &["externalName"]);
        match name.strip_suffix('.').unwrap_or(name) {
            "" => errors.push(FieldError::required(&path, "")),
            name => faults(&path, name, names::dns_subdomain_faults(name), errors),
        }
    }
}

fn load_balancer(obj: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let (spec, is_balancer) = (&obj["spec"], service_type(obj) == "LoadBalancer");
    let allocate = path.child("allocateLoadBalancerNodePorts");
    match (is_balancer, spec["allocateLoadBalancerNodePorts"].is_null()) {
        (true, true) => errors.push(FieldError::required(&allocate, "")),
        (false, false) => errors.push(FieldError::forbidden(&allocate, ONLY_LOAD_BALANCER)),
        _ => {}
    }
    if let Some(class) = spec["loadBalancerClass"].as_str() {
        let path = path.child("loadBalancerClass");
        if is_balancer {
            faults(&path, class, names::label_key_faults(class), errors);
        } else {
            errors.push(FieldError::forbidden(&path, ONLY_LOAD_BALANCER));
        }
    }
}

fn ports(obj: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let all = list(obj, &["spec", "ports"]);
    let mut seen_names: Vec<&str> = Vec::new();
    let mut seen: Vec<(&str, Option<i64>)> = Vec::new();
    let mut seen_nodes: Vec<(&str, i64)> = Vec::new();
    for (i, port) in all.iter().enumerate() {
        let path = path.index(i);
        let name = text(port, &["name"]);
        if name.is_empty() {
            if all.len() > 1 {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
        } else {
            faults(&path.child("name"), name, names::dns_label_faults(name), errors);
            if seen_names.contains(&name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            seen_names.push(name);
        }
        port_number(&path.child("port"), &port["port"], errors);
        one_of(
            &path.child("protocol"),
            &port["protocol"],
            &["SCTP", "TCP", "UDP"],
            true,
            errors,
        );
        port_or_name(&path.child("targetPort"), &port["targetPort"], errors);
        if let Some(protocol) = port["appProtocol"].as_str() {
            let found = names::label_key_faults(protocol);
            faults(&path.child("appProtocol"), protocol, found, errors);
        }
        let protocol = text(port, &["protocol"]);
        let key = (protocol, port["port"].as_i64());
        if seen.contains(&key) {
            let shown: Value = ["port", "protocol"]
                .iter()
                .map(|k| ((*k).to_owned(), port[*k].clone()))
                .collect();
            errors.push(FieldError::duplicate(&path, shown));
        }
        seen.push(key);
        let Some(node) = port["nodePort"].as_i64().filter(|n| *n != 0) else {
            continue;
        };
        let path = path.child("nodePort");
        if service_type(obj) == "ClusterIP" {
            errors.push(FieldError::forbidden(
                &path,
                "may not be used when `type` is 'ClusterIP'",
            ));
        }
        if seen_nodes.contains(&(protocol, node)) {
            errors.push(FieldError::duplicate(&path, node));
        }
        seen_nodes.push((protocol, node));
    }
}

#[cfg(test)]
mod tests;

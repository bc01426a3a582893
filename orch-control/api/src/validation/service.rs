//! Rules of services. Ranges of addresses and node ports are the allocator's.

use std::net::IpAddr;

use serde_json::Value;

use super::{faults, immutable, metadata, names, one_of, port_number, port_or_name};
use crate::field::{FieldError, Path};
use crate::value::{list, text};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// core/v1 Service.
pub(crate) fn service(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_label_faults);
    let (path, spec) = (Path::new("spec"), &obj["spec"]);
    let kind = text(spec, &["type"]);
    let headless = spec["clusterIP"] == "None";
    one_of(&path.child("type"), &spec["type"], &TYPES, true, &mut errors);
    one_of(
        &path.child("sessionAffinity"),
        &spec["sessionAffinity"],
        &["ClientIP", "None"],
        true,
        &mut errors,
    );
    metadata::labels(&spec["selector"], &path.child("selector"), &mut errors);
    if list(spec, &["ports"]).is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    ports(spec, headless, &path.child("ports"), &mut errors);
    if kind == "ExternalName" {
        let name = text(spec, &["externalName"]).trim_end_matches('.');
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("externalName"), ""));
        } else {
            faults(
                &path.child("externalName"),
                name,
                names::dns_subdomain_faults(name),
                &mut errors,
            );
        }
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        let why = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid(
            &path.child("clusterIPs").index(0),
            "None",
            why,
        ));
    }
    let cluster_ip = text(spec, &["clusterIP"]);
    if !matches!(cluster_ip, "" | "None") && cluster_ip.parse::<IpAddr>().is_err() {
        errors.push(FieldError::invalid(
            &path.child("clusterIPs").index(0),
            cluster_ip,
            NOT_AN_IP,
        ));
    }
    for (i, ip) in list(spec, &["externalIPs"]).iter().enumerate() {
        let ip = ip.as_str().unwrap_or_default();
        if ip.parse::<IpAddr>().is_err() {
            errors.push(FieldError::invalid(
                &path.child("externalIPs").index(i),
                ip,
                NOT_AN_IP,
            ));
        }
    }
    for key in ["externalTrafficPolicy", "internalTrafficPolicy"] {
        one_of(
            &path.child(key),
            &spec[key],
            &["Cluster", "Local"],
            false,
            &mut errors,
        );
    }
    let families = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    one_of(
        &path.child("ipFamilyPolicy"),
        &spec["ipFamilyPolicy"],
        &families,
        false,
        &mut errors,
    );
    for (i, family) in list(spec, &["ipFamilies"]).iter().enumerate() {
        one_of(
            &path.child("ipFamilies").index(i),
            family,
            &["IPv4", "IPv6"],
            true,
            &mut errors,
        );
    }
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if timeout.as_i64().is_some_and(|s| !(1..=86400).contains(&s)) {
        let path = path
            .child("sessionAffinityConfig")
            .child("clientIP")
            .child("timeoutSeconds");
        errors.push(FieldError::invalid(
            &path,
            timeout.clone(),
            "must be greater than 0 && less than 86400",
        ));
    }
    errors
}

/// What an update may not change: the primary address, unless the type comes from or goes to ExternalName.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    let external = |o: &Value| o["spec"]["type"] == "ExternalName";
    let before = text(old, &["spec", "clusterIP"]);
    if !external(new) && !external(old) && !before.is_empty() {
        let path = Path::new("spec").child("clusterIPs").index(0);
        immutable(
            &path,
            &new["spec"]["clusterIP"],
            &old["spec"]["clusterIP"],
            &mut errors,
        );
    }
    errors
}

fn ports(spec: &Value, headless: bool, path: &Path, errors: &mut Vec<FieldError>) {
    let all = list(spec, &["ports"]);
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
        if headless && port["targetPort"].is_i64() && port["targetPort"] != port["port"] {
            // Kubernetes allows it and ignores the difference: nothing translates ports of pods.
            continue;
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
        if text(spec, &["type"]) == "ClusterIP" {
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

//! Rules of new pods and of pod templates.

use std::net::IpAddr;

use serde_json::Value;

use super::{container, faults, metadata, names, non_negative, one_of, volume};
use crate::field::{FieldError, Path};
use crate::value::{list, text};

/// core/v1 Pod.
pub(crate) fn pod(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    spec(&obj["spec"], &Path::new("spec"), &mut errors);
    errors
}

/// The spec of a pod or of a pod template, at `path`.
pub(crate) fn spec(spec: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let volumes = volume::all(spec, path, errors);
    if list(spec, &["containers"]).is_empty() {
        errors.push(FieldError::required(&path.child("containers"), ""));
    }
    let mut seen = Vec::new();
    for key in ["containers", "initContainers", "ephemeralContainers"] {
        container::all(spec, key, path, &volumes, &mut seen, errors);
    }
    let restart = ["Always", "OnFailure", "Never"];
    one_of(
        &path.child("restartPolicy"),
        &spec["restartPolicy"],
        &restart,
        true,
        errors,
    );
    let dns = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(&path.child("dnsPolicy"), &spec["dnsPolicy"], &dns, true, errors);
    if spec["dnsPolicy"] == "None" && list(spec, &["dnsConfig", "nameservers"]).is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(
            &path.child("dnsConfig").child("nameservers"),
            why,
        ));
    }
    for (i, server) in list(spec, &["dnsConfig", "nameservers"]).iter().enumerate() {
        ip(
            server.as_str().unwrap_or_default(),
            &path.child("dnsConfig").child("nameservers").index(i),
            errors,
        );
    }
    non_negative(
        &path.child("terminationGracePeriodSeconds"),
        &spec["terminationGracePeriodSeconds"],
        errors,
    );
    if let Some(seconds) = spec["activeDeadlineSeconds"]
        .as_i64()
        .filter(|s| !(1..=i64::from(i32::MAX)).contains(s))
    {
        let why = format!("must be between 1 and {}, inclusive", i32::MAX);
        errors.push(FieldError::invalid(
            &path.child("activeDeadlineSeconds"),
            seconds,
            why,
        ));
    }
    for (key, rule) in [
        (
            "serviceAccountName",
            names::dns_subdomain_faults as fn(&str) -> Vec<String>,
        ),
        ("nodeName", names::dns_subdomain_faults),
        ("priorityClassName", names::dns_subdomain_faults),
        ("hostname", names::dns_label_faults),
        ("subdomain", names::dns_label_faults),
    ] {
        let name = text(spec, &[key]);
        if !name.is_empty() {
            faults(&path.child(key), name, rule(name), errors);
        }
    }
    metadata::labels(&spec["nodeSelector"], &path.child("nodeSelector"), errors);
    host_network_ports(spec, path, errors);
    host_aliases(spec, path, errors);
    tolerations(spec, path, errors);
}

fn ip(address: &str, path: &Path, errors: &mut Vec<FieldError>) {
    if address.parse::<IpAddr>().is_err() {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(path, address, why));
    }
}

fn host_network_ports(spec: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let mut taken: Vec<(i64, &str, &str)> = Vec::new();
    for (i, container) in list(spec, &["containers"]).iter().enumerate() {
        for (j, port) in list(container, &["ports"]).iter().enumerate() {
            let Some(host) = port["hostPort"].as_i64().filter(|n| *n != 0) else {
                continue;
            };
            let path = path.child("containers").index(i).child("ports").index(j);
            if spec["hostNetwork"] == true && port["containerPort"] != port["hostPort"] {
                let why = "must match `hostPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(
                    &path.child("containerPort"),
                    port["containerPort"].clone(),
                    why,
                ));
            }
            let key = (host, text(port, &["protocol"]), text(port, &["hostIP"]));
            if taken.contains(&key) {
                let shown = format!("{}/{}/{host}", key.1, key.2);
                errors.push(FieldError::duplicate(&path.child("hostPort"), shown));
            }
            taken.push(key);
        }
    }
}

fn host_aliases(spec: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    for (i, alias) in list(spec, &["hostAliases"]).iter().enumerate() {
        let path = path.child("hostAliases").index(i);
        ip(text(alias, &["ip"]), &path.child("ip"), errors);
        for (j, name) in list(alias, &["hostnames"]).iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            faults(
                &path.child("hostnames").index(j),
                name,
                names::dns_subdomain_faults(name),
                errors,
            );
        }
    }
}

fn tolerations(spec: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    for (i, toleration) in list(spec, &["tolerations"]).iter().enumerate() {
        let path = path.child("tolerations").index(i);
        let key = text(toleration, &["key"]);
        let operator = text(toleration, &["operator"]);
        if !key.is_empty() {
            faults(&path.child("key"), key, names::label_key_faults(key), errors);
        } else if operator != "Exists" {
            let why =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&path.child("operator"), operator, why));
        }
        one_of(
            &path.child("operator"),
            &toleration["operator"],
            &["Equal", "Exists"],
            false,
            errors,
        );
        if operator == "Exists" && !text(toleration, &["value"]).is_empty() {
            let why = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(
                &path.child("operator"),
                text(toleration, &["value"]),
                why,
            ));
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        one_of(
            &path.child("effect"),
            &toleration["effect"],
            &effects,
            false,
            errors,
        );
        if !toleration["tolerationSeconds"].is_null() && toleration["effect"] != "NoExecute" {
            let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(
                &path.child("effect"),
                text(toleration, &["effect"]),
                why,
            ));
        }
    }
}

//! Rules of containers.

use std::str::FromStr as _;

use serde_json::Value;

use super::{faults, names, non_negative, one_of, port_number, port_or_name};
use crate::field::{FieldError, Path};
use crate::quantity::Quantity;
use crate::value::{entries, is_empty, list, text};

/// All containers of one list of a pod spec; `names` collects names over all the lists.
pub(crate) fn all(
    spec: &Value,
    key: &str,
    path: &Path,
    volumes: &[&str],
    names: &mut Vec<String>,
    errors: &mut Vec<FieldError>,
) {
    for (i, container) in list(spec, &[key]).iter().enumerate() {
        let path = path.child(key).index(i);
        name(container, &path, names, errors);
        body(container, &path, volumes, errors);
        let init = key == "initContainers";
        let sidecar = text(container, &["restartPolicy"]) == "Always";
        if init && !sidecar {
            for probe in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
                if !container[probe].is_null() {
                    errors.push(FieldError::forbidden(
                        &path.child(probe),
                        "may not be set for init containers without restartPolicy=Always",
                    ));
                }
            }
        }
    }
}

fn name(container: &Value, path: &Path, seen: &mut Vec<String>, errors: &mut Vec<FieldError>) {
    let path = path.child("name");
    let name = text(container, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(&path, ""));
        return;
    }
    faults(&path, name, names::dns_label_faults(name), errors);
    if seen.iter().any(|s| s == name) {
        errors.push(FieldError::duplicate(&path, name));
    }
    seen.push(name.to_owned());
}

fn body(container: &Value, path: &Path, volumes: &[&str], errors: &mut Vec<FieldError>) {
    let image = text(container, &["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(&path.child("image"), ""));
    } else if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(&path.child("image"), image, why));
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    one_of(
        &path.child("imagePullPolicy"),
        &container["imagePullPolicy"],
        &policies,
        false,
        errors,
    );
    let messages = ["FallbackToLogsOnError", "File"];
    one_of(
        &path.child("terminationMessagePolicy"),
        &container["terminationMessagePolicy"],
        &messages,
        false,
        errors,
    );
    ports(container, &path.child("ports"), errors);
    env(container, path, errors);
    mounts(container, &path.child("volumeMounts"), volumes, errors);
    resources(&container["resources"], &path.child("resources"), errors);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        probe(&container[name], &path.child(name), name, errors);
    }
    for hook in ["postStart", "preStop"] {
        let value = &container["lifecycle"][hook];
        if !value.is_null() {
            handler(
                value,
                &path.child("lifecycle").child(hook),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                errors,
            );
        }
    }
}

fn ports(container: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in list(container, &["ports"]).iter().enumerate() {
        let path = path.index(i);
        let name = text(port, &["name"]);
        if !name.is_empty() {
            faults(&path.child("name"), name, names::port_name_faults(name), errors);
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            seen.push(name);
        }
        if port["containerPort"].as_i64().unwrap_or(0) == 0 {
            errors.push(FieldError::required(&path.child("containerPort"), ""));
        } else {
            port_number(&path.child("containerPort"), &port["containerPort"], errors);
        }
        if port["hostPort"].as_i64().is_some_and(|n| n != 0) {
            port_number(&path.child("hostPort"), &port["hostPort"], errors);
        }
        one_of(
            &path.child("protocol"),
            &port["protocol"],
            &["SCTP", "TCP", "UDP"],
            true,
            errors,
        );
    }
}

fn env(container: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    for (i, var) in list(container, &["env"]).iter().enumerate() {
        let path = path.child("env").index(i);
        let name = text(var, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            faults(&path.child("name"), name, names::env_name_faults(name), errors);
        }
        let from = &var["valueFrom"];
        if from.is_null() {
            continue;
        }
        let path = path.child("valueFrom");
        let sources = entries(from, &[]).filter(|(_, v)| !v.is_null()).count();
        if sources == 0 {
            errors.push(FieldError::invalid(
                &path,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            ));
        } else if !text(var, &["value"]).is_empty() {
            errors.push(FieldError::invalid(
                &path,
                "",
                "may not be specified when `value` is not empty",
            ));
        } else if sources > 1 {
            errors.push(FieldError::invalid(
                &path,
                "",
                "may not have more than one field specified at a time",
            ));
        }
        for reference in ["configMapKeyRef", "secretKeyRef"] {
            if !from[reference].is_null() && text(from, &[reference, "key"]).is_empty() {
                errors.push(FieldError::required(&path.child(reference).child("key"), ""));
            }
        }
        if !from["fieldRef"].is_null() && text(from, &["fieldRef", "fieldPath"]).is_empty() {
            errors.push(FieldError::required(
                &path.child("fieldRef").child("fieldPath"),
                "",
            ));
        }
    }
    for (i, source) in list(container, &["envFrom"]).iter().enumerate() {
        let path = path.child("envFrom").index(i);
        match (source["configMapRef"].is_null(), source["secretRef"].is_null()) {
            (true, true) => errors.push(FieldError::invalid(
                &path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            (false, false) => {
                errors.push(FieldError::invalid(
                    &path,
                    "",
                    "may not have more than one field specified at a time",
                ));
            }
            _ => {}
        }
    }
}

fn mounts(container: &Value, path: &Path, volumes: &[&str], errors: &mut Vec<FieldError>) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, mount) in list(container, &["volumeMounts"]).iter().enumerate() {
        let path = path.index(i);
        let name = text(mount, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else if !volumes.contains(&name) {
            errors.push(FieldError::not_found(&path.child("name"), name));
        }
        let target = text(mount, &["mountPath"]);
        if target.is_empty() {
            errors.push(FieldError::required(&path.child("mountPath"), ""));
        } else if seen.contains(&target) {
            errors.push(FieldError::invalid(
                &path.child("mountPath"),
                target,
                "must be unique",
            ));
        }
        seen.push(target);
        for key in ["subPath", "subPathExpr"] {
            let sub = text(mount, &[key]);
            if sub.starts_with('/') {
                errors.push(FieldError::invalid(
                    &path.child(key),
                    sub,
                    "must be a relative path",
                ));
            }
            if sub.split('/').any(|part| part == "..") {
                errors.push(FieldError::invalid(
                    &path.child(key),
                    sub,
                    "must not contain '..'",
                ));
            }
        }
    }
}

fn resources(resources: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    for key in ["limits", "requests"] {
        for (name, amount) in entries(resources, &[key]) {
            let path = path.child(key).key(name);
            faults(&path, name, names::label_key_faults(name), errors);
            let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
            if !standard && !name.contains('/') && !name.starts_with("hugepages-") {
                let why = "must be a standard resource type or fully qualified";
                errors.push(FieldError::invalid(&path, name.as_str(), why));
            }
            if quantity(amount).is_some_and(|q| q.is_negative()) {
                errors.push(FieldError::invalid(
                    &path,
                    amount.clone(),
                    "must be greater than or equal to 0",
                ));
            }
        }
    }
    for (name, request) in entries(resources, &["requests"]) {
        let limit = &resources["limits"][name];
        if let (Some(wanted), Some(most)) = (quantity(request), quantity(limit))
            && wanted > most
        {
            let why = format!("must be less than or equal to {name} limit of {most}");
            errors.push(FieldError::invalid(&path.child("requests"), request.clone(), why));
        }
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    value.as_str().and_then(|text| Quantity::from_str(text).ok())
}

fn probe(probe: &Value, path: &Path, kind: &str, errors: &mut Vec<FieldError>) {
    if probe.is_null() {
        return;
    }
    handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        non_negative(&path.child(key), &probe[key], errors);
    }
    if kind != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        errors.push(FieldError::invalid(
            &path.child("successThreshold"),
            probe["successThreshold"].clone(),
            "must be 1",
        ));
    }
}

fn handler(handler: &Value, path: &Path, kinds: &[&str], errors: &mut Vec<FieldError>) {
    let mut set = kinds.iter().filter(|k| !handler[**k].is_null());
    let Some(kind) = set.next() else {
        errors.push(FieldError::required(path, "must specify a handler type"));
        return;
    };
    for more in set {
        errors.push(FieldError::forbidden(
            &path.child(more),
            "may not specify more than 1 handler type",
        ));
    }
    let (path, action) = (path.child(kind), &handler[*kind]);
    match *kind {
        "exec" if is_empty(&action["command"]) => {
            errors.push(FieldError::required(&path.child("command"), ""))
        }
        "httpGet" => {
            if text(action, &["path"]).is_empty() {
                errors.push(FieldError::required(&path.child("path"), ""));
            }
            port_or_name(&path.child("port"), &action["port"], errors);
            one_of(
                &path.child("scheme"),
                &action["scheme"],
                &["HTTP", "HTTPS"],
                false,
                errors,
            );
        }
        "tcpSocket" => port_or_name(&path.child("port"), &action["port"], errors),
        "grpc" => port_number(&path.child("port"), &action["port"], errors),
        _ => {}
    }
}

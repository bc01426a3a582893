//! Rules of the smaller kinds.

use std::net::IpAddr;

use serde_json::Value;

use super::address::{range, range_faults, shared_address_fault};
use super::{faults, immutable, metadata, names, non_negative, one_of, port_number};
use crate::field::{FieldError, Path};
use crate::value::{entries, list, text};

/// The most bytes of a ConfigMap's or Secret's data.
const DATA_MAX: usize = 1024 * 1024;
/// Keys of the maps `keys` of a ConfigMap or Secret, and their size together.
fn data(obj: &Value, maps: &[&str], errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for map in maps {
        for (key, value) in entries(obj, &[map]) {
            let path = Path::new(map).key(key);
            faults(&path, key, names::config_key_faults(key), errors);
            let size = value.as_str().map_or(0, str::len);
            // `data` of a Secret and `binaryData` are base64, four characters for three bytes.
            let encoded = *map == "binaryData" || !obj["type"].is_null();
            total += if encoded { size / 4 * 3 } else { size };
            if *map == "binaryData" && !obj["data"][key].is_null() {
                errors.push(FieldError::invalid(
                    &path,
                    key.as_str(),
                    "duplicate of key present in data",
                ));
            }
        }
    }
    if total > DATA_MAX {
        errors.push(FieldError::too_long(&Path::new(""), DATA_MAX));
    }
}

fn frozen(new: &Value, old: &Value, maps: &[&str], errors: &mut Vec<FieldError>) {
    if old["immutable"] != true {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if new["immutable"] != true {
        errors.push(FieldError::forbidden(&Path::new("immutable"), why));
    }
    for map in maps {
        let empty = |v: &Value| v.is_null() || v.as_object().is_some_and(serde_json::Map::is_empty);
        if new[*map] != old[*map] && !(empty(&new[*map]) && empty(&old[*map])) {
            errors.push(FieldError::forbidden(&Path::new(map), why));
        }
    }
}

/// core/v1 ConfigMap.
pub(crate) fn config_map(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    data(obj, &["data", "binaryData"], &mut errors);
    errors
}

/// An update of a ConfigMap.
pub(crate) fn config_map_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    frozen(new, old, &["data", "binaryData"], &mut errors);
    errors
}

/// core/v1 Secret: the keys that each type must have.
pub(crate) fn secret(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    data(obj, &["data"], &mut errors);
    let required: &[&str] = match text(obj, &["type"]) {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in required.iter().filter(|key| obj["data"][**key].is_null()) {
        errors.push(FieldError::required(&Path::new("data").key(key), ""));
    }
    if obj["type"] == "kubernetes.io/basic-auth"
        && obj["data"]["username"].is_null()
        && obj["data"]["password"].is_null()
    {
        for key in ["username", "password"] {
            errors.push(FieldError::required(&Path::new("data").key(key), ""));
        }
    }
    let account = "kubernetes.io/service-account.name";
    if obj["type"] == "kubernetes.io/service-account-token"
        && obj["metadata"]["annotations"][account].is_null()
    {
        errors.push(FieldError::required(
            &Path::new("metadata").child("annotations").key(account),
            "",
        ));
    }
    errors
}

/// An update of a Secret.
pub(crate) fn secret_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    immutable(&Path::new("type"), &new["type"], &old["type"], &mut errors);
    frozen(new, old, &["data"], &mut errors);
    errors
}

/// core/v1 Namespace.
pub(crate) fn namespace(obj: &Value) -> Vec<FieldError> {
    metadata::object(obj, false, names::dns_label_faults)
}

/// core/v1 Node.
pub(crate) fn node(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, false, names::dns_subdomain_faults);
    let mut seen = Vec::new();
    for (i, taint) in list(obj, &["spec", "taints"]).iter().enumerate() {
        let path = Path::new("spec").child("taints").index(i);
        let key = text(taint, &["key"]);
        faults(&path.child("key"), key, names::label_key_faults(key), &mut errors);
        let value = text(taint, &["value"]);
        faults(
            &path.child("value"),
            value,
            names::label_value_faults(value),
            &mut errors,
        );
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        one_of(
            &path.child("effect"),
            &taint["effect"],
            &effects,
            true,
            &mut errors,
        );
        let id = (key, text(taint, &["effect"]));
        if seen.contains(&id) {
            errors.push(FieldError::duplicate(&path, taint.clone()));
        }
        seen.push(id);
    }
    pod_cidrs(obj, &mut errors);
    errors
}

/// A node's pod networks: one of each family at the most.
fn pod_cidrs(obj: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("spec").child("podCIDRs");
    let all = list(obj, &["spec", "podCIDRs"]);
    let mut families = Vec::new();
    for (i, cidr) in all.iter().enumerate() {
        let cidr = cidr.as_str().unwrap_or_default();
        families.extend(range(cidr).map(|net| net.addr().is_ipv4()));
        faults(&path.index(i), cidr, range_faults(cidr), errors);
    }
    let alike = families.len() > 1 && (families.len() > 2 || families[0] == families[1]);
    if alike {
        let why = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(&path, obj["spec"]["podCIDRs"].clone(), why));
    }
}

/// An update of a Node: its pod network may be set once.
pub(crate) fn node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    let before = list(old, &["spec", "podCIDRs"]);
    if !before.is_empty() && list(new, &["spec", "podCIDRs"]) != before {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden(&Path::new("spec").child("podCIDRs"), why));
    }
    let (now, before) = (
        text(new, &["spec", "providerID"]),
        text(old, &["spec", "providerID"]),
    );
    if !before.is_empty() && now != before {
        let why = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden(&Path::new("spec").child("providerID"), why));
    }
    errors
}

/// core/v1 ServiceAccount.
pub(crate) fn service_account(obj: &Value) -> Vec<FieldError> {
    metadata::object(obj, true, names::dns_subdomain_faults)
}

/// coordination.k8s.io/v1 Lease.
pub(crate) fn lease(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), &obj["spec"]);
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        let path = path.child("leaseDurationSeconds");
        errors.push(FieldError::invalid(
            &path,
            spec["leaseDurationSeconds"].clone(),
            "must be greater than 0",
        ));
    }
    non_negative(
        &path.child("leaseTransitions"),
        &spec["leaseTransitions"],
        &mut errors,
    );
    errors
}

/// An event in its stored form, core/v1; `regarding` is the name of the field that names its object.
pub(crate) fn event(obj: &Value, regarding: &str) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    let own = text(obj, &["metadata", "namespace"]);
    let involved = text(obj, &[regarding, "namespace"]);
    // Events about cluster-scoped objects stand in "default"; nodes' also in "kube-system".
    let fits = if involved.is_empty() {
        matches!(own, "default" | "kube-system")
    } else {
        involved == own
    };
    if !fits {
        let path = Path::new(regarding).child("namespace");
        errors.push(FieldError::invalid(
            &path,
            involved,
            "does not match event.namespace",
        ));
    }
    errors
}

/// core/v1 Endpoints.
pub(crate) fn endpoints(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    for (i, subset) in list(obj, &["subsets"]).iter().enumerate() {
        let path = Path::new("subsets").index(i);
        let addresses = ["addresses", "notReadyAddresses"];
        if addresses.iter().all(|key| list(subset, &[key]).is_empty()) {
            errors.push(FieldError::required(
                &path,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for key in addresses {
            for (j, address) in list(subset, &[key]).iter().enumerate() {
                address_ip(
                    text(address, &["ip"]),
                    &path.child(key).index(j).child("ip"),
                    None,
                    &mut errors,
                );
            }
        }
        let ports = list(subset, &["ports"]);
        for (j, port) in ports.iter().enumerate() {
            let path = path.child("ports").index(j);
            let name = text(port, &["name"]);
            if name.is_empty() && ports.len() > 1 {
                errors.push(FieldError::required(&path.child("name"), ""));
            } else if !name.is_empty() {
                faults(
                    &path.child("name"),
                    name,
                    names::dns_label_faults(name),
                    &mut errors,
                );
            }
            port_number(&path.child("port"), &port["port"], &mut errors);
            one_of(
                &path.child("protocol"),
                &port["protocol"],
                &["SCTP", "TCP", "UDP"],
                true,
                &mut errors,
            );
        }
    }
    errors
}

/// Checks an address; `v4` says which family it must be of, if one.
pub(super) fn address_ip(address: &str, path: &Path, v4: Option<bool>, errors: &mut Vec<FieldError>) {
    let why = match (address.parse::<IpAddr>(), v4) {
        (Ok(IpAddr::V6(_)), Some(true)) => Some("must be an IPv4 address"),
        (Ok(IpAddr::V4(_)), Some(false)) => Some("must be an IPv6 address"),
        _ => shared_address_fault(address),
    };
    errors.extend(why.map(|why| FieldError::invalid(path, address, why)));
}

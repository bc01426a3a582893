//! Rules of EndpointSlices.

use serde_json::Value;

use super::other::address_ip;
use super::{faults, immutable, metadata, names, one_of, port_number};
use crate::field::{FieldError, Path};
use crate::value::{list, text};

/// The most endpoints, ports, addresses of an endpoint and hints of one sort.
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 20_000;
const ADDRESSES_MAX: usize = 100;
const HINTS_MAX: usize = 8;

fn at_most(path: &Path, all: &[Value], most: usize, errors: &mut Vec<FieldError>) {
    if all.len() > most {
        errors.push(FieldError::too_many(path, all.len(), most));
    }
}

/// discovery.k8s.io/v1 EndpointSlice.
pub(crate) fn endpoint_slice(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    one_of(
        &Path::new("addressType"),
        &obj["addressType"],
        &["FQDN", "IPv4", "IPv6"],
        true,
        &mut errors,
    );
    let (path, endpoints) = (Path::new("endpoints"), list(obj, &["endpoints"]));
    at_most(&path, endpoints, ENDPOINTS_MAX, &mut errors);
    for (i, one) in endpoints.iter().enumerate() {
        endpoint(one, text(obj, &["addressType"]), &path.index(i), &mut errors);
    }
    ports(list(obj, &["ports"]), &Path::new("ports"), &mut errors);
    errors
}

fn endpoint(endpoint: &Value, kind: &str, path: &Path, errors: &mut Vec<FieldError>) {
    let (addresses_path, addresses) = (path.child("addresses"), list(endpoint, &["addresses"]));
    if addresses.is_empty() {
        errors.push(FieldError::required(
            &addresses_path,
            "must contain at least 1 address",
        ));
    }
    at_most(&addresses_path, addresses, ADDRESSES_MAX, errors);
    for (j, address) in addresses.iter().enumerate() {
        let (path, address) = (addresses_path.index(j), address.as_str().unwrap_or_default());
        match kind {
            "IPv4" => address_ip(address, &path, Some(true), errors),
            "IPv6" => address_ip(address, &path, Some(false), errors),
            _ => faults(&path, address, names::dns_subdomain_faults(address), errors),
        }
    }
    if let Some(node) = endpoint["nodeName"].as_str() {
        faults(
            &path.child("nodeName"),
            node,
            names::dns_subdomain_faults(node),
            errors,
        );
    }
    if let Some(host) = endpoint["hostname"].as_str() {
        faults(
            &path.child("hostname"),
            host,
            names::dns_label_faults(host),
            errors,
        );
    }
    type Faults = fn(&str) -> Vec<String>;
    let sorts: [(&str, Faults); 2] = [
        ("forZones", names::label_value_faults),
        ("forNodes", names::dns_subdomain_faults),
    ];
    for (field, rule) in sorts {
        let path = path.child("hints").child(field);
        let hints = list(endpoint, &["hints", field]);
        at_most(&path, hints, HINTS_MAX, errors);
        let mut seen = Vec::new();
        for (j, hint) in hints.iter().enumerate() {
            let (path, name) = (path.index(j).child("name"), text(hint, &["name"]));
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(&path, name));
            }
            seen.push(name);
            faults(&path, name, rule(name), errors);
        }
    }
}

fn ports(ports: &[Value], path: &Path, errors: &mut Vec<FieldError>) {
    at_most(path, ports, PORTS_MAX, errors);
    let mut seen = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(port, &["name"]);
        if !name.is_empty() {
            faults(&path.child("name"), name, names::dns_label_faults(name), errors);
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        seen.push(name);
        one_of(
            &path.child("protocol"),
            &port["protocol"],
            &["SCTP", "TCP", "UDP"],
            true,
            errors,
        );
        // A port without a number stands for all of them.
        if !port["port"].is_null() {
            port_number(&path.child("port"), &port["port"], errors);
        }
        if let Some(protocol) = port["appProtocol"].as_str() {
            let found = names::label_key_faults(protocol);
            faults(&path.child("appProtocol"), protocol, found, errors);
        }
    }
}

/// An update of an EndpointSlice.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    immutable(
        &Path::new("addressType"),
        &new["addressType"],
        &old["addressType"],
        &mut errors,
    );
    errors
}

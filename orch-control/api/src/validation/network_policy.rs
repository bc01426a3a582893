//! Rules of NetworkPolicies.

use serde_json::Value;

use super::{address, faults, metadata, names, one_of, port_number, selector};
use crate::field::{FieldError, Path};
use crate::value::{list, text};

const TYPES: [&str; 2] = ["Ingress", "Egress"];
const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// The two directions: rules, and the field that names the peers of one.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

/// networking.k8s.io/v1 NetworkPolicy.
pub(crate) fn policy(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    spec(&obj["spec"], &[], &mut errors);
    errors
}

/// An update: ranges that were there may stay, however they are written.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(new, true, names::dns_subdomain_faults);
    errors.extend(metadata::update(new, old));
    let mut kept = Vec::new();
    for (direction, peers) in DIRECTIONS {
        for rule in list(&old["spec"], &[direction]) {
            for peer in list(rule, &[peers]) {
                kept.extend(peer["ipBlock"]["cidr"].as_str());
                kept.extend(
                    list(peer, &["ipBlock", "except"])
                        .iter()
                        .filter_map(Value::as_str),
                );
            }
        }
    }
    spec(&new["spec"], &kept, &mut errors);
    errors
}

fn spec(spec: &Value, kept: &[&str], errors: &mut Vec<FieldError>) {
    let path = Path::new("spec");
    selector::label_selector(&spec["podSelector"], &path.child("podSelector"), errors);
    for (direction, peers) in DIRECTIONS {
        for (i, rule) in list(spec, &[direction]).iter().enumerate() {
            let path = path.child(direction).index(i);
            for (i, p) in list(rule, &["ports"]).iter().enumerate() {
                port(p, &path.child("ports").index(i), errors);
            }
            for (i, p) in list(rule, &[peers]).iter().enumerate() {
                peer(p, kept, &path.child(peers).index(i), errors);
            }
        }
    }
    let (types, path) = (list(spec, &["policyTypes"]), path.child("policyTypes"));
    if types.len() > TYPES.len() {
        let why = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid(&path, spec["policyTypes"].clone(), why));
        return;
    }
    for (i, kind) in types.iter().enumerate() {
        let shown = kind.as_str().unwrap_or_default();
        if !TYPES.contains(&shown) {
            errors.push(FieldError::not_supported(&path.index(i), shown, &TYPES));
        }
    }
}

fn port(port: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    one_of(
        &path.child("protocol"),
        &port["protocol"],
        &PROTOCOLS,
        false,
        errors,
    );
    let (number, end) = (&port["port"], &port["endPort"]);
    let end_path = path.child("endPort");
    let mut refuse_end = |why: &str| {
        if !end.is_null() {
            errors.push(FieldError::invalid(&end_path, end.clone(), why));
        }
    };
    match number {
        Value::Null => refuse_end("may not be specified when `port` is not specified"),
        Value::String(name) => {
            refuse_end("may not be specified when `port` is non-numeric");
            faults(&path.child("port"), name, names::port_name_faults(name), errors);
        }
        _ => {
            port_number(&path.child("port"), number, errors);
            if !end.is_null() {
                if end.as_i64() < number.as_i64() {
                    let why = "must be greater than or equal to `port`";
                    errors.push(FieldError::invalid(&end_path, end.clone(), why));
                }
                port_number(&end_path, end, errors);
            }
        }
    }
}

fn peer(peer: &Value, kept: &[&str], path: &Path, errors: &mut Vec<FieldError>) {
    let mut count = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if !peer[key].is_null() {
            count += 1;
            selector::label_selector(&peer[key], &path.child(key), errors);
        }
    }
    if !peer["ipBlock"].is_null() {
        count += 1;
        ip_block(&peer["ipBlock"], kept, &path.child("ipBlock"), errors);
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    } else if count > 1 && !peer["ipBlock"].is_null() {
        let why = "may not specify both ipBlock and another peer";
        errors.push(FieldError::forbidden(path, why));
    }
}

fn ip_block(block: &Value, kept: &[&str], path: &Path, errors: &mut Vec<FieldError>) {
    let cidr = text(block, &["cidr"]);
    if cidr.is_empty() {
        errors.push(FieldError::required(&path.child("cidr"), ""));
        return;
    }
    let mut check = |text: &str, path: &Path| {
        if !kept.contains(&text) {
            faults(path, text, address::range_faults(text), errors);
        }
    };
    check(cidr, &path.child("cidr"));
    let excepts: Vec<(Path, &str)> = list(block, &["except"])
        .iter()
        .enumerate()
        .map(|(i, e)| (path.child("except").index(i), e.as_str().unwrap_or_default()))
        .collect();
    for (path, except) in &excepts {
        check(except, path);
    }
    let Some(whole) = address::range(cidr) else { return };
    for (path, except) in &excepts {
        let Some(part) = address::range(except) else {
            continue;
        };
        if !whole.contains(&part.trunc()) || whole.prefix_len() >= part.prefix_len() {
            let why = "must be a strict subset of `cidr`";
            errors.push(FieldError::invalid(path, *except, why));
        }
    }
}

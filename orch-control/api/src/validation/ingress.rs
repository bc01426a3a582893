//! Rules of Ingresses and IngressClasses.

use std::net::IpAddr;

use serde_json::Value;

use super::{faults, immutable, metadata, names, one_of, port_number};
use crate::field::{FieldError, Path};
use crate::value::{list, text};

/// The longest name of a class's controller.
const CONTROLLER_MAX: usize = 250;
const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
const FORBIDDEN_IN_PATH: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const FORBIDDEN_AT_END: [&str; 2] = ["/..", "/."];
const NOT_A_NAME: &str = "must be a DNS name, not an IP address";
/// The annotation from before `spec.ingressClassName`.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// networking.k8s.io/v1 Ingress.
pub(crate) fn ingress(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), &obj["spec"]);
    let rules = list(spec, &["rules"]);
    let backend = &spec["defaultBackend"];
    if rules.is_empty() && backend.is_null() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(&path, Value::Null, why));
    }
    if !backend.is_null() {
        self::backend(backend, &path.child("defaultBackend"), &mut errors);
    }
    for (i, rule) in rules.iter().enumerate() {
        self::rule(rule, &path.child("rules").index(i), &mut errors);
    }
    for (i, tls) in list(spec, &["tls"]).iter().enumerate() {
        let path = path.child("tls").index(i);
        for (i, name) in list(tls, &["hosts"]).iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            host(name, &path.child("hosts").index(i), &mut errors);
        }
        let secret = text(tls, &["secretName"]);
        if !secret.is_empty() {
            let found = names::dns_subdomain_faults(secret);
            faults(&path.child("secretName"), secret, found, &mut errors);
        }
    }
    if let Some(class) = spec["ingressClassName"].as_str() {
        let found = names::dns_subdomain_faults(class);
        faults(&path.child("ingressClassName"), class, found, &mut errors);
    }
    status(obj, &mut errors);
    errors
}

/// A new Ingress: where the class is named in the old way too, both must say the same.
pub(crate) fn ingress_create(obj: &Value) -> Vec<FieldError> {
    let mut errors = ingress(obj);
    let (old, new) = (
        &obj["metadata"]["annotations"][CLASS_ANNOTATION],
        &obj["spec"]["ingressClassName"],
    );
    if !old.is_null() && !new.is_null() && old != new {
        let path = Path::new("annotations").child(CLASS_ANNOTATION);
        let why = "must match `ingressClassName` when both are specified";
        errors.push(FieldError::invalid(&path, old.clone(), why));
    }
    errors
}

fn status(obj: &Value, errors: &mut Vec<FieldError>) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    for (i, point) in list(obj, &["status", "loadBalancer", "ingress"])
        .iter()
        .enumerate()
    {
        let path = path.index(i);
        let ip = text(point, &["ip"]);
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(&path.child("ip"), ip, why));
        }
        let name = text(point, &["hostname"]);
        if !name.is_empty() {
            let path = path.child("hostname");
            faults(&path, name, names::dns_subdomain_faults(name), errors);
            no_address(name, &path, errors);
        }
    }
}

fn no_address(name: &str, path: &Path, errors: &mut Vec<FieldError>) {
    if name.parse::<IpAddr>().is_ok() {
        errors.push(FieldError::invalid(path, name, NOT_A_NAME));
    }
}

fn host(name: &str, path: &Path, errors: &mut Vec<FieldError>) {
    let found = if name.contains('*') {
        names::wildcard_subdomain_faults(name)
    } else {
        names::dns_subdomain_faults(name)
    };
    faults(path, name, found, errors);
}

fn rule(rule: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let name = text(rule, &["host"]);
    if !name.is_empty() {
        let path = path.child("host");
        no_address(name, &path, errors);
        host(name, &path, errors);
    }
    if rule["http"].is_null() {
        return;
    }
    let path = path.child("http").child("paths");
    let paths = list(rule, &["http", "paths"]);
    if paths.is_empty() {
        errors.push(FieldError::required(&path, ""));
    }
    for (i, entry) in paths.iter().enumerate() {
        http_path(entry, &path.index(i), errors);
    }
}

fn http_path(entry: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let (url, url_path) = (text(entry, &["path"]), path.child("path"));
    let mut refuse = |why: String| errors.push(FieldError::invalid(&url_path, url, why));
    match entry["pathType"].as_str() {
        None => {
            let why = "pathType must be specified";
            errors.push(FieldError::required(&path.child("pathType"), why));
            return;
        }
        Some("Exact" | "Prefix") => {
            if !url.starts_with('/') {
                refuse("must be an absolute path".to_owned());
            }
            for bad in FORBIDDEN_IN_PATH.iter().filter(|bad| url.contains(**bad)) {
                refuse(format!("must not contain '{bad}'"));
            }
            for bad in FORBIDDEN_AT_END.iter().filter(|bad| url.ends_with(**bad)) {
                refuse(format!("cannot end with '{bad}'"));
            }
        }
        Some("ImplementationSpecific") => {
            if !url.is_empty() && !url.starts_with('/') {
                refuse("must be an absolute path".to_owned());
            }
        }
        Some(other) => {
            errors.push(FieldError::not_supported(
                &path.child("pathType"),
                other,
                &PATH_TYPES,
            ));
        }
    }
    backend(&entry["backend"], &path.child("backend"), errors);
}

fn backend(backend: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let mut refuse = |why: &str| errors.push(FieldError::invalid(path, "", why));
    let (resource, service) = (&backend["resource"], &backend["service"]);
    match (resource.is_null(), service.is_null()) {
        (false, false) => refuse("cannot set both resource and service backends"),
        (true, true) => refuse("resource or service backend is required"),
        (false, true) => typed_reference(resource, &path.child("resource"), errors),
        (true, false) => {
            let name = text(service, &["name"]);
            let name_path = path.child("service.name");
            if name.is_empty() {
                errors.push(FieldError::required(&name_path, ""));
            } else {
                faults(&name_path, name, names::dns_label_faults(name), errors);
            }
            let port = &service["port"];
            let (name, number) = (text(port, &["name"]), port["number"].as_i64().unwrap_or(0));
            match (name.is_empty(), number == 0) {
                (false, false) => {
                    let why = "cannot set both port name & port number";
                    errors.push(FieldError::invalid(path, "", why));
                }
                (false, true) => {
                    let path = path.child("service.port.name");
                    faults(&path, name, names::port_name_faults(name), errors);
                }
                (true, false) => port_number(&path.child("service.port.number"), &port["number"], errors),
                (true, true) => errors.push(FieldError::required(path, "port name or number is required")),
            }
        }
    }
}

/// A reference to an object in the same namespace, by API group, kind and name.
fn typed_reference(reference: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    if let Some(group) = reference["apiGroup"].as_str() {
        let found = names::dns_subdomain_faults(group);
        faults(&path.child("apiGroup"), group, found, errors);
    }
    for key in ["kind", "name"] {
        segment(reference, key, true, path, errors);
    }
}

/// A text that will stand in a path by itself.
pub(super) fn segment(obj: &Value, key: &str, required: bool, path: &Path, errors: &mut Vec<FieldError>) {
    let (value, path) = (text(obj, &[key]), path.child(key));
    if !value.is_empty() {
        faults(&path, value, names::path_segment_faults(value), errors);
    } else if required {
        errors.push(FieldError::required(&path, ""));
    }
}

/// networking.k8s.io/v1 IngressClass.
pub(crate) fn class(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, false, names::dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), &obj["spec"]);
    let controller = text(spec, &["controller"]);
    let controller_path = path.child("controller");
    if controller.is_empty() {
        errors.push(FieldError::required(&controller_path, ""));
    } else {
        if controller.len() > CONTROLLER_MAX {
            errors.push(FieldError::too_long(&controller_path, CONTROLLER_MAX));
        }
        let found = names::domain_prefixed_path_faults(controller);
        faults(&controller_path, controller, found, &mut errors);
    }
    let parameters = &spec["parameters"];
    if parameters.is_null() {
        return errors;
    }
    let path = path.child("parameters");
    typed_reference(parameters, &path, &mut errors);
    let scopes = ["Cluster", "Namespace"];
    one_of(
        &path.child("scope"),
        &parameters["scope"],
        &scopes,
        true,
        &mut errors,
    );
    let (namespace, namespace_path) = (&parameters["namespace"], path.child("namespace"));
    match (text(parameters, &["scope"]), namespace.as_str()) {
        ("Namespace", None) => {
            let why = "`parameters.scope` is set to 'Namespace'";
            errors.push(FieldError::required(&namespace_path, why));
        }
        ("Namespace", Some(name)) => {
            faults(&namespace_path, name, names::dns_label_faults(name), &mut errors)
        }
        ("Cluster", Some(_)) => {
            let why = "`parameters.scope` is set to 'Cluster'";
            errors.push(FieldError::forbidden(&namespace_path, why));
        }
        _ => {}
    }
    errors
}

/// An update of an IngressClass.
pub(crate) fn class_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    let path = Path::new("spec").child("controller");
    let (now, before) = (&new["spec"]["controller"], &old["spec"]["controller"]);
    immutable(&path, now, before, &mut errors);
    errors
}

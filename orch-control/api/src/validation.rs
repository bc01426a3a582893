//! The rules of Kubernetes for what an object may hold, with its paths and messages.

pub(crate) mod address;
pub(crate) mod container;
pub(crate) mod endpoint_slice;
pub(crate) mod ingress;
pub(crate) mod metadata;
pub mod names;
pub(crate) mod network_policy;
pub(crate) mod other;
pub(crate) mod pod;
pub(crate) mod pod_update;
pub(crate) mod selector;
pub(crate) mod service;
pub(crate) mod service_cidr;
pub(crate) mod volume;
pub(crate) mod workload;

pub use pod_update::ephemeral_containers;

use serde_json::Value;

use crate::field::{FieldError, Path};

/// `field is immutable`, as `apimachinery` says it.
pub(crate) const IMMUTABLE: &str = "field is immutable";

/// A value that may not change.
pub(crate) fn immutable(path: &Path, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if new != old {
        errors.push(FieldError::invalid(path, new.clone(), IMMUTABLE));
    }
}

/// A value that may not change, where Kubernetes forbids the field instead of calling its value invalid.
pub(crate) fn immutable_forbidden(path: &Path, new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if new != old {
        errors.push(FieldError::forbidden(path, IMMUTABLE));
    }
}

/// An integer that may not be negative.
pub(crate) fn non_negative(path: &Path, value: &Value, errors: &mut Vec<FieldError>) {
    if value.as_i64().is_some_and(|n| n < 0) {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            "must be greater than or equal to 0",
        ));
    }
}

/// A value of a fixed set; absent ones are `required` or fine.
pub(crate) fn one_of(path: &Path, value: &Value, set: &[&str], required: bool, errors: &mut Vec<FieldError>) {
    match value.as_str() {
        None | Some("") if required => errors.push(FieldError::required(path, "")),
        None | Some("") => {}
        Some(text) if set.contains(&text) => {}
        Some(text) => errors.push(FieldError::not_supported(path, text, set)),
    }
}

/// Adds an `Invalid value` for each fault of a text.
pub(crate) fn faults(path: &Path, value: &str, found: Vec<String>, errors: &mut Vec<FieldError>) {
    errors.extend(
        found
            .into_iter()
            .map(|fault| FieldError::invalid(path, value, fault)),
    );
}

/// A port number, 1 to 65535.
pub(crate) fn port_number(path: &Path, value: &Value, errors: &mut Vec<FieldError>) {
    if value.as_i64().is_none_or(|n| !(1..=65535).contains(&n)) {
        let shown = if value.is_null() {
            Value::from(0)
        } else {
            value.clone()
        };
        errors.push(FieldError::invalid(
            path,
            shown,
            "must be between 1 and 65535, inclusive",
        ));
    }
}

/// A port number or the name of one.
pub(crate) fn port_or_name(path: &Path, value: &Value, errors: &mut Vec<FieldError>) {
    match value.as_str() {
        Some(name) => faults(path, name, names::port_name_faults(name), errors),
        None => port_number(path, value, errors),
    }
}

#[cfg(test)]
mod tests;

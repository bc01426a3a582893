//! Rules of `metadata`, for objects and for pod templates.

use serde_json::Value;

use super::{faults, immutable, names};
use crate::field::{FieldError, Path};
use crate::value::{entries, list, text};

/// The most bytes that all annotations of an object may have together.
const ANNOTATIONS_MAX: usize = 256 * 1024;

/// The form of a kind's names.
pub(crate) type NameRule = fn(&str) -> Vec<String>;

/// The metadata of an object.
pub(crate) fn object(obj: &Value, namespaced: bool, name_rule: NameRule) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let metadata = &obj["metadata"];
    let path = Path::new("metadata");
    let prefix = text(metadata, &["generateName"]);
    if !prefix.is_empty() {
        // A trailing dash is fine: more follows.
        let trimmed = prefix
            .strip_suffix('-')
            .map_or_else(|| prefix.to_owned(), |p| format!("{p}a"));
        faults(
            &path.child("generateName"),
            prefix,
            name_rule(&trimmed),
            &mut errors,
        );
    }
    let name = text(metadata, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(
            &path.child("name"),
            "name or generateName is required",
        ));
    } else {
        faults(&path.child("name"), name, name_rule(name), &mut errors);
    }
    let namespace = text(metadata, &["namespace"]);
    match (namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required(&path.child("namespace"), "")),
        (true, false) => {
            faults(
                &path.child("namespace"),
                namespace,
                names::dns_label_faults(namespace),
                &mut errors,
            );
        }
        (false, false) => errors.push(FieldError::forbidden(
            &path.child("namespace"),
            "not allowed on this type",
        )),
        (false, true) => {}
    }
    labels(&metadata["labels"], &path.child("labels"), &mut errors);
    annotations(&metadata["annotations"], &path.child("annotations"), &mut errors);
    owners(metadata, &path.child("ownerReferences"), &mut errors);
    for (i, finalizer) in list(metadata, &["finalizers"]).iter().enumerate() {
        let finalizer = finalizer.as_str().unwrap_or_default();
        faults(
            &path.child("finalizers").index(i),
            finalizer,
            names::label_key_faults(finalizer),
            &mut errors,
        );
    }
    errors
}

/// What an update may not change.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let path = Path::new("metadata").child(key);
        immutable(&path, &new["metadata"][key], &old["metadata"][key], &mut errors);
    }
    if !old["metadata"]["deletionTimestamp"].is_null() {
        let before = list(old, &["metadata", "finalizers"]);
        let added: Vec<&str> = list(new, &["metadata", "finalizers"])
            .iter()
            .filter(|f| !before.contains(f))
            .filter_map(Value::as_str)
            .collect();
        if !added.is_empty() {
            errors.push(FieldError::forbidden(
                &Path::new("metadata").child("finalizers"),
                format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"),
            ));
        }
    }
    errors
}

/// A map of labels.
pub(crate) fn labels(labels: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    for (key, value) in entries(labels, &[]) {
        faults(path, key, names::label_key_faults(key), errors);
        let value = value.as_str().unwrap_or_default();
        faults(&path.key(key), value, names::label_value_faults(value), errors);
    }
}

/// A map of annotations.
pub(crate) fn annotations(annotations: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let mut total = 0;
    for (key, value) in entries(annotations, &[]) {
        faults(
            path,
            key,
            names::label_key_faults(&key.to_ascii_lowercase()),
            errors,
        );
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(path, ANNOTATIONS_MAX));
    }
}

fn owners(metadata: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let mut controllers = 0;
    for (i, owner) in list(metadata, &["ownerReferences"]).iter().enumerate() {
        let path = path.index(i);
        for (key, what) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(owner, &[key]).is_empty() {
                errors.push(FieldError::invalid(&path.child(key), "", what));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        errors.push(FieldError::invalid(
            path,
            metadata["ownerReferences"].clone(),
            "Only one reference can have Controller set to true",
        ));
    }
}

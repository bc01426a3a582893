//! Rules of volumes.

use serde_json::Value;

use super::{faults, names};
use crate::field::{FieldError, Path};
use crate::value::{entries, list, text};

/// Checks the volumes of a pod spec and answers their names.
pub(crate) fn all<'a>(spec: &'a Value, path: &Path, errors: &mut Vec<FieldError>) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for (i, volume) in list(spec, &["volumes"]).iter().enumerate() {
        let path = path.child("volumes").index(i);
        let name = text(volume, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            faults(&path.child("name"), name, names::dns_label_faults(name), errors);
        }
        if seen.contains(&name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        seen.push(name);
        let mut sources = entries(volume, &[]).filter(|(k, v)| *k != "name" && !v.is_null());
        match sources.next() {
            None => errors.push(FieldError::required(&path, "must specify a volume type")),
            Some((kind, value)) => source(kind, value, &path.child(kind), errors),
        }
        for (kind, _) in sources {
            errors.push(FieldError::forbidden(
                &path.child(kind),
                "may not specify more than 1 volume type",
            ));
        }
    }
    seen
}

fn source(kind: &str, source: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let required = match kind {
        "configMap" => "name",
        "secret" => "secretName",
        "hostPath" => "path",
        "persistentVolumeClaim" => "claimName",
        "csi" => "driver",
        _ => "",
    };
    if !required.is_empty() && text(source, &[required]).is_empty() {
        errors.push(FieldError::required(&path.child(required), ""));
    }
    if let Some(mode) = source["defaultMode"]
        .as_i64()
        .filter(|m| !(0..=0o777).contains(m))
    {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(&path.child("defaultMode"), mode, why));
    }
    for (i, item) in list(source, &["items"]).iter().enumerate() {
        let path = path.child("items").index(i);
        if kind != "downwardAPI" && text(item, &["key"]).is_empty() {
            errors.push(FieldError::required(&path.child("key"), ""));
        }
        relative(text(item, &["path"]), &path.child("path"), errors);
    }
}

fn relative(target: &str, path: &Path, errors: &mut Vec<FieldError>) {
    if target.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    if target.starts_with('/') {
        errors.push(FieldError::invalid(path, target, "must be a relative path"));
    }
    if target.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, target, "must not contain '..'"));
    }
}

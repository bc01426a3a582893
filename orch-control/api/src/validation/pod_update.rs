//! What may change in a pod once it exists.

use serde_json::Value;

use crate::field::{FieldError, Path};
use crate::value::{list, list_mut, object_mut};

const REFUSED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// The faults of an update of the pod itself (not of a subresource).
pub(crate) fn spec(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("spec");
    let mut errors = Vec::new();
    for key in ["containers", "initContainers"] {
        if list(new, &["spec", key]).len() != list(old, &["spec", key]).len() {
            let why = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(&path.child(key), why));
            return errors;
        }
    }
    deadline(new, old, &path.child("activeDeadlineSeconds"), &mut errors);
    let kept = list(new, &["spec", "tolerations"]);
    if list(old, &["spec", "tolerations"])
        .iter()
        .any(|t| !kept.contains(t))
    {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        let same = |a: &Value, b: &Value| {
            ["key", "operator", "value", "effect"]
                .iter()
                .all(|k| a[k] == b[k])
        };
        let lost = list(old, &["spec", "tolerations"])
            .iter()
            .any(|t| !kept.iter().any(|k| same(k, t)));
        if lost {
            errors.push(FieldError::forbidden(&path.child("tolerations"), why));
        }
    }
    if !gates_only_go(new, old) {
        let why = "only deletion is allowed, but found new scheduling gate";
        errors.push(FieldError::forbidden(&path.child("schedulingGates"), why));
    }
    if !errors.is_empty() {
        return errors;
    }
    let mut munged = new["spec"].clone();
    for key in ["containers", "initContainers"] {
        for (i, container) in list_mut(&mut munged, key).iter_mut().enumerate() {
            restore(container, &old["spec"][key][i], "image");
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        restore(&mut munged, &old["spec"], key);
    }
    if old["spec"]["terminationGracePeriodSeconds"]
        .as_i64()
        .is_some_and(|n| n < 0)
        && new["spec"]["terminationGracePeriodSeconds"] == 1
    {
        restore(&mut munged, &old["spec"], "terminationGracePeriodSeconds");
    }
    if munged != old["spec"] {
        let difference = difference(&munged, &old["spec"]);
        errors.push(FieldError::forbidden(&path, format!("{REFUSED}\n{difference}")));
    }
    errors
}

/// The faults of an update of the `ephemeralcontainers` subresource: what there is may not change.
pub fn ephemeral_containers(new: &Value, old: &Value) -> Vec<FieldError> {
    let path = Path::new("spec").child("ephemeralContainers");
    let kept = list(new, &["spec", "ephemeralContainers"]);
    list(old, &["spec", "ephemeralContainers"])
        .iter()
        .filter_map(|before| match kept.iter().find(|c| c["name"] == before["name"]) {
            None => Some(FieldError::forbidden(
                &path,
                "existing ephemeral containers may not be removed",
            )),
            Some(now) if now != before => Some(FieldError::forbidden(
                &path,
                "existing ephemeral containers may not be changed",
            )),
            Some(_) => None,
        })
        .collect()
}

fn restore(target: &mut Value, source: &Value, key: &str) {
    let fields = object_mut(target);
    match source.get(key) {
        Some(value) => fields.insert(key.to_owned(), value.clone()),
        None => fields.remove(key),
    };
}

fn deadline(new: &Value, old: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let (new, old) = (
        &new["spec"]["activeDeadlineSeconds"],
        &old["spec"]["activeDeadlineSeconds"],
    );
    match (new.as_i64(), old.as_i64()) {
        (Some(now), Some(before)) if now > before => {
            let why = format!("must be less than or equal to previous value {before}");
            errors.push(FieldError::invalid(path, now, why));
        }
        (None, Some(_)) => {
            errors.push(FieldError::invalid(
                path,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

fn gates_only_go(new: &Value, old: &Value) -> bool {
    let before = list(old, &["spec", "schedulingGates"]);
    list(new, &["spec", "schedulingGates"])
        .iter()
        .all(|gate| before.contains(gate))
}

/// The fields of a spec that differ, as `- old` and `+ new` lines.
fn difference(new: &Value, old: &Value) -> String {
    let mut keys: Vec<&String> = new
        .as_object()
        .into_iter()
        .chain(old.as_object())
        .flat_map(|m| m.keys())
        .collect();
    keys.sort();
    keys.dedup();
    let mut lines = Vec::new();
    for key in keys.into_iter().filter(|k| new[k.as_str()] != old[k.as_str()]) {
        lines.push(format!("-  {key}: {}", old[key]));
        lines.push(format!("+  {key}: {}", new[key]));
    }
    lines.join("\n")
}

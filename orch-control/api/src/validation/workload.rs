//! Rules of Deployments, ReplicaSets and ReplicationControllers.

use serde_json::Value;

use super::{immutable, metadata, names, non_negative, one_of, pod};
use crate::field::{FieldError, Path};
use crate::selector::LabelSelector;
use crate::value::{is_empty, list, text};

/// apps/v1 Deployment.
pub(crate) fn deployment(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), &obj["spec"]);
    let selector = selector(&spec["selector"], &path.child("selector"), &mut errors);
    replicas_and_template(spec, selector, &path, &mut errors);
    for key in ["revisionHistoryLimit", "progressDeadlineSeconds"] {
        non_negative(&path.child(key), &spec[key], &mut errors);
    }
    let (deadline, ready) = (
        spec["progressDeadlineSeconds"].as_i64(),
        spec["minReadySeconds"].as_i64().unwrap_or(0),
    );
    if let Some(deadline) = deadline.filter(|d| *d <= ready) {
        let why = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid(
            &path.child("progressDeadlineSeconds"),
            deadline,
            why,
        ));
    }
    strategy(&spec["strategy"], &path.child("strategy"), &mut errors);
    errors
}

/// apps/v1 ReplicaSet.
pub(crate) fn replica_set(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), &obj["spec"]);
    let selector = selector(&spec["selector"], &path.child("selector"), &mut errors);
    replicas_and_template(spec, selector, &path, &mut errors);
    errors
}

/// core/v1 ReplicationController.
pub(crate) fn replication_controller(obj: &Value) -> Vec<FieldError> {
    let mut errors = metadata::object(obj, true, names::dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), &obj["spec"]);
    let selector = &spec["selector"];
    if is_empty(selector) {
        errors.push(FieldError::required(&path.child("selector"), ""));
    }
    metadata::labels(selector, &path.child("selector"), &mut errors);
    let selector = LabelSelector::from_map(selector);
    replicas_and_template(spec, Some(selector), &path, &mut errors);
    errors
}

/// What an update of either may not change.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = metadata::update(new, old);
    let path = Path::new("spec").child("selector");
    immutable(
        &path,
        &new["spec"]["selector"],
        &old["spec"]["selector"],
        &mut errors,
    );
    errors
}

fn replicas_and_template(
    spec: &Value,
    selector: Option<LabelSelector>,
    path: &Path,
    errors: &mut Vec<FieldError>,
) {
    non_negative(&path.child("replicas"), &spec["replicas"], errors);
    non_negative(&path.child("minReadySeconds"), &spec["minReadySeconds"], errors);
    let labels = &spec["template"]["metadata"]["labels"];
    let template = path.child("template");
    metadata::labels(labels, &template.child("metadata").child("labels"), errors);
    metadata::annotations(
        &spec["template"]["metadata"]["annotations"],
        &template.child("metadata").child("annotations"),
        errors,
    );
    if selector.is_some_and(|s| !s.is_empty() && !s.matches(labels)) {
        let shown = if labels.is_null() {
            serde_json::json!({})
        } else {
            labels.clone()
        };
        let why = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(
            &template.child("metadata").child("labels"),
            shown,
            why,
        ));
    }
    let pod_spec = &spec["template"]["spec"];
    let path = template.child("spec");
    pod::spec(pod_spec, &path, errors);
    let restart = text(pod_spec, &["restartPolicy"]);
    if matches!(restart, "OnFailure" | "Never") {
        errors.push(FieldError::not_supported(
            &path.child("restartPolicy"),
            restart,
            &["Always"],
        ));
    }
    if !pod_spec["activeDeadlineSeconds"].is_null() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden(&path.child("activeDeadlineSeconds"), why));
    }
    if !list(pod_spec, &["ephemeralContainers"]).is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(&path.child("ephemeralContainers"), why));
    }
}

fn selector(selector: &Value, path: &Path, errors: &mut Vec<FieldError>) -> Option<LabelSelector> {
    if selector.is_null() {
        errors.push(FieldError::required(path, ""));
        return None;
    }
    if is_empty(selector) || (is_empty(&selector["matchLabels"]) && is_empty(&selector["matchExpressions"])) {
        let why = "empty selector is invalid for deployment";
        errors.push(FieldError::invalid(path, serde_json::json!({}), why));
        return None;
    }
    super::selector::label_selector(selector, path, errors);
    LabelSelector::from_value(selector).ok()
}

fn strategy(strategy: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    one_of(
        &path.child("type"),
        &strategy["type"],
        &["Recreate", "RollingUpdate"],
        false,
        errors,
    );
    let rolling = &strategy["rollingUpdate"];
    if strategy["type"] == "Recreate" {
        if !rolling.is_null() {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(&path.child("rollingUpdate"), why));
        }
        return;
    }
    let path = path.child("rollingUpdate");
    for key in ["maxUnavailable", "maxSurge"] {
        amount(&rolling[key], &path.child(key), key == "maxUnavailable", errors);
    }
    let zero = |value: &Value| *value == 0 || *value == "0%" || *value == "0";
    if zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
        let why = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(
            &path.child("maxUnavailable"),
            rolling["maxUnavailable"].clone(),
            why,
        ));
    }
}

/// A count or a percentage of replicas.
fn amount(value: &Value, path: &Path, at_most_all: bool, errors: &mut Vec<FieldError>) {
    non_negative(path, value, errors);
    let Some(shown) = value.as_str() else { return };
    match shown
        .strip_suffix('%')
        .and_then(|digits| digits.parse::<u32>().ok())
    {
        None => {
            let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.push(FieldError::invalid(path, shown, why));
        }
        Some(percent) if at_most_all && percent > 100 => {
            errors.push(FieldError::invalid(path, shown, "must not be greater than 100%"));
        }
        Some(_) => {}
    }
}

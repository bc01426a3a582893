//! Which endpoints traffic may go to: policies, affinity, topology.

use serde_json::Value;

use super::{one_of, port_number};
use crate::field::{FieldError, Path};
use crate::service::{is_externally_accessible, needs_health_check};
use crate::value::text;

const POLICIES: [&str; 2] = ["Cluster", "Local"];
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameNode", "PreferSameZone"];
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
/// A day, in seconds.
const STICKY_MAX: i64 = 86400;

/// The old and the new annotation for the same thing may not disagree.
pub(super) fn topology_annotations(obj: &Value, errors: &mut Vec<FieldError>) {
    let annotations = &obj["metadata"]["annotations"];
    let (mode, hints) = (&annotations[TOPOLOGY_MODE], &annotations[TOPOLOGY_HINTS]);
    if let (Some(mode), Some(hints)) = (mode.as_str(), hints.as_str())
        && mode != hints
    {
        let path = Path::new("metadata").child("annotations").key(TOPOLOGY_MODE);
        let why = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.push(FieldError::invalid(&path, mode, why));
    }
}

/// `sessionAffinity` and its configuration.
pub(super) fn session_affinity(spec: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let affinity = text(spec, &["sessionAffinity"]);
    one_of(
        &path.child("sessionAffinity"),
        &spec["sessionAffinity"],
        &["ClientIP", "None"],
        true,
        errors,
    );
    let (path, config) = (
        path.child("sessionAffinityConfig"),
        &spec["sessionAffinityConfig"],
    );
    if affinity == "None" && !config.is_null() {
        let why = "must not be set when session affinity is None";
        errors.push(FieldError::forbidden(&path, why));
    }
    if affinity != "ClientIP" {
        return;
    }
    let why = "when session affinity type is ClientIP";
    let timeout = &config["clientIP"]["timeoutSeconds"];
    let client = path.child("clientIP");
    if config.is_null() {
        errors.push(FieldError::required(&path, why));
    } else if config["clientIP"].is_null() {
        errors.push(FieldError::required(&client, why));
    } else if timeout.is_null() {
        errors.push(FieldError::required(&client.child("timeoutSeconds"), why));
    } else if timeout.as_i64().is_none_or(|s| !(1..=STICKY_MAX).contains(&s)) {
        errors.push(FieldError::invalid(
            &client.child("timeoutSeconds"),
            timeout.clone(),
            format!("must be greater than 0 && less than {STICKY_MAX}"),
        ));
    }
}

/// Traffic policies and distribution.
pub(super) fn policies(obj: &Value, path: &Path, errors: &mut Vec<FieldError>) {
    let spec = &obj["spec"];
    let external = path.child("externalTrafficPolicy");
    let policy = &spec["externalTrafficPolicy"];
    if is_externally_accessible(obj) {
        one_of(&external, policy, &POLICIES, true, errors);
    } else if let Some(policy) = policy.as_str().filter(|p| !p.is_empty()) {
        let why = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(&external, policy, why));
    }
    let (health, port) = (path.child("healthCheckNodePort"), &spec["healthCheckNodePort"]);
    match (needs_health_check(obj), port.as_i64().filter(|p| *p != 0)) {
        (true, None) => errors.push(FieldError::required(&health, "")),
        (true, Some(_)) => port_number(&health, port, errors),
        (false, Some(port)) => {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(FieldError::invalid(&health, port, why));
        }
        (false, None) => {}
    }
    one_of(
        &path.child("internalTrafficPolicy"),
        &spec["internalTrafficPolicy"],
        &POLICIES,
        crate::service::needs_cluster_ip(obj),
        errors,
    );
    one_of(
        &path.child("trafficDistribution"),
        &spec["trafficDistribution"],
        &DISTRIBUTIONS,
        false,
        errors,
    );
}

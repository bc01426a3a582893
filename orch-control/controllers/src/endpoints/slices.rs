//! Which slices to write so that they say what is wanted, changing as few as possible.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;

use super::plan::{Wanted, families, is_headless};

/// The most endpoints in one slice, Kubernetes' default.
const MAX_ENDPOINTS: usize = 100;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Kubernetes' name for this controller: slices with it are ours.
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// The service that a slice speaks for.
pub fn service_of(slice: &EndpointSlice) -> Option<&str> {
    slice.labels().get(SERVICE_NAME).map(String::as_str)
}

/// Whether this controller made the slice.
pub fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(MANAGED_BY).is_some_and(|m| m == CONTROLLER)
        && slice.metadata.deletion_timestamp.is_none()
}

/// The writes; slices that are right already are in none of them.
#[derive(Debug, Default)]
pub struct Steps {
    /// New slices.
    pub create: Vec<EndpointSlice>,
    /// Slices with other endpoints or labels than before.
    pub update: Vec<EndpointSlice>,
    /// Slices that nothing is left for.
    pub delete: Vec<Arc<EndpointSlice>>,
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    labels
}

/// What all endpoints of one slice share.
type Group = (&'static str, String);

fn group(family: &'static str, ports: &[EndpointPort]) -> Group {
    let mut all: Vec<String> = ports.iter().map(|p| format!("{p:?}")).collect();
    all.sort();
    (family, all.join(","))
}

/// Who an endpoint is, whatever its condition.
fn identity(endpoint: &Endpoint) -> (Option<&str>, Vec<String>) {
    (
        endpoint.target_ref.as_ref().and_then(|t| t.uid.as_deref()),
        endpoint.addresses.clone(),
    )
}

/// Compares what is wanted with what is there.
pub fn plan(service: &Service, wanted: Vec<Wanted>, existing: &[Arc<EndpointSlice>]) -> Steps {
    let labels = labels(service);
    let mut groups: BTreeMap<Group, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for one in wanted {
        let entry = groups
            .entry(group(one.family, &one.ports))
            .or_insert((one.ports, Vec::new()));
        entry.1.push(one.endpoint);
    }
    // A service without endpoints still has a slice to say so.
    for family in families(service) {
        if !groups.keys().any(|(f, _)| *f == family) {
            groups.insert(group(family, &[]), (Vec::new(), Vec::new()));
        }
    }
    let mut by_group: BTreeMap<Group, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    let mut steps = Steps::default();
    for slice in existing {
        let family = if slice.address_type == "IPv6" {
            "IPv6"
        } else {
            "IPv4"
        };
        let key = group(family, slice.ports.as_deref().unwrap_or_default());
        match groups.contains_key(&key) {
            true => by_group.entry(key).or_default().push(slice.clone()),
            false => steps.delete.push(slice.clone()),
        }
    }
    for (key, (ports, endpoints)) in groups {
        let slices = by_group.remove(&key).unwrap_or_default();
        fill(service, &labels, key.0, ports, endpoints, slices, &mut steps);
    }
    steps
}

fn fill(
    service: &Service,
    labels: &BTreeMap<String, String>,
    family: &'static str,
    ports: Vec<EndpointPort>,
    mut endpoints: Vec<Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
    steps: &mut Steps,
) {
    // First every endpoint is renewed where it is.
    let mut drafts: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let mut kept = Vec::new();
        for old in slice.endpoints.iter().flatten() {
            if let Some(at) = endpoints.iter().position(|e| identity(e) == identity(old)) {
                kept.push(endpoints.remove(at));
            }
        }
        drafts.push((slice, kept));
    }
    // New ones go first to slices that are to be written anyway, then to any with room.
    let changed = |slice: &EndpointSlice, kept: &[Endpoint]| {
        slice.endpoints.as_deref().unwrap_or_default() != kept || slice.labels() != labels
    };
    drafts.sort_by_cached_key(|(slice, kept)| (!changed(slice, kept), usize::MAX - kept.len()));
    for (_, kept) in &mut drafts {
        let room = MAX_ENDPOINTS.saturating_sub(kept.len()).min(endpoints.len());
        kept.extend(endpoints.drain(..room));
    }
    let nothing_else = drafts.iter().all(|(_, kept)| kept.is_empty()) && endpoints.is_empty();
    let mut placeholder = nothing_else;
    for (slice, kept) in drafts {
        if kept.is_empty() && !std::mem::take(&mut placeholder) {
            steps.delete.push(slice);
        } else if changed(&slice, &kept) {
            let mut next = EndpointSlice::clone(&slice);
            next.metadata.labels = Some(labels.clone());
            next.endpoints = Some(kept);
            steps.update.push(next);
        }
    }
    let mut rest: Vec<Vec<Endpoint>> = endpoints
        .chunks(MAX_ENDPOINTS)
        .map(<[Endpoint]>::to_vec)
        .collect();
    if placeholder {
        rest.push(Vec::new());
    }
    for endpoints in rest {
        steps.create.push(EndpointSlice {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", service.name_any())),
                namespace: service.namespace(),
                labels: Some(labels.clone()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Service".into(),
                    name: service.name_any(),
                    uid: service.uid().unwrap_or_default(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                }]),
                ..ObjectMeta::default()
            },
            address_type: family.to_owned(),
            endpoints: Some(endpoints),
            ports: Some(ports.clone()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::endpoints;
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "s" },
            "spec": { "clusterIP": "10.96.0.9", "selector": { "app": "web" },
                "ports": [{ "name": "http", "port": 80, "targetPort": "web" }] },
        }))
        .unwrap()
    }

    fn pod(i: usize, ready: bool, port: i32) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": format!("p{i}"), "namespace": "ns", "uid": format!("u{i}") },
                "spec": { "nodeName": "n", "containers": [{ "name": "c",
                    "ports": [{ "name": "web", "containerPort": port }] }] },
                "status": { "podIP": format!("10.244.{}.{}", i / 250, i % 250 + 1), "phase": "Running",
                    "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
            }))
            .unwrap(),
        )
    }

    fn made(steps: Steps) -> Vec<Arc<EndpointSlice>> {
        let named = |(i, mut s): (usize, EndpointSlice)| {
            s.metadata.name = Some(format!("web-{i}"));
            s.metadata.uid = Some(format!("slice{i}"));
            Arc::new(s)
        };
        steps.create.into_iter().enumerate().map(named).collect()
    }

    fn slices_of(pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]) -> Steps {
        plan(
            &service(),
            endpoints(&service(), pods, |_| Some("z".into())),
            existing,
        )
    }

    #[test]
    fn no_pods_means_one_slice_that_says_so_and_stays() {
        let there = made(slices_of(&[], &[]));
        assert_eq!(there.len(), 1);
        let again = slices_of(&[], &there);
        assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty());
        let first = slices_of(&[pod(1, true, 80)], &there);
        assert_eq!(
            (first.create.len(), first.update.len(), first.delete.len()),
            (1, 0, 1)
        );
    }

    #[test]
    fn one_pod_changes_one_slice() {
        let mut pods: Vec<_> = (0..250).map(|i| pod(i, true, 8080)).collect();
        let there = made(slices_of(&pods, &[]));
        assert_eq!(
            there
                .iter()
                .map(|s| s.endpoints.as_ref().unwrap().len())
                .collect::<Vec<_>>(),
            [100, 100, 50]
        );
        assert_eq!(there[0].ports.as_ref().unwrap()[0].port, Some(8080));
        pods[120] = pod(120, false, 8080);
        let steps = slices_of(&pods, &there);
        assert_eq!(
            (steps.create.len(), steps.update.len(), steps.delete.len()),
            (0, 1, 0)
        );
        assert_eq!(steps.update[0].name_any(), "web-1");
        pods.push(pod(250, true, 8080));
        let steps = slices_of(&pods, &there);
        assert_eq!((steps.create.len(), steps.update.len()), (0, 2));
    }

    #[test]
    fn a_pod_that_is_going_is_terminating_at_once() {
        let mut going = Pod::clone(&pod(1, true, 80));
        going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        ));
        let wanted = endpoints(&service(), &[Arc::new(going)], |_| None);
        let conditions = wanted[0].endpoint.conditions.clone().unwrap();
        assert_eq!(
            (conditions.ready, conditions.serving, conditions.terminating),
            (Some(false), Some(true), Some(true))
        );
    }

    #[test]
    fn pods_whose_named_port_differs_get_slices_of_their_own() {
        let there = made(slices_of(&[pod(1, true, 80), pod(2, true, 81)], &[]));
        assert_eq!(there.len(), 2);
    }
}

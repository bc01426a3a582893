//! Which slices to write so that they say what is wanted, changing as few as possible.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::plan::{Wanted, families, is_headless};

/// The most endpoints in one slice, Kubernetes' default.
const MAX_ENDPOINTS: usize = 100;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";
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
fn identity(endpoint: &Endpoint) -> (Option<String>, Vec<String>) {
    let target = endpoint.target_ref.as_ref();
    (target.and_then(|t| t.uid.clone()), endpoint.addresses.clone())
}

/// Compares what is wanted with what is there. `cause` is when the oldest change happened that is now written.
pub fn plan(
    service: &Service,
    wanted: Vec<Wanted>,
    existing: &[Arc<EndpointSlice>],
    cause: Option<Timestamp>,
) -> Steps {
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
    for slice in steps.create.iter_mut().chain(&mut steps.update) {
        set_cause(&mut slice.metadata, cause);
    }
    steps
}

/// Notes when the oldest change happened that this write carries, for those who measure how long it took.
pub fn set_cause(metadata: &mut ObjectMeta, cause: Option<Timestamp>) {
    let annotations = metadata.annotations.get_or_insert_default();
    match cause {
        Some(at) => annotations.insert(LAST_CHANGE.to_owned(), at.to_string()),
        None => annotations.remove(LAST_CHANGE),
    };
    metadata.annotations.take_if(|all| all.is_empty());
}

fn fill(
    service: &Service,
    labels: &BTreeMap<String, String>,
    family: &'static str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
    slices: Vec<Arc<EndpointSlice>>,
    steps: &mut Steps,
) {
    // First every endpoint is renewed where it is; what is left stays in order.
    let at: HashMap<_, usize> = (endpoints.iter().enumerate())
        .map(|(i, endpoint)| (identity(endpoint), i))
        .collect();
    let mut endpoints: Vec<Option<Endpoint>> = endpoints.into_iter().map(Some).collect();
    let mut drafts: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let mut kept = Vec::new();
        for old in slice.endpoints.iter().flatten() {
            kept.extend(at.get(&identity(old)).and_then(|i| endpoints[*i].take()));
        }
        drafts.push((slice, kept));
    }
    let mut endpoints: Vec<Endpoint> = endpoints.into_iter().flatten().collect();
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
mod tests;

//! Endpoints (core/v1): the same addresses in the older shape, in which terminating pods have no place.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::plan::{Wanted, is_headless};
use super::slices::set_cause;

/// The most addresses that are written; Kubernetes' limit, with its annotation when there would be more.
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Kubernetes' name for this controller.
const CONTROLLER: &str = "endpoint-controller";

/// Whether this controller wrote the object.
pub fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints
        .labels()
        .get(MANAGED_BY)
        .is_some_and(|m| m == CONTROLLER)
}

/// The endpoints object of `service`.
pub fn endpoints(service: &Service, wanted: Vec<Wanted>) -> Endpoints {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let primary = super::plan::families(service).first().copied().unwrap_or("IPv4");
    let mut wanted: Vec<Wanted> = wanted
        .into_iter()
        .filter(|one| one.family == primary && (publish || !is_terminating(one)))
        .collect();
    // Who must choose takes those that work.
    let truncated = wanted.len() > MAX_ADDRESSES;
    if truncated {
        wanted.sort_by_key(|one| !is_ready(one));
        wanted.truncate(MAX_ADDRESSES);
    }
    let mut groups: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    for one in wanted {
        let ready = is_ready(&one);
        let subset = groups.entry(format!("{:?}", one.ports)).or_default();
        let port = |p: k8s_openapi::api::discovery::v1::EndpointPort| EndpointPort {
            name: p.name.filter(|n| !n.is_empty()),
            protocol: p.protocol,
            port: p.port.unwrap_or(0),
            app_protocol: p.app_protocol,
        };
        subset.ports = Some(one.ports.into_iter().map(port).collect()).filter(|p: &Vec<_>| !p.is_empty());
        let address = EndpointAddress {
            ip: one.endpoint.addresses.into_iter().next().unwrap_or_default(),
            hostname: one.endpoint.hostname,
            node_name: one.endpoint.node_name,
            target_ref: one.endpoint.target_ref,
        };
        let list = if ready {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address);
    }
    let mut labels = service.labels().clone();
    labels.remove("service.kubernetes.io/headless");
    if is_headless(service) {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    let mut subsets: Vec<EndpointSubset> = groups.into_values().collect();
    for subset in &mut subsets {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses]
            .into_iter()
            .flatten()
        {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
    }
    Endpoints {
        metadata: ObjectMeta {
            name: Some(service.name_any()),
            namespace: service.namespace(),
            labels: Some(labels),
            annotations: truncated.then(|| [(OVER_CAPACITY.to_owned(), "truncated".to_owned())].into()),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

fn is_ready(wanted: &Wanted) -> bool {
    wanted.endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true)
}

fn is_terminating(wanted: &Wanted) -> bool {
    wanted.endpoint.conditions.as_ref().and_then(|c| c.terminating) == Some(true)
}

/// What to write over `existing`; nothing if it says all that is wanted.
pub fn update(existing: &Endpoints, wanted: Endpoints, cause: Option<Timestamp>) -> Option<Endpoints> {
    let labels = |e: &Endpoints| e.metadata.labels.clone().unwrap_or_default();
    let subsets = |e: &Endpoints| e.subsets.clone().unwrap_or_default();
    let capacity = |e: &Endpoints| e.annotations().get(OVER_CAPACITY).cloned();
    if labels(existing) == labels(&wanted)
        && subsets(existing) == subsets(&wanted)
        && capacity(existing) == capacity(&wanted)
    {
        return None;
    }
    let mut metadata = existing.metadata.clone();
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.remove(OVER_CAPACITY);
    annotations.extend(capacity(&wanted).map(|value| (OVER_CAPACITY.to_owned(), value)));
    metadata.labels = wanted.metadata.labels;
    set_cause(&mut metadata, cause);
    Some(Endpoints {
        metadata,
        subsets: wanted.subsets,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::plan::{Place, endpoints as plan};
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use std::sync::Arc;

    fn pods(count: usize, ready: impl Fn(usize) -> bool) -> Vec<Arc<Pod>> {
        let one = |i: usize| {
            serde_json::from_value(json!({
                "metadata": { "name": format!("p{i}"), "uid": format!("u{i}") },
                "spec": { "nodeName": "n", "containers": [] },
                "status": { "podIPs": [{ "ip": format!("fd00::{:x}", i + 1) }, { "ip": format!("10.0.{}.{}", i / 250, i % 250 + 1) }],
                    "conditions": [{ "type": "Ready", "status": if ready(i) { "True" } else { "False" } }] },
            }))
            .unwrap()
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn only_the_primary_family_and_a_thousand_of_the_ready_first() {
        let service: Service = serde_json::from_value(json!({
            "metadata": { "name": "s" }, "spec": { "ipFamilies": ["IPv6", "IPv4"], "ports": [{ "port": 80 }] },
        }))
        .unwrap();
        let made = |pods: &[Arc<Pod>]| endpoints(&service, plan(&service, pods, |_| Place::In(None)));
        let few = made(&pods(2, |_| true));
        let subset = &few.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap()[0].ip, "fd00::1");
        assert_eq!(few.metadata.annotations, None);
        let many = made(&pods(1200, |i| i >= 300));
        let subset = &many.subsets.as_ref().unwrap()[0];
        let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
        assert_eq!(
            (count(&subset.addresses), count(&subset.not_ready_addresses)),
            (900, 100)
        );
        assert_eq!(many.annotations()[OVER_CAPACITY], "truncated");
        let back = update(&many, few.clone(), None).unwrap();
        assert!(back.metadata.annotations.is_none_or(|a| a.is_empty()));
        assert_eq!(update(&few, made(&pods(2, |_| true)), None), None);
    }
}

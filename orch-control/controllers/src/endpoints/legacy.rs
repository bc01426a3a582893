//! Endpoints (core/v1): the same addresses in the older shape, in which terminating pods have no place.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::plan::{Wanted, is_headless};

/// The most addresses that are written; Kubernetes' limit, with its annotation when there would be more.
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// The endpoints object of `service`.
pub fn endpoints(service: &Service, wanted: Vec<Wanted>) -> Endpoints {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let primary = super::plan::families(service).first().copied().unwrap_or("IPv4");
    let mut groups: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    let (mut count, mut truncated) = (0, false);
    for one in wanted {
        let conditions = one.endpoint.conditions.unwrap_or_default();
        if one.family != primary || conditions.terminating == Some(true) && !publish {
            continue;
        }
        count += 1;
        if count > MAX_ADDRESSES {
            truncated = true;
            break;
        }
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
        let ready = conditions.ready == Some(true);
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
    labels.insert(
        "endpoints.kubernetes.io/managed-by".into(),
        "endpoint-controller".into(),
    );
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

//! What the slices that mirror an Endpoints object are to say, and which writes bring them there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Kubernetes' name for this controller: slices with it are ours.
const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
/// Set to `true` by those who write slices for their Endpoints themselves.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// On Endpoints that are not about traffic but were once used to elect a leader.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that speak of the Endpoints object alone.
const OWN_ANNOTATIONS: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];
/// The most addresses of a family that are mirrored; Kubernetes' default, and the most that a slice may hold.
const MAX_ENDPOINTS: usize = 1000;

/// The service whose endpoints this slice mirrors; none if the slice is not ours.
pub fn mirrors(slice: &EndpointSlice) -> Option<&str> {
    let labels = slice.labels();
    let ours = labels.get(MANAGED_BY).is_some_and(|m| m == CONTROLLER);
    labels.get(SERVICE_NAME).map(String::as_str).filter(|_| ours)
}

/// Whether the object asks to be mirrored.
pub fn wants_mirror(endpoints: &Endpoints) -> bool {
    let skips = endpoints
        .labels()
        .get(SKIP)
        .is_some_and(|v| matches!(v.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"));
    !skips && !endpoints.annotations().contains_key(LEADER) && endpoints.metadata.deletion_timestamp.is_none()
}

/// The writes; slices that are right already are in none of them.
#[derive(Debug, Default)]
pub struct Steps {
    /// New slices.
    pub create: Vec<EndpointSlice>,
    /// Slices that say something else.
    pub update: Vec<EndpointSlice>,
    /// Slices that nothing is left for.
    pub delete: Vec<Arc<EndpointSlice>>,
    /// Addresses that found no place.
    pub left_out: usize,
}

/// The family and the ports, in a form that can be compared.
type Group = (&'static str, String);

fn group(family: &'static str, ports: &[EndpointPort]) -> Group {
    let mut all: Vec<String> = ports
        .iter()
        .map(|p| {
            let (name, protocol) = (p.name.as_deref(), p.protocol.as_deref());
            let application = p.app_protocol.as_deref().unwrap_or_default();
            format!(
                "{}/{}/{:?}/{application}",
                name.unwrap_or_default(),
                protocol.unwrap_or("TCP"),
                p.port
            )
        })
        .collect();
    all.sort();
    (family, all.join(","))
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let of = |p: &k8s_openapi::api::core::v1::EndpointPort| EndpointPort {
        name: Some(p.name.clone().unwrap_or_default()),
        protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        port: Some(p.port),
        app_protocol: p.app_protocol.clone(),
    };
    subset.ports.iter().flatten().map(of).collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// What an endpoint of a slice says, so that one that was read can be compared with one that was made.
fn meaning(slice: &EndpointSlice) -> Vec<(&Endpoint, Option<bool>)> {
    let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready);
    slice.endpoints.iter().flatten().map(|e| (e, ready(e))).collect()
}

/// Compares what `endpoints` says with the slices of ours that are there.
pub fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Steps {
    let mut steps = Steps::default();
    let mut groups: BTreeMap<Group, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let (ready, not_ready) = (&subset.addresses, &subset.not_ready_addresses);
        let all = ready.iter().flatten().map(|a| (a, true));
        for (address, ready) in all.chain(not_ready.iter().flatten().map(|a| (a, false))) {
            let family = match address.ip.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => continue,
            };
            let entry = groups.entry(group(family, &ports));
            let (_, list) = entry.or_insert_with(|| (ports.clone(), Vec::new()));
            if list.len() < MAX_ENDPOINTS {
                list.push(endpoint(address, ready));
            } else {
                steps.left_out += 1;
            }
        }
    }
    let (labels, annotations) = (labels(endpoints), annotations(endpoints));
    for slice in existing {
        let family = if slice.address_type == "IPv6" {
            "IPv6"
        } else {
            "IPv4"
        };
        let key = group(family, slice.ports.as_deref().unwrap_or_default());
        // The first slice of a group becomes the group's; others were made while the watch lagged.
        let Some((_, wanted)) = groups.remove(&key) else {
            steps.delete.push(slice.clone());
            continue;
        };
        let mut next = EndpointSlice::clone(slice);
        next.endpoints = Some(wanted);
        let same = meaning(&next) == meaning(slice)
            && *slice.labels() == labels
            && *slice.annotations() == annotations;
        if !same {
            next.metadata.labels = Some(labels.clone());
            next.metadata.annotations = Some(annotations.clone());
            steps.update.push(next);
        }
    }
    for ((family, _), (ports, list)) in groups {
        steps.create.push(EndpointSlice {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", endpoints.name_any())),
                namespace: endpoints.namespace(),
                labels: Some(labels.clone()),
                annotations: Some(annotations.clone()).filter(|a| !a.is_empty()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Endpoints".into(),
                    name: endpoints.name_any(),
                    uid: endpoints.uid().unwrap_or_default(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                }]),
                ..ObjectMeta::default()
            },
            address_type: family.to_owned(),
            endpoints: Some(list),
            ports: Some(ports),
        });
    }
    steps
}

fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.into(), endpoints.name_any());
    labels.insert(MANAGED_BY.into(), CONTROLLER.into());
    labels
}

fn annotations(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": { "name": "db", "namespace": "ns", "uid": "e", "labels": { "a": "b" },
                "annotations": { "x": "y", "endpoints.kubernetes.io/last-change-trigger-time": "now" } },
            "subsets": subsets,
        }))
        .unwrap()
    }

    /// The slices as the API server would have stored them.
    fn stored(steps: &Steps) -> Vec<Arc<EndpointSlice>> {
        let named = |(i, slice): (usize, &EndpointSlice)| {
            let mut slice = slice.clone();
            slice.metadata.name = Some(format!("db-{i}"));
            Arc::new(slice)
        };
        steps.create.iter().enumerate().map(named).collect()
    }

    fn counts(steps: &Steps) -> (usize, usize, usize) {
        (steps.create.len(), steps.update.len(), steps.delete.len())
    }

    #[test]
    fn every_family_and_set_of_ports_has_one_slice() {
        let both = endpoints(json!([
            { "addresses": [{ "ip": "10.1.2.3" }, { "ip": "fd00::1", "hostname": "h", "nodeName": "n" }],
              "notReadyAddresses": [{ "ip": "10.1.2.4" }], "ports": [{ "port": 80 }] },
            { "addresses": [{ "ip": "10.1.2.3" }], "ports": [{ "name": "x", "port": 81, "protocol": "UDP" }] },
            { "addresses": [{ "ip": "10.1.2.5" }], "ports": [{ "port": 80, "protocol": "TCP" }] },
        ]));
        let steps = plan(&both, &[]);
        let said: Vec<_> = steps
            .create
            .iter()
            .map(|s| {
                let of = |e: &Endpoint| (e.addresses.join(","), e.conditions.clone().unwrap().ready);
                let list: Vec<_> = s.endpoints.iter().flatten().map(of).collect();
                (s.address_type.as_str(), s.ports.as_ref().unwrap()[0].port, list)
            })
            .collect();
        let is = |ip: &str, ready| (ip.to_owned(), Some(ready));
        assert_eq!(
            said,
            [
                (
                    "IPv4",
                    Some(80),
                    vec![is("10.1.2.3", true), is("10.1.2.4", false), is("10.1.2.5", true)]
                ),
                ("IPv4", Some(81), vec![is("10.1.2.3", true)]),
                ("IPv6", Some(80), vec![is("fd00::1", true)]),
            ]
        );
        let first = &steps.create[0];
        assert_eq!(mirrors(first), Some("db"));
        assert_eq!(first.labels()["a"], "b");
        assert_eq!(first.annotations().keys().collect::<Vec<_>>(), ["x"]);
        assert_eq!(first.owner_references()[0].kind, "Endpoints");
        assert_eq!(counts(&plan(&both, &stored(&steps))), (0, 0, 0));
    }

    #[test]
    fn a_change_is_written_where_it_is_and_what_is_left_over_goes() {
        let one = |ip: &str, port: u16| {
            endpoints(json!([{ "addresses": [{ "ip": ip }], "ports": [{ "port": port }] }]))
        };
        let there = stored(&plan(&one("10.1.2.3", 80), &[]));
        let moved = plan(&one("10.2.3.4", 80), &there);
        assert_eq!(counts(&moved), (0, 1, 0));
        assert_eq!(moved.update[0].name_any(), "db-0");
        assert_eq!(counts(&plan(&one("10.1.2.3", 81), &there)), (1, 0, 1));
        assert_eq!(counts(&plan(&endpoints(json!([])), &there)), (0, 0, 1));
        let twice = [there[0].clone(), there[0].clone()];
        assert_eq!(counts(&plan(&one("10.1.2.3", 80), &twice)), (0, 0, 1));
    }

    #[test]
    fn no_slice_holds_more_than_it_may() {
        let many: Vec<Value> = (0..1003)
            .map(|i| json!({ "ip": format!("10.0.{}.{}", i / 250, i % 250) }))
            .collect();
        let steps = plan(
            &endpoints(json!([{ "addresses": many, "ports": [{ "port": 80 }] }])),
            &[],
        );
        assert_eq!(steps.create[0].endpoints.as_ref().unwrap().len(), 1000);
        assert_eq!(steps.left_out, 3);
    }

    #[test]
    fn who_asks_not_to_be_mirrored_is_not() {
        let mut plain = endpoints(json!([]));
        assert!(wants_mirror(&plain));
        for (value, wants) in [("true", false), ("false", true), ("x", true)] {
            plain.labels_mut().insert(SKIP.into(), value.into());
            assert_eq!(wants_mirror(&plain), wants, "{value}");
        }
        plain.annotations_mut().insert(LEADER.into(), String::new());
        assert!(!wants_mirror(&plain));
    }
}

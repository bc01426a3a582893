//! Which zones and nodes an endpoint is meant for.
//!
//! A Service says what it wants by `spec.trafficDistribution`: endpoints of the client's zone or node first. The older
//! annotation `service.kubernetes.io/topology-mode: Auto` (KEP-2433) deals endpoints out so that every zone gets its
//! share by CPU, even if some of them stand in another zone, or else gives no hints at all. It goes first.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::{EndpointHints, ForNode, ForZone};
use kube::ResourceExt;
use orch_api::quantity::Quantity;

use super::plan::Wanted;

const ZONE: &str = "topology.kubernetes.io/zone";
const MODE: &str = "service.kubernetes.io/topology-mode";
/// What the annotation was called before v1.27.
const OLD_MODE: &str = "service.kubernetes.io/topology-aware-hints";
/// Nodes that run the control plane get no share: workloads are elsewhere.
const CONTROL_PLANE: [&str; 2] = [
    "node-role.kubernetes.io/control-plane",
    "node-role.kubernetes.io/master",
];
/// How much more than its share an endpoint may have to carry (KEP-2433): a fifth.
const MOST_LOAD: f64 = 1.2;

/// The zone a node is in.
pub fn zone(node: &Node) -> Option<String> {
    node.labels().get(ZONE).cloned()
}

/// What a node contributes to its zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    zone: Option<String>,
    milli_cpu: i64,
}

/// The node's share; none if it is not ready or not for workloads.
pub fn share(node: &Node) -> Option<Share> {
    let status = node.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    let excluded = CONTROL_PLANE
        .iter()
        .any(|label| node.labels().contains_key(*label));
    if !ready || excluded {
        return None;
    }
    let cpu = status.allocatable.as_ref().and_then(|all| all.get("cpu"));
    let cpu = cpu.and_then(|cpu| Quantity::parse(&cpu.0).ok());
    Some(Share {
        zone: zone(node),
        milli_cpu: cpu.map_or(0, |cpu| cpu.milli_value()),
    })
}

/// Each zone's part of all CPU, if every node says where it is and what it has, and there is more than one zone.
pub fn ratios(shares: impl Iterator<Item = Share>) -> Option<BTreeMap<String, f64>> {
    let mut zones: BTreeMap<String, f64> = BTreeMap::new();
    for share in shares {
        if share.milli_cpu <= 0 {
            return None;
        }
        *zones.entry(share.zone?).or_default() += share.milli_cpu as f64;
    }
    let total: f64 = zones.values().sum();
    zones.values_mut().for_each(|cpu| *cpu /= total);
    (zones.len() > 1).then_some(zones)
}

/// Whether the Service's endpoints are dealt out by CPU.
pub fn is_auto(service: &Service) -> bool {
    let annotations = service.annotations();
    let mode = annotations.get(OLD_MODE).or_else(|| annotations.get(MODE));
    mode.is_some_and(|mode| mode == "Auto" || mode == "auto")
}

fn for_zone(zone: &str) -> Option<Vec<ForZone>> {
    Some(vec![ForZone {
        name: zone.to_owned(),
    }])
}

/// Gives endpoints their hints. `ratios` is asked only by Services that are dealt out by CPU.
pub fn hint(
    service: &Service,
    wanted: &mut [Wanted],
    ratios: impl FnOnce() -> Option<BTreeMap<String, f64>>,
) {
    if is_auto(service) {
        if let Some(ratios) = ratios() {
            for family in super::plan::families(service) {
                let ready = wanted.iter_mut().filter(|w| w.family == family && is_ready(w));
                deal(ready.collect(), &ratios);
            }
        }
        return;
    }
    let spec = service.spec.as_ref();
    let by_node = match spec.and_then(|s| s.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => false,
        Some("PreferSameNode") => true,
        _ => return,
    };
    for endpoint in wanted.iter_mut().map(|w| &mut w.endpoint) {
        let for_zones = endpoint.zone.as_deref().and_then(for_zone);
        let node = endpoint.node_name.clone().filter(|_| by_node);
        let for_nodes = node.map(|name| vec![ForNode { name }]);
        if for_zones.is_some() || for_nodes.is_some() {
            endpoint.hints = Some(EndpointHints { for_nodes, for_zones });
        }
    }
}

fn is_ready(wanted: &Wanted) -> bool {
    let conditions = wanted.endpoint.conditions.as_ref();
    conditions.and_then(|c| c.ready) != Some(false)
}

/// Gives every zone the endpoints that stand in it, and those short of their share some of the others'. No hints when
/// there are too few endpoints for that.
fn deal(mut ready: Vec<&mut Wanted>, ratios: &BTreeMap<String, f64>) {
    let count = ready.len() as f64;
    let least = |zone: &str| {
        ratios
            .get(zone)
            .map_or(0, |ratio| (ratio * count / MOST_LOAD).ceil() as usize)
    };
    if ready.iter().any(|w| w.endpoint.zone.is_none())
        || ratios.keys().map(|zone| least(zone)).sum::<usize>() > ready.len()
    {
        return;
    }
    // The order must not depend on anything that changes, or endpoints would wander between zones.
    ready.sort_by(|a, b| a.endpoint.addresses.cmp(&b.endpoint.addresses));
    let mut zones: HashMap<String, usize> = ratios.keys().map(|zone| (zone.clone(), 0)).collect();
    for wanted in &ready {
        *zones
            .entry(wanted.endpoint.zone.clone().unwrap_or_default())
            .or_default() += 1;
    }
    let mut short: Vec<String> = Vec::new();
    for zone in ratios.keys() {
        let missing = least(zone).saturating_sub(zones[zone]);
        short.extend(std::iter::repeat_n(zone.clone(), missing));
    }
    for wanted in ready.iter_mut().rev() {
        let own = wanted.endpoint.zone.clone().unwrap_or_default();
        let spare = zones[&own] > least(&own);
        let zone = match short.pop_if(|_| spare) {
            Some(other) => {
                zones.entry(own).and_modify(|n| *n -= 1);
                other
            }
            None => own,
        };
        wanted.endpoint.hints = Some(EndpointHints {
            for_nodes: None,
            for_zones: for_zone(&zone),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
    use serde_json::json;

    fn service(annotation: Option<&str>, distribution: Option<&str>) -> Service {
        let annotations = annotation.map(|value| json!({ MODE: value }));
        serde_json::from_value(json!({
            "metadata": { "name": "s", "annotations": annotations },
            "spec": { "ipFamilies": ["IPv4"], "trafficDistribution": distribution },
        }))
        .unwrap()
    }

    /// Endpoints in these zones, "" for none.
    fn endpoints(zones: &[&str]) -> Vec<Wanted> {
        let one = |(i, zone): (usize, &&str)| Wanted {
            family: "IPv4",
            ports: Vec::new(),
            endpoint: Endpoint {
                addresses: vec![format!("10.0.0.{i}")],
                zone: Some((*zone).to_owned()).filter(|z| !z.is_empty()),
                node_name: Some(format!("n{i}")),
                conditions: Some(EndpointConditions::default()),
                ..Endpoint::default()
            },
        };
        zones.iter().enumerate().map(one).collect()
    }

    fn hints(wanted: &[Wanted]) -> Vec<String> {
        let text = |w: &Wanted| {
            let hints = w.endpoint.hints.clone().unwrap_or_default();
            let zones = hints.for_zones.into_iter().flatten().map(|z| z.name);
            let nodes = hints.for_nodes.into_iter().flatten().map(|n| n.name);
            zones.chain(nodes).collect::<Vec<_>>().join("+")
        };
        wanted.iter().map(text).collect()
    }

    fn node(zone: Option<&str>, cpu: &str, labels: &[&str]) -> Node {
        let mut all: BTreeMap<&str, &str> = labels.iter().map(|l| (*l, "")).collect();
        all.extend(zone.map(|z| (ZONE, z)));
        serde_json::from_value(json!({
            "metadata": { "name": "n", "labels": all },
            "status": { "allocatable": { "cpu": cpu }, "conditions": [{ "type": "Ready", "status": "True" }] },
        }))
        .unwrap()
    }

    #[test]
    fn traffic_is_hinted_to_the_zone_or_the_node() {
        let mut all = endpoints(&["a", "b", ""]);
        hint(&service(None, Some("PreferClose")), &mut all, || None);
        assert_eq!(hints(&all), ["a", "b", ""]);
        let mut all = endpoints(&["a", ""]);
        hint(&service(None, Some("PreferSameNode")), &mut all, || None);
        assert_eq!(hints(&all), ["a+n0", "n1"]);
        let mut all = endpoints(&["a"]);
        hint(&service(None, None), &mut all, || None);
        assert_eq!(hints(&all), [""]);
    }

    #[test]
    fn endpoints_are_dealt_out_by_cpu() {
        let even = || {
            ratios(
                [node(Some("a"), "2", &[]), node(Some("b"), "2000m", &[])]
                    .iter()
                    .filter_map(share),
            )
        };
        let auto = service(Some("Auto"), Some("PreferSameNode"));
        let mut all = endpoints(&["a", "b", "a", "b"]);
        hint(&auto, &mut all, even);
        assert_eq!(hints(&all), ["a", "b", "a", "b"]);
        // b is short of its share: two of a's endpoints are meant for it, always the same.
        let mut all = endpoints(&["a", "a", "a", "a", "a", "b"]);
        hint(&auto, &mut all, even);
        assert_eq!(hints(&all), ["a", "a", "a", "b", "b", "b"]);
        // A third zone has no share: what stands there is given to those that are short.
        let mut all = endpoints(&["a", "a", "a", "c", "c", "c"]);
        hint(&auto, &mut all, even);
        assert_eq!(hints(&all), ["a", "a", "a", "b", "b", "b"]);
    }

    #[test]
    fn without_enough_to_go_by_there_are_no_hints() {
        let even = || {
            ratios(
                [node(Some("a"), "2", &[]), node(Some("b"), "2", &[])]
                    .iter()
                    .filter_map(share),
            )
        };
        let auto = service(Some("auto"), None);
        let mut all = endpoints(&["a", ""]);
        hint(&auto, &mut all, even);
        assert_eq!(hints(&all), ["", ""]);
        let mut all = endpoints(&["a"]);
        hint(&auto, &mut all, even);
        assert_eq!(hints(&all), [""]);
        let shares = |nodes: &[Node]| ratios(nodes.iter().filter_map(share));
        assert_eq!(shares(&[node(Some("a"), "2", &[])]), None);
        assert_eq!(shares(&[node(Some("a"), "2", &[]), node(None, "2", &[])]), None);
        let control = [
            node(Some("a"), "2", &[]),
            node(Some("b"), "2", &[CONTROL_PLANE[0]]),
        ];
        assert_eq!(shares(&control), None);
    }
}

//! From Kubernetes objects to what the maps should hold: pure.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use k8s_openapi::api::{
    core::v1::{Node, Service, ServicePort},
    discovery::v1::{Endpoint, EndpointSlice},
};
use orch_ebpf::{
    PROTOCOL_TCP, PROTOCOL_UDP,
    service::{ANY_ADDRESS, BACKEND_LOCAL, Backend, SCOPE_EXTERNAL, SCOPE_INTERNAL, ServiceKey},
};

use crate::plan::{Desired, Frontend};

/// The label that ties a slice to its service (`EndpointSlice` API).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// The part of another node that routing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteNode {
    /// The Node's name.
    pub name: String,
    /// Its IPv4 InternalIPs.
    pub addresses: Vec<Ipv4Addr>,
    /// Its pods' addresses, once the control plane has given it some.
    pub pod_cidr: Option<Ipv4Net>,
}

/// What the service should be on the node `node_name`, with what cannot be done in words.
pub fn service(service: &Service, slices: &[&EndpointSlice], node_name: &str) -> (Desired, Vec<String>) {
    let mut desired = Desired::default();
    let mut refused = Vec::new();
    let Some(spec) = &service.spec else {
        return (desired, refused);
    };
    if spec.type_.as_deref() == Some("ExternalName") {
        return (desired, refused);
    }
    let cluster_ip = spec
        .cluster_ip
        .as_deref()
        .and_then(|text| text.parse::<Ipv4Addr>().ok());
    let Some(cluster_ip) = cluster_ip else {
        return (desired, refused);
    };
    let affinity_seconds = affinity_seconds(service);
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let outside: Vec<Ipv4Addr> = addresses_outside(service);
    for port in spec.ports.iter().flatten() {
        let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => PROTOCOL_TCP,
            "UDP" => PROTOCOL_UDP,
            other => {
                refused.push(format!(
                    "port {} uses {other}, which this data plane does not carry yet",
                    port.port
                ));
                continue;
            }
        };
        let Ok(number) = u16::try_from(port.port) else {
            refused.push(format!("port {} is out of range", port.port));
            continue;
        };
        let all = backends(port, protocol, slices, node_name, false);
        let local = backends(port, protocol, slices, node_name, true);
        let cluster = desired.pools.len();
        desired.pools.push(all);
        let mut local_pool = None;
        let mut pool_for = |is_local: bool, desired: &mut Desired| {
            if !is_local {
                return cluster;
            }
            *local_pool.get_or_insert_with(|| {
                desired.pools.push(local.clone());
                desired.pools.len() - 1
            })
        };
        let internal = pool_for(internal_local, &mut desired);
        let external = pool_for(external_local, &mut desired);
        let mut add = |address, port, scope, pool| {
            let key = ServiceKey {
                address,
                port,
                protocol,
                scope,
            };
            desired.frontends.push(Frontend {
                key,
                affinity_seconds,
                pool,
            });
        };
        add(cluster_ip.octets(), number, SCOPE_INTERNAL, internal);
        for address in &outside {
            add(address.octets(), number, SCOPE_INTERNAL, cluster);
            add(address.octets(), number, SCOPE_EXTERNAL, external);
        }
        if let Some(node_port) = port
            .node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
        {
            add(ANY_ADDRESS, node_port, SCOPE_INTERNAL, cluster);
            add(ANY_ADDRESS, node_port, SCOPE_EXTERNAL, external);
        }
    }
    (desired, refused)
}

fn affinity_seconds(service: &Service) -> u32 {
    let Some(spec) = &service.spec else { return 0 };
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let configured = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    configured
        .and_then(|client_ip| client_ip.timeout_seconds)
        .and_then(|seconds| u32::try_from(seconds).ok())
        .unwrap_or(DEFAULT_AFFINITY_SECONDS)
}

/// External and load balancer addresses.
fn addresses_outside(service: &Service) -> Vec<Ipv4Addr> {
    let external = service
        .spec
        .iter()
        .flat_map(|spec| spec.external_ips.iter().flatten())
        .cloned();
    let balancer = service
        .status
        .iter()
        .flat_map(|status| status.load_balancer.iter());
    let balancer = balancer
        .flat_map(|status| status.ingress.iter().flatten())
        .filter_map(|ingress| ingress.ip.clone());
    let mut addresses: Vec<Ipv4Addr> = external
        .chain(balancer)
        .filter_map(|text| text.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The backends of one port: the ready ones, or where none is ready those that still serve while they terminate.
fn backends(
    port: &ServicePort,
    protocol: u8,
    slices: &[&EndpointSlice],
    node_name: &str,
    only_local: bool,
) -> BTreeSet<Backend> {
    let mut ready = BTreeSet::new();
    let mut serving = BTreeSet::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let wanted = port.name.as_deref().unwrap_or("");
        let Some(number) = slice
            .ports
            .iter()
            .flatten()
            .filter(|candidate| candidate.name.as_deref().unwrap_or("") == wanted)
            .filter(|candidate| candidate.protocol.as_deref().unwrap_or("TCP") == protocol_name(protocol))
            .find_map(|candidate| candidate.port.and_then(|number| u16::try_from(number).ok()))
        else {
            continue;
        };
        for endpoint in slice.endpoints.iter().flatten() {
            let local = endpoint.node_name.as_deref() == Some(node_name);
            if only_local && !local {
                continue;
            }
            let Some(address) = endpoint
                .addresses
                .first()
                .and_then(|text| text.parse::<Ipv4Addr>().ok())
            else {
                continue;
            };
            let flags = if local { BACKEND_LOCAL } else { 0 };
            let backend = Backend {
                address: address.octets(),
                port: number,
                protocol,
                flags,
            };
            if is_ready(endpoint) {
                ready.insert(backend);
            } else if is_serving_while_terminating(endpoint) {
                serving.insert(backend);
            }
        }
    }
    if ready.is_empty() { serving } else { ready }
}

fn protocol_name(protocol: u8) -> &'static str {
    if protocol == PROTOCOL_UDP { "UDP" } else { "TCP" }
}

/// "A nil value should be interpreted as true" (`EndpointConditions.ready`).
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true)
}

fn is_serving_while_terminating(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .is_some_and(|conditions| conditions.terminating == Some(true) && conditions.serving.unwrap_or(true))
}

/// Every node but this one.
pub fn remote_nodes<'a>(nodes: impl IntoIterator<Item = &'a Node>, node_name: &str) -> Vec<RemoteNode> {
    nodes
        .into_iter()
        .filter_map(|node| {
            let name = node.metadata.name.clone().filter(|name| name != node_name)?;
            let addresses = node
                .status
                .iter()
                .flat_map(|status| status.addresses.iter().flatten())
                .filter(|address| address.type_ == "InternalIP")
                .filter_map(|address| address.address.parse().ok())
                .collect();
            let pod_cidr = node
                .spec
                .as_ref()
                .and_then(|spec| spec.pod_cidr.as_ref())
                .and_then(|c| c.parse().ok());
            Some(RemoteNode {
                name,
                addresses,
                pod_cidr,
            })
        })
        .collect()
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;

//! From Kubernetes objects to what the maps should hold: pure.

mod endpoints;
mod node;

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Service, ServicePort, ServiceSpec},
    discovery::v1::EndpointSlice,
};
use orch_ebpf::{
    Address, Address4, Address6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP,
    service::{SCOPE_EXTERNAL, SCOPE_INTERNAL, SERVICE_LOCAL, SERVICE_SOURCES, ServiceKey},
};

pub use self::endpoints::serves;
use self::endpoints::{Chosen, Endpoints};
pub use self::node::{EXCLUDE_LABEL, NodeInfo, RemoteNode, ZONE_LABEL, info, remote_nodes};
use crate::plan::{Desired, Frontend, Pool, Spread};

/// The label by which a service asks for another proxy than the cluster's (well-known labels).
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label by which a service asks for no proxy, whatever addresses it has (well-known labels).
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The class of load balancers that this data plane announces, as it does those without a class.
pub const BALANCER_CLASS: &str = "orch.dev/l2";
/// Kubernetes' default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// From where the cluster is looked at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// This node's name.
    pub node_name: &'a str,
    /// Every node, this one included, by name.
    pub nodes: &'a HashMap<String, NodeInfo>,
    /// Nodes that do not answer this one: their backends are left out where there are others.
    pub left_out: &'a BTreeSet<String>,
}

/// What a service should be in either family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Both {
    /// In IPv4.
    pub v4: Desired<Address4>,
    /// In IPv6.
    pub v6: Desired<Address6>,
}

/// A load balancer's addresses and who may announce them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancer {
    /// Each address with the nodes that may announce it; `None` for all.
    pub addresses: Vec<(IpAddr, Option<Vec<String>>)>,
}

/// A health-check node port and what it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// How many endpoints of the service on this node are ready.
    pub local_endpoints: usize,
}

/// What the service should be on the node, with what cannot be done in words.
pub fn service<S: Borrow<EndpointSlice>>(
    service: &Service,
    slices: &[S],
    view: &View<'_>,
) -> (Both, Vec<String>) {
    let mut refused = Vec::new();
    let both = match carried(service) {
        Some(spec) => Both {
            v4: in_family(service, spec, slices, view, &mut refused),
            v6: in_family(service, spec, slices, view, &mut refused),
        },
        None => Both::default(),
    };
    refused.sort_unstable();
    refused.dedup();
    (both, refused)
}

/// The specification of a service that has addresses here.
fn carried(service: &Service) -> Option<&ServiceSpec> {
    let spec = service.spec.as_ref()?;
    let elsewhere = service.metadata.labels.as_ref().is_some_and(|labels| {
        [PROXY_NAME_LABEL, HEADLESS_LABEL]
            .iter()
            .any(|label| labels.contains_key(*label))
    });
    (!elsewhere && spec.type_.as_deref() != Some("ExternalName")).then_some(spec)
}

/// What one address and port is, before its pool has a place.
struct Port<'a, A> {
    number: u16,
    protocol: u8,
    spec: &'a ServicePort,
    endpoints: endpoints::OfPort<A>,
}

/// Which of a port's up to four pools.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Which {
    local: bool,
    spread: Spread,
}

fn in_family<A: Address, S: Borrow<EndpointSlice>>(
    service: &Service,
    spec: &ServiceSpec,
    slices: &[S],
    view: &View<'_>,
    refused: &mut Vec<String>,
) -> Desired<A> {
    let mut desired = Desired::default();
    let Some(cluster_ip) = cluster_ips(spec).find_map(|ip| A::from_ip(ip)) else {
        return desired;
    };
    let affinity_seconds = affinity_seconds(spec);
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let external_ips = external_ips::<A>(spec);
    let balancers: BTreeSet<A> = balancer_ips(service).filter_map(|ip| A::from_ip(ip)).collect();
    let sources = sources::<A>(spec, refused);
    let endpoints = Endpoints::<A>::read(slices, view);
    for port in spec.ports.iter().flatten() {
        let port = match read_port(port, &endpoints) {
            Ok(port) => port,
            Err(reason) => {
                refused.push(reason);
                continue;
            }
        };
        let mut pools: Vec<(Which, usize)> = Vec::new();
        let mut add = |address: A, number: u16, scope: u8, local: bool, guarded: bool| {
            let which = Which {
                local,
                spread: if scope == SCOPE_EXTERNAL {
                    Spread::Table
                } else {
                    Spread::Each
                },
            };
            let known = pools
                .iter()
                .find(|(known, _)| *known == which)
                .map(|(_, index)| *index);
            let index = known.unwrap_or_else(|| {
                let Chosen { backends, fallback } = if local {
                    port.endpoints.local()
                } else {
                    port.endpoints.cluster()
                };
                let sources = sources.clone().unwrap_or_default();
                desired.pools.push(Pool {
                    backends,
                    fallback,
                    spread: which.spread,
                    sources,
                });
                pools.push((which, desired.pools.len() - 1));
                desired.pools.len() - 1
            });
            let mut flags = 0;
            if guarded {
                flags |= SERVICE_SOURCES;
            }
            if local && port.endpoints.any() {
                flags |= SERVICE_LOCAL;
            }
            let key = ServiceKey {
                address,
                port: number,
                protocol: port.protocol,
                scope,
            };
            desired.frontends.push(Frontend {
                key,
                affinity_seconds,
                flags,
                pool: index,
            });
        };
        add(cluster_ip, port.number, SCOPE_INTERNAL, internal_local, false);
        for address in &external_ips {
            add(*address, port.number, SCOPE_INTERNAL, false, false);
            add(*address, port.number, SCOPE_EXTERNAL, external_local, false);
        }
        for address in balancers.difference(&external_ips) {
            add(*address, port.number, SCOPE_INTERNAL, false, sources.is_some());
            add(
                *address,
                port.number,
                SCOPE_EXTERNAL,
                external_local,
                sources.is_some(),
            );
        }
        let node_port = port.spec.node_port.and_then(|port| u16::try_from(port).ok());
        if let Some(node_port) = node_port.filter(|port| *port != 0) {
            add(A::ANY, node_port, SCOPE_INTERNAL, false, false);
            add(A::ANY, node_port, SCOPE_EXTERNAL, external_local, false);
        }
    }
    desired
}

fn read_port<'a, A: Address>(
    port: &'a ServicePort,
    endpoints: &Endpoints<'_, A>,
) -> Result<Port<'a, A>, String> {
    let name = port.protocol.as_deref().unwrap_or("TCP");
    let protocol = match name {
        "TCP" => PROTOCOL_TCP,
        "UDP" => PROTOCOL_UDP,
        "SCTP" => PROTOCOL_SCTP,
        other => {
            return Err(format!(
                "port {} uses {other}, which is no protocol of services",
                port.port
            ));
        }
    };
    let number = u16::try_from(port.port).map_err(|_| format!("port {} is out of range", port.port))?;
    Ok(Port {
        number,
        protocol,
        spec: port,
        endpoints: endpoints.of_port(port.name.as_deref().unwrap_or(""), (protocol, name)),
    })
}

/// Both families' ClusterIPs; none for a headless service.
fn cluster_ips(spec: &ServiceSpec) -> impl Iterator<Item = IpAddr> {
    let first = spec.cluster_ip.iter();
    let all = spec.cluster_ips.iter().flatten();
    all.chain(first).filter_map(|text| text.parse().ok())
}

fn external_ips<A: Address>(spec: &ServiceSpec) -> BTreeSet<A> {
    let texts = spec.external_ips.iter().flatten();
    texts.filter_map(|text| A::from_ip(text.parse().ok()?)).collect()
}

/// The load balancer's addresses whose packets arrive as they were sent; under the mode `Proxy` they come with the
/// node's address as destination, and the address itself is left to the balancer (`LoadBalancerIngress.ipMode`).
fn balancer_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let status = service
        .status
        .iter()
        .flat_map(|status| status.load_balancer.iter());
    status
        .flat_map(|status| status.ingress.iter().flatten())
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
}

/// The networks of the family from which the load balancer may be used; `None` for all. A list with networks of the
/// other family only lets nobody in: the user has said who may come.
fn sources<A: Address>(spec: &ServiceSpec, refused: &mut Vec<String>) -> Option<Vec<(u32, A)>> {
    let ranges = spec
        .load_balancer_source_ranges
        .as_ref()
        .filter(|ranges| !ranges.is_empty())?;
    let mut networks = Vec::new();
    for text in ranges {
        match text.trim().parse::<IpNet>() {
            Ok(net) => networks.extend(A::from_ip(net.network()).map(|ip| (u32::from(net.prefix_len()), ip))),
            Err(_) => refused.push(format!("the source range {text:?} is no network")),
        }
    }
    networks.sort_unstable();
    networks.dedup();
    Some(networks)
}

fn affinity_seconds(spec: &ServiceSpec) -> u32 {
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

/// The service's health-check node port, if it has one.
pub fn health_check<S: Borrow<EndpointSlice>>(
    service: &Service,
    slices: &[S],
    view: &View<'_>,
) -> Option<HealthCheck> {
    let spec = carried(service)?;
    let local = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec
        .health_check_node_port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| local && *port != 0)?;
    // An endpoint that carries both families counts once, as it does for who asks over either.
    let v4: BTreeSet<_> = Endpoints::<Address4>::read(slices, view).local_ready().collect();
    let v6: BTreeSet<_> = Endpoints::<Address6>::read(slices, view).local_ready().collect();
    Some(HealthCheck {
        port,
        local_endpoints: v4.len().max(v6.len()),
    })
}

/// The load balancer's addresses that this cluster's nodes announce.
pub fn balancer<S: Borrow<EndpointSlice>>(service: &Service, slices: &[S]) -> Option<Balancer> {
    let spec = carried(service)?;
    let class = spec.load_balancer_class.as_deref();
    if spec.type_.as_deref() != Some("LoadBalancer") || class.is_some_and(|class| class != BALANCER_CLASS) {
        return None;
    }
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    let addresses: Vec<_> = balancer_ips(service)
        .map(|ip| {
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            (ip, local.then(|| endpoints::nodes_with(slices, family)))
        })
        .collect();
    (!addresses.is_empty()).then_some(Balancer { addresses })
}

#[cfg(test)]
mod tests;

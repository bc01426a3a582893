//! The endpoints a service should have: which pods, on which ports, in which condition.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use orch_shared::pods::{is_deleting, is_ready, is_terminal, node_name};

/// An endpoint with what decides on the slice it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// The service's ports as this pod has them.
    pub ports: Vec<EndpointPort>,
    /// The endpoint itself.
    pub endpoint: Endpoint,
}

fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let all: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if all.is_empty() {
        status.pod_ip.as_deref().into_iter().collect()
    } else {
        all
    }
}

/// Whether two states of a pod can make a difference to a service.
pub fn differs(old: &Pod, new: &Pod) -> bool {
    let facts = |pod: &Pod| {
        let flags = (is_ready(pod), is_terminal(pod), is_deleting(&pod.metadata));
        (
            flags,
            node_name(pod).map(str::to_owned),
            pod.labels().clone(),
            pod.uid(),
        )
    };
    let names = |pod: &Pod| {
        pod.spec
            .as_ref()
            .map(|s| (s.hostname.clone(), s.subdomain.clone()))
    };
    facts(old) != facts(new) || addresses(old) != addresses(new) || names(old) != names(new)
}

/// Whether the service has no virtual address: its endpoints are what its name resolves to.
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

/// The address families that the service has slices for.
pub fn families(service: &Service) -> Vec<&'static str> {
    let known = |f: &String| if f == "IPv6" { "IPv6" } else { "IPv4" };
    let spec = service.spec.as_ref();
    let given: Vec<_> = spec
        .iter()
        .flat_map(|s| s.ip_families.iter().flatten())
        .map(known)
        .collect();
    if !given.is_empty() {
        return given;
    }
    match spec
        .and_then(|s| s.cluster_ip.as_deref())
        .and_then(|ip| ip.parse::<IpAddr>().ok())
    {
        Some(IpAddr::V6(_)) => vec!["IPv6"],
        _ => vec!["IPv4"],
    }
}

/// The number of the container port that a service port leads to, if the pod has it.
fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten().filter(sidecar));
    let mut ports = all.flat_map(|c| c.ports.iter().flatten());
    let same =
        ports.find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol);
    same.map(|p| p.container_port)
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let all = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    all.filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            port: Some(target(port, pod)?),
            app_protocol: port.app_protocol.clone(),
        })
    })
    .collect()
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// It is there, perhaps in a zone.
    In(Option<String>),
    /// There is no such node (any more).
    Nowhere,
}

/// The endpoints of `service`, given the pods it selects. A pod whose node is gone is none, unless the service wants
/// even those that are not ready: nobody will tell of its end.
pub fn endpoints(service: &Service, pods: &[Arc<Pod>], place: impl Fn(&str) -> Place) -> Vec<Wanted> {
    let spec = service.spec.clone().unwrap_or_default();
    let publish = spec.publish_not_ready_addresses == Some(true);
    let families = families(service);
    let mut out = Vec::new();
    for pod in pods.iter().filter(|p| !is_terminal(p)) {
        let (serving, terminating) = (is_ready(pod), is_deleting(&pod.metadata));
        let names = pod
            .spec
            .as_ref()
            .filter(|s| s.subdomain.as_deref() == Some(service.name_any().as_str()));
        let zone = match node_name(pod).map(&place) {
            Some(Place::In(zone)) => zone,
            Some(Place::Nowhere) if !publish => continue,
            _ => None,
        };
        let hostname = names.and_then(|s| s.hostname.clone()).filter(|h| !h.is_empty());
        for address in addresses(pod) {
            let family = match address.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => continue,
            };
            if !families.contains(&family) {
                continue;
            }
            out.push(Wanted {
                family,
                ports: ports(service, pod),
                endpoint: Endpoint {
                    addresses: vec![address.to_owned()],
                    conditions: Some(EndpointConditions {
                        ready: Some(publish || serving && !terminating),
                        serving: Some(serving),
                        terminating: Some(terminating),
                    }),
                    hostname: hostname.clone(),
                    zone: zone.clone(),
                    node_name: node_name(pod).map(str::to_owned),
                    target_ref: Some(ObjectReference {
                        kind: Some("Pod".into()),
                        namespace: pod.namespace(),
                        name: pod.metadata.name.clone(),
                        uid: pod.uid(),
                        ..ObjectReference::default()
                    }),
                    ..Endpoint::default()
                },
            });
        }
    }
    out
}

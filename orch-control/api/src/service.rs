//! What the fields of a Service mean for one another, whoever asks: the allocator, validation, the controllers.

mod carry;
mod families;

pub use carry::carry_over;
pub use families::settle_families;

use std::fmt;
use std::net::IpAddr;

use serde_json::Value;

use crate::value::{list, text};

/// The class of load balancer that orch serves itself, beside services that name no class.
pub const LOAD_BALANCER_CLASS: &str = "orch.dev/l2";

/// An address family, as `spec.ipFamilies` and EndpointSlices name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// `IPv4`
    V4,
    /// `IPv6`
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// From what [`Self::as_str`] gives.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `spec.type`, `ClusterIP` if it is absent.
#[must_use]
pub fn service_type(service: &Value) -> &str {
    match text(service, &["spec", "type"]) {
        "" => "ClusterIP",
        other => other,
    }
}

/// Whether the Service has no virtual address although its type would give it one.
#[must_use]
pub fn is_headless(service: &Value) -> bool {
    text(service, &["spec", "clusterIP"]) == "None"
}

/// Whether the type gives the Service a cluster IP, `None` included.
#[must_use]
pub fn needs_cluster_ip(service: &Value) -> bool {
    service_type(service) != "ExternalName"
}

/// Whether the type may have node ports.
#[must_use]
pub fn uses_node_ports(service: &Value) -> bool {
    matches!(service_type(service), "NodePort" | "LoadBalancer")
}

/// Whether ports that name no node port are given one.
#[must_use]
pub fn allocates_node_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Whether the Service has a health check node port: a load balancer must find the nodes that have endpoints.
#[must_use]
pub fn needs_health_check(service: &Value) -> bool {
    service_type(service) == "LoadBalancer" && text(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

/// Whether traffic from outside can come to the Service, so that an external traffic policy makes sense.
#[must_use]
pub fn is_externally_accessible(service: &Value) -> bool {
    uses_node_ports(service)
        || service_type(service) == "ClusterIP" && !list(service, &["spec", "externalIPs"]).is_empty()
}

/// The addresses in `spec.clusterIPs`; none when the Service is headless or external.
pub fn cluster_ips(service: &Value) -> impl Iterator<Item = IpAddr> {
    list(service, &["spec", "clusterIPs"])
        .iter()
        .filter_map(|ip| ip.as_str()?.parse().ok())
}

/// `spec.ipFamilies`.
pub fn families(service: &Value) -> impl Iterator<Item = Family> {
    list(service, &["spec", "ipFamilies"])
        .iter()
        .filter_map(|family| Family::parse(family.as_str()?))
}

/// Whether two Services say the same in `spec.field`; absent, null and empty are one.
fn same(new: &Value, old: &Value, field: &str) -> bool {
    let (new, old) = (&new["spec"][field], &old["spec"][field]);
    new == old || crate::value::is_empty(new) && crate::value::is_empty(old)
}

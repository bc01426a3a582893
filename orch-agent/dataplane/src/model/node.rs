//! What Node objects say: addresses, zones, and which of them may announce a load balancer's address.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use orch_ebpf::Address;

/// The label that names a node's zone (well-known labels).
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The label that keeps a node from answering for load balancers (well-known labels).
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The part of another node that routing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteNode {
    /// The Node's name.
    pub name: String,
    /// Its InternalIPs of both families.
    pub addresses: Vec<IpAddr>,
    /// Its pods' addresses, at most one network of each family, once the control plane has given it some.
    pub pod_cidrs: Vec<IpNet>,
}

impl RemoteNode {
    /// The node's first address of the family of `other`.
    #[must_use]
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.addresses
            .iter()
            .find(|address| address.is_ipv4() == other.is_ipv4())
            .copied()
    }
}

/// The part of any node, this one included, that services need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its InternalIPs of both families.
    pub addresses: Vec<IpAddr>,
    /// Its zone.
    pub zone: Option<String>,
    /// Whether it may announce addresses of load balancers: Ready and not excluded.
    pub announces: bool,
    /// Whether the node is meant to stay, so that load balancers outside may send to it.
    pub stays: bool,
}

impl NodeInfo {
    /// The node's first address of a family, or zero.
    #[must_use]
    pub fn address<A: Address>(&self) -> A {
        self.addresses
            .iter()
            .find_map(|ip| A::from_ip(*ip))
            .unwrap_or(A::ANY)
    }
}

/// The taint that the cluster autoscaler puts on a node that it will remove (kube-proxy takes it for "going").
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads a node.
#[must_use]
pub fn info(node: &Node) -> NodeInfo {
    let label = |name: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    NodeInfo {
        addresses: addresses(node),
        zone: label(ZONE_LABEL).cloned(),
        announces: ready && label(EXCLUDE_LABEL).is_none() && node.metadata.deletion_timestamp.is_none(),
        stays: node.metadata.deletion_timestamp.is_none() && !taints.any(|taint| taint.key == LEAVING_TAINT),
    }
}

fn addresses(node: &Node) -> Vec<IpAddr> {
    node.status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten())
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok())
        .collect()
}

/// Every node but this one.
pub fn remote_nodes<'a>(nodes: impl IntoIterator<Item = &'a Node>, node_name: &str) -> Vec<RemoteNode> {
    nodes
        .into_iter()
        .filter_map(|node| {
            let name = node.metadata.name.clone().filter(|name| name != node_name)?;
            let spec = node.spec.as_ref();
            let first = spec.and_then(|spec| spec.pod_cidr.as_ref());
            let all = spec.and_then(|spec| spec.pod_cidrs.as_ref());
            let mut pod_cidrs: Vec<IpNet> = first
                .into_iter()
                .chain(all.into_iter().flatten())
                .filter_map(|text| text.parse::<IpNet>().ok())
                .map(|net| net.trunc())
                .collect();
            pod_cidrs.sort_unstable();
            pod_cidrs.dedup();
            Some(RemoteNode {
                name,
                addresses: addresses(node),
                pod_cidrs,
            })
        })
        .collect()
}

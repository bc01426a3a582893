//! What the data plane is told: the node's configuration and a pod to connect.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use ipnet::IpNet;
use orch_cluster::policies::NamedPort;
use orch_ebpf::{Address, config::FamilyConfig};

/// The node's part of the configuration. Lists of addresses and networks have at most one of each family, the
/// cluster's primary family first.
#[derive(Debug, Clone)]
pub struct DataplaneConfig {
    /// Name of the Node object; endpoints with this node name are local.
    pub node_name: String,
    /// The node's InternalIPs, the sources of masqueraded packets. A family without one is not served.
    pub node_ips: Vec<IpAddr>,
    /// The interfaces that lead to other nodes and to the outside, in the agent's network namespace. When empty, they
    /// are those of the default routes and those that hold one of `node_ips`. VLAN interfaces on them count as well.
    pub uplinks: Vec<String>,
    /// Directory on a BPF file system for `maps` and `links`, for instance `/sys/fs/bpf/orch/NODE`.
    pub bpf_root: PathBuf,
    /// Absolute path of the cgroup v2 directory that holds every process whose sockets resolve services.
    /// Made when missing.
    pub cgroup_path: PathBuf,
    /// The agent's run directory, `/run/orch`.
    pub run_dir: PathBuf,
    /// All pods' addresses; what leaves them from a pod is masqueraded.
    pub cluster_cidrs: Vec<IpNet>,
    /// All services' ClusterIPs.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of the node's DNS server, put on `lo`.
    pub cluster_dns: Vec<IpAddr>,
    /// How the uplinks' drivers run the balancer.
    pub xdp: XdpMode,
    /// How pods' packets get to other nodes.
    pub tunnel: Tunnel,
    /// Whether packets from outside keep their source on their way to backends on other nodes, which then answer the
    /// client themselves ("direct server return").
    pub direct_return: bool,
    /// Where `/healthz` and `/livez` of the service proxy answer, if anywhere.
    pub proxy_health: Option<SocketAddr>,
}

impl DataplaneConfig {
    /// The node's address of the same family as `other`.
    #[must_use]
    pub fn node_ip_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.node_ips
            .iter()
            .find(|ip| ip.is_ipv4() == other.is_ipv4())
            .copied()
    }

    /// Whether the node has an IPv6 address.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.node_ips.iter().any(IpAddr::is_ipv6)
    }

    /// The settings of one family as the programs read them.
    #[must_use]
    pub fn family<A: Address>(&self) -> FamilyConfig<A> {
        let one = |ips: &[IpAddr]| ips.iter().find_map(|ip| A::from_ip(*ip)).unwrap_or(A::ANY);
        if one(&self.node_ips) == A::ANY {
            return FamilyConfig::default();
        }
        // A network that is not given holds nothing that is ever asked about: one address, of all ones.
        let ones = [IpAddr::from([u8::MAX; 4]), IpAddr::from([u8::MAX; 16])];
        let nothing = one(&ones);
        let net = |nets: &[IpNet]| {
            nets.iter()
                .find_map(|net| Some((A::from_ip(net.network())?, A::from_ip(net.netmask())?)))
                .unwrap_or((nothing, nothing))
        };
        let (cluster_address, cluster_mask) = net(&self.cluster_cidrs);
        let (service_address, service_mask) = net(&self.service_cidrs);
        FamilyConfig {
            node_address: one(&self.node_ips),
            cluster_address,
            cluster_mask,
            service_address,
            service_mask,
            dns_address: one(&self.cluster_dns),
        }
    }
}

/// How the uplinks' drivers run the balancer program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XdpMode {
    /// In the driver where it can and the interface is not a veth, else not at all: the program at tcx has the same
    /// meaning.
    #[default]
    Auto,
    /// In the driver, or the start fails.
    Native,
    /// In the kernel's generic hook.
    Generic,
    /// Not at all.
    Off,
}

/// How pods' packets get to other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tunnel {
    /// By routes: the nodes must be neighbours on an uplink.
    #[default]
    Off,
    /// In VXLAN (RFC 7348): the nodes must be able to send each other UDP.
    Vxlan,
}

macro_rules! words {
    ($type:ident { $($variant:ident $word:literal,)+ }) => {
        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("it must be one of {}", [$($word),+].join(", "))),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $word,)+
                })
            }
        }
    };
}

words! { XdpMode { Auto "auto", Native "native", Generic "generic", Off "off", } }
words! { Tunnel { Off "off", Vxlan "vxlan", } }

/// A pod to connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodAttachment {
    /// The pod's uid, the key of the attachment; at most 36 bytes.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Path of the network namespace (a bind mount of an nsfs file).
    pub netns: PathBuf,
    /// The pod's labels, by which policies select it.
    pub labels: BTreeMap<String, String>,
    /// The containers' ports that have a name, which policies may use.
    pub named_ports: Vec<NamedPort>,
    /// Ports of the node that lead to the pod.
    pub host_ports: Vec<HostPort>,
    /// Limits of what the pod sends and receives.
    pub bandwidth: Bandwidth,
}

/// A port of the node that leads to a pod (`hostPort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The only address of the node that has the port; `None` for all of them.
    pub host_ip: Option<IpAddr>,
    /// The port on the node.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// Limits of a pod's bandwidth, in bits a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Of what it receives.
    pub ingress: Option<u64>,
    /// Of what it sends.
    pub egress: Option<u64>,
}

#[cfg(test)]
pub(crate) mod tests {
    use orch_ebpf::{Address4, Address6};

    use super::*;

    /// Those of a node with an IPv4 address only.
    pub(crate) fn plain() -> DataplaneConfig {
        DataplaneConfig {
            node_name: "n".into(),
            node_ips: vec!["192.0.2.1".parse().unwrap()],
            uplinks: Vec::new(),
            bpf_root: PathBuf::new(),
            cgroup_path: PathBuf::new(),
            run_dir: PathBuf::new(),
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/56".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            xdp: "generic".parse().unwrap(),
            tunnel: Tunnel::default(),
            direct_return: false,
            proxy_health: None,
        }
    }

    #[test]
    fn a_family_without_a_node_address_is_all_zero() {
        let config = plain();
        assert_eq!(config.family::<Address6>(), FamilyConfig::default());
        let v4 = config.family::<Address4>();
        assert_eq!(
            (v4.cluster_address, v4.cluster_mask),
            ([10, 244, 0, 0], [255, 255, 0, 0])
        );
        assert_eq!(v4.dns_address, [10, 96, 0, 10]);
        assert_eq!(config.xdp, XdpMode::Generic);
        assert!("both".parse::<Tunnel>().is_err());
    }
}

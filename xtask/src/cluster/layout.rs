//! Names, addresses and paths of the dev cluster; the table in ARCHITECTURE.md says the same.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use crate::run;

/// The bridge that carries the nodes' uplinks, in the machine's own network namespace.
pub const BRIDGE: &str = "orch0";
/// The machine's address on the bridge, where the API server answers the nodes.
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// The machine's IPv6 address on the bridge.
pub const MACHINE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1);
/// The bridge's IPv4 subnet.
pub const SUBNET: &str = "172.30.0.0/24";
/// The bridge's IPv6 subnet.
pub const SUBNET6: &str = "fd00:30::/64";
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// Port of the agents' kubelet API, on each node's addresses: `--kubelet-port`'s default.
pub const KUBELET_PORT: u16 = 10_250;
/// A node's uplink, inside its namespace.
pub const UPLINK: &str = "eth0";
/// How many nodes fit the address plan.
pub const MAX_NODES: u8 = 200;
/// Where bpffs belongs.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Pins of all nodes.
pub const PINS: &str = "/sys/fs/bpf/orch";
/// Sockets and namespace mounts of all nodes: here and not under target/, as socket paths have 108 bytes at most.
pub const RUN: &str = "/run/orch";
/// The name all cgroups of the cluster stand under, in every hierarchy.
pub const CGROUP: &str = "orch";
/// The containerd namespace the agent uses.
pub const CONTAINERD_NAMESPACE: &str = "orch";

/// State, logs and the admin kubeconfig.
pub fn state_dir() -> PathBuf {
    run::root().join("target/orch")
}

/// The admin kubeconfig.
pub fn kubeconfig() -> PathBuf {
    state_dir().join("kubeconfig")
}

/// The control process's data: PKI and store.
pub fn control_dir() -> PathBuf {
    state_dir().join("control")
}

/// A process's log.
pub fn log(name: &str) -> PathBuf {
    state_dir().join("logs").join(format!("{name}.log"))
}

/// Builds are optimised, unless `ORCH_PROFILE=dev` asks for a quick edit and run.
pub fn is_optimised() -> bool {
    std::env::var_os("ORCH_PROFILE").is_none_or(|profile| profile != "dev")
}

/// One of orch's programs, as `up` builds it.
pub fn program(name: &str) -> PathBuf {
    run::root()
        .join(if is_optimised() {
            "target/release"
        } else {
            "target/debug"
        })
        .join(name)
}

/// An address of the bridge's subnet, with the subnet's prefix length.
pub fn with_prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}

/// One node of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// From 1.
    pub number: u8,
}

impl Node {
    /// All nodes of a cluster of this size.
    pub fn all(count: u8) -> impl Iterator<Item = Self> {
        (1..=count).map(|number| Self { number })
    }

    /// The node's name, and its network namespace's.
    pub fn name(self) -> String {
        format!("orch-node{}", self.number)
    }

    /// Its address on the bridge.
    pub fn ip(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, 10 + self.number)
    }

    /// Its IPv6 address on the bridge: `fd00:30::11` for the first, to look like the IPv4 one.
    pub fn ip6(self) -> Ipv6Addr {
        let number = u16::from(self.number) + 10;
        // Digits as in decimal: what is 11 there is 0x11 here.
        let digits = number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10;
        Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, digits)
    }

    /// The machine's end of the node's uplink.
    pub fn port(self) -> String {
        format!("orch0-{}", self.number)
    }

    /// The node's network namespace, as a file.
    pub fn netns(self) -> PathBuf {
        PathBuf::from("/run/netns").join(self.name())
    }

    /// Its identity, containerd and pods.
    pub fn dir(self) -> PathBuf {
        state_dir().join("nodes").join(self.name())
    }

    /// Its sockets and namespace mounts.
    pub fn run_dir(self) -> PathBuf {
        PathBuf::from(RUN).join(self.name())
    }

    /// Its containerd's socket.
    pub fn containerd(self) -> PathBuf {
        self.run_dir().join("containerd.sock")
    }

    /// Its cgroup, relative to a hierarchy's root.
    pub fn cgroup(self) -> String {
        format!("{CGROUP}/{}", self.name())
    }
}

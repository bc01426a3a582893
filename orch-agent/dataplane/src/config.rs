//! What the data plane is told: the node's configuration and a pod to connect.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;

/// The node's part of the configuration.
#[derive(Debug, Clone)]
pub struct DataplaneConfig {
    /// Name of the Node object; endpoints with this node name are local.
    pub node_name: String,
    /// The node's InternalIP, the source of masqueraded packets.
    pub node_ip: Ipv4Addr,
    /// The interface that leads to other nodes and to the outside, in the agent's network namespace.
    pub uplink: String,
    /// Directory on a BPF file system for `maps` and `links`, for instance `/sys/fs/bpf/orch/NODE`.
    pub bpf_root: PathBuf,
    /// Absolute path of the cgroup v2 directory that holds every process whose sockets resolve services.
    /// Made when missing.
    pub cgroup_path: PathBuf,
    /// The agent's run directory, `/run/orch`.
    pub run_dir: PathBuf,
    /// All pods' addresses; what leaves it from a pod is masqueraded.
    pub cluster_cidr: Ipv4Net,
    /// All services' ClusterIPs.
    pub service_cidr: Ipv4Net,
    /// Address of the node's DNS server, put on `lo`.
    pub cluster_dns: Ipv4Addr,
}

/// A pod to connect.
#[derive(Debug, Clone)]
pub struct PodAttachment {
    /// The pod's uid, the key of the attachment; at most 36 bytes.
    pub uid: String,
    /// The pod's namespace, for messages.
    pub namespace: String,
    /// The pod's name, for messages.
    pub name: String,
    /// Path of the network namespace (a bind mount of an nsfs file).
    pub netns: PathBuf,
}

//! What the agent tells the programs about the node.

use crate::{Address, abi};

/// Name of the one-slot array that holds [`Config`].
pub const CONFIG_MAP: &str = "ORCH_CONFIG";
/// Name of the hash from [`Address`] to [`Node`].
pub const NODES_MAP: &str = "ORCH_NODES";
/// Most addresses of nodes.
pub const NODES_MAX: usize = 16_384;

/// The node's own settings. All zero until the agent has written them: the programs then pass every packet.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// [`crate::ABI_VERSION`] of who wrote the maps.
    pub abi_version: u32,
    /// Interface index of the uplink.
    pub uplink_ifindex: u32,
    /// Largest IP packet that the uplink sends, in bytes.
    pub uplink_mtu: u32,
    /// The node's address, the source of masqueraded packets.
    pub node_address: Address,
    /// First address of all pods.
    pub cluster_address: Address,
    /// Its mask, in wire order.
    pub cluster_mask: Address,
    /// First address of all ClusterIPs.
    pub service_address: Address,
    /// Its mask, in wire order.
    pub service_mask: Address,
    /// Address of the node's DNS server.
    pub dns_address: Address,
    /// [`CONFIG_EVENTS`] or zero.
    pub flags: u32,
}

/// Flag of [`Config`]: somebody reads the events, so write them.
pub const CONFIG_EVENTS: u32 = 1;

abi!(Config, size 40, align 4, {
    abi_version @ 0, uplink_ifindex @ 4, uplink_mtu @ 8, node_address @ 12, cluster_address @ 16, cluster_mask @ 20,
    service_address @ 24, service_mask @ 28, dns_address @ 32, flags @ 36,
});

/// What an address of a node is.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Node {
    /// [`NODE_LOCAL`] or [`NODE_REMOTE`].
    pub kind: u32,
}

/// [`Node`] kind: an address of this node, on which NodePorts answer.
pub const NODE_LOCAL: u32 = 1;
/// [`Node`] kind: an address of another node.
pub const NODE_REMOTE: u32 = 2;

abi!(Node, size 4, align 4, { kind @ 0 });

//! What the agent tells the programs about the node and the cluster.

use crate::{Address, Address4, Address6, abi};

/// Name of the one-slot array that holds [`Config`].
pub const CONFIG_MAP: &str = "ORCH_CONFIG";
/// Start of the name of the hashes from [`Address`] to [`Node`].
pub const NODES_MAP: &str = "ORCH_NODES";
/// Most addresses of nodes of one family.
pub const NODES_MAX: usize = 16_384;
/// Start of the name of the tries from a network of pods or a node's address to [`Route`]: what goes through the
/// tunnel.
pub const ROUTES_MAP: &str = "ORCH_ROUTES";
/// Most routes of one family.
pub const ROUTES_MAX: usize = 32_768;
/// Start of the name of the hashes from [`UplinkKey`] to [`Uplink`].
pub const UPLINKS_MAP: &str = "ORCH_UPLINKS";
/// Most uplinks.
pub const UPLINKS_MAX: usize = 1024;
/// Start of the name of the hashes from [`Address`] to [`Announced`].
pub const ANNOUNCED_MAP: &str = "ORCH_ANNOUNCED";
/// Most announced addresses of one family.
pub const ANNOUNCED_MAX: usize = 16_384;

/// Network identifier of the tunnel (RFC 7348).
pub const TUNNEL_NETWORK: u32 = 1;
/// Hardware address of the tunnel's device on every node, so that a sender need not ask for it.
pub const TUNNEL_MAC: [u8; 6] = [0x02, 0x6f, 0x72, 0x63, 0x68, 0x01];

/// The node's settings in one family. Where the node has no address of the family, all zero.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FamilyConfig<A> {
    /// The node's address, the source of masqueraded packets.
    pub node_address: A,
    /// First address of all pods.
    pub cluster_address: A,
    /// Its mask.
    pub cluster_mask: A,
    /// First address of all ClusterIPs.
    pub service_address: A,
    /// Its mask.
    pub service_mask: A,
    /// Address of the node's DNS server.
    pub dns_address: A,
}

abi!(both FamilyConfig { size 24, align 4, {
    node_address @ 0, cluster_address @ 4, cluster_mask @ 8, service_address @ 12, service_mask @ 16, dns_address @ 20,
} } { size 96, align 4, {
    node_address @ 0, cluster_address @ 16, cluster_mask @ 32, service_address @ 48, service_mask @ 64,
    dns_address @ 80,
} });

/// The node's own settings. All zero until the agent has written them: the programs then pass every packet.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// [`crate::ABI_VERSION`] of who wrote the maps.
    pub abi_version: u32,
    /// [`CONFIG_DROPS`] and its siblings.
    pub flags: u32,
    /// Interface index of the uplink.
    pub uplink_ifindex: u32,
    /// Largest IP packet that the uplink sends, in bytes.
    pub uplink_mtu: u32,
    /// Interface index of the VXLAN device; zero without a tunnel.
    pub tunnel_ifindex: u32,
    /// Largest IP packet that fits through the tunnel, in bytes.
    pub tunnel_mtu: u32,
    /// IPv4.
    pub v4: FamilyConfig<Address4>,
    /// IPv6.
    pub v6: FamilyConfig<Address6>,
}

abi!(Config, size 144, align 4, {
    abi_version @ 0, flags @ 4, uplink_ifindex @ 8, uplink_mtu @ 12, tunnel_ifindex @ 16, tunnel_mtu @ 20, v4 @ 24,
    v6 @ 48,
});

/// Flag of [`Config`]: write an event for each drop.
pub const CONFIG_DROPS: u32 = 1;
/// Flag of [`Config`]: write an event for each new flow and each verdict of a policy.
pub const CONFIG_FLOWS: u32 = 2;
/// Flag of [`Config`]: packets from outside for backends on other nodes keep their source, travel in an IP packet of
/// their own to the backend's node, and are answered from there ("direct server return").
pub const CONFIG_DSR: u32 = 4;
/// Flag of [`Config`]: maps move to another layout, and the entry of a flow may be on its way: a TCP segment that looks like
/// one of a flow and has none is dropped, to be sent again, and not answered with a reset.
pub const CONFIG_MOVING: u32 = 8;

/// Flag of [`Config`]: the node has been in the mode of [`CONFIG_DSR`] since it was started. It takes all that other nodes send on
/// to it, for flows that began then, and from nodes that are still in it; without the flag, what is for a service.
pub const CONFIG_UNPACK: u32 = 32;

/// Flag of [`Config`]: the node has several uplinks, so that the routes say by which of them a translated packet leaves.
pub const CONFIG_MULTIHOMED: u32 = 16;

/// An uplink.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UplinkKey {
    /// Its interface index.
    pub ifindex: u32,
}

abi!(UplinkKey, size 4, align 4, { ifindex @ 0 });

/// What is known of an uplink.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uplink<A> {
    /// Its address, the source of packets of pods that leave by it.
    pub address: A,
}

abi!(both Uplink { size 4, align 4, { address @ 0 } } { size 16, align 4, { address @ 0 } });

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

/// Where the tunnel leads for a destination: the node's address, of either family.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Route {
    /// The other node's address, IPv4 in its first four bytes.
    pub node: Address6,
    /// 4 or 6.
    pub family: u32,
}

abi!(Route, size 20, align 4, { node @ 0, family @ 16 });

/// A load balancer's address that this node answers for by ARP and NDP.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Announced {
    /// The only interface on which it is announced.
    pub ifindex: u32,
    /// Hardware address in the answer: the interface's.
    pub mac: [u8; 6],
    /// Always zero.
    pub _pad: [u8; 2],
}

abi!(Announced, size 12, align 4, { ifindex @ 0, mac @ 4, _pad @ 10 });

/// Whether `address` is in the network.
#[must_use]
pub fn within<A: Address>(address: A, network: A, mask: A) -> bool {
    let (address, network, mask) = (address.wide(), network.wide(), mask.wide());
    (0..16).all(|byte| (address[byte] ^ network[byte]) & mask[byte] == 0)
}

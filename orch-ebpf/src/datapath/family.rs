//! What differs between the families of addresses: their maps, and how addresses are compared.

use super::{
    maps,
    parse::{Bytes, Parsed, v4, v6},
};
pub(crate) use crate::address::word;
use crate::{
    Address, Address4, Address6, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_IPV4, PROTOCOL_IPV6,
    config::{Config, FamilyConfig, Node},
    endpoint::Endpoint,
    event::DropReason,
};

/// A family of addresses, as the programs see it.
pub trait Family: Address {
    /// Its Ethernet type, in wire order.
    const ETHER_TYPE: [u8; 2];
    /// Its ICMP's IP protocol number.
    const ICMP: u8;
    /// IP protocol number of a packet of the family inside another one.
    const IN_IP: u8;
    /// Type and code of the ICMP error that names the largest packet that fits.
    const TOO_BIG: [u8; 2];
    /// How much an ICMP error quotes, in bytes: as much as leaves it within what every link of the family carries, 576
    /// bytes (RFC 1812 section 4.3.2.3) or 1280 (RFC 4443 section 2.4).
    const QUOTE: usize;
    /// Offset of the source address in its header; the destination follows.
    const ADDRESSES: usize;
    /// Offset of the time to live (hop limit) in its header.
    const TTL: usize;
    /// Offset of the protocol (next header) in its header.
    const PROTOCOL: usize;
    /// Bytes of its header without options.
    const HEADER: usize;
    /// Whether its header has a checksum.
    const HAS_CHECKSUM: bool;

    /// The node's settings for the family.
    fn settings(config: &Config) -> &FamilyConfig<Self>;
    /// Whether both are the same address.
    fn same(self, other: Self) -> bool;
    /// Whether a machine means itself by the address, whatever its others are.
    fn is_loopback(self) -> bool;
    /// Whether the address is in the network.
    fn within(self, network: Self, mask: Self) -> bool;
    /// Reads the headers of a packet of this family, see [`super::parse`].
    fn parse<const WHOLE: bool>(packet: &impl Bytes, parsed: &mut Parsed<Self>) -> Result<(), DropReason>;

    /// Reads what an ICMP error quotes, after [`Self::parse`] has found one.
    fn quoted(packet: &impl Bytes, parsed: &mut Parsed<Self>);

    /// [`maps::ORCH_NODES4`] or its sibling; so are the others.
    fn nodes() -> &'static maps::Nodes<Self>;
    /// What goes through the tunnel.
    fn routes() -> &'static maps::Routes<Self>;
    /// Addresses of uplinks.
    fn uplinks() -> &'static maps::Uplinks<Self>;
    /// Addresses that this node answers for.
    fn announced() -> &'static maps::AnnouncedMap<Self>;
    /// Services.
    fn services() -> &'static maps::Services<Self>;
    /// Backends.
    fn backends() -> &'static maps::Backends<Self>;
    /// Source ranges.
    fn sources() -> &'static maps::Sources<Self>;
    /// What TCP sockets asked for.
    fn streams() -> &'static maps::Streams<Self>;
    /// What UDP sockets asked for.
    fn sockets() -> &'static maps::Sockets<Self>;
    /// This node's pods.
    fn endpoints() -> &'static maps::Endpoints<Self>;
    /// What is in which slot of flows.
    fn rows() -> &'static maps::Rows;
    /// Flows.
    fn conntrack() -> &'static maps::ConntrackMap<Self>;
    /// Ports of fragmented datagrams.
    fn fragments() -> &'static maps::Fragments<Self>;
    /// Scratch memory.
    fn scratch() -> &'static maps::Scratches<Self>;
    /// Ways to nodes.
    fn node_hops() -> &'static maps::NodeHops<Self>;
    /// Identities of addresses.
    fn identities() -> &'static maps::Identities<Self>;
}

macro_rules! maps_of_family {
    ($($function:ident $type:ident $map:ident,)+) => {
        $(
            #[inline(always)]
            fn $function() -> &'static maps::$type<Self> {
                &maps::$map
            }
        )+
    };
}

impl Family for Address4 {
    const ETHER_TYPE: [u8; 2] = [0x08, 0x00];
    const ICMP: u8 = PROTOCOL_ICMP;
    const IN_IP: u8 = PROTOCOL_IPV4;
    const TOO_BIG: [u8; 2] = [3, 4];
    const QUOTE: usize = 576 - 20 - 8;
    const ADDRESSES: usize = 12;
    const TTL: usize = 8;
    const PROTOCOL: usize = 9;
    const HEADER: usize = 20;
    const HAS_CHECKSUM: bool = true;

    #[inline(always)]
    fn settings(config: &Config) -> &FamilyConfig<Self> {
        &config.v4
    }

    #[inline(always)]
    fn same(self, other: Self) -> bool {
        u32::from_ne_bytes(self) == u32::from_ne_bytes(other)
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        let [first, ..] = self;
        first == 127
    }

    #[inline(always)]
    fn within(self, network: Self, mask: Self) -> bool {
        (u32::from_ne_bytes(self) ^ u32::from_ne_bytes(network)) & u32::from_ne_bytes(mask) == 0
    }

    #[inline(always)]
    fn parse<const WHOLE: bool>(packet: &impl Bytes, parsed: &mut Parsed<Self>) -> Result<(), DropReason> {
        v4::parse::<WHOLE>(packet, parsed)
    }

    #[inline(always)]
    fn quoted(packet: &impl Bytes, parsed: &mut Parsed<Self>) {
        v4::quoted(packet, parsed);
    }

    maps_of_family! {
        nodes Nodes ORCH_NODES4,
        routes Routes ORCH_ROUTES4,
        uplinks Uplinks ORCH_UPLINKS4,
        announced AnnouncedMap ORCH_ANNOUNCED4,
        services Services ORCH_SERVICES4,
        backends Backends ORCH_BACKENDS4,
        sources Sources ORCH_SOURCES4,
        streams Streams ORCH_STREAMS4,
        sockets Sockets ORCH_SOCKETS4,
        endpoints Endpoints ORCH_ENDPOINTS4,
        conntrack ConntrackMap ORCH_CONNTRACK4,
        fragments Fragments ORCH_FRAGMENTS4,
        scratch Scratches ORCH_SCRATCH4,
        node_hops NodeHops ORCH_HOPS4,
        identities Identities ORCH_IDENTITIES4,
    }

    #[inline(always)]
    fn rows() -> &'static maps::Rows {
        &maps::ORCH_ROWS4
    }
}

/// Both halves of an address, as they stand in memory.
#[inline(always)]
fn halves(address: Address6) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    (
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    )
}

impl Family for Address6 {
    const ETHER_TYPE: [u8; 2] = [0x86, 0xdd];
    const ICMP: u8 = PROTOCOL_ICMPV6;
    const IN_IP: u8 = PROTOCOL_IPV6;
    const TOO_BIG: [u8; 2] = [2, 0];
    const QUOTE: usize = 1280 - 40 - 8;
    const ADDRESSES: usize = 8;
    const TTL: usize = 7;
    const PROTOCOL: usize = 6;
    const HEADER: usize = 40;
    const HAS_CHECKSUM: bool = false;

    #[inline(always)]
    fn settings(config: &Config) -> &FamilyConfig<Self> {
        &config.v6
    }

    #[inline(always)]
    fn same(self, other: Self) -> bool {
        let ((a, b), (c, d)) = (halves(self), halves(other));
        a == c && b == d
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        halves(self) == (0, 1_u64.to_be())
    }

    #[inline(always)]
    fn within(self, network: Self, mask: Self) -> bool {
        let ((a, b), (c, d), (m, n)) = (halves(self), halves(network), halves(mask));
        (a ^ c) & m == 0 && (b ^ d) & n == 0
    }

    #[inline(always)]
    fn parse<const WHOLE: bool>(packet: &impl Bytes, parsed: &mut Parsed<Self>) -> Result<(), DropReason> {
        v6::parse::<WHOLE>(packet, parsed)
    }

    #[inline(always)]
    fn quoted(packet: &impl Bytes, parsed: &mut Parsed<Self>) {
        v6::quoted(packet, parsed);
    }

    maps_of_family! {
        nodes Nodes ORCH_NODES6,
        routes Routes ORCH_ROUTES6,
        uplinks Uplinks ORCH_UPLINKS6,
        announced AnnouncedMap ORCH_ANNOUNCED6,
        services Services ORCH_SERVICES6,
        backends Backends ORCH_BACKENDS6,
        sources Sources ORCH_SOURCES6,
        streams Streams ORCH_STREAMS6,
        sockets Sockets ORCH_SOCKETS6,
        endpoints Endpoints ORCH_ENDPOINTS6,
        conntrack ConntrackMap ORCH_CONNTRACK6,
        fragments Fragments ORCH_FRAGMENTS6,
        scratch Scratches ORCH_SCRATCH6,
        node_hops NodeHops ORCH_HOPS6,
        identities Identities ORCH_IDENTITIES6,
    }

    #[inline(always)]
    fn rows() -> &'static maps::Rows {
        &maps::ORCH_ROWS6
    }
}

/// Where what is known of the run's packet costs no stack; to be asked for once a run.
#[inline(always)]
pub fn packet<A: Family>() -> Option<&'static mut Parsed<A>> {
    let scratch = A::scratch().get_ptr_mut(0)?;
    // SAFETY: the slot is this CPU's own for the run, and only this function hands out its packet, once a run.
    Some(unsafe { &mut (*scratch).parsed })
}

/// The kind of the node that has the address, or zero.
#[inline(always)]
pub fn node_kind<A: Family>(address: A) -> u32 {
    // SAFETY: the value is one integer, copied at once; a slot that is reused meanwhile yields another valid kind.
    unsafe { A::nodes().get(address) }.map_or(0, |node: &Node| node.kind)
}

/// The local pod with this address.
#[inline(always)]
pub fn endpoint<A: Family>(address: A) -> Option<&'static Endpoint> {
    // SAFETY: the agent replaces whole entries, before the pod runs or when its policies change, and removes an entry
    // after the pod's interface.
    unsafe { A::endpoints().get(address) }
}

/// Whether the address is one of the pods of the cluster.
#[inline(always)]
pub fn in_cluster<A: Family>(config: &Config, address: A) -> bool {
    let settings = A::settings(config);
    address.within(settings.cluster_address, settings.cluster_mask) && has(settings)
}

/// Whether the address is one of the ClusterIPs.
#[inline(always)]
pub fn in_services<A: Family>(config: &Config, address: A) -> bool {
    let settings = A::settings(config);
    address.within(settings.service_address, settings.service_mask) && has(settings)
}

/// Whether the node has an address of the family: its networks are zero otherwise, and would hold everything.
#[inline(always)]
fn has<A: Family>(settings: &FamilyConfig<A>) -> bool {
    !settings.node_address.same(A::ANY)
}

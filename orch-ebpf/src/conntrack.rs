//! Connection tracking: which flow becomes which.
//!
//! A flow that is translated has two entries, one for each direction. Either says by itself what a packet with its
//! key becomes, so one lookup translates, whatever the reason was (NodePort, ClusterIP as packets, masquerade).

use crate::{Address, abi};

/// Name of the LRU hash from [`Tuple`] to [`Conntrack`].
pub const CONNTRACK_MAP: &str = "ORCH_CONNTRACK";
/// Name of the LRU hash from [`FragmentKey`] to [`Fragment`].
pub const FRAGMENTS_MAP: &str = "ORCH_FRAGMENTS";
/// Most entries of connection tracking, two for each translated flow.
pub const CONNTRACK_MAX: usize = 131_072;
/// Most fragmented datagrams that are remembered.
pub const FRAGMENTS_MAX: usize = 4_096;

/// Who talks to whom, as seen in a packet.
///
/// An ICMP echo's identifier is the port of the side that asked; the other port is zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port, in the host's order.
    pub source_port: u16,
    /// Destination port, in the host's order.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

abi!(Tuple, size 16, align 2, {
    source @ 0, destination @ 4, source_port @ 8, destination_port @ 10, protocol @ 12, _pad @ 13,
});

impl Tuple {
    /// The tuple of a packet that answers this one.
    #[inline(always)]
    #[must_use]
    pub const fn reverse(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            _pad: [0; 3],
        }
    }
}

/// What a packet with the entry's key becomes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// When the last packet was seen, in nanoseconds of `CLOCK_MONOTONIC`, to within [`TOUCH_NANOSECONDS`].
    pub last_seen: u64,
    /// The tuple after translation.
    pub becomes: Tuple,
    /// The backend's number; zero if the flow is not a service's.
    pub backend: u32,
    /// [`KIND_SERVICE`] or [`KIND_MASQUERADE`].
    pub kind: u8,
    /// [`DIRECTION_ORIGINAL`] or [`DIRECTION_REPLY`].
    pub direction: u8,
    /// [`SEEN_SYN`], [`SEEN_FIN`], [`SEEN_RST`], [`SEEN_TRAFFIC`]: what this direction has carried.
    pub seen: u8,
    /// Always zero.
    pub _pad: u8,
}

abi!(Conntrack, size 32, align 8, {
    last_seen @ 0, becomes @ 8, backend @ 24, kind @ 28, direction @ 29, seen @ 30, _pad @ 31,
});

/// [`Conntrack`] kind: a service's address became a backend's.
pub const KIND_SERVICE: u8 = 1;
/// [`Conntrack`] kind: a pod's address became the node's; applied when the packet leaves by the uplink.
pub const KIND_MASQUERADE: u8 = 2;
/// [`Conntrack`] direction: from the side that opened the flow.
pub const DIRECTION_ORIGINAL: u8 = 0;
/// [`Conntrack`] direction: to the side that opened the flow.
pub const DIRECTION_REPLY: u8 = 1;
/// [`Conntrack`] flag: a SYN passed.
pub const SEEN_SYN: u8 = 1;
/// [`Conntrack`] flag: a FIN passed; this direction will say no more.
pub const SEEN_FIN: u8 = 2;
/// [`Conntrack`] flag: an RST passed; the flow is over.
pub const SEEN_RST: u8 = 4;
/// [`Conntrack`] flag: a packet other than the first passed.
pub const SEEN_TRAFFIC: u8 = 8;
/// How old [`Conntrack::last_seen`] may be before a packet writes it again: spares the cache line.
pub const TOUCH_NANOSECONDS: u64 = 1_000_000_000;

/// Ports from which the source of a translated packet is chosen, as (first, length) pairs. They avoid the kernel's
/// default `ip_local_port_range` (32768–60999) and the default NodePorts (30000–32767), whose owners may talk to the
/// same peers from the same address.
pub const NAT_PORTS: [(u16, u16); 2] = [(10_240, 19_760), (61_000, 4_536)];
/// How many ports [`NAT_PORTS`] holds.
pub const NAT_PORTS_TOTAL: u32 = NAT_PORTS[0].1 as u32 + NAT_PORTS[1].1 as u32;

/// A fragmented datagram (RFC 791 section 3.2: the identification is unique for these three).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// The identification as it stands in the packet.
    pub identification: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _pad: u8,
}

abi!(FragmentKey, size 12, align 2, {
    source @ 0, destination @ 4, identification @ 8, protocol @ 10, _pad @ 11,
});

/// The ports that stood in the datagram's first fragment.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Source port, in the host's order.
    pub source_port: u16,
    /// Destination port, in the host's order.
    pub destination_port: u16,
}

abi!(Fragment, size 4, align 2, { source_port @ 0, destination_port @ 2 });

//! Connection tracking: which flow becomes which.
//!
//! A flow that is translated has two entries, one for each direction. Either says by itself what a packet with its
//! key becomes, so one lookup translates, whatever the reason was (NodePort, ClusterIP as packets, masquerade). Until somebody
//! answers, the second may be no more than a word that names the first, see [`crate::flow_table::SHARED`]. A flow
//! that only passes a NetworkPolicy has one entry, for the packets that answer, and one that is sent on to its backend's
//! node unchanged has one for the packets that ask: the answers do not come by here.

use crate::{
    abi,
    flow_table::{ROWS, WAYS},
};

/// Start of the name of the arrays of flows, see [`crate::flow_table`].
pub const CONNTRACK_MAP: &str = "ORCH_CONNTRACK";
/// Start of the name of the LRU hashes from [`FragmentKey`] to [`Fragment`].
pub const FRAGMENTS_MAP: &str = "ORCH_FRAGMENTS";
/// Most entries of connection tracking of one family, two for each translated flow.
pub const CONNTRACK_MAX: usize = ROWS * WAYS;
/// Most fragmented datagrams of one family that are remembered.
pub const FRAGMENTS_MAX: usize = 4_096;

/// Who talks to whom, as seen in a packet.
///
/// An ICMP echo's identifier is the port of the side that asked; the other port is zero.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Source port, in the host's order.
    pub source_port: u16,
    /// Destination port, in the host's order.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub _pad: [u8; 3],
}

abi!(both Tuple { size 16, align 4, {
    source @ 0, destination @ 4, source_port @ 8, destination_port @ 10, protocol @ 12, _pad @ 13,
} } { size 40, align 4, {
    source @ 0, destination @ 16, source_port @ 32, destination_port @ 34, protocol @ 36, _pad @ 37,
} });

impl<A: Copy> Tuple<A> {
    /// Writes the protocol and the padding behind it as one word.
    #[cfg(feature = "programs")]
    #[inline(always)]
    pub fn set_protocol(&mut self, protocol: u8) {
        const { assert!(core::mem::offset_of!(Self, _pad) == core::mem::offset_of!(Self, protocol) + 1) };
        // SAFETY: the four bytes are within the tuple, and on a boundary of four (the layout asserted above).
        unsafe {
            (&raw mut self.protocol)
                .cast::<[u8; 4]>()
                .cast::<u32>()
                .write(u32::from(protocol).to_le())
        };
    }

    /// Writes both ports as one word: what reads a key as words, as the kernel does, would wait for two halves of one.
    #[cfg(feature = "programs")]
    #[inline(always)]
    pub fn set_ports(&mut self, source: u16, destination: u16) {
        const {
            assert!(
                core::mem::offset_of!(Self, destination_port) == core::mem::offset_of!(Self, source_port) + 2
            )
        };
        let ([a, b], [c, d]) = (source.to_ne_bytes(), destination.to_ne_bytes());
        let ports = u32::from_ne_bytes([a, b, c, d]);
        // SAFETY: the four bytes are within the tuple, and on a boundary of four (the layout asserted above).
        unsafe { (&raw mut self.source_port).cast::<u32>().write(ports) };
    }

    /// The tuple of a packet that answers this one.
    #[inline(always)]
    #[must_use]
    pub const fn reverse(&self) -> Self {
        // A copy and four fields: the padding comes along.
        let mut reversed = *self;
        reversed.source = self.destination;
        reversed.destination = self.source;
        reversed.source_port = self.destination_port;
        reversed.destination_port = self.source_port;
        reversed
    }

    /// As [`Self::reverse`], written where it is needed: a copy on the way would be a third of a program's stack.
    #[cfg(feature = "programs")]
    #[inline(always)]
    pub fn reverse_in<'a>(&self, place: &'a mut core::mem::MaybeUninit<Self>) -> &'a mut Self {
        let to = place.as_mut_ptr();
        // SAFETY: both addresses, and then the words of the ports and of the protocol: that is all of it.
        unsafe {
            (&raw mut (*to).source).write(self.destination);
            (&raw mut (*to).destination).write(self.source);
            let to = &mut *to;
            to.set_ports(self.destination_port, self.source_port);
            to.set_protocol(self.protocol);
            to
        }
    }
}

/// What a packet with the entry's key becomes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conntrack<A> {
    /// When the last packet was seen, in nanoseconds of `CLOCK_MONOTONIC`, to within [`TOUCH_NANOSECONDS`].
    pub last_seen: u64,
    /// The tuple after translation; the key itself where nothing is translated.
    pub becomes: Tuple<A>,
    /// The backend's number; zero if the flow is not a service's. A masqueraded flow has one where a pod speaks to a backend
    /// outside the cluster: its answers are then those of another flow, which has the service's address.
    pub backend: u32,
    /// [`KIND_SERVICE`], [`KIND_MASQUERADE`], [`KIND_POLICY`] or [`KIND_DIRECT`].
    pub kind: u8,
    /// [`DIRECTION_ORIGINAL`] or [`DIRECTION_REPLY`].
    pub direction: u8,
    /// [`SEEN_SYN`], [`SEEN_FIN`], [`SEEN_RST`], [`SEEN_TRAFFIC`]: what this direction has carried.
    pub seen: u8,
    /// Zero, or [`HOP_REFLECT`] or [`HOP_PASS`].
    pub hop: u8,
    /// With [`HOP_REFLECT`], the Ethernet destination and source that the packet leaves with; asked of the routes
    /// again whenever `last_seen` is written.
    pub macs: [u8; 12],
    /// The kernel's count of ticks when `last_seen` was last looked at: asking for it costs less than for the time.
    pub ticks: u32,
}

#[cfg(feature = "programs")]
impl<A> Conntrack<A> {
    /// Writes the four members that are a byte as one word: what copies the entry by words would wait until all that was
    /// written before is where it belongs, slots that are far among it.
    #[inline(always)]
    pub fn set_state(&mut self, kind: u8, direction: u8, seen: u8, hop: u8) {
        const {
            let kind = core::mem::offset_of!(Self, kind);
            assert!(kind.is_multiple_of(4) && core::mem::offset_of!(Self, direction) == kind + 1);
            assert!(
                core::mem::offset_of!(Self, seen) == kind + 2 && core::mem::offset_of!(Self, hop) == kind + 3
            );
        };
        let state = u32::from_ne_bytes([kind, direction, seen, hop]);
        // SAFETY: the four bytes are within the entry, and on a boundary of four, by what is asserted above.
        unsafe { (&raw mut self.kind).cast::<u32>().write(state) };
    }
}

abi!(both Conntrack { size 48, align 8, {
    last_seen @ 0, becomes @ 8, backend @ 24, kind @ 28, direction @ 29, seen @ 30, hop @ 31, macs @ 32, ticks @ 44,
} } { size 72, align 8, {
    last_seen @ 0, becomes @ 8, backend @ 48, kind @ 52, direction @ 53, seen @ 54, hop @ 55, macs @ 56, ticks @ 68,
} });

/// [`Conntrack`] hop: XDP sends the packet out of the interface that it came from.
pub const HOP_REFLECT: u8 = 1;
/// [`Conntrack`] hop: XDP rewrites the packet and the network stack, or tc before it, has it.
pub const HOP_PASS: u8 = 2;

/// [`Conntrack`] kind: a service's address became a backend's.
pub const KIND_SERVICE: u8 = 1;
/// [`Conntrack`] kind: a pod's address became the node's; applied when the packet leaves by the uplink.
pub const KIND_MASQUERADE: u8 = 2;
/// [`Conntrack`] kind: nothing changes; the entry lets the answers of an allowed flow pass a policy.
pub const KIND_POLICY: u8 = 3;
/// [`Conntrack`] kind: the packet goes on as it is, in a packet of its own to the backend that it would become one for;
/// the backend's node answers the client. Only the original direction has an entry.
pub const KIND_DIRECT: u8 = 4;
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

/// How many ticks may pass before [`Conntrack::last_seen`] is looked at: a second at most, with a hundred a second.
pub const TOUCH_TICKS: u32 = 100;

/// Ports from which the source of a translated packet is chosen, as (first, length) pairs. They avoid the kernel's
/// default `ip_local_port_range` (32768–60999) and the default NodePorts (30000–32767), whose owners may talk to the
/// same peers from the same address.
pub const NAT_PORTS: [(u16, u16); 2] = [(10_240, 19_760), (61_000, 4_536)];
/// How many ports [`NAT_PORTS`] holds.
pub const NAT_PORTS_TOTAL: u32 = NAT_PORTS[0].1 as u32 + NAT_PORTS[1].1 as u32;

/// A fragmented datagram (RFC 791 section 3.2, RFC 8200 section 4.5: the identification is unique for these three).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// The identification as it stands in the packet.
    pub identification: u32,
    /// IP protocol number.
    pub protocol: u32,
}

abi!(both FragmentKey { size 16, align 4, {
    source @ 0, destination @ 4, identification @ 8, protocol @ 12,
} } { size 40, align 4, {
    source @ 0, destination @ 16, identification @ 32, protocol @ 36,
} });

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

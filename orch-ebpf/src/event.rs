//! What the programs report: drops, flows and verdicts as they happen, and counters.

use crate::{Address6, abi};

/// Name of the ring buffer of [`Event`].
pub const EVENTS_MAP: &str = "ORCH_EVENTS";
/// Bytes of the ring buffer, a power of two of pages.
pub const EVENTS_BYTES: usize = 1024 * 1024;
/// Name of the per-CPU array of [`Counter`], indexed by [`DropReason`] and then by [`Path`].
pub const METRICS_MAP: &str = "ORCH_METRICS";

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $number:literal $text:literal,)+ }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = $text] $(#[$item_doc])* $item = $number,)+
        }

        impl $name {
            /// Every value with its number's order.
            pub const ALL: &'static [Self] = &[$(Self::$item),+];

            /// The value as a person reads it, the label of the metric, and the row of the documentation.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$item => $text,)+
                }
            }

            /// The value with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$item),)+
                    _ => None,
                }
            }
        }
    };
}

numbered! {
    /// Why a packet or a connection was refused: the one list, for programs, metrics and people.
    DropReason {
        Malformed = 0 "malformed packet",
        SpoofedSource = 1 "source address is not the pod's",
        NoBackend = 2 "service has no ready backend",
        NoService = 3 "no service on this port of the service network",
        NoNatPort = 4 "no free port for the translated source",
        ConntrackFull = 5 "connection tracking refused an entry",
        RewriteFailed = 6 "packet could not be rewritten",
        BrokenService = 7 "service names a missing slot or backend",
        TtlExceeded = 8 "time to live exceeded",
        SocketRefused = 9 "connection refused at the socket: no ready backend",
        PolicyIngress = 10 "no ingress policy of the receiving pod allows it",
        PolicyEgress = 11 "no egress policy of the sending pod allows it",
        SourceRange = 12 "source is outside the service's loadBalancerSourceRanges",
        Bandwidth = 13 "pod exceeds its bandwidth",
        NoTunnelRoute = 14 "no node is known for the destination",
        HeaderChain = 15 "IPv6 header chain is too long to find the ports",
        NoLocalBackend = 16 "service has backends, but none on this node, which its traffic policy asks for",
        SctpFragment = 17 "fragment of an SCTP packet whose ports would change",
        TooBig = 18 "packet does not fit into one that would carry it to its backend's node",
        Misdirected = 19 "packet that another node sent on belongs to no known flow and to no service",
    }
}

numbered! {
    /// Which way a packet or a connection took.
    Path {
        ToPod = 0 "redirected into a local pod",
        ToNode = 1 "redirected to another node",
        ToStack = 2 "left to the node's network stack",
        Socket = 3 "service resolved at a socket",
        NewFlow = 4 "translated flow opened",
        Translated = 5 "packet translated",
        ToTunnel = 6 "sent through the tunnel",
        Reflected = 7 "sent back out by XDP",
        XdpPassed = 8 "left by XDP to the next program",
        Announced = 9 "ARP or neighbour solicitation answered",
        PolicyAllowed = 10 "flow allowed by a policy",
        EventLost = 11 "event lost: the ring buffer was full",
        Carried = 12 "sent on unchanged to the backend's node",
        Unpacked = 13 "unpacked, as another node had sent it on",
        ToldTooBig = 14 "sender told that its packet is too big",
    }
}

/// Slots of [`METRICS_MAP`].
pub const METRICS_MAX: usize = DropReason::ALL.len() + Path::ALL.len();
/// Index of the first [`Path`] in [`METRICS_MAP`].
pub const METRICS_PATHS: u32 = DropReason::ALL.len() as u32;

/// A counter of one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets, or connections at the socket hooks.
    pub packets: u64,
    /// Their bytes; zero at the socket hooks.
    pub bytes: u64,
}

abi!(Counter, size 16, align 8, { packets @ 0, bytes @ 8 });

/// Something that happened to a packet or a connection.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Source address in its wide form.
    pub source: Address6,
    /// Destination address in its wide form.
    pub destination: Address6,
    /// The destination after translation, in its wide form; zero where nothing was translated.
    pub becomes: Address6,
    /// Source port, in the host's order; a drop at a socket has none.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Destination port after translation.
    pub becomes_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`EVENT_DROP`], [`EVENT_FLOW`] or [`EVENT_VERDICT`].
    pub kind: u8,
    /// Of a drop, the number of the [`DropReason`]; of a flow, [`crate::conntrack::Conntrack::kind`]; of a verdict,
    /// [`crate::policy::INGRESS`] or [`crate::policy::EGRESS`].
    pub reason: u32,
    /// Interface index on which the packet was seen; zero at a socket.
    pub ifindex: u32,
    /// The packet's length in bytes; zero at a socket.
    pub length: u32,
    /// Of a verdict and of a policy's drop, the peer's identity.
    pub identity: u32,
}

abi!(Event, size 80, align 8, {
    time @ 0, source @ 8, destination @ 24, becomes @ 40, source_port @ 56, destination_port @ 58, becomes_port @ 60,
    protocol @ 62, kind @ 63, reason @ 64, ifindex @ 68, length @ 72, identity @ 76,
});

/// [`Event`] kind: refused; always written while somebody listens to drops.
pub const EVENT_DROP: u8 = 1;
/// [`Event`] kind: a translated flow was opened, or a service resolved at a socket.
pub const EVENT_FLOW: u8 = 2;
/// [`Event`] kind: a policy let a flow's first packet pass.
pub const EVENT_VERDICT: u8 = 3;

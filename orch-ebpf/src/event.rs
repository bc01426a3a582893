//! What the programs report: why packets were dropped, and counters.

use crate::{abi, conntrack::Tuple};

/// Name of the ring buffer of [`DropEvent`].
pub const EVENTS_MAP: &str = "ORCH_EVENTS";
/// Bytes of the ring buffer, a power of two of pages.
pub const EVENTS_BYTES: usize = 256 * 1024;
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

/// A dropped packet.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropEvent {
    /// When, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The packet's tuple as far as it could be read.
    pub tuple: Tuple,
    /// Number of the [`DropReason`].
    pub reason: u32,
    /// Interface index on which the packet was seen.
    pub ifindex: u32,
    /// The packet's length in bytes.
    pub length: u32,
    /// Always zero.
    pub _pad: u32,
}

abi!(DropEvent, size 40, align 8, { time @ 0, tuple @ 8, reason @ 24, ifindex @ 28, length @ 32, _pad @ 36 });

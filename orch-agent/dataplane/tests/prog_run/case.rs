//! Where a packet is seen, and what is to come of it.

use orch_ebpf::event::{DropReason, METRICS_PATHS, Path};

use crate::{
    packet::Packet,
    world::{OTHER_LINK, POD_LINK, TUNNEL, UPLINK},
};

/// A tc program's verdict that lets the network stack have the packet.
pub const PASS: u32 = 0;
/// A tc program's verdict that drops.
pub const DROP: u32 = 2;
/// A tc program's verdict that redirects.
pub const REDIRECT: u32 = 7;
/// XDP's verdict that lets the next program have the frame.
pub const XDP_PASS: u32 = 2;
/// XDP's verdict that sends the frame back out.
pub const XDP_TX: u32 = 3;

/// Where a packet is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    FromPod,
    FromOther,
    ToPod,
    FromUplink,
    ToUplink,
    FromTunnel,
    ToTunnel,
    Driver,
}

impl At {
    pub const ALL: [Self; 8] = [
        Self::FromPod,
        Self::FromOther,
        Self::ToPod,
        Self::FromUplink,
        Self::ToUplink,
        Self::FromTunnel,
        Self::ToTunnel,
        Self::Driver,
    ];

    pub fn program(self) -> (&'static str, u32) {
        match self {
            Self::FromPod => ("pod_ingress", POD_LINK),
            Self::FromOther => ("pod_ingress", OTHER_LINK),
            Self::ToPod => ("pod_egress", POD_LINK),
            Self::FromUplink => ("uplink_ingress", UPLINK),
            Self::ToUplink => ("uplink_egress", UPLINK),
            Self::FromTunnel => ("tunnel_ingress", TUNNEL),
            Self::ToTunnel => ("tunnel_egress", TUNNEL),
            Self::Driver => ("uplink_xdp", UPLINK),
        }
    }
}

/// A counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Dropped(DropReason),
    Took(Path),
}

impl Count {
    pub fn index(self) -> u32 {
        match self {
            Self::Dropped(reason) => reason as u32,
            Self::Took(path) => METRICS_PATHS + path as u32,
        }
    }

    pub fn of_index(index: u32) -> Option<Self> {
        DropReason::from_number(index)
            .map(Self::Dropped)
            .or_else(|| Path::from_number(index.checked_sub(METRICS_PATHS)?).map(Self::Took))
    }
}

/// One packet, and everything that is to come of it.
pub struct Case {
    pub name: &'static str,
    pub at: At,
    pub sent: Packet,
    pub verdict: u32,
    pub out: Packet,
    pub counts: Vec<Count>,
}

/// A packet that a program leaves to the network stack as it is.
pub fn passes(name: &'static str, at: At, sent: Packet) -> Case {
    Case {
        name,
        at,
        out: sent.clone(),
        sent,
        verdict: PASS,
        counts: vec![Count::Took(Path::ToStack)],
    }
}

/// A packet that is dropped as it is.
pub fn drops(name: &'static str, at: At, sent: Packet, reason: DropReason) -> Case {
    Case {
        name,
        at,
        out: sent.clone(),
        sent,
        verdict: DROP,
        counts: vec![Count::Dropped(reason)],
    }
}

/// A packet that leaves otherwise than it came.
pub fn turns(name: &'static str, at: At, sent: Packet, verdict: u32, out: Packet, paths: &[Path]) -> Case {
    Case {
        name,
        at,
        sent,
        verdict,
        out,
        counts: paths.iter().copied().map(Count::Took).collect(),
    }
}

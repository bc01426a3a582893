//! From bytes to a tuple: Ethernet, IP with options or extension headers, TCP, UDP, SCTP, ICMP, fragments.

pub mod v4;
pub mod v6;

use super::family::Family;
use crate::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, conntrack::Tuple, event::DropReason};

/// Bytes of an Ethernet header without tags; the IP header follows.
pub const ETHERNET: usize = 14;
/// Offset of the Ethernet type.
pub const ETHER_TYPE: usize = 12;
/// TCP's FIN flag (RFC 9293).
pub const TCP_FIN: u8 = 0x01;
/// TCP's SYN flag.
pub const TCP_SYN: u8 = 0x02;
/// TCP's RST flag.
pub const TCP_RST: u8 = 0x04;
/// TCP's ACK flag.
pub const TCP_ACK: u8 = 0x10;

/// Bytes to read, whatever the kind of program.
pub trait Bytes {
    /// Copies a value out of the packet; `None` when the packet ends before.
    fn read<T: Copy>(&self, offset: usize) -> Option<T>;
    /// The packet's length.
    fn length(&self) -> usize;
}

/// Where a packet's ports are, and so what a translation must rewrite.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// Nowhere: another protocol, an ICMP message of another kind, or a later fragment.
    None,
    /// Source and destination port at the layer 4 header's start.
    Both,
    /// The identifier of an ICMP echo request, counted as source port.
    EchoRequest,
    /// The identifier of an ICMP echo reply, counted as destination port.
    EchoReply,
    /// An ICMP error: the tuple is that of a packet that would answer the one the error is about, so that it finds
    /// the flow whose sender the error is for.
    Error,
}

/// What the steps need to know of a packet.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Parsed<A> {
    /// Who talks to whom.
    pub tuple: Tuple<A>,
    /// Offset of the layer 4 header in the packet.
    pub layer4: usize,
    /// Where the IP packet ends; what follows is the link's padding.
    pub end: usize,
    /// Where its ports are.
    pub ports: Ports,
    /// TCP's flags, or zero.
    pub tcp_flags: u8,
    /// Time to live.
    pub ttl: u8,
    /// Whether this is a later fragment, which has no layer 4 header.
    pub later_fragment: bool,
    /// Whether this is the first of several fragments.
    pub first_fragment: bool,
}

impl<A: Family> Parsed<A> {
    /// Whether this packet may open a flow: anything but a TCP segment that is no first SYN, an echo reply, an error,
    /// and a later fragment.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        !self.later_fragment
            && self.ports != Ports::EchoReply
            && self.ports != Ports::Error
            && (self.tuple.protocol != PROTOCOL_TCP
                || self.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN)
    }

    /// Whether this packet may be the first of a flow that is seen here, where that asks for no more than to send it to
    /// the backend that its hash names: a TCP segment in the middle of a connection, too, finds its socket there, or is
    /// refused by it. Then a node can take the place of one that has gone, or that has forgotten.
    #[inline(always)]
    pub fn joins(&self) -> bool {
        self.opens()
            || (self.tuple.protocol == PROTOCOL_TCP
                && self.ports == Ports::Both
                && self.tcp_flags & TCP_RST == 0)
    }
}

/// What a layer 4 header says.
#[derive(Clone, Copy)]
struct Layer4 {
    source_port: u16,
    destination_port: u16,
    ports: Ports,
    tcp_flags: u8,
}

const NOTHING: Layer4 = Layer4 {
    source_port: 0,
    destination_port: 0,
    ports: Ports::None,
    tcp_flags: 0,
};

/// Reads TCP's, UDP's or SCTP's ports; `end` is where the IP packet ends.
#[inline(always)]
fn ports(packet: &impl Bytes, protocol: u8, offset: usize, end: usize) -> Result<Layer4, DropReason> {
    let malformed = DropReason::Malformed;
    match protocol {
        PROTOCOL_TCP => {
            if offset + 20 > end {
                return Err(malformed);
            }
            let header = packet.read::<[u16; 7]>(offset).ok_or(malformed)?;
            let [_, tcp_flags] = header[6].to_ne_bytes();
            Ok(Layer4 {
                source_port: u16::from_be(header[0]),
                destination_port: u16::from_be(header[1]),
                ports: Ports::Both,
                tcp_flags,
            })
        }
        PROTOCOL_UDP | PROTOCOL_SCTP => {
            let length = if protocol == PROTOCOL_UDP { 8 } else { 12 };
            if offset + length > end {
                return Err(malformed);
            }
            let header = packet.read::<[u16; 2]>(offset).ok_or(malformed)?;
            Ok(Layer4 {
                source_port: u16::from_be(header[0]),
                destination_port: u16::from_be(header[1]),
                ports: Ports::Both,
                tcp_flags: 0,
            })
        }
        _ => Ok(NOTHING),
    }
}

/// The ports of the packet that an ICMP error quotes: it has at least their first eight bytes (RFC 792, RFC 4443).
#[inline(always)]
fn quoted_ports(
    packet: &impl Bytes,
    protocol: u8,
    icmp: u8,
    echo_request: u8,
    offset: usize,
) -> Option<(u16, u16)> {
    let header = packet.read::<[u8; 8]>(offset)?;
    let first = u16::from_be_bytes([header[0], header[1]]);
    let second = u16::from_be_bytes([header[2], header[3]]);
    if matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP) {
        return Some((first, second));
    }
    if protocol == icmp {
        let identifier = u16::from_be_bytes([header[4], header[5]]);
        return Some(if header[0] == echo_request {
            (identifier, 0)
        } else {
            (0, identifier)
        });
    }
    Some((0, 0))
}

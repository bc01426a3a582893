//! From bytes to a tuple: Ethernet, IPv4 with options, TCP, UDP, ICMP echo, fragments.

use super::maps;
use crate::{
    Address, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
    conntrack::{Fragment, FragmentKey, Tuple},
    event::DropReason,
};

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Offset of the TTL in the packet; the protocol follows.
pub const TTL: usize = ETHERNET + 8;
/// Offset of IPv4's header checksum in the packet.
pub const IP_CHECKSUM: usize = ETHERNET + 10;
/// Offset of the source address in the packet; the destination follows.
pub const ADDRESSES: usize = ETHERNET + 12;

const IPV4: [u8; 2] = [0x08, 0x00];
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
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
    /// Nowhere: another protocol, an ICMP message other than echo, or a later fragment.
    None,
    /// Source and destination port at the layer 4 header's start.
    Both,
    /// The identifier of an ICMP echo request, counted as source port.
    EchoRequest,
    /// The identifier of an ICMP echo reply, counted as destination port.
    EchoReply,
}

/// What the steps need to know of a packet.
#[derive(Clone, Copy)]
pub struct Parsed {
    /// Who talks to whom.
    pub tuple: Tuple,
    /// Offset of the layer 4 header in the packet.
    pub layer4: usize,
    /// Where its ports are.
    pub ports: Ports,
    /// TCP's flags, or zero.
    pub tcp_flags: u8,
    /// Time to live.
    pub ttl: u8,
    /// Whether this is a later fragment, which has no layer 4 header.
    pub later_fragment: bool,
}

impl Parsed {
    /// Whether this packet may open a flow: anything but a TCP segment that is no first SYN, and a later fragment.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        !self.later_fragment
            && self.ports != Ports::EchoReply
            && (self.tuple.protocol != PROTOCOL_TCP
                || self.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4Header {
    version_and_length: u8,
    service: u8,
    total_length: [u8; 2],
    identification: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: Address,
    destination: Address,
}

/// Reads the headers. `Ok(None)` is a packet that is not IPv4 and not ours to judge.
#[inline(always)]
pub fn parse(packet: &impl Bytes) -> Result<Option<Parsed>, DropReason> {
    let Some(kind) = packet.read::<[u8; 2]>(12) else {
        return Err(DropReason::Malformed);
    };
    if kind != IPV4 {
        return Ok(None);
    }
    let Some(header) = packet.read::<Ipv4Header>(ETHERNET) else {
        return Err(DropReason::Malformed);
    };
    let header_length = usize::from(header.version_and_length & 0x0f) * 4;
    let total_length = usize::from(u16::from_be_bytes(header.total_length));
    if header.version_and_length >> 4 != 4
        || header_length < size_of::<Ipv4Header>()
        // A total length of zero is a TCP packet over 64 KiB in one buffer ("BIG TCP").
        || (total_length != 0 && total_length < header_length)
        || total_length + ETHERNET > packet.length()
    {
        return Err(DropReason::Malformed);
    }
    let fragment = u16::from_be_bytes(header.fragment);
    let mut parsed = Parsed {
        tuple: Tuple {
            source: header.source,
            destination: header.destination,
            source_port: 0,
            destination_port: 0,
            protocol: header.protocol,
            _pad: [0; 3],
        },
        layer4: ETHERNET + header_length,
        ports: Ports::None,
        tcp_flags: 0,
        ttl: header.ttl,
        later_fragment: fragment & FRAGMENT_OFFSET != 0,
    };
    let key = FragmentKey {
        source: header.source,
        destination: header.destination,
        identification: u16::from_ne_bytes(header.identification),
        protocol: header.protocol,
        _pad: 0,
    };
    if parsed.later_fragment {
        // SAFETY: two integers that never change once written; a reused slot yields another datagram's ports, which
        // the tables treat as they would any sender's.
        if let Some(ports) = unsafe { maps::ORCH_FRAGMENTS.get(key) } {
            parsed.tuple.source_port = ports.source_port;
            parsed.tuple.destination_port = ports.destination_port;
        }
        return Ok(Some(parsed));
    }
    layer4(packet, &mut parsed, total_length)?;
    if fragment & MORE_FRAGMENTS != 0 {
        let ports = Fragment {
            source_port: parsed.tuple.source_port,
            destination_port: parsed.tuple.destination_port,
        };
        // A full map evicts; a refusal loses only the datagram's later fragments.
        let _ = maps::ORCH_FRAGMENTS.insert(key, ports, 0);
    }
    Ok(Some(parsed))
}

#[inline(always)]
fn layer4(packet: &impl Bytes, parsed: &mut Parsed, total_length: usize) -> Result<(), DropReason> {
    let end = if total_length == 0 {
        packet.length()
    } else {
        total_length + ETHERNET
    };
    match parsed.tuple.protocol {
        PROTOCOL_TCP => {
            if parsed.layer4 + 20 > end {
                return Err(DropReason::Malformed);
            }
            let header = packet
                .read::<[u8; 14]>(parsed.layer4)
                .ok_or(DropReason::Malformed)?;
            parsed.tuple.source_port = u16::from_be_bytes([header[0], header[1]]);
            parsed.tuple.destination_port = u16::from_be_bytes([header[2], header[3]]);
            parsed.tcp_flags = header[13];
            parsed.ports = Ports::Both;
        }
        PROTOCOL_UDP => {
            if parsed.layer4 + 8 > end {
                return Err(DropReason::Malformed);
            }
            let header = packet
                .read::<[u8; 4]>(parsed.layer4)
                .ok_or(DropReason::Malformed)?;
            parsed.tuple.source_port = u16::from_be_bytes([header[0], header[1]]);
            parsed.tuple.destination_port = u16::from_be_bytes([header[2], header[3]]);
            parsed.ports = Ports::Both;
        }
        PROTOCOL_ICMP => {
            if parsed.layer4 + 8 > end {
                return Err(DropReason::Malformed);
            }
            let header = packet
                .read::<[u8; 8]>(parsed.layer4)
                .ok_or(DropReason::Malformed)?;
            let identifier = u16::from_be_bytes([header[4], header[5]]);
            if header[0] == ECHO_REQUEST {
                parsed.tuple.source_port = identifier;
                parsed.ports = Ports::EchoRequest;
            } else if header[0] == ECHO_REPLY {
                parsed.tuple.destination_port = identifier;
                parsed.ports = Ports::EchoReply;
            }
        }
        _ => {}
    }
    Ok(())
}

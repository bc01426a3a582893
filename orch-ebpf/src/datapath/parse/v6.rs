//! IPv6 (RFC 8200) and ICMPv6 (RFC 4443).

use super::{Bytes, ETHERNET, Layer4, NOTHING, Parsed, Ports, ports, quoted_ports};
use crate::{
    Address6, PROTOCOL_ICMPV6,
    conntrack::{Fragment, FragmentKey, Tuple},
    datapath::family::Family as _,
    event::DropReason,
};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// How many extension headers are followed: RFC 8200 section 4.1 recommends an order in which six may stand.
const EXTENSIONS: usize = 6;
const UNREACHABLE: u8 = 1;
const PARAMETER_PROBLEM: u8 = 4;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u8; 4],
    payload_length: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    source: Address6,
    destination: Address6,
}

/// Where the chain of extension headers ends.
struct Chain {
    protocol: u8,
    layer4: usize,
    /// Offset and identification of a fragment.
    fragment: Option<(u16, u32)>,
}

#[inline(always)]
fn is_extension(kind: u8) -> bool {
    matches!(
        kind,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
    )
}

#[inline(always)]
fn follow(packet: &impl Bytes, first: u8, start: usize) -> Result<Chain, DropReason> {
    let mut chain = Chain {
        protocol: first,
        layer4: start,
        fragment: None,
    };
    for _ in 0..EXTENSIONS {
        let kind = chain.protocol;
        if !is_extension(kind) {
            return Ok(chain);
        }
        let header = packet
            .read::<[u8; 8]>(chain.layer4)
            .ok_or(DropReason::Malformed)?;
        chain.protocol = header[0];
        chain.layer4 += match kind {
            FRAGMENT => {
                let offset = u16::from_be_bytes([header[2], header[3]]);
                let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                chain.fragment = Some((offset, identification));
                if offset & !7 != 0 {
                    // What follows is the datagram's inside.
                    chain.layer4 += 8;
                    return Ok(chain);
                }
                8
            }
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
    }
    if is_extension(chain.protocol) {
        Err(DropReason::HeaderChain)
    } else {
        Ok(chain)
    }
}

/// Reads the headers. With `WHOLE` unset, what the quick path does not handle (extension headers, errors) is answered
/// with [`DropReason::HeaderChain`], for the caller to leave to the whole path.
#[inline(always)]
pub fn parse<const WHOLE: bool>(packet: &impl Bytes) -> Result<Parsed<Address6>, DropReason> {
    let Some(header) = packet.read::<Header>(ETHERNET) else {
        return Err(DropReason::Malformed);
    };
    let payload = usize::from(u16::from_be_bytes(header.payload_length));
    let start = ETHERNET + size_of::<Header>();
    if header.version[0] >> 4 != 6 || payload + start > packet.length() {
        return Err(DropReason::Malformed);
    }
    let chain = if WHOLE {
        follow(packet, header.next_header, start)?
    } else if is_extension(header.next_header) {
        return Err(DropReason::HeaderChain);
    } else {
        Chain {
            protocol: header.next_header,
            layer4: start,
            fragment: None,
        }
    };
    let mut parsed = Parsed {
        tuple: Tuple {
            source: header.source,
            destination: header.destination,
            source_port: 0,
            destination_port: 0,
            protocol: chain.protocol,
            _pad: [0; 3],
        },
        layer4: chain.layer4,
        // A payload length of zero is a packet over 64 KiB in one buffer, or a jumbogram (RFC 2675).
        end: if payload == 0 {
            packet.length()
        } else {
            payload + start
        },
        ports: Ports::None,
        tcp_flags: 0,
        ttl: header.hop_limit,
        later_fragment: chain.fragment.is_some_and(|(offset, _)| offset & !7 != 0),
    };
    let key = |identification| FragmentKey {
        source: header.source,
        destination: header.destination,
        identification,
        protocol: u32::from(chain.protocol),
    };
    if let Some((_, identification)) = chain.fragment
        && parsed.later_fragment
    {
        // SAFETY: see the IPv4 side.
        if let Some(ports) = unsafe { Address6::fragments().get(key(identification)) } {
            parsed.tuple.source_port = ports.source_port;
            parsed.tuple.destination_port = ports.destination_port;
        }
        return Ok(parsed);
    }
    let end = parsed.end;
    let layer4 = if chain.protocol == PROTOCOL_ICMPV6 {
        icmp::<WHOLE>(packet, &mut parsed, end)?
    } else {
        ports(packet, chain.protocol, parsed.layer4, end)?
    };
    parsed.ports = layer4.ports;
    parsed.tcp_flags = layer4.tcp_flags;
    if layer4.ports != Ports::Error {
        parsed.tuple.source_port = layer4.source_port;
        parsed.tuple.destination_port = layer4.destination_port;
    }
    if let Some((offset, identification)) = chain.fragment
        && offset & 1 != 0
    {
        let ports = Fragment {
            source_port: parsed.tuple.source_port,
            destination_port: parsed.tuple.destination_port,
        };
        // A full map evicts; a refusal loses only the datagram's later fragments.
        let _ = Address6::fragments().insert(key(identification), ports, 0);
    }
    Ok(parsed)
}

#[inline(always)]
fn icmp<const WHOLE: bool>(
    packet: &impl Bytes,
    parsed: &mut Parsed<Address6>,
    end: usize,
) -> Result<Layer4, DropReason> {
    if parsed.layer4 + 8 > end {
        return Err(DropReason::Malformed);
    }
    let Some(header) = packet.read::<[u8; 8]>(parsed.layer4) else {
        return Err(DropReason::Malformed);
    };
    let identifier = u16::from_be_bytes([header[4], header[5]]);
    match header[0] {
        ECHO_REQUEST => Ok(Layer4 {
            source_port: identifier,
            ports: Ports::EchoRequest,
            ..NOTHING
        }),
        ECHO_REPLY => Ok(Layer4 {
            destination_port: identifier,
            ports: Ports::EchoReply,
            ..NOTHING
        }),
        // Packet too big and time exceeded are between these two.
        UNREACHABLE..=PARAMETER_PROBLEM if WHOLE => Ok(quoted(packet, parsed)),
        UNREACHABLE..=PARAMETER_PROBLEM => Err(DropReason::HeaderChain),
        _ => Ok(NOTHING),
    }
}

/// An error's tuple. A quoted packet with extension headers is about no flow that can be found.
#[inline(always)]
fn quoted(packet: &impl Bytes, parsed: &mut Parsed<Address6>) -> Layer4 {
    let inner = parsed.layer4 + 8;
    let Some(header) = packet.read::<Header>(inner) else {
        return NOTHING;
    };
    let protocol = header.next_header;
    let found = quoted_ports(
        packet,
        protocol,
        PROTOCOL_ICMPV6,
        ECHO_REQUEST,
        inner + size_of::<Header>(),
    );
    let Some((source_port, destination_port)) = found.filter(|_| header.version[0] >> 4 == 6) else {
        return NOTHING;
    };
    parsed.tuple = Tuple {
        source: header.destination,
        destination: header.source,
        source_port: destination_port,
        destination_port: source_port,
        protocol,
        _pad: [0; 3],
    };
    Layer4 {
        ports: Ports::Error,
        ..NOTHING
    }
}

//! IPv6 (RFC 8200) and ICMPv6 (RFC 4443).

use super::{Bytes, ETHERNET, Layer4, NOTHING, Parsed, Ports, ports, quoted_ports};
use crate::{
    Address6, PROTOCOL_ICMPV6,
    conntrack::{Fragment, FragmentKey},
    datapath::{family::Family as _, words},
    event::DropReason,
};

const HOP_BY_HOP: u8 = 0;
/// Also the protocol of a packet that has segments left to go.
pub const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// How many extension headers are followed: RFC 8200 section 4.1 recommends an order in which six may stand.
const EXTENSIONS: usize = 6;
const UNREACHABLE: u8 = 1;
const PARAMETER_PROBLEM: u8 = 4;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

#[repr(C, align(4))]
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
        if kind == ROUTING && header[3] != 0 {
            // Layer 4's checksum is about where the packet ends up, and this is not its last address.
            return Ok(chain);
        }
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
pub fn parse<const WHOLE: bool>(
    packet: &impl Bytes,
    parsed: &mut Parsed<Address6>,
) -> Result<(), DropReason> {
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
    // SAFETY: addresses are words, and in both on a boundary of four.
    unsafe {
        words::copy(
            (&raw const header.source).cast(),
            (&raw mut parsed.tuple.source).cast(),
            4,
        );
        words::copy(
            (&raw const header.destination).cast(),
            (&raw mut parsed.tuple.destination).cast(),
            4,
        );
    }
    parsed.tuple.source_port = 0;
    parsed.tuple.destination_port = 0;
    parsed.tuple.set_protocol(chain.protocol);
    parsed.layer4 = chain.layer4;
    // A payload length of zero is a packet over 64 KiB in one buffer, or a jumbogram (RFC 2675).
    parsed.end = if payload == 0 {
        packet.length()
    } else {
        payload + start
    };
    parsed.ports = Ports::None;
    parsed.tcp_flags = 0;
    parsed.ttl = header.hop_limit;
    parsed.later_fragment = chain.fragment.is_some_and(|(offset, _)| offset & !7 != 0);
    parsed.first_fragment = chain.fragment.is_some_and(|(offset, _)| offset & !6 == 1);
    if let Some((_, identification)) = chain.fragment
        && parsed.later_fragment
    {
        recall(parsed, identification);
        return Ok(());
    }
    let end = parsed.end;
    let layer4 = if chain.protocol == PROTOCOL_ICMPV6 {
        icmp::<WHOLE>(packet, parsed.layer4, end)?
    } else {
        ports(packet, chain.protocol, parsed.layer4, end)?
    };
    parsed.ports = layer4.ports;
    parsed.tcp_flags = layer4.tcp_flags;
    parsed
        .tuple
        .set_ports(layer4.source_port, layer4.destination_port);
    if let Some((_, identification)) = chain.fragment
        && parsed.first_fragment
    {
        remember(parsed, identification);
    }
    Ok(())
}

/// A later fragment's ports.
#[inline(never)]
fn recall(parsed: &mut Parsed<Address6>, identification: u32) {
    // SAFETY: see the IPv4 side.
    if let Some(ports) = unsafe { Address6::fragments().get(key(parsed, identification)) } {
        parsed.tuple.source_port = ports.source_port;
        parsed.tuple.destination_port = ports.destination_port;
    }
}

/// Remembers a first fragment's ports.
#[inline(never)]
fn remember(parsed: &Parsed<Address6>, identification: u32) {
    let ports = Fragment {
        source_port: parsed.tuple.source_port,
        destination_port: parsed.tuple.destination_port,
    };
    // A full map evicts; a refusal loses only the datagram's later fragments.
    let _ = Address6::fragments().insert(key(parsed, identification), ports, 0);
}

#[inline(always)]
fn key(parsed: &Parsed<Address6>, identification: u32) -> FragmentKey<Address6> {
    FragmentKey {
        source: parsed.tuple.source,
        destination: parsed.tuple.destination,
        identification,
        protocol: u32::from(parsed.tuple.protocol),
    }
}

#[inline(always)]
fn icmp<const WHOLE: bool>(packet: &impl Bytes, layer4: usize, end: usize) -> Result<Layer4, DropReason> {
    if layer4 + 8 > end {
        return Err(DropReason::Malformed);
    }
    let Some(header) = packet.read::<[u8; 8]>(layer4) else {
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
        UNREACHABLE..=PARAMETER_PROBLEM if WHOLE => Ok(Layer4 {
            ports: Ports::Error,
            ..NOTHING
        }),
        UNREACHABLE..=PARAMETER_PROBLEM => Err(DropReason::HeaderChain),
        _ => Ok(NOTHING),
    }
}

/// Makes an error's tuple. A quoted packet with extension headers is about no flow that can be found.
#[inline(always)]
pub fn quoted(packet: &impl Bytes, parsed: &mut Parsed<Address6>) {
    parsed.ports = Ports::None;
    let inner = parsed.layer4 + 8;
    let Some(header) = packet.read::<Header>(inner) else {
        return;
    };
    let protocol = header.next_header;
    let layer4 = inner + size_of::<Header>();
    let found = quoted_ports(packet, protocol, PROTOCOL_ICMPV6, ECHO_REQUEST, layer4);
    let Some((source_port, destination_port)) = found.filter(|_| header.version[0] >> 4 == 6) else {
        return;
    };
    parsed.ports = Ports::Error;
    parsed.tuple.source = header.destination;
    parsed.tuple.destination = header.source;
    parsed.tuple.source_port = destination_port;
    parsed.tuple.destination_port = source_port;
    parsed.tuple.set_protocol(protocol);
}

//! IPv4 (RFC 791) and ICMP (RFC 792).

use super::{Bytes, ETHERNET, Layer4, NOTHING, Parsed, Ports, ports, quoted_ports};
use crate::{
    Address4, PROTOCOL_ICMP,
    conntrack::{Fragment, FragmentKey},
    datapath::family::Family as _,
    event::DropReason,
};

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;

#[repr(C, align(4))]
#[derive(Clone, Copy)]
struct Header {
    version_and_length: u8,
    service: u8,
    total_length: [u8; 2],
    identification: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: Address4,
    destination: Address4,
}

impl Header {
    #[inline(always)]
    fn length(&self) -> usize {
        usize::from(self.version_and_length & 0x0f) * 4
    }
}

/// Reads the headers. With `WHOLE` unset, what the quick path does not handle (options, fragments, errors) is
/// answered with [`DropReason::HeaderChain`], for the caller to leave to the whole path.
#[inline(always)]
pub fn parse<const WHOLE: bool>(
    packet: &impl Bytes,
    parsed: &mut Parsed<Address4>,
) -> Result<(), DropReason> {
    let Some(header) = packet.read::<Header>(ETHERNET) else {
        return Err(DropReason::Malformed);
    };
    let header_length = if WHOLE { header.length() } else { 20 };
    let total_length = usize::from(u16::from_be_bytes(header.total_length));
    if header.version_and_length >> 4 != 4
        || header.length() < size_of::<Header>()
        // A total length of zero is a TCP packet over 64 KiB in one buffer ("BIG TCP").
        || (total_length != 0 && total_length < header.length())
        || total_length + ETHERNET > packet.length()
    {
        return Err(DropReason::Malformed);
    }
    let fragment = u16::from_be_bytes(header.fragment);
    if !WHOLE && (header.version_and_length != 0x45 || fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0) {
        return Err(DropReason::HeaderChain);
    }
    // Field by field, and the protocol with its padding at once: a compiler would call a function to write zeros.
    parsed.tuple.source = header.source;
    parsed.tuple.destination = header.destination;
    parsed.tuple.set_protocol(header.protocol);
    parsed.layer4 = ETHERNET + header_length;
    parsed.end = if total_length == 0 {
        packet.length()
    } else {
        total_length + ETHERNET
    };
    parsed.ports = Ports::None;
    parsed.tcp_flags = 0;
    parsed.ttl = header.ttl;
    parsed.later_fragment = WHOLE && fragment & FRAGMENT_OFFSET != 0;
    parsed.first_fragment = WHOLE && fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) == MORE_FRAGMENTS;
    let key = FragmentKey {
        source: header.source,
        destination: header.destination,
        identification: u32::from(u16::from_be_bytes(header.identification)),
        protocol: u32::from(header.protocol),
    };
    if parsed.later_fragment {
        parsed.tuple.source_port = 0;
        parsed.tuple.destination_port = 0;
        // SAFETY: two integers that never change once written; a reused slot yields another datagram's ports, which
        // the tables treat as they would any sender's.
        if let Some(ports) = unsafe { Address4::fragments().get(key) } {
            parsed.tuple.source_port = ports.source_port;
            parsed.tuple.destination_port = ports.destination_port;
        }
        return Ok(());
    }
    let end = parsed.end;
    let layer4 = if header.protocol == PROTOCOL_ICMP {
        icmp::<WHOLE>(packet, parsed.layer4, end)?
    } else {
        ports(packet, header.protocol, parsed.layer4, end)?
    };
    parsed.ports = layer4.ports;
    parsed.tcp_flags = layer4.tcp_flags;
    parsed
        .tuple
        .set_ports(layer4.source_port, layer4.destination_port);
    if parsed.first_fragment {
        let ports = Fragment {
            source_port: parsed.tuple.source_port,
            destination_port: parsed.tuple.destination_port,
        };
        // A full map evicts; a refusal loses only the datagram's later fragments.
        let _ = Address4::fragments().insert(key, ports, 0);
    }
    Ok(())
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
        UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM if WHOLE => Ok(Layer4 {
            ports: Ports::Error,
            ..NOTHING
        }),
        UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM => Err(DropReason::HeaderChain),
        _ => Ok(NOTHING),
    }
}

/// Makes an error's tuple. One that quotes less than a header and eight bytes is about no flow that can be found.
#[inline(always)]
pub fn quoted(packet: &impl Bytes, parsed: &mut Parsed<Address4>) {
    parsed.ports = Ports::None;
    let inner = parsed.layer4 + 8;
    let Some(header) = packet.read::<Header>(inner) else {
        return;
    };
    let offset_bits = u16::from_be_bytes(header.fragment) & FRAGMENT_OFFSET;
    if header.version_and_length >> 4 != 4 || header.length() < size_of::<Header>() || offset_bits != 0 {
        return;
    }
    let layer4 = inner + header.length();
    let found = quoted_ports(packet, header.protocol, PROTOCOL_ICMP, ECHO_REQUEST, layer4);
    let Some((source_port, destination_port)) = found else {
        return;
    };
    parsed.ports = Ports::Error;
    parsed.tuple.source = header.destination;
    parsed.tuple.destination = header.source;
    parsed.tuple.source_port = destination_port;
    parsed.tuple.destination_port = source_port;
    parsed.tuple.set_protocol(header.protocol);
}

//! Reading packets, with all their checksums.

use std::net::IpAddr;

use super::{
    AUTHENTICATION, DESTINATION_OPTIONS, ETHERNET, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, ROUTING, SCTP, TCP,
    UDP,
    sums::{self, crc32c, sum},
};

/// What a packet that came out says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub macs: [u8; 12],
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    pub ttl: u8,
    pub protocol: u8,
    /// What an ICMP error quotes.
    pub quoted: Option<Quoted>,
}

/// Who talked to whom, in the packet that an error quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted {
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
}

/// Which checksums a packet has, and whether they are right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// IPv4's.
    pub header: Option<bool>,
    /// Layer 4's, where the packet is whole.
    pub layer4: Option<bool>,
    /// Of a quoted IPv4 header.
    pub quoted: Option<bool>,
}

impl Checks {
    /// Whether what was right before is right now.
    pub fn as_right_as(&self, before: &Self) -> bool {
        let kept = |before: Option<bool>, now: Option<bool>| before != Some(true) || now == Some(true);
        kept(before.header, self.header)
            && kept(before.layer4, self.layer4)
            && kept(before.quoted, self.quoted)
    }

    /// Whether none is wrong.
    pub fn right(&self) -> bool {
        [self.header, self.layer4, self.quoted]
            .iter()
            .all(|check| *check != Some(false))
    }
}

/// An IP header.
struct Header<'a> {
    source: IpAddr,
    destination: IpAddr,
    /// Whom a layer 4 checksum is about.
    final_destination: IpAddr,
    ttl: u8,
    protocol: u8,
    /// Whether the packet is no fragment.
    whole: bool,
    /// Whether it has no layer 4 header.
    later: bool,
    /// Whether its checksum is right.
    right: Option<bool>,
    /// What follows it, cut where the packet ends.
    rest: &'a [u8],
}

fn address<const N: usize>(bytes: &[u8], at: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    Some(IpAddr::from(<[u8; N]>::try_from(bytes.get(at..at + N)?).ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Reads a header; a quoted packet may end before its header says.
fn header(bytes: &[u8], quoted: bool) -> Option<Header<'_>> {
    match bytes.first()? >> 4 {
        4 => ipv4(bytes, quoted),
        6 => ipv6(bytes, quoted),
        _ => None,
    }
}

fn ipv4(bytes: &[u8], quoted: bool) -> Option<Header<'_>> {
    let length = usize::from(bytes[0] & 15) * 4;
    let total = usize::from(word(bytes, 2)?);
    let ip = bytes.get(..length).filter(|_| length >= 20)?;
    let end = if quoted { bytes.len() } else { total };
    let fragment = word(ip, 6)?;
    let destination = address::<4>(ip, 16)?;
    Some(Header {
        source: address::<4>(ip, 12)?,
        destination,
        final_destination: destination,
        ttl: ip[8],
        protocol: ip[9],
        whole: fragment & 0x3fff == 0,
        later: fragment & 0x1fff != 0,
        right: Some(sum(&[ip]) == 0xffff),
        rest: bytes.get(length..end)?,
    })
}

fn ipv6(bytes: &[u8], quoted: bool) -> Option<Header<'_>> {
    let total = 40 + usize::from(word(bytes, 4)?);
    let end = if quoted { bytes.len() } else { total };
    let bytes = bytes.get(..end)?;
    let destination = address::<16>(bytes, 24)?;
    let mut found = Header {
        source: address::<16>(bytes, 8)?,
        destination,
        final_destination: destination,
        ttl: bytes[7],
        protocol: bytes[6],
        whole: true,
        later: false,
        right: None,
        rest: bytes.get(40..)?,
    };
    while !found.later {
        let rest = found.rest;
        let length = match found.protocol {
            FRAGMENT => {
                let field = word(rest, 2)?;
                found.whole = field & !6 == 0;
                found.later = field & !7 != 0;
                8
            }
            AUTHENTICATION => (usize::from(*rest.get(1)?) + 2) * 4,
            ROUTING => {
                let length = (usize::from(*rest.get(1)?) + 1) * 8;
                if *rest.get(3)? > 0 && length >= 24 {
                    found.final_destination = address::<16>(rest, length - 16)?;
                }
                length
            }
            HOP_BY_HOP | DESTINATION_OPTIONS => (usize::from(*rest.get(1)?) + 1) * 8,
            _ => break,
        };
        found.protocol = *rest.first()?;
        found.rest = rest.get(length..)?;
    }
    Some(found)
}

/// Source and destination port, or an echo's identifier on the side that asked.
fn ports(header: &Header<'_>) -> Option<(u16, u16)> {
    if header.later {
        return Some((0, 0));
    }
    let rest = header.rest;
    match (header.protocol, rest.first()) {
        (TCP | UDP | SCTP, _) => Some((word(rest, 0)?, word(rest, 2)?)),
        (ICMP, Some(8)) | (ICMPV6, Some(128)) => Some((word(rest, 4)?, 0)),
        (ICMP, Some(0)) | (ICMPV6, Some(129)) => Some((0, word(rest, 4)?)),
        _ => Some((0, 0)),
    }
}

fn layer4(header: &Header<'_>) -> Option<bool> {
    let rest = header.rest;
    let field = match header.protocol {
        TCP if rest.len() >= 20 => 16,
        UDP if rest.len() >= 8 => 6,
        ICMP | ICMPV6 if rest.len() >= 8 => 2,
        SCTP if rest.len() >= 12 => 8,
        _ => return None,
    };
    let wanted = word(rest, field)?;
    if !header.whole || (header.protocol == UDP && wanted == 0) {
        return None;
    }
    if header.protocol == SCTP {
        let crc = crc32c(&[&rest[..8], &[0; 4], &rest[12..]].concat());
        return Some(rest[8..12] == crc.to_le_bytes());
    }
    let sum = sums::layer4(header.source, header.final_destination, header.protocol, rest);
    Some(sum == 0xffff)
}

/// What an error quotes, and whether its header's checksum is right.
fn quoted(outer: &Header<'_>) -> Option<(Quoted, Option<bool>)> {
    let error = match outer.protocol {
        ICMP => matches!(outer.rest.first(), Some(3 | 11 | 12)),
        ICMPV6 => matches!(outer.rest.first(), Some(1..=4)),
        _ => false,
    };
    let inner = header(outer.rest.get(8..).filter(|_| error && !outer.later)?, true)?;
    let (source_port, destination_port) = ports(&inner).unwrap_or_default();
    let quoted = Quoted {
        source: (inner.source, source_port),
        destination: (inner.destination, destination_port),
    };
    Some((quoted, inner.right))
}

fn of_frame(frame: &[u8]) -> Option<Header<'_>> {
    if matches!(frame.get(12..ETHERNET)?, [8, 0] | [0x86, 0xdd]) {
        header(&frame[ETHERNET..], false)
    } else {
        None
    }
}

/// Looks at every checksum of a frame; one that is no packet has none.
pub fn checks(frame: &[u8]) -> Checks {
    let Some(outer) = of_frame(frame) else {
        return Checks::default();
    };
    Checks {
        header: outer.right,
        layer4: layer4(&outer),
        quoted: quoted(&outer).and_then(|(_, right)| right),
    }
}

/// Reads a packet and insists that its checksums are right.
pub fn read(frame: &[u8]) -> Seen {
    let checks = checks(frame);
    assert!(checks.right(), "{checks:?} of {frame:02x?}");
    let outer = of_frame(frame).unwrap();
    let (source_port, destination_port) = ports(&outer).unwrap();
    Seen {
        macs: frame[..12].try_into().unwrap(),
        source: (outer.source, source_port),
        destination: (outer.destination, destination_port),
        ttl: outer.ttl,
        protocol: outer.protocol,
        quoted: quoted(&outer).map(|(quoted, _)| quoted),
    }
}

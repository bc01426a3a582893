//! Packets that tests write and read byte by byte, of both families.

#[path = "packet/carried.rs"]
pub mod carried;
#[path = "packet/fragments.rs"]
pub mod fragments;
#[path = "packet/neighbour.rs"]
pub mod neighbour;
#[path = "packet/read.rs"]
pub mod read;
#[path = "packet/sums.rs"]
pub mod sums;

use std::net::IpAddr;

use sums::{crc32c, sum};

pub const ICMP: u8 = 1;
pub const IP_IN_IP: u8 = 4;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const IPV6_IN_IP: u8 = 41;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;
/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const DESTINATION_OPTIONS: u8 = 60;

/// An extension header of IPv6: its kind and what follows its first byte, which is a multiple of eight less one (of
/// four for authentication).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    pub kind: u8,
    pub rest: Vec<u8>,
}

impl Extension {
    /// One with options that are all padding (RFC 8200 section 4.2), of so many times eight bytes.
    pub fn padding(kind: u8, eights: u8) -> Self {
        let length = usize::from(eights) * 8 - 4;
        let mut rest = vec![eights - 1, 1, length as u8];
        rest.resize(length + 3, 0);
        Self { kind, rest }
    }

    /// A routing header (type 2, RFC 6275) with one address, visited or still to be.
    pub fn routing(address: IpAddr, left: u8) -> Self {
        let mut rest = vec![2, 2, left, 0, 0, 0, 0];
        rest.extend(octets(address));
        Self { kind: ROUTING, rest }
    }

    /// An authentication header (RFC 4302) with a check value of twelve bytes.
    pub fn authentication() -> Self {
        let mut rest = vec![4, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1];
        rest.resize(23, 7);
        Self {
            kind: AUTHENTICATION,
            rest,
        }
    }
}

/// What an ICMP or ICMPv6 message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// An echo's request; its identifier is the source port.
    Request,
    /// Its reply; its identifier is the destination port.
    Reply,
    /// Another, with the second word of its header; an error's payload is what it quotes.
    Other { kind: u8, code: u8, word: u32 },
}

/// An IP packet in an Ethernet frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub macs: [u8; 12],
    pub vlan: Option<u16>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
    pub ttl: u8,
    /// TCP's flags.
    pub flags: u8,
    pub message: Message,
    /// UDP without a checksum.
    pub zero_checksum: bool,
    /// IPv4's options, in words of four bytes.
    pub option_words: u8,
    /// IPv6's extension headers.
    pub extensions: Vec<Extension>,
    pub payload: Vec<u8>,
    /// Bytes behind the IP packet, which fill a short frame up.
    pub padding: usize,
}

/// A packet with a few bytes of payload; over TCP a first SYN, over ICMP an echo's request.
pub fn packet(protocol: u8, from: (impl Into<IpAddr>, u16), to: (impl Into<IpAddr>, u16)) -> Packet {
    Packet {
        macs: [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8],
        vlan: None,
        source: from.0.into(),
        destination: to.0.into(),
        protocol,
        source_port: from.1,
        destination_port: to.1,
        ttl: 64,
        flags: SYN,
        message: Message::Request,
        zero_checksum: false,
        option_words: 0,
        extensions: Vec::new(),
        payload: b"12345".to_vec(),
        padding: 0,
    }
}

/// An echo's request or reply, with its identifier where [`Message`] says.
pub fn echo(from: (IpAddr, u16), to: (IpAddr, u16), message: Message) -> Packet {
    let protocol = if from.0.is_ipv4() { ICMP } else { ICMPV6 };
    Packet {
        message,
        ..packet(protocol, from, to)
    }
}

/// An error that quotes.
pub fn error(from: IpAddr, to: IpAddr, kind: u8, code: u8, word: u32, quoted: Vec<u8>) -> Packet {
    Packet {
        payload: quoted,
        ..echo((from, 0), (to, 0), Message::Other { kind, code, word })
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Packet {
    /// The packet with other sides.
    pub fn between(&self, from: (IpAddr, u16), to: (IpAddr, u16)) -> Self {
        Self {
            source: from.0,
            source_port: from.1,
            destination: to.0,
            destination_port: to.1,
            ..self.clone()
        }
    }

    /// The packet from another side.
    pub fn from(&self, from: (IpAddr, u16)) -> Self {
        self.between(from, (self.destination, self.destination_port))
    }

    /// The packet to another side.
    pub fn to(&self, to: (IpAddr, u16)) -> Self {
        self.between((self.source, self.source_port), to)
    }

    /// The packet that answers it.
    pub fn answer(&self) -> Self {
        Self {
            flags: SYN | ACK,
            message: if self.message == Message::Request {
                Message::Reply
            } else {
                self.message
            },
            ..self.between(
                (self.destination, self.destination_port),
                (self.source, self.source_port),
            )
        }
    }

    pub fn with_flags(&self, flags: u8) -> Self {
        Self {
            flags,
            ..self.clone()
        }
    }

    pub fn with_ttl(&self, ttl: u8) -> Self {
        Self { ttl, ..self.clone() }
    }

    pub fn with_macs(&self, macs: [u8; 12]) -> Self {
        Self { macs, ..self.clone() }
    }

    /// What an error quotes of it: the IP header and so many bytes of the rest.
    pub fn quote(&self, bytes: usize) -> Vec<u8> {
        let all = self.ip();
        let header = all.len() - self.layer4().len();
        all[..all.len().min(header + bytes)].to_vec()
    }

    /// What an error quotes of it once it has been translated, but for the layer 4 checksum, which stays that of
    /// the packet as `before` quotes it.
    pub fn requote(&self, before: &[u8]) -> Vec<u8> {
        let mut all = self.ip();
        let header = all.len() - self.layer4().len();
        all.truncate(before.len());
        if let Some(at) = self.checksum_at() {
            let range = header + at
                ..all
                    .len()
                    .min(header + at + if self.protocol == SCTP { 4 } else { 2 });
            if !range.is_empty() {
                all[range.clone()].copy_from_slice(&before[range]);
            }
        }
        all
    }

    fn checksum_at(&self) -> Option<usize> {
        match self.protocol {
            TCP => Some(16),
            UDP => Some(6),
            ICMP | ICMPV6 => Some(2),
            SCTP => Some(8),
            _ => None,
        }
    }

    /// The whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.macs.to_vec();
        if let Some(tag) = self.vlan {
            bytes.extend([0x81, 0]);
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(if self.source.is_ipv4() {
            [8, 0]
        } else {
            [0x86, 0xdd]
        });
        bytes.extend(self.ip());
        bytes.resize(bytes.len() + self.padding, 0);
        bytes
    }

    /// The IP packet.
    pub fn ip(&self) -> Vec<u8> {
        if self.source.is_ipv4() {
            self.ipv4()
        } else {
            self.ipv6()
        }
    }

    fn ipv4(&self) -> Vec<u8> {
        let layer4 = self.layer4();
        let length = 20 + usize::from(self.option_words) * 4;
        let mut ip = vec![0; length];
        ip[0] = 0x40 | (length / 4) as u8;
        ip[2..4].copy_from_slice(&((length + layer4.len()) as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&[0x12, 0x34]);
        ip[8] = self.ttl;
        ip[9] = self.protocol;
        ip[12..16].copy_from_slice(&octets(self.source));
        ip[16..20].copy_from_slice(&octets(self.destination));
        // "No operation".
        ip[20..].fill(1);
        let checksum = !sum(&[&ip]);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        ip.extend(layer4);
        ip
    }

    fn ipv6(&self) -> Vec<u8> {
        let layer4 = self.layer4();
        let kinds: Vec<u8> = self
            .extensions
            .iter()
            .map(|extension| extension.kind)
            .chain([self.protocol])
            .collect();
        let mut rest = Vec::new();
        for (extension, next) in self.extensions.iter().zip(&kinds[1..]) {
            rest.push(*next);
            rest.extend(&extension.rest);
        }
        rest.extend(layer4);
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend((rest.len() as u16).to_be_bytes());
        ip.extend([kinds[0], self.ttl]);
        ip.extend(octets(self.source));
        ip.extend(octets(self.destination));
        ip.extend(rest);
        ip
    }

    /// The layer 4 header and payload.
    fn layer4(&self) -> Vec<u8> {
        let ports = [
            self.source_port.to_be_bytes(),
            self.destination_port.to_be_bytes(),
        ]
        .concat();
        let mut layer4 = Vec::new();
        match self.protocol {
            TCP => {
                layer4.extend(&ports);
                layer4.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0x10, 0, 0, 0, 0, 0]);
            }
            UDP => {
                layer4.extend(&ports);
                layer4.extend((8 + self.payload.len() as u16).to_be_bytes());
                layer4.extend([0, 0]);
            }
            SCTP => {
                layer4.extend(&ports);
                layer4.extend([1, 2, 3, 4, 0, 0, 0, 0]);
            }
            ICMP | ICMPV6 => layer4.extend(self.message()),
            _ => {}
        }
        layer4.extend(&self.payload);
        if self.protocol == SCTP {
            let crc = crc32c(&layer4);
            layer4[8..12].copy_from_slice(&crc.to_le_bytes());
        } else if let Some(at) = self
            .checksum_at()
            .filter(|_| !self.zero_checksum || self.protocol != UDP)
        {
            let value = !sums::layer4(self.source, self.final_destination(), self.protocol, &layer4);
            let value = if value == 0 && self.protocol == UDP {
                0xffff
            } else {
                value
            };
            layer4[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        layer4
    }

    fn message(&self) -> Vec<u8> {
        let (kind, code, word) = match (self.message, self.protocol) {
            (Message::Request, ICMP) => (8, 0, u32::from(self.source_port) << 16 | 1),
            (Message::Request, _) => (128, 0, u32::from(self.source_port) << 16 | 1),
            (Message::Reply, ICMP) => (0, 0, u32::from(self.destination_port) << 16 | 1),
            (Message::Reply, _) => (129, 0, u32::from(self.destination_port) << 16 | 1),
            (Message::Other { kind, code, word }, _) => (kind, code, word),
        };
        [vec![kind, code, 0, 0], word.to_be_bytes().to_vec()].concat()
    }

    /// Where the packet ends up, which its checksum is about: the routing header's address while that is to be visited.
    fn final_destination(&self) -> IpAddr {
        self.extensions
            .iter()
            .filter(|extension| extension.kind == ROUTING && extension.rest[2] > 0)
            .find_map(|extension| <[u8; 16]>::try_from(&extension.rest[7..]).ok())
            .map_or(self.destination, IpAddr::from)
    }
}

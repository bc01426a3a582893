//! Packets as tests write them, and the judgement of those that come out.

use std::net::Ipv4Addr;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// A packet to build; fields that a test does not name are harmless.
#[derive(Debug, Clone)]
pub struct Packet {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub source_port: u16,
    pub destination_port: u16,
    pub flags: u8,
    pub ttl: u8,
    pub option_words: u8,
    pub fragment: u16,
    pub zero_checksum: bool,
    pub icmp_kind: u8,
    pub payload: Vec<u8>,
}

/// A packet of this protocol.
pub fn packet(protocol: u8, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Packet {
    Packet {
        source: source.0,
        destination: destination.0,
        protocol,
        source_port: source.1,
        destination_port: destination.1,
        flags: SYN,
        ttl: 64,
        option_words: 0,
        fragment: 0,
        zero_checksum: false,
        icmp_kind: 8,
        payload: b"some payload".to_vec(),
    }
}

/// The ones' complement sum of RFC 1071, not yet inverted.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

impl Packet {
    /// The bytes, with right checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let mut layer4 = Vec::new();
        let ports = [
            self.source_port.to_be_bytes(),
            self.destination_port.to_be_bytes(),
        ]
        .concat();
        let mut checksum_at = None;
        if self.fragment & 0x1fff == 0 {
            match self.protocol {
                TCP => {
                    layer4.extend(ports);
                    layer4.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
                    checksum_at = Some(16);
                }
                UDP => {
                    layer4.extend(ports);
                    layer4.extend((8 + self.payload.len() as u16).to_be_bytes());
                    layer4.extend([0, 0]);
                    checksum_at = (!self.zero_checksum).then_some(6);
                }
                ICMP => {
                    let id = if self.icmp_kind == 0 {
                        self.destination_port
                    } else {
                        self.source_port
                    };
                    layer4.extend([self.icmp_kind, 0, 0, 0]);
                    layer4.extend(id.to_be_bytes());
                    layer4.extend([0, 1]);
                    checksum_at = Some(2);
                }
                _ => {}
            }
        }
        layer4.extend(&self.payload);
        if let Some(at) = checksum_at {
            let value = !layer4_sum(self.source, self.destination, self.protocol, &layer4);
            let value = if value == 0 && self.protocol == UDP {
                0xffff
            } else {
                value
            };
            layer4[at..at + 2].copy_from_slice(&value.to_be_bytes());
        }
        let header_length = 20 + usize::from(self.option_words) * 4;
        let mut ip = vec![0; header_length];
        ip[0] = 0x40 | (header_length / 4) as u8;
        ip[2..4].copy_from_slice(&((header_length + layer4.len()) as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&[0x12, 0x34]);
        ip[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        ip[8] = self.ttl;
        ip[9] = self.protocol;
        ip[12..16].copy_from_slice(&self.source.octets());
        ip[16..20].copy_from_slice(&self.destination.octets());
        ip[20..].fill(1);
        let checksum = !sum(&[&ip]);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        [vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 8, 0], ip, layer4].concat()
    }
}

fn layer4_sum(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, bytes: &[u8]) -> u16 {
    if protocol == ICMP {
        return sum(&[bytes]);
    }
    let length = (bytes.len() as u16).to_be_bytes();
    sum(&[
        &source.octets(),
        &destination.octets(),
        &[0, protocol],
        &length,
        bytes,
    ])
}

/// What a packet that came out says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub source: (Ipv4Addr, u16),
    pub destination: (Ipv4Addr, u16),
    pub ttl: u8,
    pub macs: [u8; 12],
    pub udp_checksum: Option<u16>,
}

/// Reads an IPv4 packet and insists that its checksums are right. `fragmented` has no layer 4 checksum to check.
pub fn read(bytes: &[u8]) -> Seen {
    let header_length = usize::from(bytes[14] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    let ip = &bytes[14..14 + header_length];
    assert_eq!(sum(&[ip]), 0xffff, "IP checksum of {bytes:02x?}");
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let (source, destination) = (address(12), address(16));
    let layer4 = &bytes[14 + header_length..14 + total];
    let fragment = u16::from_be_bytes([ip[6], ip[7]]);
    let protocol = ip[9];
    let word = |at: usize| u16::from_be_bytes([layer4[at], layer4[at + 1]]);
    let zero_udp = protocol == UDP && fragment & 0x1fff == 0 && word(6) == 0;
    if fragment & 0x3fff == 0 && [TCP, UDP, ICMP].contains(&protocol) && !zero_udp {
        assert_eq!(
            layer4_sum(source, destination, protocol, layer4),
            0xffff,
            "checksum of {bytes:02x?}"
        );
    }
    let (source_port, destination_port) = match (protocol, fragment & 0x1fff) {
        (TCP | UDP, 0) => (word(0), word(2)),
        (ICMP, 0) if layer4[0] == 8 => (word(4), 0),
        (ICMP, 0) if layer4[0] == 0 => (0, word(4)),
        _ => (0, 0),
    };
    Seen {
        source: (source, source_port),
        destination: (destination, destination_port),
        ttl: ip[8],
        macs: bytes[..12].try_into().unwrap(),
        udp_checksum: (protocol == UDP && fragment & 0x1fff == 0).then(|| word(6)),
    }
}

//! Packets inside others of the same family (RFC 2003, RFC 2473), as one node sends them on to another.

use std::net::IpAddr;

use super::{ETHERNET, IP_IN_IP, IPV6_IN_IP, octets, sums::sum};

/// Bytes of a frame's IP packet; what follows fills the frame up.
fn length(frame: &[u8]) -> usize {
    let word = |at: usize| {
        usize::from(u16::from_be_bytes([
            frame[ETHERNET + at],
            frame[ETHERNET + at + 1],
        ]))
    };
    if frame[ETHERNET] >> 4 == 4 {
        word(2)
    } else {
        40 + word(4)
    }
}

/// The frame with its packet in another one.
pub fn carried(frame: &[u8], from: IpAddr, to: IpAddr) -> Vec<u8> {
    let (ethernet, inside) = frame.split_at(ETHERNET);
    let length = length(frame);
    let addresses = [octets(from), octets(to)].concat();
    let mut outer;
    if from.is_ipv4() {
        // Not to be cut; the class of service without marks of congestion.
        outer = vec![0x45, inside[1] & !3];
        outer.extend(((length + 20) as u16).to_be_bytes());
        outer.extend([0, 0, 0x40, 0, 64, IP_IN_IP, 0, 0]);
        outer.extend(addresses);
        let checksum = !sum(&[&outer]);
        outer[10..12].copy_from_slice(&checksum.to_be_bytes());
    } else {
        outer = vec![inside[0], inside[1] & !0x30, inside[2], inside[3]];
        outer.extend((length as u16).to_be_bytes());
        outer.extend([IPV6_IN_IP, 64]);
        outer.extend(addresses);
    }
    [ethernet, &outer, inside].concat()
}

/// A frame with other hardware addresses.
pub fn with_macs(frame: &[u8], macs: [u8; 12]) -> Vec<u8> {
    [&macs[..], &frame[12..]].concat()
}

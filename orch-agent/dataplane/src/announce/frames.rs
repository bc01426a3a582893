//! Frames that tell a network where an address is now: ARP announcements (RFC 5227 section 3) and unsolicited
//! neighbour advertisements (RFC 4861 section 7.2.6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::sys;

const BROADCAST: [u8; 6] = [0xff; 6];
/// The Ethernet address of all nodes' multicast group (RFC 2464 section 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ADVERTISEMENT: u8 = 136;
/// Length of an advertisement with a link-layer address.
const ADVERTISEMENT_LENGTH: u8 = 32;

/// The frame that says that `address` is at `mac`.
#[must_use]
pub fn announcement(address: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => arp(ip, mac),
        IpAddr::V6(ip) => advertisement(ip, mac),
    }
}

fn arp(ip: Ipv4Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(60);
    frame.extend(BROADCAST);
    frame.extend(mac);
    // ARP; Ethernet, IPv4, lengths 6 and 4, request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend([0; 6]);
    frame.extend(ip.octets());
    // Ethernet's least length without its checksum.
    frame.resize(60, 0);
    frame
}

fn advertisement(ip: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0];
    // The flag "override".
    message.extend([0x20, 0, 0, 0]);
    message.extend(ip.octets());
    // Option: the target's link-layer address, one unit of eight bytes.
    message.extend([2, 1]);
    message.extend(mac);
    let sum = checksum(ip, ALL_NODES, &message);
    for (to, from) in message.iter_mut().skip(2).zip(sum) {
        *to = from;
    }
    let mut frame = Vec::with_capacity(86);
    frame.extend(ALL_NODES_MAC);
    frame.extend(mac);
    frame.extend([0x86, 0xdd]);
    // Version 6; length; ICMPv6; the hop limit that neighbour discovery demands.
    frame.extend([
        0x60,
        0,
        0,
        0,
        0,
        ADVERTISEMENT_LENGTH,
        orch_ebpf::PROTOCOL_ICMPV6,
        255,
    ]);
    frame.extend(ip.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

/// The checksum of an `ICMPv6` message (RFC 4443 section 2.3, RFC 1071).
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> [u8; 2] {
    let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
    let pseudo = [0, 0, 0, orch_ebpf::PROTOCOL_ICMPV6];
    let (source, destination) = (source.octets(), destination.octets());
    let bytes = [&source[..], &destination, &length, &pseudo, message].concat();
    sys::icmp::checksum(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn an_arp_announcement_names_its_own_address_twice() {
        let frame = announcement(IpAddr::from([172, 30, 0, 200]), MAC);
        assert_eq!(frame.len(), 60);
        assert_eq!(
            frame[..14],
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 8, 6]
        );
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(
            (&frame[22..28], &frame[28..32]),
            (&MAC[..], &[172, 30, 0, 200][..])
        );
        assert_eq!(
            (&frame[32..38], &frame[38..42]),
            (&[0; 6][..], &[172, 30, 0, 200][..])
        );
    }

    #[test]
    fn an_advertisement_is_one_that_receivers_accept() {
        let ip: Ipv6Addr = "fd00:30::200".parse().unwrap();
        let frame = announcement(IpAddr::V6(ip), MAC);
        assert_eq!(frame.len(), 14 + 40 + 32);
        assert_eq!((frame[20], frame[21], frame[54]), (58, 255, 136));
        assert_eq!(frame[62..78], ip.octets());
        assert_eq!(frame[78..86], [2, 1, 2, 0, 0, 0, 0, 9]);
        // Over a message with its checksum in place the sum is all ones, and its complement zero.
        assert_eq!(checksum(ip, ALL_NODES, &frame[54..]), [0, 0]);
    }
}

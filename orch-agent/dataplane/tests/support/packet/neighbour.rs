//! Questions for a neighbour's hardware address and their answers: ARP (RFC 826) and neighbour discovery (RFC 4861).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Message, Packet, echo};

/// An ARP request or reply in a frame from `from` to `to`.
pub fn arp(operation: u8, to: [u8; 6], sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut bytes = [to, sender.0].concat();
    bytes.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    bytes.extend(sender.0);
    bytes.extend(sender.1.octets());
    bytes.extend(target.0);
    bytes.extend(target.1.octets());
    bytes
}

/// A neighbour solicitation for `target`, to `to`; with an option that names the sender's hardware address, if given.
pub fn solicitation(from: IpAddr, to: IpAddr, target: Ipv6Addr, mac: Option<[u8; 6]>) -> Packet {
    discovery(from, to, (135, 0), target, mac.map(|mac| (1, mac)))
}

/// A solicited neighbour advertisement that overrides.
pub fn advertisement(from: IpAddr, to: IpAddr, target: Ipv6Addr, mac: [u8; 6]) -> Packet {
    discovery(from, to, (136, 0x6000_0000), target, Some((2, mac)))
}

fn discovery(
    from: IpAddr,
    to: IpAddr,
    (kind, word): (u8, u32),
    target: Ipv6Addr,
    option: Option<(u8, [u8; 6])>,
) -> Packet {
    let mut payload = target.octets().to_vec();
    if let Some((kind, mac)) = option {
        payload.extend([kind, 1]);
        payload.extend(mac);
    }
    let message = Message::Other { kind, code: 0, word };
    Packet {
        ttl: 255,
        payload,
        ..echo((from, 0), (to, 0), message)
    }
}

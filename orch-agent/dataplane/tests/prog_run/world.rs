//! The addresses of a small cluster, once for each family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{ICMP, ICMPV6, Message, Packet, echo, packet};

pub const UPLINK: u32 = 10;
pub const POD_LINK: u32 = 21;
pub const OTHER_LINK: u32 = 22;
pub const TUNNEL: u32 = 30;
pub const MTU: u32 = 1500;
pub const TUNNEL_MTU: u32 = 1430;
/// Hardware addresses with which a packet comes into a pod: the pod's and the node's.
pub const POD_MACS: [u8; 12] = [2, 1, 1, 1, 1, 1, 2, 9, 9, 9, 9, 9];
pub const OTHER_MACS: [u8; 12] = [2, 2, 2, 2, 2, 2, 2, 9, 9, 9, 9, 9];
pub const NEIGHBOUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 12];
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Who is who in one family.
#[derive(Debug, Clone, Copy)]
pub struct World {
    pub name: &'static str,
    /// ICMP's IP protocol number.
    pub icmp: u8,
    /// Two local pods and one on the neighbour.
    pub pod: IpAddr,
    pub other: IpAddr,
    pub remote: IpAddr,
    pub cluster: (IpAddr, IpAddr),
    /// This node, another, and the router.
    pub node: IpAddr,
    pub neighbour: IpAddr,
    pub gateway: IpAddr,
    /// Somebody outside, and somebody else on another network.
    pub client: IpAddr,
    pub stranger: IpAddr,
    /// A ClusterIP, that of DNS, and a load balancer's address.
    pub service: IpAddr,
    pub services: (IpAddr, IpAddr),
    pub dns: IpAddr,
    pub balancer: IpAddr,
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(a: u16, b: u16, c: u16, d: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, last))
}

pub const WORLDS: [World; 2] = [
    World {
        name: "IPv4",
        icmp: ICMP,
        pod: v4(10, 244, 1, 1),
        other: v4(10, 244, 1, 2),
        remote: v4(10, 244, 2, 5),
        cluster: (v4(10, 244, 0, 0), v4(255, 255, 0, 0)),
        node: v4(172, 31, 0, 11),
        neighbour: v4(172, 31, 0, 12),
        gateway: v4(172, 31, 0, 1),
        client: v4(192, 0, 2, 9),
        stranger: v4(198, 51, 100, 7),
        service: v4(10, 96, 7, 7),
        services: (v4(10, 96, 0, 0), v4(255, 255, 0, 0)),
        dns: v4(10, 96, 0, 10),
        balancer: v4(172, 31, 0, 200),
    },
    World {
        name: "IPv6",
        icmp: ICMPV6,
        pod: v6(0xfd00, 0x10, 0x244, 1, 1),
        other: v6(0xfd00, 0x10, 0x244, 1, 2),
        remote: v6(0xfd00, 0x10, 0x244, 2, 5),
        cluster: (
            v6(0xfd00, 0x10, 0x244, 0, 0),
            v6(0xffff, 0xffff, 0xffff, 0xff00, 0),
        ),
        node: v6(0xfd00, 0x31, 0, 0, 0x11),
        neighbour: v6(0xfd00, 0x31, 0, 0, 0x12),
        gateway: v6(0xfd00, 0x31, 0, 0, 1),
        client: v6(0x2001, 0xdb8, 0, 9, 9),
        stranger: v6(0x2001, 0xdb8, 1, 7, 7),
        service: v6(0xfd00, 0x10, 0x96, 0, 0x707),
        services: (
            v6(0xfd00, 0x10, 0x96, 0, 0),
            v6(0xffff, 0xffff, 0xffff, 0xffff, 0),
        ),
        dns: v6(0xfd00, 0x10, 0x96, 0, 10),
        balancer: v6(0xfd00, 0x31, 0, 0, 0x200),
    },
];

impl World {
    /// The largest prefix length.
    pub fn bits(&self) -> u32 {
        if self.pod.is_ipv4() { 32 } else { 128 }
    }

    /// From the pod's port 4000.
    pub fn by_pod(&self, protocol: u8, to: (IpAddr, u16)) -> Packet {
        self.packet(protocol, (self.pod, 4000), to)
    }

    /// From the client's port 4000.
    pub fn by_client(&self, protocol: u8, to: (IpAddr, u16)) -> Packet {
        self.packet(protocol, (self.client, 4000), to)
    }

    /// An echo's request stands for ICMP; a protocol without ports has none.
    pub fn packet(&self, protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
        if protocol == self.icmp {
            echo(from, (to.0, 0), Message::Request)
        } else {
            packet(protocol, from, to)
        }
    }
}

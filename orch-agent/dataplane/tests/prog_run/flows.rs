//! Entries of connection tracking, in words of both families.

use std::net::IpAddr;

use orch_dataplane::maps::{FamilyMaps, MapAddress};
use orch_ebpf::{
    Address,
    conntrack::{Conntrack, Tuple},
};

use crate::{bench::Bench, packet::Packet, world::World};

/// A tuple of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sides {
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
}

impl Sides {
    /// The packet's.
    pub fn of(packet: &Packet) -> Self {
        Self {
            protocol: packet.protocol,
            source: (packet.source, packet.source_port),
            destination: (packet.destination, packet.destination_port),
        }
    }
}

/// An entry of connection tracking of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub key: Sides,
    pub becomes: Sides,
    pub last_seen: u64,
    pub backend: u32,
    pub kind: u8,
    pub direction: u8,
    pub seen: u8,
    pub hop: u8,
    pub macs: [u8; 12],
    pub ticks: u32,
}

fn flows<A: MapAddress>(maps: &FamilyMaps<A>) -> Vec<Flow> {
    let sides = |tuple: &Tuple<A>| Sides {
        protocol: tuple.protocol,
        source: (tuple.source.ip(), tuple.source_port),
        destination: (tuple.destination.ip(), tuple.destination_port),
    };
    maps.conntrack
        .open()
        .and_then(|flows| flows.all())
        .unwrap()
        .iter()
        .map(|(key, entry)| Flow {
            key: sides(key),
            becomes: sides(&entry.becomes),
            last_seen: entry.last_seen,
            backend: entry.backend,
            kind: entry.kind,
            direction: entry.direction,
            seen: entry.seen,
            hop: entry.hop,
            macs: entry.macs,
            ticks: entry.ticks,
        })
        .collect()
}

fn tuple<A: Address>(sides: &Sides) -> Tuple<A> {
    Tuple {
        source: A::from_ip(sides.source.0).unwrap(),
        destination: A::from_ip(sides.destination.0).unwrap(),
        source_port: sides.source.1,
        destination_port: sides.destination.1,
        protocol: sides.protocol,
        _pad: [0; 3],
    }
}

impl Bench {
    /// Every flow of the world's family, in words of both.
    pub fn flows(&self, world: &World) -> Vec<Flow> {
        if world.pod.is_ipv4() {
            flows(&self.maps.v4)
        } else {
            flows(&self.maps.v6)
        }
    }

    /// Writes an entry, or another over it.
    pub fn put_flow(&mut self, flow: &Flow) {
        assert_eq!(self.put_flows(std::slice::from_ref(flow)), 0);
    }

    /// Forgets a flow that is there.
    pub fn remove_flow(&mut self, key: &Sides) {
        let removed = match key.source.0 {
            IpAddr::V4(_) => self.maps.v4.conntrack.open().unwrap().remove(&tuple(key)),
            IpAddr::V6(_) => self.maps.v6.conntrack.open().unwrap().remove(&tuple(key)),
        };
        assert!(removed.unwrap(), "{key:?}");
    }

    /// Writes entries of one family; how many the table refused, in both of whose rows another flow had their tag: hardly
    /// one in a million.
    pub fn put_flows(&mut self, flows: &[Flow]) -> usize {
        fn all<A: MapAddress>(maps: &FamilyMaps<A>, flows: &[Flow]) -> usize {
            let mut refused = 0;
            let table = maps.conntrack.open().unwrap();
            for flow in flows {
                let entry = Conntrack {
                    last_seen: flow.last_seen,
                    becomes: tuple(&flow.becomes),
                    backend: flow.backend,
                    kind: flow.kind,
                    direction: flow.direction,
                    seen: flow.seen,
                    hop: flow.hop,
                    macs: flow.macs,
                    ticks: flow.ticks,
                };
                refused += usize::from(!table.insert(&tuple::<A>(&flow.key), &entry).unwrap());
            }
            assert!(refused * 10_000 <= flows.len(), "{refused} of {}", flows.len());
            refused
        }
        match flows.first().map(|flow| flow.key.source.0) {
            Some(IpAddr::V4(_)) => all(&self.maps.v4, flows),
            Some(IpAddr::V6(_)) => all(&self.maps.v6, flows),
            None => 0,
        }
    }
}

//! Forgetting what is no longer true of flows and clients: UDP flows whose backend is gone would speak to nobody, and
//! a client would keep a backend that has left.

use std::collections::{HashMap as StdHashMap, HashSet};

use aya::maps::{HashMap, MapData};
use orch_ebpf::{
    Address, PROTOCOL_UDP,
    conntrack::{Conntrack, DIRECTION_REPLY, KIND_DIRECT, KIND_SERVICE, Tuple},
    service::{AFFINITY_MAP, Affinity, AffinityKey, ServiceKey},
};

use crate::{
    DataplaneError,
    maps::{FamilyMaps, MapAddress, entries, failed, gone_or},
    plan,
};

/// Address and port; every address of the node where it is zero.
type Knock<A> = (A, u16);

/// What to forget in one family.
#[derive(Debug)]
pub struct Stale<A> {
    /// UDP frontends that are gone.
    frontends: HashSet<Knock<A>>,
    /// By number of a backend, the UDP frontends that no longer lead to it.
    members: StdHashMap<u32, HashSet<Knock<A>>>,
    /// Pools and backends that have left them, where clients keep theirs.
    clients: HashSet<(u32, u32)>,
}

impl<A> Default for Stale<A> {
    fn default() -> Self {
        Self {
            frontends: HashSet::new(),
            members: StdHashMap::new(),
            clients: HashSet::new(),
        }
    }
}

impl<A: Address> Stale<A> {
    /// Adds what an update has found.
    pub fn add(&mut self, found: Vec<plan::Stale<A>>) {
        let knock = |key: &ServiceKey<A>| (key.address, key.port);
        for stale in found {
            match stale {
                plan::Stale::Frontend(key) => {
                    self.frontends.insert(knock(&key));
                }
                plan::Stale::Member {
                    pool,
                    backend,
                    affinity,
                    udp,
                } => {
                    if affinity {
                        self.clients.insert((pool, backend));
                    }
                    if !udp.is_empty() {
                        self.members
                            .entry(backend)
                            .or_default()
                            .extend(udp.iter().map(knock));
                    }
                }
            }
        }
    }

    /// Whether the flow is one to forget.
    fn names(&self, tuple: &Tuple<A>, entry: &Conntrack<A>) -> bool {
        if tuple.protocol != PROTOCOL_UDP || !matches!(entry.kind, KIND_SERVICE | KIND_DIRECT) {
            return false;
        }
        let (address, port) = if entry.direction == DIRECTION_REPLY {
            (entry.becomes.source, entry.becomes.source_port)
        } else {
            (tuple.destination, tuple.destination_port)
        };
        let in_either =
            |set: &HashSet<Knock<A>>| set.contains(&(address, port)) || set.contains(&(A::ANY, port));
        in_either(&self.frontends) || self.members.get(&entry.backend).is_some_and(in_either)
    }
}

/// Forgets UDP flows, looking at every flow only when there is something to forget.
///
/// # Errors
/// When the flows cannot be read.
pub fn forget_flows<A: MapAddress>(
    maps: &mut FamilyMaps<A>,
    stale: &Stale<A>,
) -> Result<usize, DataplaneError> {
    if stale.frontends.is_empty() && stale.members.is_empty() {
        return Ok(0);
    }
    maps.forget_flows(|tuple, entry| stale.names(tuple, entry))
}

/// Forgets which clients kept the backends that have left.
///
/// # Errors
/// When the kernel refuses.
pub fn forget_clients<A, B>(
    map: &mut HashMap<MapData, AffinityKey, Affinity>,
    a: &Stale<A>,
    b: &Stale<B>,
) -> Result<usize, DataplaneError> {
    if a.clients.is_empty() && b.clients.is_empty() {
        return Ok(0);
    }
    let gone: Vec<AffinityKey> = entries(AFFINITY_MAP, map)?
        .into_iter()
        .filter(|(key, kept)| {
            let named = (key.pool, kept.backend);
            a.clients.contains(&named) || b.clients.contains(&named)
        })
        .map(|(key, _)| key)
        .collect();
    for key in &gone {
        gone_or(map.remove(key)).map_err(failed(AFFINITY_MAP))?;
    }
    Ok(gone.len())
}

#[cfg(test)]
mod tests {
    use orch_ebpf::{
        Address4, PROTOCOL_TCP,
        conntrack::{DIRECTION_ORIGINAL, KIND_MASQUERADE},
        service::SCOPE_EXTERNAL,
    };

    use super::*;

    const CLIENT: Address4 = [192, 0, 2, 9];
    const NODE: Address4 = [172, 30, 0, 11];
    const POD: Address4 = [10, 244, 0, 7];

    fn key(address: Address4, port: u16) -> ServiceKey<Address4> {
        ServiceKey {
            address,
            port,
            protocol: PROTOCOL_UDP,
            scope: SCOPE_EXTERNAL,
        }
    }

    fn flow(protocol: u8, backend: u32) -> [(Tuple<Address4>, Conntrack<Address4>); 2] {
        let asked = Tuple {
            source: CLIENT,
            destination: NODE,
            source_port: 4000,
            destination_port: 30_053,
            protocol,
            _pad: [0; 3],
        };
        let becomes = Tuple {
            destination: POD,
            destination_port: 53,
            ..asked
        };
        let entry = |becomes, direction| Conntrack {
            becomes,
            backend,
            kind: KIND_SERVICE,
            direction,
            ..Conntrack::default()
        };
        [
            (asked, entry(becomes, DIRECTION_ORIGINAL)),
            (becomes.reverse(), entry(asked.reverse(), DIRECTION_REPLY)),
        ]
    }

    #[test]
    fn both_directions_of_a_flow_go_and_no_other_flow() {
        let mut stale = Stale::default();
        stale.add(vec![plan::Stale::Member {
            pool: 1,
            backend: 5,
            affinity: false,
            udp: vec![key([0; 4], 30_053)],
        }]);
        for (tuple, entry) in flow(PROTOCOL_UDP, 5) {
            assert!(stale.names(&tuple, &entry));
            let masquerade = Conntrack {
                kind: KIND_MASQUERADE,
                ..entry
            };
            assert!(!stale.names(&tuple, &masquerade));
        }
        // One that was sent on unchanged has no other direction.
        let [(asked, entry), _] = flow(PROTOCOL_UDP, 5);
        let direct = Conntrack {
            kind: KIND_DIRECT,
            ..entry
        };
        assert!(stale.names(&asked, &direct));
        for (tuple, entry) in flow(PROTOCOL_TCP, 5).into_iter().chain(flow(PROTOCOL_UDP, 7)) {
            assert!(!stale.names(&tuple, &entry), "{tuple:?}");
        }
        let mut elsewhere = Stale::default();
        elsewhere.add(vec![plan::Stale::Frontend(key([10, 96, 0, 1], 30_053))]);
        assert!(
            flow(PROTOCOL_UDP, 5)
                .iter()
                .all(|(tuple, entry)| !elsewhere.names(tuple, entry))
        );
    }
}

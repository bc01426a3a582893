//! The services of a test, in words of both families.

use std::net::IpAddr;

use orch_dataplane::plan::{Desired, Frontend, Pool, Spread};
use orch_ebpf::{
    Address,
    service::{BACKEND_LOCAL, Backend, SCOPE_EXTERNAL, SCOPE_INTERNAL, ServiceKey},
};

use crate::{
    packet::{SCTP, TCP, UDP},
    world::World,
};

/// A service on the ClusterIP's port, on the load balancer's address, and on NodePort 30000 more.
#[derive(Debug, Clone)]
pub struct Spec {
    pub port: u16,
    pub protocol: u8,
    /// Address and port of each backend.
    pub backends: Vec<(IpAddr, u16)>,
    pub affinity_seconds: u32,
    /// `SERVICE_SOURCES` and its siblings.
    pub flags: u32,
    /// Networks that may use it from outside, as prefix lengths and addresses.
    pub sources: Vec<(u32, IpAddr)>,
}

impl Spec {
    pub fn new(port: u16, protocol: u8, backends: &[(IpAddr, u16)]) -> Self {
        Self {
            port,
            protocol,
            backends: backends.to_vec(),
            affinity_seconds: 0,
            flags: 0,
            sources: Vec::new(),
        }
    }

    pub fn desired<A: Address>(&self, world: &World) -> Desired<A> {
        let family = |ip| A::from_ip(ip).unwrap();
        let front = |address, port, scope, pool| Frontend {
            key: ServiceKey {
                address,
                port,
                protocol: self.protocol,
                scope,
            },
            affinity_seconds: self.affinity_seconds,
            flags: self.flags,
            pool,
        };
        let backends: Vec<_> = self
            .backends
            .iter()
            .map(|(ip, port)| Backend {
                address: family(*ip),
                port: *port,
                protocol: self.protocol,
                flags: if [world.pod, world.other, world.node].contains(ip) {
                    BACKEND_LOCAL
                } else {
                    0
                },
                node: node_of(world, *ip).map_or(A::ANY, family),
            })
            .collect();
        let pool = |spread| Pool {
            backends: backends.clone(),
            fallback: false,
            spread,
            sources: self
                .sources
                .iter()
                .map(|(bits, ip)| (*bits, family(*ip)))
                .collect(),
        };
        let mut frontends = vec![front(family(world.service), self.port, SCOPE_INTERNAL, 0)];
        for (scope, pool) in [(SCOPE_INTERNAL, 0), (SCOPE_EXTERNAL, 1)] {
            frontends.push(front(A::ANY, 30_000 + self.port, scope, pool));
            frontends.push(front(family(world.balancer), self.port, scope, pool));
        }
        Desired {
            frontends,
            pools: vec![pool(Spread::Each), pool(Spread::Table)],
        }
    }
}

/// The node that a backend is on, if it is on another one: the neighbour, or one behind the router.
fn node_of(world: &World, backend: IpAddr) -> Option<IpAddr> {
    if backend == world.remote {
        Some(world.neighbour)
    } else if backend == world.stranger {
        Some(world.gateway)
    } else {
        None
    }
}

/// Ports 80 on the other pod, 81 on a remote one, 82 on none, and 83 on the pod itself, over every protocol.
pub fn usual(world: &World) -> Vec<(String, Spec)> {
    let mut all = Vec::new();
    for protocol in [TCP, UDP, SCTP] {
        for (port, backends) in [
            (80, vec![(world.other, 8080)]),
            (81, vec![(world.remote, 8080)]),
            (82, Vec::new()),
            (83, vec![(world.pod, 8080)]),
        ] {
            all.push((format!("{protocol}-{port}"), Spec::new(port, protocol, &backends)));
        }
    }
    all
}

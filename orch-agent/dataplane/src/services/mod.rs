//! The services of both families: one planner each, and what is still to be written.

mod apply;
mod stale;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use orch_ebpf::{
    Address, Address4, Address6,
    service::{BACKEND_LOCAL, Backend, SCOPE_EXTERNAL, SCOPE_INTERNAL, SERVICE_HOST_PORT, ServiceKey},
};

use crate::{
    DataplaneError,
    config::HostPort,
    maps::{FamilyMaps, MapAddress, Maps},
    model::Both,
    plan::{Desired, Frontend, MapOp, Planner, Pool, Spread, Update},
    shared::Shared,
};

/// How long what has become unused stays in the maps. A program that looked a service up before its last change is
/// done with it long before.
pub const GRACE: Duration = Duration::from_millis(50);
/// Start of the name under which a pod owns its host ports; no service's name holds a slash at its start.
const HOST_PORTS: &str = "/host-ports/";

/// An address and port, for messages and comparisons across families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The address; all zero for every address of the node.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// A backend that no service has any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Departed {
    /// Where it was.
    pub place: Place,
    /// The address of its node; all zero where that is not known.
    pub node: IpAddr,
}

/// What became of an update.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Frontends that another service owns.
    pub refused: BTreeSet<Place>,
    /// Whether a frontend became free, so that others may have it.
    pub released: bool,
    /// Backends that no service has any more, unless in another guise: on another node, or local.
    pub gone: Vec<Departed>,
    /// Whether the maps changed.
    pub changed: bool,
}

impl Outcome {
    fn add<A: Address>(&mut self, update: &Update<A>) {
        let named = |key: &ServiceKey<A>| Place {
            ip: key.address.ip(),
            port: key.port,
            protocol: key.protocol,
        };
        self.refused.extend(update.refused.iter().map(named));
        self.released |= update.now.iter().any(|op| matches!(op, MapOp::RemoveService(_)));
        self.changed |= !update.now.is_empty() || !update.later.is_empty();
        self.gone.extend(update.later.iter().filter_map(|op| match op {
            MapOp::RemoveBackend(_, backend) => Some(Departed {
                place: place(backend),
                node: backend.node.ip(),
            }),
            _ => None,
        }));
    }

    /// Adds another update's.
    pub fn merge(&mut self, other: Self) {
        self.refused.extend(other.refused);
        self.released |= other.released;
        self.gone.extend(other.gone);
        self.changed |= other.changed;
    }
}

/// One family's planner, and the operations that wait.
struct Family<A> {
    planner: Planner<A>,
    later: Vec<MapOp<A>>,
}

impl<A: MapAddress> Family<A> {
    fn adopt(maps: &FamilyMaps<A>, chunks: &apply::Chunks) -> Result<Self, DataplaneError> {
        Ok(Self {
            planner: Planner::adopt(apply::found(maps, chunks)?),
            later: Vec::new(),
        })
    }

    fn put(
        &mut self,
        maps: &mut FamilyMaps<A>,
        chunks: &mut apply::ChunkMap,
        update: Update<A>,
        outcome: &mut Outcome,
        stale: &mut stale::Stale<A>,
    ) -> Result<(), DataplaneError> {
        outcome.add(&update);
        apply::cancel(&mut self.later, &update.now);
        self.later.extend(update.later);
        stale.add(update.stale);
        apply::apply(maps, chunks, &update.now)
    }

    fn flush(
        &mut self,
        maps: &mut FamilyMaps<A>,
        chunks: &mut apply::ChunkMap,
    ) -> Result<(), DataplaneError> {
        apply::apply(maps, chunks, &mem::take(&mut self.later))
    }
}

/// Mirror of the service maps of both families.
pub struct Services {
    v4: Family<Address4>,
    v6: Family<Address6>,
    stale4: stale::Stale<Address4>,
    stale6: stale::Stale<Address6>,
    host_ports: HashMap<Arc<str>, Both>,
    /// When the oldest waiting operation came to wait.
    waiting: Option<Instant>,
    finished: bool,
}

impl Services {
    /// Starts from what the maps hold.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn adopt(maps: &Maps) -> Result<Self, DataplaneError> {
        let chunks = apply::chunks(&maps.slots)?;
        let mut services = Self {
            v4: Family::adopt(&maps.v4, &chunks)?,
            v6: Family::adopt(&maps.v6, &chunks)?,
            stale4: stale::Stale::default(),
            stale6: stale::Stale::default(),
            host_ports: HashMap::new(),
            waiting: None,
            finished: false,
        };
        let (a, b) = (services.v4.planner.highest(), services.v6.planner.highest());
        services.v4.planner.number_above(b);
        services.v6.planner.number_above(a);
        Ok(services)
    }

    /// How many frontends, pools and backends there are, of IPv4 and of IPv6.
    #[must_use]
    pub fn sizes(&self) -> [(usize, usize, usize); 2] {
        [self.v4.planner.sizes(), self.v6.planner.sizes()]
    }

    /// Starts anew from what the maps hold, after the kernel has refused an operation.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn restart(&mut self, maps: &Maps) -> Result<(), DataplaneError> {
        let host_ports = mem::take(&mut self.host_ports);
        *self = Self::adopt(maps)?;
        self.host_ports = host_ports;
        Ok(())
    }

    /// Gives the host ports found in the maps to the pods that `owner` knows by their addresses.
    pub fn claim_host_ports(&mut self, owner: impl Fn(IpAddr) -> Option<String>) {
        let name = |ip| owner(ip).map(|uid| Arc::from(host_port_owner(&uid)));
        self.v4.planner.claim_host_ports(|address| name(address.ip()));
        self.v6.planner.claim_host_ports(|address| name(address.ip()));
    }

    /// Makes the service `name` what it should be.
    ///
    /// # Errors
    /// When the kernel refuses an operation; the mirror is then ahead of the maps and must be started anew.
    pub fn put(&mut self, maps: &mut Maps, name: &str, desired: &Both) -> Result<Outcome, DataplaneError> {
        let updates = (
            self.v4.planner.update(name, &desired.v4),
            self.v6.planner.update(name, &desired.v6),
        );
        self.carry_out(maps, updates)
    }

    /// Removes what was adopted and has no owner; to be called once every service has been put.
    ///
    /// # Errors
    /// When the kernel refuses an operation.
    pub fn finish(&mut self, maps: &mut Maps) -> Result<Outcome, DataplaneError> {
        let mut outcome = Outcome::default();
        let names: Vec<Arc<str>> = self.host_ports.keys().cloned().collect();
        for name in names {
            outcome.merge(self.put_host_ports(maps, &name)?);
        }
        let updates = (self.v4.planner.finish(), self.v6.planner.finish());
        outcome.merge(self.carry_out(maps, updates)?);
        self.finished = true;
        Ok(outcome)
    }

    /// Makes the host ports of a pod these; none when it goes. A port that somebody else has is left to them until
    /// they let go, and is in the outcome.
    ///
    /// # Errors
    /// When the kernel refuses an operation.
    pub fn set_host_ports(
        &mut self,
        maps: &mut Maps,
        uid: &str,
        ports: &[HostPort],
        addresses: &Addresses<'_>,
    ) -> Result<Outcome, DataplaneError> {
        let name: Arc<str> = Arc::from(host_port_owner(uid));
        let desired = Both {
            v4: host_ports(ports, addresses),
            v6: host_ports(ports, addresses),
        };
        if ports.is_empty() {
            self.host_ports.remove(&name);
            return self.put(maps, &name, &desired);
        }
        self.host_ports.insert(Arc::clone(&name), desired);
        self.put_host_ports(maps, &name)
    }

    /// Tries again to give pods the host ports that somebody else had.
    ///
    /// # Errors
    /// When the kernel refuses an operation.
    pub fn retry_host_ports(&mut self, maps: &mut Maps) -> Result<Outcome, DataplaneError> {
        let mut outcome = Outcome::default();
        let names: Vec<Arc<str>> = self.host_ports.keys().cloned().collect();
        for name in names {
            outcome.merge(self.put_host_ports(maps, &name)?);
        }
        Ok(outcome)
    }

    fn put_host_ports(&mut self, maps: &mut Maps, name: &Arc<str>) -> Result<Outcome, DataplaneError> {
        let Some(desired) = self.host_ports.get(name) else {
            return Ok(Outcome::default());
        };
        let updates = (
            self.v4.planner.update(name, &desired.v4),
            self.v6.planner.update(name, &desired.v6),
        );
        self.carry_out(maps, updates)
    }

    fn carry_out(
        &mut self,
        maps: &mut Maps,
        (v4, v6): (Update<Address4>, Update<Address6>),
    ) -> Result<Outcome, DataplaneError> {
        let mut outcome = Outcome::default();
        self.v4
            .put(&mut maps.v4, &mut maps.slots, v4, &mut outcome, &mut self.stale4)?;
        self.v6
            .put(&mut maps.v6, &mut maps.slots, v6, &mut outcome, &mut self.stale6)?;
        if !self.v4.later.is_empty() || !self.v6.later.is_empty() {
            self.waiting.get_or_insert_with(Instant::now);
        }
        Ok(outcome)
    }

    /// Forgets flows and clients of what has changed since the last call.
    ///
    /// # Errors
    /// When the kernel refuses an operation.
    pub fn forget(&mut self, maps: &mut Maps) -> Result<usize, DataplaneError> {
        let (v4, v6) = (mem::take(&mut self.stale4), mem::take(&mut self.stale6));
        let clients = stale::forget_clients(&mut maps.affinity, &v4, &v6)?;
        Ok(clients + stale::forget_flows(&mut maps.v4, &v4)? + stale::forget_flows(&mut maps.v6, &v6)?)
    }

    /// How long until [`Self::flush`] has something to do; `None` when nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.waiting.map(|since| GRACE.saturating_sub(since.elapsed()))
    }

    /// Removes what has been unused for a while.
    ///
    /// # Errors
    /// When the kernel refuses an operation.
    pub fn flush(&mut self, maps: &mut Maps) -> Result<(), DataplaneError> {
        self.waiting = None;
        self.v4.flush(&mut maps.v4, &mut maps.slots)?;
        self.v6.flush(&mut maps.v6, &mut maps.slots)
    }

    /// Whether a service offers the address to new connections although it could do without: see
    /// [`Planner::offers`].
    #[must_use]
    pub fn offers(&self, ip: IpAddr) -> bool {
        Address4::from_ip(ip).is_some_and(|address| self.v4.planner.offers(address))
            || Address6::from_ip(ip).is_some_and(|address| self.v6.planner.offers(address))
    }

    /// Takes out of `places` those that are backends of any service. Looks at every backend.
    pub fn retain_gone(&self, places: &mut HashSet<Place>) {
        for backend in self.v4.planner.backends() {
            places.remove(&place(backend));
        }
        for backend in self.v6.planner.backends() {
            places.remove(&place(backend));
        }
    }

    /// Names of the services that own entries, host ports not among them.
    #[must_use]
    pub fn names(&self) -> BTreeSet<Arc<str>> {
        let names = self.v4.planner.names().chain(self.v6.planner.names());
        names
            .filter(|name| !name.starts_with(HOST_PORTS))
            .cloned()
            .collect()
    }

    /// Whether [`Self::finish`] has run: from then on the maps hold what the cluster says and nothing else.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.finished
    }
}

/// Makes the host ports of a pod with these addresses what `ports` says; none when it goes. A port that a service or
/// another pod has is left to it until it lets go, and answered with in words.
///
/// # Errors
/// When the kernel refuses.
pub fn set_host_ports(
    shared: &Shared,
    uid: &str,
    ports: &[HostPort],
    pod: &[IpAddr],
) -> Result<Vec<String>, DataplaneError> {
    let addresses = Addresses {
        pod,
        node: &shared.config.node_ips,
    };
    let outcome = {
        let mut services = shared.services.lock();
        let mut maps = shared.maps.lock();
        let outcome = services.set_host_ports(&mut maps, uid, ports, &addresses)?;
        services.forget(&mut maps)?;
        outcome
    };
    shared.services_changed.send_modify(|count| *count += 1);
    let taken = outcome.refused.iter().map(|Place { ip, port, protocol }| {
        format!("host port {port} of {ip} (protocol {protocol}) belongs to a service or another pod")
    });
    Ok(taken.collect())
}

/// Of a pod with host ports, and of its node.
pub struct Addresses<'a> {
    /// The pod's, at most one of each family.
    pub pod: &'a [IpAddr],
    /// The node's, at most one of each family.
    pub node: &'a [IpAddr],
}

fn place<A: Address>(backend: &Backend<A>) -> Place {
    Place {
        ip: backend.address.ip(),
        port: backend.port,
        protocol: backend.protocol,
    }
}

fn host_port_owner(uid: &str) -> String {
    format!("{HOST_PORTS}{uid}")
}

/// One family's part of a pod's host ports.
fn host_ports<A: Address>(ports: &[HostPort], addresses: &Addresses<'_>) -> Desired<A> {
    let mut desired = Desired::default();
    let first = |ips: &[IpAddr]| ips.iter().find_map(|ip| A::from_ip(*ip));
    let Some(pod) = first(addresses.pod) else {
        return desired;
    };
    for port in ports {
        let address = match port.host_ip.filter(|ip| !ip.is_unspecified()) {
            None => A::ANY,
            Some(ip) => match A::from_ip(ip) {
                Some(address) => address,
                None => continue,
            },
        };
        let backend = Backend {
            address: pod,
            port: port.container_port,
            protocol: port.protocol,
            flags: BACKEND_LOCAL,
            node: first(addresses.node).unwrap_or(A::ANY),
        };
        desired.pools.push(Pool {
            backends: vec![backend],
            fallback: false,
            spread: Spread::Each,
            sources: Vec::new(),
        });
        for scope in [SCOPE_INTERNAL, SCOPE_EXTERNAL] {
            desired.frontends.push(Frontend {
                key: ServiceKey {
                    address,
                    port: port.host_port,
                    protocol: port.protocol,
                    scope,
                },
                affinity_seconds: 0,
                flags: SERVICE_HOST_PORT,
                pool: desired.pools.len() - 1,
            });
        }
    }
    desired
}

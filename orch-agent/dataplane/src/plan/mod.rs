//! From what services should be to the changes of the maps: pure, and in an order that no connection notices.
//!
//! A [`Planner`] mirrors one family's service maps. A pool of few backends stands in the entries of its services, a
//! larger one in slots. An update of one service touches that service's entries only.
//! Operations come in the order backends, chunks of slots, services, and then in reverse what has become unused, so
//! that a reader between any two of them finds for every service a backend for each number below its count. The last
//! part may wait, so that it meets no reader that began before.

mod fill;
mod maglev;
mod pool;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use orch_ebpf::{
    Address, PROTOCOL_UDP,
    service::{Backend, Chunk, SERVICE_HOST_PORT, SERVICE_MEMBERS, Service, ServiceKey},
};

use self::pool::Slots;
pub use self::types::{Desired, Found, Frontend, MapOp, Pool, Spread, Stale, Update};

/// What a service's entry says beside its members, which are its pool's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    pool: u32,
    count: u32,
    affinity_seconds: u32,
    flags: u32,
}

impl<A> From<&Service<A>> for Route {
    fn from(service: &Service<A>) -> Self {
        Self {
            pool: service.pool,
            count: service.count,
            affinity_seconds: service.affinity_seconds,
            flags: service.flags,
        }
    }
}

/// A frontend in the maps.
#[derive(Debug)]
struct Entry {
    route: Route,
    owner: Option<Arc<str>>,
}

/// A pool in the maps.
#[derive(Debug)]
struct Held<A> {
    owner: Option<Arc<str>>,
    slots: Slots,
    fallback: bool,
    sources: Vec<(u32, A)>,
}

/// Mirror of the service maps, and who owns what in them.
#[derive(Debug)]
pub struct Planner<A> {
    services: HashMap<ServiceKey<A>, Entry>,
    owned: HashMap<Arc<str>, Box<[ServiceKey<A>]>>,
    pools: HashMap<u32, Held<A>>,
    backends: HashMap<u32, (Backend<A>, u32)>,
    numbers: HashMap<Backend<A>, u32>,
    offered: HashMap<A, u32>,
    last_pool: u32,
    last_backend: u32,
}

impl<A> Default for Planner<A> {
    fn default() -> Self {
        Self {
            services: HashMap::new(),
            owned: HashMap::new(),
            pools: HashMap::new(),
            backends: HashMap::new(),
            numbers: HashMap::new(),
            offered: HashMap::new(),
            last_pool: 0,
            last_backend: 0,
        }
    }
}

/// Operations by phase.
struct Phases<A> {
    backends: Vec<MapOp<A>>,
    chunks: Vec<MapOp<A>>,
    services: Vec<MapOp<A>>,
    sources: Vec<MapOp<A>>,
    later: Vec<MapOp<A>>,
    stale: Vec<Stale<A>>,
    touched: BTreeSet<u32>,
}

impl<A> Default for Phases<A> {
    fn default() -> Self {
        Self {
            backends: Vec::new(),
            chunks: Vec::new(),
            services: Vec::new(),
            sources: Vec::new(),
            later: Vec::new(),
            stale: Vec::new(),
            touched: BTreeSet::new(),
        }
    }
}

impl<A: Address> Planner<A> {
    /// Starts from what the maps hold, whoever wrote it.
    #[must_use]
    pub fn adopt(found: Found<A>) -> Self {
        let mut planner = Self::default();
        for (number, backend) in found.backends {
            planner.last_backend = planner.last_backend.max(number);
            planner.numbers.insert(backend, number);
            planner.backends.insert(number, (backend, 0));
        }
        let mut chunks: HashMap<u32, BTreeMap<u32, Chunk>> = HashMap::new();
        let mut sources: HashMap<u32, Vec<(u32, A)>> = HashMap::new();
        let mut members: HashMap<u32, Option<Box<[u32]>>> = HashMap::new();
        for (key, service) in found.services {
            chunks.entry(service.pool).or_default();
            let theirs = service
                .members()
                .map(|members| members.iter().map(|member| member.id).collect::<Box<[u32]>>());
            members
                .entry(service.pool)
                .and_modify(|known| {
                    // An agent that died between two entries of a pool left them different: all are to be written.
                    known.take_if(|known| theirs.as_ref() != Some(&*known));
                })
                .or_insert(theirs);
            let route = Route::from(&service);
            planner.services.insert(key, Entry { route, owner: None });
        }
        for (key, chunk) in found.chunks {
            // Where no service names the pool, its backends say whose family's it is.
            let ours = |number: &u32| planner.backends.contains_key(number);
            if chunks.contains_key(&key.pool) || chunk.backends.iter().any(ours) {
                chunks.entry(key.pool).or_default().insert(key.chunk, chunk);
            }
        }
        for (prefix, key) in found.sources {
            chunks.entry(key.pool).or_default();
            sources.entry(key.pool).or_default().push((prefix, key.address));
        }
        for (number, chunks) in chunks {
            let sources = sources.remove(&number).unwrap_or_default();
            let slots = match members.remove(&number).flatten() {
                Some(members) if chunks.is_empty() => Slots::Members(members),
                _ => Slots::Found(chunks),
            };
            planner.last_pool = planner.last_pool.max(number);
            for member in slots.members() {
                planner.hold(member);
            }
            planner.offer(&slots.members(), true);
            planner.pools.insert(
                number,
                Held {
                    owner: None,
                    slots,
                    fallback: false,
                    sources,
                },
            );
        }
        planner
    }

    /// The highest numbers given to a pool and to a backend.
    #[must_use]
    pub fn highest(&self) -> (u32, u32) {
        (self.last_pool, self.last_backend)
    }

    /// Sees to it that numbers given from now on are above these, and that none is one of the other family's: the
    /// families take odd and even ones.
    pub fn number_above(&mut self, (pool, backend): (u32, u32)) {
        self.last_pool = self.last_pool.max(pool);
        self.last_backend = self.last_backend.max(backend);
    }

    /// Whether a service offers this address to new connections although it has others to offer, or its endpoint is
    /// not on its way out.
    #[must_use]
    pub fn offers(&self, address: A) -> bool {
        self.offered.contains_key(&address)
    }

    /// Every backend of any service, if only as a fallback.
    pub fn backends(&self) -> impl Iterator<Item = &Backend<A>> {
        self.numbers.keys()
    }

    /// Names of the services that own entries.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.owned.keys()
    }

    /// How many frontends, pools and backends there are.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.services.len(), self.pools.len(), self.backends.len())
    }

    /// Gives adopted host ports to the owners that `owner` names by the pod's address. What it does not name stays
    /// without an owner, for [`Self::finish`] to remove.
    pub fn claim_host_ports(&mut self, owner: impl Fn(A) -> Option<Arc<str>>) {
        for (key, entry) in &mut self.services {
            if entry.owner.is_some() || entry.route.flags & SERVICE_HOST_PORT == 0 {
                continue;
            }
            let pool = self.pools.get_mut(&entry.route.pool);
            let member = pool
                .as_ref()
                .and_then(|pool| pool.slots.members().first().copied());
            let backend = member.and_then(|member| self.backends.get(&member));
            let Some(name) = backend.and_then(|(backend, _)| owner(backend.address)) else {
                continue;
            };
            if let Some(pool) = pool {
                pool.owner = Some(Arc::clone(&name));
            }
            entry.owner = Some(Arc::clone(&name));
            let mut keys = self.owned.remove(&name).unwrap_or_default().into_vec();
            keys.push(*key);
            self.owned.insert(name, keys.into_boxed_slice());
        }
    }

    /// The changes that make the service `name` what it should be; an empty `desired` removes it. A frontend that
    /// another service owns is left to it.
    pub fn update(&mut self, name: &str, desired: &Desired<A>) -> Update<A> {
        let mut phases = Phases::default();
        let (frontends, refused): (Vec<_>, Vec<_>) = desired.frontends.iter().partition(|frontend| {
            let owner = self
                .services
                .get(&frontend.key)
                .and_then(|entry| entry.owner.as_deref());
            owner.is_none_or(|owner| owner == name)
        });
        let (name, old_keys) = self
            .owned
            .remove_entry(name)
            .unwrap_or_else(|| (Arc::from(name), Box::default()));
        let old: Vec<(ServiceKey<A>, Route)> = old_keys
            .iter()
            .filter_map(|key| Some((*key, self.services.get(key)?.route)))
            .collect();
        let numbers = self.number_pools(&name, desired, &frontends);
        let mut pools = Vec::with_capacity(numbers.len());
        for (number, pool) in numbers.iter().zip(&desired.pools) {
            pools.push(number.map(|number| (number, self.fill_pool(number, pool, &name, &mut phases))));
        }
        let mut keys = Vec::with_capacity(frontends.len());
        for frontend in frontends {
            let Some((pool, filled)) = pools.get(frontend.pool).and_then(Option::as_ref) else {
                continue;
            };
            let members = filled.members.map_or(0, |_| SERVICE_MEMBERS);
            let route = Route {
                pool: *pool,
                count: filled.count,
                affinity_seconds: frontend.affinity_seconds,
                flags: frontend.flags | members,
            };
            let owner = Some(Arc::clone(&name));
            let known = self.services.insert(frontend.key, Entry { route, owner });
            let same = known.is_some_and(|known| known.route == route);
            if !same || (filled.changed && filled.members.is_some()) {
                let service = Service {
                    pool: route.pool,
                    count: route.count,
                    affinity_seconds: route.affinity_seconds,
                    flags: route.flags,
                    members: filled.members.unwrap_or_default(),
                };
                phases
                    .services
                    .push(MapOp::PutService(frontend.key, Box::new(service)));
            }
            keys.push(frontend.key);
        }
        let kept: BTreeSet<ServiceKey<A>> = keys.iter().copied().collect();
        for (key, _) in old.iter().filter(|(key, _)| !kept.contains(key)) {
            self.remove_service(*key, &mut phases);
        }
        let old_pools: BTreeSet<u32> = old.iter().map(|(_, route)| route.pool).collect();
        for pool in old_pools {
            let ours = self
                .pools
                .get(&pool)
                .is_some_and(|held| held.owner.as_deref() == Some(&name));
            if ours && !numbers.contains(&Some(pool)) {
                self.empty_pool(pool, &mut phases);
            }
        }
        if !keys.is_empty() {
            self.owned.insert(name, keys.into_boxed_slice());
        }
        let refused = refused.into_iter().map(|frontend| frontend.key).collect();
        self.collect(phases, &old, refused)
    }

    /// The removal of everything that was adopted and that no service owns; to be called when every service has had
    /// its first [`Self::update`].
    pub fn finish(&mut self) -> Update<A> {
        let mut phases = Phases::default();
        let orphans: Vec<(ServiceKey<A>, Route)> = self
            .services
            .iter()
            .filter(|(_, entry)| entry.owner.is_none())
            .map(|(key, entry)| (*key, entry.route))
            .collect();
        for (key, _) in &orphans {
            self.remove_service(*key, &mut phases);
        }
        let used: BTreeSet<u32> = self.services.values().map(|entry| entry.route.pool).collect();
        let unused: Vec<u32> = self
            .pools
            .keys()
            .filter(|pool| !used.contains(pool))
            .copied()
            .collect();
        for pool in unused {
            self.empty_pool(pool, &mut phases);
        }
        phases.touched.extend(self.backends.keys());
        self.collect(phases, &orphans, Vec::new())
    }

    fn remove_service(&mut self, key: ServiceKey<A>, phases: &mut Phases<A>) {
        if self.services.remove(&key).is_none() {
            return;
        }
        phases.services.push(MapOp::RemoveService(key));
        if key.protocol == PROTOCOL_UDP {
            phases.stale.push(Stale::Frontend(key));
        }
    }

    /// Numbers for the service's pools: those its frontends already use where possible, none for a pool that no
    /// frontend uses.
    fn number_pools(
        &mut self,
        name: &str,
        desired: &Desired<A>,
        frontends: &[&Frontend<A>],
    ) -> Vec<Option<u32>> {
        let mut numbers: Vec<Option<u32>> = Vec::with_capacity(desired.pools.len());
        for index in 0..desired.pools.len() {
            let mut users = frontends
                .iter()
                .filter(|frontend| frontend.pool == index)
                .peekable();
            if users.peek().is_none() {
                numbers.push(None);
                continue;
            }
            let known = users
                .filter_map(|frontend| self.services.get(&frontend.key))
                .map(|entry| entry.route.pool)
                .find(|pool| !numbers.contains(&Some(*pool)) && self.pool_is_free_for(name, *pool));
            numbers.push(Some(known.unwrap_or_else(|| {
                self.last_pool = next::<A>(self.last_pool, |number| self.pools.contains_key(&number));
                self.last_pool
            })));
        }
        numbers
    }

    /// Whether no other service uses the pool; two may only after a crash of an agent that numbered differently.
    fn pool_is_free_for(&self, name: &str, pool: u32) -> bool {
        let owner = self.pools.get(&pool).and_then(|held| held.owner.as_deref());
        pool != 0 && owner.is_none_or(|owner| owner == name)
    }

    fn collect(
        &mut self,
        mut phases: Phases<A>,
        old: &[(ServiceKey<A>, Route)],
        refused: Vec<ServiceKey<A>>,
    ) -> Update<A> {
        name_stale(&mut phases.stale, old);
        let mut now = phases.backends;
        now.extend(phases.chunks);
        now.extend(phases.services);
        now.extend(phases.sources);
        let mut later = phases.later;
        for number in phases.touched {
            if let Some((backend, 0)) = self.backends.get(&number).copied() {
                self.backends.remove(&number);
                if self.numbers.get(&backend) == Some(&number) {
                    self.numbers.remove(&backend);
                }
                later.push(MapOp::RemoveBackend(number, backend));
            }
        }
        Update {
            now,
            later,
            stale: phases.stale,
            refused,
        }
    }
}

/// Says of the backends that have left whose clients they had, by the services as they were before.
fn name_stale<A: Address>(stale: &mut Vec<Stale<A>>, old: &[(ServiceKey<A>, Route)]) {
    for stale in stale.iter_mut() {
        let Stale::Member {
            pool, affinity, udp, ..
        } = stale
        else {
            continue;
        };
        for (key, route) in old.iter().filter(|(_, route)| route.pool == *pool) {
            *affinity |= route.affinity_seconds != 0;
            if key.protocol == PROTOCOL_UDP {
                udp.push(*key);
            }
        }
    }
    stale.retain(|stale| match stale {
        Stale::Frontend(_) => true,
        Stale::Member { affinity, udp, .. } => *affinity || !udp.is_empty(),
    });
}

/// The next number of the family after `last` that is not in use: odd ones for IPv4, even ones for IPv6, never zero.
fn next<A: Address>(last: u32, used: impl Fn(u32) -> bool) -> u32 {
    let parity = u32::from(A::BITS == 32);
    let mut number = last;
    loop {
        number = number.wrapping_add(1);
        if number % 2 == parity && number != 0 && !used(number) {
            return number;
        }
    }
}

#[cfg(test)]
mod tests;

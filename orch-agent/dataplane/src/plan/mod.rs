//! From what services should be to the changes of the maps: pure, and in an order that no connection notices.
//!
//! The [`Planner`] mirrors the service maps. An update of one service touches that service's entries only. Operations
//! come in the order backends, slots, services, then removals in reverse, so that a reader between any two of them
//! finds for every service a slot for each number below its count, and a backend for each slot.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use orch_ebpf::{
    Address,
    service::{Backend, Service, ServiceKey, Slot, SlotKey},
};

/// An address and port that a service answers on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontend {
    /// Where clients knock.
    pub key: ServiceKey,
    /// Seconds of session affinity, zero for none.
    pub affinity_seconds: u32,
    /// Index into [`Desired::pools`].
    pub pool: usize,
}

/// What one service should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Every address and port.
    pub frontends: Vec<Frontend>,
    /// The sets of backends that the frontends choose from.
    pub pools: Vec<BTreeSet<Backend>>,
}

/// One change of one map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapOp {
    /// Write a backend that no slot names yet.
    PutBackend(u32, Backend),
    /// Write a slot.
    PutSlot(SlotKey, Slot),
    /// Write a service.
    PutService(ServiceKey, Service),
    /// Remove a service.
    RemoveService(ServiceKey),
    /// Remove a slot that no service counts any more.
    RemoveSlot(SlotKey),
    /// Remove a backend that no slot names any more.
    RemoveBackend(u32, Backend),
}

/// Mirror of the service maps, and who owns what in them.
#[derive(Debug, Default)]
pub struct Planner {
    services: HashMap<ServiceKey, Service>,
    owners: HashMap<ServiceKey, String>,
    owned: HashMap<String, Vec<ServiceKey>>,
    pools: HashMap<u32, BTreeMap<u32, u32>>,
    pool_owners: HashMap<u32, String>,
    backends: HashMap<u32, (Backend, usize)>,
    numbers: HashMap<Backend, u32>,
    offered: HashMap<Address, usize>,
    last_pool: u32,
    last_backend: u32,
}

/// Operations by phase.
#[derive(Default)]
struct Phases {
    put_backends: Vec<MapOp>,
    put_slots: Vec<MapOp>,
    services: Vec<MapOp>,
    remove_slots: Vec<MapOp>,
    touched: BTreeSet<u32>,
}

impl Planner {
    /// Starts from what the maps hold, whoever wrote it.
    pub fn adopt(
        services: impl IntoIterator<Item = (ServiceKey, Service)>,
        slots: impl IntoIterator<Item = (SlotKey, Slot)>,
        backends: impl IntoIterator<Item = (u32, Backend)>,
    ) -> Self {
        let mut planner = Self {
            services: services.into_iter().collect(),
            ..Self::default()
        };
        for (number, backend) in backends {
            planner.last_backend = planner.last_backend.max(number);
            planner.numbers.insert(backend, number);
            planner.backends.insert(number, (backend, 0));
        }
        for (key, slot) in slots {
            planner
                .pools
                .entry(key.pool)
                .or_default()
                .insert(key.slot, slot.backend);
            planner.hold(slot.backend);
        }
        let named = planner.services.values().map(|service| service.pool);
        planner.last_pool = named.chain(planner.pools.keys().copied()).max().unwrap_or(0);
        planner
    }

    /// Whether a service offers this address to new connections.
    #[must_use]
    pub fn offers(&self, address: Address) -> bool {
        self.offered.contains_key(&address)
    }

    /// Names of the services that own entries.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.owned.keys()
    }

    /// The changes that make the service `name` what it should be; an empty `desired` removes it. A frontend that
    /// another service owns is left to it; its key is in the second part of the answer.
    pub fn update(&mut self, name: &str, desired: &Desired) -> (Vec<MapOp>, Vec<ServiceKey>) {
        let mut phases = Phases::default();
        let (frontends, refused): (Vec<_>, Vec<_>) = desired
            .frontends
            .iter()
            .partition(|frontend| self.owners.get(&frontend.key).is_none_or(|owner| owner == name));
        let old_keys = self.owned.remove(name).unwrap_or_default();
        let old_pools: BTreeSet<u32> = old_keys
            .iter()
            .filter_map(|key| self.services.get(key))
            .map(|service| service.pool)
            .collect();
        let numbers = self.number_pools(name, desired.pools.len(), &frontends);
        for (number, backends) in numbers.iter().zip(&desired.pools) {
            self.pool_owners.insert(*number, name.to_owned());
            self.fill_pool(*number, backends, &mut phases);
        }
        let mut keys = Vec::with_capacity(frontends.len());
        for frontend in frontends {
            let (Some(pool), Some(backends)) = (numbers.get(frontend.pool), desired.pools.get(frontend.pool))
            else {
                continue;
            };
            let service = Service {
                pool: *pool,
                count: u32::try_from(backends.len()).unwrap_or(u32::MAX),
                affinity_seconds: frontend.affinity_seconds,
            };
            if self.services.insert(frontend.key, service) != Some(service) {
                phases.services.push(MapOp::PutService(frontend.key, service));
            }
            self.owners.insert(frontend.key, name.to_owned());
            keys.push(frontend.key);
        }
        for key in old_keys.iter().filter(|key| !keys.contains(key)) {
            self.owners.remove(key);
            if self.services.remove(key).is_some() {
                phases.services.push(MapOp::RemoveService(*key));
            }
        }
        for pool in old_pools.iter().filter(|pool| !numbers.contains(pool)) {
            self.pool_owners.remove(pool);
            self.empty_pool(*pool, &mut phases);
        }
        if !keys.is_empty() {
            self.owned.insert(name.to_owned(), keys);
        }
        (
            self.collect(phases),
            refused.into_iter().map(|frontend| frontend.key).collect(),
        )
    }

    /// The removal of everything that was adopted and that no service owns; to be called when every service has had
    /// its first [`Self::update`].
    pub fn finish(&mut self) -> Vec<MapOp> {
        let mut phases = Phases::default();
        let orphans: Vec<ServiceKey> = self
            .services
            .keys()
            .filter(|key| !self.owners.contains_key(key))
            .copied()
            .collect();
        for key in orphans {
            self.services.remove(&key);
            phases.services.push(MapOp::RemoveService(key));
        }
        let used: BTreeSet<u32> = self.services.values().map(|service| service.pool).collect();
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
        self.collect(phases)
    }

    /// Numbers for the service's pools: those its frontends already use where possible.
    fn number_pools(&mut self, name: &str, count: usize, frontends: &[&Frontend]) -> Vec<u32> {
        let mut numbers: Vec<u32> = Vec::with_capacity(count);
        for index in 0..count {
            let known = frontends
                .iter()
                .filter(|frontend| frontend.pool == index)
                .filter_map(|frontend| self.services.get(&frontend.key))
                .map(|service| service.pool)
                .find(|pool| !numbers.contains(pool) && self.pool_is_free_for(name, *pool));
            numbers.push(known.unwrap_or_else(|| {
                self.last_pool = self.last_pool.wrapping_add(1);
                self.last_pool
            }));
        }
        numbers
    }

    /// Whether no other service uses the pool; two may only after a crash of an agent that numbered differently.
    fn pool_is_free_for(&self, name: &str, pool: u32) -> bool {
        pool != 0 && self.pool_owners.get(&pool).is_none_or(|owner| owner == name)
    }

    /// Gives the pool exactly these backends in its first slots, and leaves every backend that stays where it is.
    fn fill_pool(&mut self, pool: u32, desired: &BTreeSet<Backend>, phases: &mut Phases) {
        let mut waiting: BTreeSet<u32> = desired
            .iter()
            .map(|backend| self.number_backend(*backend, &mut phases.put_backends))
            .collect();
        let count = u32::try_from(desired.len()).unwrap_or(u32::MAX);
        let mut slots = self.pools.remove(&pool).unwrap_or_default();
        let mut open = Vec::new();
        for slot in 0..count {
            if !slots.get(&slot).is_some_and(|backend| waiting.remove(backend)) {
                open.push(slot);
            }
        }
        for (slot, backend) in open.into_iter().zip(waiting) {
            self.hold(backend);
            if let Some(old) = slots.insert(slot, backend) {
                self.release(old, phases);
            }
            phases
                .put_slots
                .push(MapOp::PutSlot(SlotKey { pool, slot }, Slot { backend }));
        }
        for (slot, backend) in slots.split_off(&count) {
            self.release(backend, phases);
            phases
                .remove_slots
                .push(MapOp::RemoveSlot(SlotKey { pool, slot }));
        }
        if !slots.is_empty() {
            self.pools.insert(pool, slots);
        }
    }

    fn empty_pool(&mut self, pool: u32, phases: &mut Phases) {
        for (slot, backend) in self.pools.remove(&pool).unwrap_or_default() {
            self.release(backend, phases);
            phases
                .remove_slots
                .push(MapOp::RemoveSlot(SlotKey { pool, slot }));
        }
    }

    fn number_backend(&mut self, backend: Backend, put: &mut Vec<MapOp>) -> u32 {
        if let Some(number) = self.numbers.get(&backend) {
            return *number;
        }
        loop {
            self.last_backend = self.last_backend.wrapping_add(1);
            if self.last_backend != 0 && !self.backends.contains_key(&self.last_backend) {
                break;
            }
        }
        let number = self.last_backend;
        self.numbers.insert(backend, number);
        self.backends.insert(number, (backend, 0));
        put.push(MapOp::PutBackend(number, backend));
        number
    }

    fn hold(&mut self, number: u32) {
        if let Some((backend, holders)) = self.backends.get_mut(&number) {
            *holders += 1;
            if *holders == 1 {
                *self.offered.entry(backend.address).or_default() += 1;
            }
        }
    }

    fn release(&mut self, number: u32, phases: &mut Phases) {
        phases.touched.insert(number);
        if let Some((backend, holders)) = self.backends.get_mut(&number) {
            *holders -= 1;
            if *holders == 0
                && let Some(count) = self.offered.get_mut(&backend.address)
            {
                *count -= 1;
                if *count == 0 {
                    self.offered.remove(&backend.address);
                }
            }
        }
    }

    fn collect(&mut self, phases: Phases) -> Vec<MapOp> {
        let mut ops = phases.put_backends;
        ops.extend(phases.put_slots);
        ops.extend(phases.services);
        ops.extend(phases.remove_slots);
        for number in phases.touched {
            if let Some((backend, 0)) = self.backends.get(&number).copied() {
                self.backends.remove(&number);
                if self.numbers.get(&backend) == Some(&number) {
                    self.numbers.remove(&backend);
                }
                ops.push(MapOp::RemoveBackend(number, backend));
            }
        }
        ops
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

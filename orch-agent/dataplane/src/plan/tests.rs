//! The planner against simulated maps: what a reader sees between any two operations, and where a sequence ends.

use std::collections::{BTreeMap, BTreeSet};

use orch_ebpf::{
    Address4, Address6, PROTOCOL_TCP, PROTOCOL_UDP,
    service::{
        Backend, CHUNK_SLOTS, Chunk, ChunkKey, SCOPE_EXTERNAL, SCOPE_INTERNAL, SERVICE_MEMBERS, Service,
        ServiceKey,
    },
};
use proptest::prelude::*;

use super::{Desired, Found, Frontend, MapOp, Planner, Pool, Spread, Stale, Update};

type A = Address4;

#[derive(Default, Clone)]
struct Tables {
    services: BTreeMap<ServiceKey<A>, Service<A>>,
    chunks: BTreeMap<ChunkKey, Chunk>,
    backends: BTreeMap<u32, Backend<A>>,
    sources: BTreeSet<(u32, u32, A)>,
    later: Vec<MapOp<A>>,
}

impl Tables {
    fn apply(&mut self, ops: &[MapOp<A>]) {
        for op in ops {
            match op.clone() {
                MapOp::PutBackend(id, backend) => {
                    let old = self.backends.insert(id, backend);
                    assert_eq!(old, None, "a backend changed in place");
                }
                MapOp::PutChunk(key, chunk) => {
                    self.chunks.insert(key, chunk);
                }
                MapOp::PutService(key, service) => {
                    self.services.insert(key, *service);
                }
                MapOp::PutSource(prefix, key) => {
                    self.sources.insert((key.pool, prefix, key.address));
                }
                MapOp::RemoveService(key) => assert!(self.services.remove(&key).is_some()),
                MapOp::RemoveChunk(key) => assert!(self.chunks.remove(&key).is_some()),
                MapOp::RemoveBackend(id, _) => assert!(self.backends.remove(&id).is_some()),
                MapOp::RemoveSource(prefix, key) => {
                    assert!(self.sources.remove(&(key.pool, prefix, key.address)));
                }
            }
            self.check();
        }
    }

    /// Does an update's first part now, and puts its second off as the agent does.
    fn update(&mut self, update: &Update<A>) {
        let chunk = |op: &MapOp<A>| match op {
            MapOp::PutChunk(key, _) | MapOp::RemoveChunk(key) => Some(*key),
            _ => None,
        };
        let put: BTreeSet<ChunkKey> = update.now.iter().filter_map(chunk).collect();
        self.later
            .retain(|op| chunk(op).is_none_or(|key| !put.contains(&key)));
        self.later.extend(update.later.iter().cloned());
        self.apply(&update.now);
    }

    fn flush(&mut self) {
        let later = std::mem::take(&mut self.later);
        self.apply(&later);
    }

    /// A reader finds a backend for every slot and member that a service counts.
    fn check(&self) {
        for (key, service) in &self.services {
            for slot in 0..service.count {
                let number = self.number(service, slot);
                assert!(
                    self.backends.contains_key(&number),
                    "{key:?}: nobody in slot {slot} of {}",
                    service.count
                );
                if service.flags & SERVICE_MEMBERS != 0 {
                    assert_eq!(service.members[slot as usize].backend, self.backends[&number]);
                }
            }
        }
    }

    /// The number of the backend that is a service's member, or in its slot.
    fn number(&self, service: &Service<A>, slot: u32) -> u32 {
        if service.flags & SERVICE_MEMBERS != 0 {
            service.members[slot as usize].id
        } else {
            self.slot(service.pool, slot)
        }
    }

    fn slot(&self, pool: u32, slot: u32) -> u32 {
        let chunk = slot / CHUNK_SLOTS as u32;
        self.chunks
            .get(&ChunkKey { pool, chunk })
            .map_or(0, |chunk| chunk.backends[slot as usize % CHUNK_SLOTS])
    }

    fn reached(&self, key: &ServiceKey<A>) -> BTreeSet<Backend<A>> {
        let service = self.services[key];
        let slots = 0..service.count;
        slots
            .map(|slot| self.backends[&self.number(&service, slot)])
            .collect()
    }

    fn planner(&self) -> Planner<A> {
        let source = |(pool, prefix, address): (u32, u32, A)| {
            (prefix, orch_ebpf::service::SourceKey { pool, address })
        };
        Planner::adopt(Found {
            services: self.services.clone().into_iter().collect(),
            chunks: self.chunks.clone().into_iter().collect(),
            backends: self.backends.clone().into_iter().collect(),
            sources: self.sources.iter().copied().map(source).collect(),
        })
    }

    fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.chunks.is_empty()
            && self.backends.is_empty()
            && self.sources.is_empty()
    }
}

fn key(service: u8, scope: u8) -> ServiceKey<A> {
    ServiceKey {
        address: [10, 96, 0, service],
        port: 80,
        protocol: PROTOCOL_TCP,
        scope,
    }
}

fn backend(number: u8) -> Backend<A> {
    Backend {
        address: [10, 244, 0, number],
        port: 8080,
        protocol: PROTOCOL_TCP,
        flags: 0,
        node: [0; 4],
    }
}

fn pool(numbers: &BTreeSet<u8>, spread: Spread) -> Pool<A> {
    Pool {
        backends: numbers.iter().map(|number| backend(*number)).collect(),
        fallback: false,
        spread,
        sources: Vec::new(),
    }
}

/// A service for clients in the cluster, and outside with a table where `outside` says of what.
fn desired(service: u8, all: &BTreeSet<u8>, outside: Option<&BTreeSet<u8>>) -> Desired<A> {
    let frontend = |scope, pool| Frontend {
        key: key(service, scope),
        affinity_seconds: 0,
        flags: 0,
        pool,
    };
    let mut desired = Desired {
        frontends: vec![frontend(SCOPE_INTERNAL, 0)],
        pools: vec![pool(all, Spread::Each)],
    };
    if let Some(outside) = outside {
        desired.frontends.push(frontend(SCOPE_EXTERNAL, 1));
        desired.pools.push(pool(outside, Spread::Table));
    }
    desired
}

fn numbers(list: impl IntoIterator<Item = u8>) -> BTreeSet<u8> {
    list.into_iter().collect()
}

#[test]
fn one_endpoint_changed_touches_that_service_only() {
    let mut planner = Planner::default();
    for service in 1..100 {
        planner.update(&service.to_string(), &desired(service, &numbers([1, 2, 3]), None));
    }
    let update = planner.update("7", &desired(7, &numbers([1, 3, 4]), None));
    let [MapOp::PutBackend(id, new), MapOp::PutService(at, service)] = &update.now[..] else {
        panic!("{update:?}")
    };
    assert_eq!((*new, *at), (backend(4), key(7, SCOPE_INTERNAL)));
    assert!(service.members[..3].iter().any(|member| member.id == *id));
    assert_eq!(update.later, [], "the others still hold the backend that left");
    let again = planner.update("7", &desired(7, &numbers([1, 3, 4]), None));
    assert!(again.now.is_empty() && again.later.is_empty());
}

#[test]
fn few_backends_stand_in_the_service_and_many_in_slots_until_they_are_clearly_few() {
    let mut tables = Tables::default();
    let mut planner = Planner::default();
    let (inside, outside) = (key(1, SCOPE_INTERNAL), key(1, SCOPE_EXTERNAL));
    for (backends, members) in [(10, true), (11, false), (8, false), (7, true), (10, true)] {
        let all = numbers(1..=backends);
        tables.update(&planner.update("a", &desired(1, &all, Some(&all))));
        for key in [inside, outside] {
            assert_eq!(
                tables.services[&key].flags & SERVICE_MEMBERS != 0,
                members,
                "{backends}"
            );
            assert_eq!(tables.reached(&key).len(), usize::from(backends));
        }
        tables.flush();
        assert_eq!(tables.chunks.is_empty(), members);
    }
}

#[test]
fn entries_of_a_pool_that_a_crash_left_different_are_written_again() {
    let mut tables = Tables::default();
    let mut planner = Planner::default();
    let mut wanted = desired(1, &numbers([1, 2]), None);
    let mut second = wanted.frontends[0];
    second.key.port = 81;
    wanted.frontends.push(second);
    tables.update(&planner.update("a", &wanted));
    wanted.pools[0] = pool(&numbers([1, 3]), Spread::Each);
    let update = planner.update("a", &wanted);
    // The backend and the first of the two.
    tables.apply(&update.now[..2]);
    let mut planner = tables.planner();
    tables.update(&planner.update("a", &wanted));
    tables.update(&planner.finish());
    tables.flush();
    for frontend in &wanted.frontends {
        assert_eq!(tables.reached(&frontend.key), [backend(1), backend(3)].into());
    }
    assert_eq!(tables.backends.len(), 2);
}

#[test]
fn a_pool_of_many_chunks_changes_in_one() {
    let mut planner = Planner::default();
    planner.update("a", &desired(1, &numbers(1..=100), None));
    let update = planner.update(
        "a",
        &desired(
            1,
            &numbers((1..=100).map(|n| if n == 50 { 150 } else { n })),
            None,
        ),
    );
    let chunks = update
        .now
        .iter()
        .filter(|op| matches!(op, MapOp::PutChunk(..)))
        .count();
    assert_eq!(chunks, 1, "{update:?}");
}

#[test]
fn an_address_belongs_to_the_first_service_that_asks() {
    let mut tables = Tables::default();
    let mut planner = Planner::default();
    let update = planner.update("a", &desired(1, &numbers([1]), None));
    assert_eq!(update.refused, []);
    tables.update(&update);
    let both = desired(1, &numbers([2]), Some(&numbers([2])));
    let update = planner.update("b", &both);
    assert_eq!(update.refused, [key(1, SCOPE_INTERNAL)]);
    tables.update(&update);
    assert_eq!(tables.reached(&key(1, SCOPE_INTERNAL)), [backend(1)].into());
    assert_eq!(tables.reached(&key(1, SCOPE_EXTERNAL)), [backend(2)].into());
    tables.update(&planner.update("a", &Desired::default()));
    let update = planner.update("b", &both);
    assert_eq!(update.refused, []);
    tables.update(&update);
    assert_eq!(tables.reached(&key(1, SCOPE_INTERNAL)), [backend(2)].into());
    tables.update(&planner.update("b", &Desired::default()));
    tables.flush();
    assert!(tables.is_empty(), "what was refused left nothing behind");
}

#[test]
fn an_address_is_offered_as_long_as_any_service_does_not_only_fall_back_on_it() {
    let mut planner = Planner::default();
    planner.update("a", &desired(1, &numbers([1, 2]), None));
    planner.update("b", &desired(2, &numbers([1]), None));
    planner.update("a", &desired(1, &numbers([2]), None));
    assert!(planner.offers([10, 244, 0, 1]));
    let mut fallback = desired(2, &numbers([1]), None);
    fallback.pools[0].fallback = true;
    let update = planner.update("b", &fallback);
    assert!(update.now.is_empty() && update.later.is_empty());
    assert!(!planner.offers([10, 244, 0, 1]));
    planner.update("b", &desired(2, &numbers([1]), None));
    assert!(planner.offers([10, 244, 0, 1]));
    planner.update("b", &Desired::default());
    assert!(!planner.offers([10, 244, 0, 1]));
    assert!(planner.offers([10, 244, 0, 2]));
}

#[test]
fn an_agent_that_finds_what_it_wants_writes_nothing() {
    let mut tables = Tables::default();
    let mut planner = Planner::default();
    let wanted: Vec<(String, Desired<A>)> = (1..40_u8)
        .map(|service| {
            let all = numbers(1..=service);
            let mut desired = desired(service, &all, (service % 2 == 0).then_some(&all));
            desired.pools[0].sources = vec![(24, [192, 0, 2, 0])];
            (service.to_string(), desired)
        })
        .collect();
    for (name, desired) in &wanted {
        tables.update(&planner.update(name, desired));
    }
    // A table that grew and came back within its size's reach keeps its size over a restart.
    tables.update(&planner.update("10", &desired(10, &numbers(1..=11), Some(&numbers(1..=11)))));
    tables.update(&planner.update("10", &wanted[9].1));
    tables.flush();
    assert_eq!(tables.services[&key(10, SCOPE_EXTERNAL)].count, 1021);
    let mut planner = tables.planner();
    for (name, desired) in wanted.iter().rev() {
        let update = planner.update(name, desired);
        assert!(
            update.now.is_empty() && update.later.is_empty(),
            "{name}: {update:?}"
        );
    }
    let update = planner.finish();
    assert!(update.now.is_empty() && update.later.is_empty() && update.stale.is_empty());
}

#[test]
fn families_never_share_a_number() {
    let mut v4 = Planner::<Address4>::default();
    let mut v6 = Planner::<Address6>::default();
    v6.number_above((8, 5));
    let mut wanted = Desired {
        frontends: vec![Frontend {
            key: ServiceKey {
                address: [1; 16],
                port: 80,
                protocol: PROTOCOL_TCP,
                scope: SCOPE_INTERNAL,
            },
            affinity_seconds: 0,
            flags: 0,
            pool: 0,
        }],
        pools: vec![Pool {
            backends: Vec::new(),
            fallback: false,
            spread: Spread::Each,
            sources: Vec::new(),
        }],
    };
    wanted.pools[0].backends = (0..20)
        .map(|port| Backend {
            port,
            ..Backend::default()
        })
        .collect();
    v6.update("a", &wanted);
    v4.update("a", &desired(1, &numbers(1..=20), None));
    let even: BTreeSet<u32> = v6.backends.keys().copied().collect();
    assert!(even.iter().all(|number| number % 2 == 0 && *number > 5));
    assert!(v4.backends.keys().all(|number| !even.contains(number)));
    assert!(v6.pools.keys().all(|number| *number == 10));
    assert!(v4.pools.keys().all(|number| number % 2 == 1));
}

#[test]
fn what_left_is_named_with_those_who_knew_it() {
    let mut planner = Planner::default();
    let mut wanted = desired(1, &numbers([1, 2]), None);
    wanted.frontends[0].key.protocol = PROTOCOL_UDP;
    wanted.frontends[0].affinity_seconds = 60;
    let udp = wanted.frontends[0].key;
    planner.update("a", &wanted);
    let left = planner.numbers[&backend(2)];
    wanted.pools[0] = pool(&numbers([1]), Spread::Each);
    let pool = planner.services[&udp].route.pool;
    let member = |backend| Stale::Member {
        pool,
        backend,
        affinity: true,
        udp: vec![udp],
    };
    assert_eq!(planner.update("a", &wanted).stale, [member(left)]);
    let last = planner.numbers[&backend(1)];
    let update = planner.update("a", &Desired::default());
    assert_eq!(update.stale, [Stale::Frontend(udp), member(last)]);
    // Without affinity, nobody keeps a TCP backend but the connections that it has.
    planner.update("b", &desired(2, &numbers([1, 2]), None));
    assert_eq!(planner.update("b", &Desired::default()).stale, []);
}

#[test]
fn source_ranges_change_in_place() {
    let mut tables = Tables::default();
    let mut planner = Planner::default();
    let mut wanted = desired(1, &numbers([1]), None);
    wanted.pools[0].sources = vec![(8, [10, 0, 0, 0]), (24, [192, 0, 2, 0])];
    tables.update(&planner.update("a", &wanted));
    wanted.pools[0].sources = vec![(8, [10, 0, 0, 0]), (32, [192, 0, 2, 1])];
    let update = planner.update("a", &wanted);
    assert!(
        matches!(
            update.now[..],
            [MapOp::PutSource(32, _), MapOp::RemoveSource(24, _)]
        ),
        "{update:?}"
    );
    tables.update(&update);
    assert_eq!(tables.sources.len(), 2);
    tables.update(&planner.update("a", &Desired::default()));
    tables.flush();
    assert!(tables.is_empty());
}

#[test]
fn host_ports_found_in_the_maps_stay_with_pods_that_are_there() {
    let mut tables = Tables::default();
    let mut planner = Planner::default();
    for (name, number) in [("/host-ports/a", 1), ("/host-ports/b", 2)] {
        let mut wanted = desired(number, &numbers([number]), None);
        wanted.frontends[0].flags = orch_ebpf::service::SERVICE_HOST_PORT;
        tables.update(&planner.update(name, &wanted));
    }
    let mut planner = tables.planner();
    planner.claim_host_ports(|address| (address == [10, 244, 0, 1]).then(|| "/host-ports/a".into()));
    tables.update(&planner.finish());
    tables.flush();
    assert_eq!(
        tables.services.keys().collect::<Vec<_>>(),
        [&key(1, SCOPE_INTERNAL)]
    );
    tables.update(&planner.update("/host-ports/a", &Desired::default()));
    tables.flush();
    assert!(tables.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Update(u8, BTreeSet<u8>, Option<BTreeSet<u8>>),
    Remove(u8),
    /// What waits is written.
    Flush,
    /// The agent dies after this many operations of the next step, and a new one starts from the maps.
    Crash(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let few = || prop::collection::btree_set(1_u8..12, 0..8);
    let many = || prop::collection::btree_set(1_u8..60, 0..50);
    let some = || prop_oneof![3 => few(), 1 => many()];
    let step = prop_oneof![
        6 => (1_u8..5, some(), prop::option::of(some())).prop_map(|(s, all, outside)| Step::Update(s, all, outside)),
        2 => (1_u8..5).prop_map(Step::Remove),
        2 => Just(Step::Flush),
        1 => (0_usize..40).prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn readers_never_miss_a_backend_and_nothing_is_left(steps in steps()) {
        let mut tables = Tables::default();
        let mut planner = Planner::default();
        let mut model: BTreeMap<u8, Desired<A>> = BTreeMap::new();
        let mut cut = None;
        for step in steps {
            let (service, wanted) = match step {
                Step::Update(service, all, outside) => (service, desired(service, &all, outside.as_ref())),
                Step::Remove(service) => (service, Desired::default()),
                Step::Flush => {
                    tables.flush();
                    continue;
                }
                Step::Crash(after) => {
                    cut = Some(after);
                    continue;
                }
            };
            let update = planner.update(&service.to_string(), &wanted);
            if wanted.frontends.is_empty() {
                model.remove(&service);
            } else {
                model.insert(service, wanted);
            }
            let Some(after) = cut.take() else {
                tables.update(&update);
                continue;
            };
            // What waited is lost with the agent.
            tables.later.clear();
            tables.apply(&update.now[..after.min(update.now.len())]);
            planner = tables.planner();
            for (service, wanted) in &model {
                tables.update(&planner.update(&service.to_string(), wanted));
            }
            tables.update(&planner.finish());
        }
        tables.flush();
        for wanted in model.values() {
            for frontend in &wanted.frontends {
                let expected: BTreeSet<_> = wanted.pools[frontend.pool].backends.iter().copied().collect();
                prop_assert_eq!(tables.reached(&frontend.key), expected);
            }
        }
        prop_assert_eq!(tables.services.len(), model.values().map(|wanted| wanted.frontends.len()).sum::<usize>());
        let offered = |number| model.values().any(|w| w.pools.iter().any(|p| p.backends.contains(&backend(number))));
        for number in 1_u8..60 {
            prop_assert_eq!(planner.offers([10, 244, 0, number]), offered(number));
        }
        for service in model.keys() {
            tables.update(&planner.update(&service.to_string(), &Desired::default()));
        }
        tables.flush();
        prop_assert!(tables.is_empty());
        prop_assert_eq!(planner.sizes(), (0, 0, 0));
    }
}

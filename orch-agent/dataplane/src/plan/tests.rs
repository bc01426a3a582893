//! The planner against simulated maps: what a reader sees between any two operations, and where a sequence ends.

use std::collections::{BTreeMap, BTreeSet};

use orch_ebpf::{
    PROTOCOL_TCP,
    service::{Backend, SCOPE_EXTERNAL, SCOPE_INTERNAL, Service, ServiceKey, Slot, SlotKey},
};
use proptest::prelude::*;

use super::{Desired, Frontend, MapOp, Planner};

#[derive(Default, Clone)]
struct Tables {
    services: BTreeMap<ServiceKey, Service>,
    slots: BTreeMap<SlotKey, Slot>,
    backends: BTreeMap<u32, Backend>,
}

impl Tables {
    fn apply(&mut self, ops: &[MapOp]) {
        for op in ops {
            match *op {
                MapOp::PutBackend(id, backend) => {
                    assert_eq!(
                        self.backends.insert(id, backend),
                        None,
                        "a backend changed in place"
                    );
                }
                MapOp::PutSlot(key, slot) => {
                    self.slots.insert(key, slot);
                }
                MapOp::PutService(key, service) => {
                    self.services.insert(key, service);
                }
                MapOp::RemoveService(key) => assert!(self.services.remove(&key).is_some()),
                MapOp::RemoveSlot(key) => assert!(self.slots.remove(&key).is_some()),
                MapOp::RemoveBackend(id, _) => assert!(self.backends.remove(&id).is_some()),
            }
            self.check();
        }
    }

    /// A reader finds a backend for every slot that a service counts.
    fn check(&self) {
        for (key, service) in &self.services {
            for slot in 0..service.count {
                let slot = self.slots.get(&SlotKey {
                    pool: service.pool,
                    slot,
                });
                let slot = slot.unwrap_or_else(|| panic!("{key:?} counts a slot that is not there"));
                assert!(
                    self.backends.contains_key(&slot.backend),
                    "{key:?} has a slot without a backend"
                );
            }
        }
    }

    fn reached(&self, key: &ServiceKey) -> BTreeSet<Backend> {
        let service = self.services[key];
        (0..service.count)
            .map(|slot| {
                self.backends[&self.slots[&SlotKey {
                    pool: service.pool,
                    slot,
                }]
                    .backend]
            })
            .collect()
    }

    fn planner(&self) -> Planner {
        Planner::adopt(self.services.clone(), self.slots.clone(), self.backends.clone())
    }
}

fn key(service: u8, scope: u8) -> ServiceKey {
    ServiceKey {
        address: [10, 96, 0, service],
        port: 80,
        protocol: PROTOCOL_TCP,
        scope,
    }
}

fn backend(number: u8) -> Backend {
    Backend {
        address: [10, 244, 0, number],
        port: 8080,
        protocol: PROTOCOL_TCP,
        flags: 0,
    }
}

/// A service with two frontends, on one pool or on two.
fn desired(service: u8, all: &BTreeSet<u8>, local: Option<&BTreeSet<u8>>) -> Desired {
    let set = |numbers: &BTreeSet<u8>| numbers.iter().map(|number| backend(*number)).collect();
    let mut pools = vec![set(all)];
    pools.extend(local.map(set));
    let external = pools.len() - 1;
    Desired {
        frontends: vec![
            Frontend {
                key: key(service, SCOPE_INTERNAL),
                affinity_seconds: 0,
                pool: 0,
            },
            Frontend {
                key: key(service, SCOPE_EXTERNAL),
                affinity_seconds: 0,
                pool: external,
            },
        ],
        pools,
    }
}

fn numbers(list: &[u8]) -> BTreeSet<u8> {
    list.iter().copied().collect()
}

#[test]
fn one_endpoint_changed_touches_that_service_only() {
    let mut planner = Planner::default();
    for service in 1..100 {
        planner.update(
            &service.to_string(),
            &desired(service, &numbers(&[1, 2, 3]), None),
        );
    }
    let (ops, _) = planner.update("7", &desired(7, &numbers(&[1, 3, 4]), None));
    let [MapOp::PutBackend(id, new), MapOp::PutSlot(_, slot)] = ops[..] else {
        panic!("{ops:?}")
    };
    assert_eq!((new, slot.backend), (backend(4), id));
    assert_eq!(planner.update("7", &desired(7, &numbers(&[1, 3, 4]), None)).0, []);
}

#[test]
fn an_address_belongs_to_the_first_service_that_asks() {
    let mut tables = Tables::default();
    let mut planner = Planner::default();
    let (ops, refused) = planner.update("a", &desired(1, &numbers(&[1]), None));
    assert!(refused.is_empty());
    tables.apply(&ops);
    let (ops, refused) = planner.update("b", &desired(1, &numbers(&[2]), None));
    assert_eq!(refused.len(), 2);
    tables.apply(&ops);
    assert_eq!(tables.reached(&key(1, SCOPE_INTERNAL)), [backend(1)].into());
    tables.apply(&planner.update("a", &Desired::default()).0);
    let (ops, refused) = planner.update("b", &desired(1, &numbers(&[2]), None));
    assert!(refused.is_empty());
    tables.apply(&ops);
    assert_eq!(tables.reached(&key(1, SCOPE_INTERNAL)), [backend(2)].into());
}

#[test]
fn an_address_is_offered_as_long_as_any_service_names_it() {
    let mut planner = Planner::default();
    planner.update("a", &desired(1, &numbers(&[1, 2]), None));
    planner.update("b", &desired(2, &numbers(&[1]), None));
    planner.update("a", &desired(1, &numbers(&[2]), None));
    assert!(planner.offers([10, 244, 0, 1]));
    planner.update("b", &Desired::default());
    assert!(!planner.offers([10, 244, 0, 1]));
    assert!(planner.offers([10, 244, 0, 2]));
}

#[derive(Debug, Clone)]
enum Step {
    Update(u8, BTreeSet<u8>, Option<BTreeSet<u8>>),
    Remove(u8),
    /// The agent dies after this many operations of the next step, and a new one starts from the maps.
    Crash(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = || prop::collection::btree_set(1u8..12, 0..8);
    let step = prop_oneof![
        6 => (1u8..5, some(), prop::option::of(some())).prop_map(|(s, all, local)| Step::Update(s, all, local)),
        2 => (1u8..5).prop_map(Step::Remove),
        1 => (0usize..12).prop_map(Step::Crash),
    ];
    prop::collection::vec(step, 1..30)
}

proptest! {
    #[test]
    fn readers_never_miss_a_backend_and_nothing_is_left(steps in steps()) {
        let mut tables = Tables::default();
        let mut planner = Planner::default();
        let mut model: BTreeMap<u8, Desired> = BTreeMap::new();
        let mut cut = None;
        for step in steps {
            let (service, wanted) = match step {
                Step::Update(service, all, local) => (service, desired(service, &all, local.as_ref())),
                Step::Remove(service) => (service, Desired::default()),
                Step::Crash(after) => {
                    cut = Some(after);
                    continue;
                }
            };
            let (ops, _) = planner.update(&service.to_string(), &wanted);
            if wanted.frontends.is_empty() { model.remove(&service); } else { model.insert(service, wanted); }
            let Some(after) = cut.take() else {
                tables.apply(&ops);
                continue;
            };
            tables.apply(&ops[..after.min(ops.len())]);
            planner = tables.planner();
            for (service, wanted) in &model {
                let (ops, _) = planner.update(&service.to_string(), wanted);
                tables.apply(&ops);
            }
            tables.apply(&planner.finish());
        }
        let mut used = BTreeSet::new();
        for wanted in model.values() {
            for frontend in &wanted.frontends {
                prop_assert_eq!(&tables.reached(&frontend.key), &wanted.pools[frontend.pool]);
                used.extend(wanted.pools[frontend.pool].iter().copied());
            }
        }
        prop_assert_eq!(tables.services.len(), model.values().map(|wanted| wanted.frontends.len()).sum::<usize>());
        for number in 1u8..12 {
            prop_assert_eq!(planner.offers([10, 244, 0, number]), model.values().any(|w| w.pools.iter().any(|p| p.contains(&backend(number)))));
        }
        for wanted in model.keys().copied().collect::<Vec<_>>() {
            tables.apply(&planner.update(&wanted.to_string(), &Desired::default()).0);
        }
        prop_assert!(tables.services.is_empty() && tables.slots.is_empty() && tables.backends.is_empty());
    }
}

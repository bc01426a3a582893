//! Filling and emptying pools, and counting who holds which backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use orch_ebpf::{
    Address,
    service::{Backend, Chunk, ChunkKey, MEMBERS_MAX, Member, SourceKey},
};

use super::{
    Held, MapOp, Phases, Planner, Pool, Spread, Stale, maglev, next,
    pool::{self, Slots},
};

impl<A: Address> Planner<A> {
    /// Gives the pool exactly these backends, leaves every slot that may stay as it is, and says how services find them.
    pub(super) fn fill_pool(
        &mut self,
        pool: u32,
        desired: &Pool<A>,
        owner: &Arc<str>,
        phases: &mut Phases<A>,
    ) -> Filled<A> {
        let mut numbers: Vec<u32> = desired
            .backends
            .iter()
            .map(|backend| self.number_backend(*backend, &mut phases.backends))
            .collect();
        let held = self.pools.remove(&pool).unwrap_or_else(|| Held {
            owner: None,
            slots: Slots::Members(Box::default()),
            fallback: false,
            sources: Vec::new(),
        });
        let are_members = pool::are_members(numbers.len(), &held.slots);
        if are_members {
            numbers.sort_unstable();
        }
        let unchanged = match (&held.slots, desired.spread) {
            (Slots::Members(members), _) => are_members && **members == *numbers,
            _ if are_members => false,
            (Slots::Each(slots), Spread::Each) => {
                slots.len() == numbers.len() && {
                    let present: BTreeSet<u32> = slots.iter().copied().collect();
                    numbers.iter().all(|number| present.contains(number))
                }
            }
            (Slots::Table { members, .. }, Spread::Table) => **members == *numbers,
            _ => false,
        };
        let slots = if unchanged {
            if held.fallback != desired.fallback {
                let members = held.slots.members();
                self.offer(&members, !desired.fallback);
            }
            held.slots
        } else {
            let old_chunks = self.chunks_of(&held.slots);
            let old_members = held.slots.members();
            let members: BTreeSet<u32> = numbers.iter().copied().collect();
            let (slots, flat) = match desired.spread {
                _ if are_members => (Slots::Members(numbers.into_boxed_slice()), Vec::new()),
                Spread::Each => {
                    let flat = settle(&held.slots.flat(), &members);
                    (Slots::Each(flat.clone()), flat)
                }
                Spread::Table => {
                    let size = maglev::size(numbers.len(), table_size(&held.slots));
                    numbers.shrink_to_fit();
                    let slots = Slots::Table {
                        size,
                        members: numbers.into_boxed_slice(),
                    };
                    let flat = self.flat(&slots);
                    (slots, flat)
                }
            };
            let changes = pool::changes(pool, &old_chunks, &flat);
            phases.chunks.extend(
                changes
                    .put
                    .into_iter()
                    .map(|(key, chunk)| MapOp::PutChunk(key, chunk)),
            );
            phases.later.extend(
                changes
                    .clear
                    .into_iter()
                    .map(|(key, chunk)| MapOp::PutChunk(key, chunk)),
            );
            phases
                .later
                .extend(changes.remove.into_iter().map(MapOp::RemoveChunk));
            for number in members.difference(&old_members) {
                self.hold(*number);
            }
            if !desired.fallback {
                self.offer(&members, true);
            }
            if !held.fallback {
                self.offer(&old_members, false);
            }
            for number in old_members.difference(&members) {
                self.leave(pool, *number, phases);
            }
            slots
        };
        self.put_sources(pool, &held.sources, &desired.sources, phases);
        let filled = Filled {
            count: count(&slots),
            members: match &slots {
                Slots::Members(numbers) => Some(self.members(numbers)),
                _ => None,
            },
            changed: !unchanged,
        };
        self.pools.insert(
            pool,
            Held {
                owner: Some(Arc::clone(owner)),
                slots,
                fallback: desired.fallback,
                sources: desired.sources.clone(),
            },
        );
        filled
    }

    /// Members of these numbers, as a service's entry holds them.
    fn members(&self, numbers: &[u32]) -> [Member<A>; MEMBERS_MAX] {
        let mut members = [Member::default(); MEMBERS_MAX];
        for (member, id) in members.iter_mut().zip(numbers) {
            let backend = self.backends.get(id).map(|(backend, _)| *backend);
            *member = Member {
                backend: backend.unwrap_or_default(),
                id: *id,
            };
        }
        members
    }

    pub(super) fn put_sources(&self, pool: u32, old: &[(u32, A)], new: &[(u32, A)], phases: &mut Phases<A>) {
        let key = |address: A| SourceKey { pool, address };
        for (prefix, address) in new.iter().filter(|range| !old.contains(range)) {
            phases.backends.push(MapOp::PutSource(*prefix, key(*address)));
        }
        for (prefix, address) in old.iter().filter(|range| !new.contains(range)) {
            phases.sources.push(MapOp::RemoveSource(*prefix, key(*address)));
        }
    }

    pub(super) fn empty_pool(&mut self, pool: u32, phases: &mut Phases<A>) {
        let Some(held) = self.pools.remove(&pool) else {
            return;
        };
        let keys = self.chunks_of(&held.slots).into_keys();
        phases
            .later
            .extend(keys.map(|chunk| MapOp::RemoveChunk(ChunkKey { pool, chunk })));
        self.put_sources(pool, &held.sources, &[], phases);
        let members = held.slots.members();
        if !held.fallback {
            self.offer(&members, false);
        }
        for number in members {
            self.leave(pool, number, phases);
        }
    }

    fn flat(&self, slots: &Slots) -> Vec<u32> {
        match slots {
            Slots::Table { size, members } => {
                let backends: Vec<_> = members
                    .iter()
                    .filter_map(|number| Some((self.backends.get(number)?.0, *number)))
                    .collect();
                maglev::table(*size, &backends)
            }
            other => other.flat(),
        }
    }

    fn chunks_of(&self, slots: &Slots) -> BTreeMap<u32, Chunk> {
        match slots {
            Slots::Found(chunks) => chunks.clone(),
            other => pool::chunks(&self.flat(other)),
        }
    }

    fn number_backend(&mut self, backend: Backend<A>, put: &mut Vec<MapOp<A>>) -> u32 {
        if let Some(number) = self.numbers.get(&backend) {
            return *number;
        }
        let number = next::<A>(self.last_backend, |number| self.backends.contains_key(&number));
        self.last_backend = number;
        self.numbers.insert(backend, number);
        self.backends.insert(number, (backend, 0));
        put.push(MapOp::PutBackend(number, backend));
        number
    }

    pub(super) fn hold(&mut self, number: u32) {
        if let Some((_, holders)) = self.backends.get_mut(&number) {
            *holders += 1;
        }
    }

    /// Counts, or counts no longer, that a pool offers the backends.
    pub(super) fn offer(&mut self, members: &BTreeSet<u32>, offered: bool) {
        for number in members {
            let Some((backend, _)) = self.backends.get(number) else {
                continue;
            };
            let count = self.offered.entry(backend.address).or_default();
            *count = if offered {
                *count + 1
            } else {
                count.saturating_sub(1)
            };
            if *count == 0 {
                self.offered.remove(&backend.address);
            }
        }
    }

    fn leave(&mut self, pool: u32, number: u32, phases: &mut Phases<A>) {
        phases.touched.insert(number);
        phases.stale.push(Stale::Member {
            pool,
            backend: number,
            affinity: false,
            udp: Vec::new(),
        });
        if let Some((_, holders)) = self.backends.get_mut(&number) {
            *holders = holders.saturating_sub(1);
        }
    }
}

/// What services say of a pool.
pub(super) struct Filled<A> {
    /// How many slots or members are in use.
    pub count: u32,
    /// The members, unless they are slots.
    pub members: Option<[Member<A>; MEMBERS_MAX]>,
    /// Whether the members may be others than before.
    pub changed: bool,
}

/// How many slots or members are in use.
fn count(slots: &Slots) -> u32 {
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    match slots {
        Slots::Members(members) => length(members.len()),
        Slots::Each(slots) => length(slots.len()),
        Slots::Table { members, .. } if members.is_empty() => 0,
        Slots::Table { size, .. } => *size,
        Slots::Found(_) => 0,
    }
}

/// The size of the pool's table so far. Zeros fill no table's slots, so that of an adopted one is where they begin.
fn table_size(slots: &Slots) -> Option<u32> {
    match slots {
        Slots::Table { size, .. } => Some(*size),
        Slots::Members(_) | Slots::Each(_) => None,
        Slots::Found(_) => {
            let last = slots.flat().iter().rposition(|number| *number != 0)?;
            u32::try_from(last + 1).ok()
        }
    }
}

/// Slots for exactly the `members`: who is there already within the new count stays, and the others take what is
/// open.
fn settle(old: &[u32], members: &BTreeSet<u32>) -> Vec<u32> {
    let mut waiting = members.clone();
    let mut slots: Vec<u32> = old.iter().copied().take(members.len()).collect();
    slots.resize(members.len(), 0);
    let mut open = Vec::new();
    for (index, slot) in slots.iter().enumerate() {
        if !waiting.remove(slot) {
            open.push(index);
        }
    }
    for (index, number) in open.into_iter().zip(waiting) {
        if let Some(slot) = slots.get_mut(index) {
            *slot = number;
        }
    }
    slots
}

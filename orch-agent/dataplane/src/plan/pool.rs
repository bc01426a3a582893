//! Where a pool's backends stand: what the chunks hold, and the changes from one filling to the next.

use std::collections::{BTreeMap, BTreeSet};

use orch_ebpf::service::{CHUNK_SLOTS, Chunk, ChunkKey, MEMBERS_MAX};

/// Where a pool's backends stand. Slots are in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slots {
    /// In the entries of its services: their numbers in order.
    Members(Box<[u32]>),
    /// One for each backend.
    Each(Vec<u32>),
    /// A Maglev table of this size over these backends; what it holds is computed when it is asked for.
    Table {
        /// Slots in use.
        size: u32,
        /// Numbers of the backends.
        members: Box<[u32]>,
    },
    /// As found in the maps.
    Found(BTreeMap<u32, Chunk>),
}

impl Slots {
    /// The numbers of the backends in it, each once.
    pub fn members(&self) -> BTreeSet<u32> {
        match self {
            Self::Each(slots) => slots.iter().copied().filter(|number| *number != 0).collect(),
            Self::Members(members) | Self::Table { members, .. } => members.iter().copied().collect(),
            Self::Found(chunks) => chunks
                .values()
                .flat_map(|chunk| chunk.backends)
                .filter(|number| *number != 0)
                .collect(),
        }
    }

    /// The slots from the first to the last that is in use.
    pub fn flat(&self) -> Vec<u32> {
        match self {
            Self::Each(slots) => slots.clone(),
            Self::Members(_) | Self::Table { .. } => Vec::new(),
            Self::Found(chunks) => {
                let count = chunks.keys().next_back().map_or(0, |last| *last as usize + 1);
                // A key from elsewhere may be any number: what no pool of ours has is not laid out.
                let mut flat = vec![0; count.min(1 << 16) * CHUNK_SLOTS];
                for (number, chunk) in chunks {
                    let start = *number as usize * CHUNK_SLOTS;
                    if let Some(slots) = flat.get_mut(start..start + CHUNK_SLOTS) {
                        slots.copy_from_slice(&chunk.backends);
                    }
                }
                flat
            }
        }
    }
}

/// Whether so many backends are to stand in the entries of the services. Those of a pool that has slots do when they
/// are at most three quarters of what fits, since the change moves flows.
pub fn are_members(backends: usize, held: &Slots) -> bool {
    let most = match held {
        Slots::Members(_) => MEMBERS_MAX,
        _ => MEMBERS_MAX / 4 * 3 + MEMBERS_MAX % 4 * 3 / 4,
    };
    backends <= most
}

/// The chunks of some slots, the last one filled up with zeros.
pub fn chunks(slots: &[u32]) -> BTreeMap<u32, Chunk> {
    (0..)
        .zip(slots.chunks(CHUNK_SLOTS))
        .map(|(number, part)| {
            let mut chunk = Chunk::default();
            for (to, from) in chunk.backends.iter_mut().zip(part) {
                *to = *from;
            }
            (number, chunk)
        })
        .collect()
}

/// Changes of a pool's chunks.
#[derive(Debug, Default)]
pub struct ChunkChanges {
    /// To be written before the services' counts.
    pub put: Vec<(ChunkKey, Chunk)>,
    /// To be written after them: slots beyond the new count become zero.
    pub clear: Vec<(ChunkKey, Chunk)>,
    /// To be removed after them.
    pub remove: Vec<ChunkKey>,
}

/// The changes from what the pool has to `slots`, such that a reader with the old count finds a backend in each of
/// its slots until the second part, and one with the new count from the first part on.
pub fn changes(pool: u32, old: &BTreeMap<u32, Chunk>, slots: &[u32]) -> ChunkChanges {
    let mut changes = ChunkChanges::default();
    for (number, (chunk, new)) in (0_usize..).zip(chunks(slots)) {
        let key = ChunkKey { pool, chunk };
        let known = old.get(&chunk);
        if known == Some(&new) {
            continue;
        }
        let mut first = new;
        if let Some(known) = known {
            let used = slots.len() - number * CHUNK_SLOTS;
            for (to, from) in first.backends.iter_mut().zip(known.backends).skip(used) {
                *to = from;
            }
        }
        if known != Some(&first) {
            changes.put.push((key, first));
        }
        if first != new {
            changes.clear.push((key, new));
        }
    }
    let count = slots.len().div_ceil(CHUNK_SLOTS);
    changes.remove = old
        .keys()
        .filter(|chunk| **chunk as usize >= count)
        .map(|chunk| ChunkKey { pool, chunk: *chunk })
        .collect();
    changes
}

//! Carrying out a plan: a system call for each operation.

use std::collections::HashSet;

use aya::maps::{HashMap, LpmTrie, MapData, lpm_trie::Key};
use orch_ebpf::service::{
    BACKENDS_MAP, BackendKey, Chunk, ChunkKey, SERVICES_MAP, SLOTS_MAP, SOURCES_MAP, Source, SourceKey,
};

use crate::{
    DataplaneError,
    maps::{FamilyMaps, MapAddress, entries, failed, gone_or},
    plan::{Found, MapOp},
};

/// The map of chunks.
pub type ChunkMap = HashMap<MapData, ChunkKey, Chunk>;
/// What it holds.
pub type Chunks = Vec<(ChunkKey, Chunk)>;

/// Reads all chunks.
///
/// # Errors
/// When the kernel refuses.
pub fn chunks(map: &ChunkMap) -> Result<Chunks, DataplaneError> {
    entries(SLOTS_MAP, map)
}

/// Reads a family's service maps.
///
/// # Errors
/// When the kernel refuses.
pub fn found<A: MapAddress>(maps: &FamilyMaps<A>, chunks: &Chunks) -> Result<Found<A>, DataplaneError> {
    let sources: Vec<(Key<SourceKey<A>>, Source)> = maps
        .sources
        .iter()
        .collect::<Result<_, _>>()
        .map_err(failed(SOURCES_MAP))?;
    let backends = entries(BACKENDS_MAP, &maps.backends)?;
    Ok(Found {
        services: entries(SERVICES_MAP, &maps.services)?,
        chunks: chunks.clone(),
        backends: backends
            .into_iter()
            .map(|(key, backend)| (key.id, backend))
            .collect(),
        sources: sources
            .into_iter()
            .map(|(key, _)| (key.prefix_len().saturating_sub(POOL_BITS), key.data()))
            .collect(),
    })
}

/// Bits of the pool's number at the start of a source range's key.
const POOL_BITS: u32 = 32;

fn source_key<A: MapAddress>(prefix: u32, key: SourceKey<A>) -> Key<SourceKey<A>> {
    // The trie compares bits from the first byte on; the pool is compared whole, in whatever order its bytes are.
    Key::new(POOL_BITS + prefix, key)
}

/// Carries the operations out in their order.
///
/// # Errors
/// When the kernel refuses one; those after it are not done.
pub fn apply<A: MapAddress>(
    maps: &mut FamilyMaps<A>,
    chunks: &mut ChunkMap,
    ops: &[MapOp<A>],
) -> Result<(), DataplaneError> {
    for op in ops {
        one(maps, chunks, op)?;
    }
    Ok(())
}

fn one<A: MapAddress>(
    maps: &mut FamilyMaps<A>,
    chunks: &mut ChunkMap,
    op: &MapOp<A>,
) -> Result<(), DataplaneError> {
    match op {
        MapOp::PutBackend(id, backend) => maps
            .backends
            .insert(BackendKey { id: *id }, backend, 0)
            .map_err(failed(BACKENDS_MAP)),
        MapOp::PutChunk(key, chunk) => chunks.insert(key, chunk, 0).map_err(failed(SLOTS_MAP)),
        MapOp::PutSource(prefix, key) => put_source(&mut maps.sources, &source_key(*prefix, *key)),
        MapOp::PutService(key, service) => maps
            .services
            .insert(key, **service, 0)
            .map_err(failed(SERVICES_MAP)),
        MapOp::RemoveService(key) => gone_or(maps.services.remove(key)).map_err(failed(SERVICES_MAP)),
        MapOp::RemoveSource(prefix, key) => {
            gone_or(maps.sources.remove(&source_key(*prefix, *key))).map_err(failed(SOURCES_MAP))
        }
        MapOp::RemoveChunk(key) => gone_or(chunks.remove(key)).map_err(failed(SLOTS_MAP)),
        MapOp::RemoveBackend(id, _) => {
            gone_or(maps.backends.remove(&BackendKey { id: *id })).map_err(failed(BACKENDS_MAP))
        }
    }
}

fn put_source<A: MapAddress>(
    map: &mut LpmTrie<MapData, SourceKey<A>, Source>,
    key: &Key<SourceKey<A>>,
) -> Result<(), DataplaneError> {
    map.insert(key, Source { allowed: 1 }, 0)
        .map_err(failed(SOURCES_MAP))
}

/// Takes out of the waiting operations those that the new ones have overtaken.
pub fn cancel<A: MapAddress>(waiting: &mut Vec<MapOp<A>>, new: &[MapOp<A>]) {
    if waiting.is_empty() {
        return;
    }
    let target = |op: &MapOp<A>| match op {
        MapOp::PutChunk(key, _) | MapOp::RemoveChunk(key) => Some(*key),
        _ => None,
    };
    let put: HashSet<ChunkKey> = new.iter().filter_map(target).collect();
    if !put.is_empty() {
        waiting.retain(|op| target(op).is_none_or(|target| !put.contains(&target)));
    }
}

//! Services, their pools and who uses them.

use std::collections::{BTreeMap, BTreeSet, HashMap as Index};

use aya::maps::{Array, MapData};
use orch_ebpf::service::{
    AFFINITY_MAP, Affinity, AffinityKey, BACKEND_LOCAL, BACKENDS_MAP, Backend, BackendKey, CHUNK_SLOTS,
    CLIENT_NAMESPACE, Chunk, ChunkKey, SCOPE_EXTERNAL, SERVICE_HOST_PORT, SERVICE_LOCAL, SERVICE_SOURCES,
    SERVICES_MAP, SLOTS_MAP, SOCKETS_MAP, SOURCES_MAP, STREAMS_MAP, Service, ServiceKey, SocketKey,
    SocketOrigin, Source, SourceKey, Stream,
};
use serde_json::{Value, json};

use super::{Cell, Pins, Table, both, flags, network, seconds_since, socket, table::row, wide};
use crate::{
    DataplaneError,
    maps::{self, MapAddress},
    monitor::protocol,
};

type Slots = aya::maps::HashMap<MapData, ChunkKey, Chunk>;

pub(super) fn services(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let columns = [
        "service",
        "protocol",
        "clients",
        "pool",
        "slots",
        "affinity_seconds",
        "options",
        "backends",
    ];
    both!(Table::new(&columns), services_of, pins)
}

fn services_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    let all = pins.hash::<ServiceKey<A>, Service<A>, _>(SERVICES_MAP, A::SUFFIX, |key, _| *key)?;
    let backends: Index<BackendKey, Backend<A>> = pins
        .hash::<_, _, _>(BACKENDS_MAP, A::SUFFIX, |key: &BackendKey, _| *key)?
        .into_iter()
        .collect();
    let slots: Slots = pins.open(SLOTS_MAP, "")?;
    for (key, service) in all {
        let external = key.scope == SCOPE_EXTERNAL;
        let mut counts: BTreeMap<Option<Backend<A>>, u32> = BTreeMap::new();
        for id in slots_of(&slots, &service) {
            *counts
                .entry(backends.get(&BackendKey { id }).copied())
                .or_default() += 1;
        }
        table.push(vec![
            json!(socket(key.address, key.port)).into(),
            json!(protocol(key.protocol)).into(),
            json!(if external { "outside" } else { "cluster" }).into(),
            json!(service.pool).into(),
            json!(service.count).into(),
            json!(service.affinity_seconds).into(),
            json!(flags(
                service.flags,
                [
                    (SERVICE_SOURCES, "sources"),
                    (SERVICE_LOCAL, "local"),
                    (SERVICE_HOST_PORT, "host-port")
                ]
            ))
            .into(),
            shares(&counts, service.count),
        ]);
    }
    Ok(())
}

/// The backend in each of the service's slots, or its members.
fn slots_of<A: MapAddress>(slots: &Slots, service: &Service<A>) -> Vec<u32> {
    if let Some(members) = service.members() {
        return members.iter().map(|member| member.id).collect();
    }
    let size = u32::try_from(CHUNK_SLOTS).unwrap_or(u32::MAX);
    (0..service.count.div_ceil(size))
        .flat_map(|chunk| {
            let key = ChunkKey {
                pool: service.pool,
                chunk,
            };
            slots
                .get(&key, 0)
                .map_or([0; CHUNK_SLOTS], |chunk| chunk.backends)
        })
        .take(service.count as usize)
        .collect()
}

/// The backends; with their share where they do not all have the same, as in a Maglev table.
fn shares<A: MapAddress>(counts: &BTreeMap<Option<Backend<A>>, u32>, total: u32) -> Cell {
    let name = |backend: &Option<Backend<A>>| {
        backend.map_or_else(
            || "missing".to_owned(),
            |backend| socket(backend.address, backend.port),
        )
    };
    let share = |count: u32| f64::from(count) / f64::from(total.max(1));
    let value: Vec<Value> = counts
        .iter()
        .map(|(backend, count)| json!({"backend": name(backend), "slots": count, "share": share(*count)}))
        .collect();
    let uneven = counts.values().any(|count| Some(count) != counts.values().next());
    let text: Vec<String> = counts
        .iter()
        .map(|(backend, count)| match uneven {
            true => format!("{} {:.1}%", name(backend), share(*count) * 100.0),
            false => name(backend),
        })
        .collect();
    let text = if text.is_empty() {
        "<none>".to_owned()
    } else {
        text.join(", ")
    };
    Cell::shown(json!(value), text)
}

pub(super) fn backends(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let mut uses: Index<u32, (u32, u32, u32)> = Index::new();
    for (key, chunk) in pins.hash::<ChunkKey, Chunk, _>(SLOTS_MAP, "", |key, _| *key)? {
        for id in chunk.backends.into_iter().filter(|id| *id != 0) {
            let (pool, pools, slots) = uses.entry(id).or_default();
            if *pools == 0 || *pool != key.pool {
                (*pool, *pools) = (key.pool, *pools + 1);
            }
            *slots += 1;
        }
    }
    count_members::<orch_ebpf::Address4>(pins, &mut uses)?;
    count_members::<orch_ebpf::Address6>(pins, &mut uses)?;
    let mut table = Table::new(&["id", "backend", "protocol", "local", "node", "pools", "slots"]);
    backends_of::<orch_ebpf::Address4>(pins, &mut table, &uses)?;
    backends_of::<orch_ebpf::Address6>(pins, &mut table, &uses)?;
    Ok(table)
}

/// Adds the places that backends have in the entries of services: one for each pool, however many services name it.
fn count_members<A: MapAddress>(
    pins: &Pins<'_>,
    uses: &mut Index<u32, (u32, u32, u32)>,
) -> Result<(), DataplaneError> {
    let mut seen = BTreeSet::new();
    let all = pins.hash::<ServiceKey<A>, Service<A>, _>(SERVICES_MAP, A::SUFFIX, |key, _| *key)?;
    for (_, service) in &all {
        for member in service.members().unwrap_or_default() {
            if seen.insert((service.pool, member.id)) {
                let (_, pools, slots) = uses.entry(member.id).or_default();
                *pools += 1;
                *slots += 1;
            }
        }
    }
    Ok(())
}

fn backends_of<A: MapAddress>(
    pins: &Pins<'_>,
    table: &mut Table,
    uses: &Index<u32, (u32, u32, u32)>,
) -> Result<(), DataplaneError> {
    for (key, backend) in pins.hash::<BackendKey, Backend<A>, _>(BACKENDS_MAP, A::SUFFIX, |key, _| *key)? {
        let (_, pools, slots) = uses.get(&key.id).copied().unwrap_or_default();
        table.push(row![
            key.id,
            socket(backend.address, backend.port),
            protocol(backend.protocol),
            backend.flags & BACKEND_LOCAL != 0,
            (backend.node != A::ANY).then(|| backend.node.ip()),
            pools,
            slots,
        ]);
    }
    Ok(())
}

pub(super) fn sources(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    both!(Table::new(&["pool", "network"]), sources_of, pins)
}

fn sources_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    let rank = |key: &aya::maps::lpm_trie::Key<SourceKey<A>>| (key.data(), key.prefix_len());
    for (key, _) in pins.trie::<SourceKey<A>, Source, _>(SOURCES_MAP, A::SUFFIX, rank)? {
        let SourceKey { pool, address } = key.data();
        table.push(row![
            pool,
            network(address, key.prefix_len().saturating_sub(u32::BITS))
        ]);
    }
    Ok(())
}

pub(super) fn affinity(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    let mut table = Table::new(&["pool", "client", "backend_id", "idle_seconds"]);
    let rank = |key: &AffinityKey, _: &Affinity| (key.pool, key.client_kind, key.client);
    for (key, kept) in pins.hash::<AffinityKey, Affinity, _>(AFFINITY_MAP, "", rank)? {
        let client = if key.client_kind == CLIENT_NAMESPACE {
            let [a, b, c, d, e, f, g, h, ..] = key.client;
            format!("namespace {}", u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
        } else {
            wide(key.client).to_string()
        };
        table.push(row![
            key.pool,
            client,
            kept.backend,
            seconds_since(kept.last_used)
        ]);
    }
    Ok(table)
}

pub(super) fn sockets(pins: &Pins<'_>) -> Result<Table, DataplaneError> {
    both!(Table::new(&["cookie", "service", "backend"]), sockets_of, pins)
}

fn sockets_of<A: MapAddress>(pins: &Pins<'_>, table: &mut Table) -> Result<(), DataplaneError> {
    let streams: Array<MapData, Stream<A>> = pins.open(STREAMS_MAP, A::SUFFIX)?;
    let mut all: Vec<_> = maps::streams(&streams)?
        .into_iter()
        .map(|(_, stream)| {
            let backend = (stream.backend, stream.backend_port);
            (backend, stream.cookie, (stream.service, stream.service_port))
        })
        .collect();
    let any = |_: &SocketKey<A>, _: &SocketOrigin<A>| ();
    let datagrams = pins.hash::<SocketKey<A>, SocketOrigin<A>, _>(SOCKETS_MAP, A::SUFFIX, any)?;
    all.extend(datagrams.into_iter().map(|(key, origin)| {
        let service = (origin.address, origin.port);
        ((key.address, key.port), key.cookie, service)
    }));
    all.sort_unstable();
    for ((backend, backend_port), cookie, (service, service_port)) in all {
        let [low, high] = cookie.map(u64::from);
        table.push(row![
            high << 32 | low,
            socket(service, service_port),
            socket(backend, backend_port),
        ]);
    }
    Ok(())
}

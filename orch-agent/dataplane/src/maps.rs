//! The pinned maps, typed, once for each family of addresses.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, IterableMap, LpmTrie, Map, MapData, MapError, PerCpuArray},
};
use orch_ebpf::{
    Address, Address4, Address6,
    bandwidth::{BUCKETS_MAP, Bucket, BucketKey},
    config::{
        ANNOUNCED_MAP, Announced, CONFIG_MAP, Config, NODES_MAP, Node, ROUTES_MAP, Route, UPLINKS_MAP,
        Uplink, UplinkKey,
    },
    conntrack::{CONNTRACK_MAP, Conntrack, FRAGMENTS_MAP, Tuple},
    endpoint::{ENDPOINTS_MAP, Endpoint},
    event::{Counter, EVENTS_MAP, METRICS_MAP},
    flow_table::ROWS_MAP,
    policy::{IDENTITIES_MAP, Identity, RULES_MAP, Rule, RuleKey},
    service::{
        AFFINITY_MAP, Affinity, AffinityKey, BACKENDS_MAP, Backend, BackendKey, Chunk, ChunkKey,
        SERVICES_MAP, SLOTS_MAP, SOCKETS_MAP, SOURCES_MAP, STREAMS_MAP, Service, ServiceKey, SocketKey,
        SocketOrigin, Source, SourceKey, Stream,
    },
};

use crate::{DataplaneError, flow_table::FlowTable, sys::BatchReader};

/// Entries that one system call reads.
const BATCH: usize = 4096;

/// The maps that both families share.
const SHARED: [&str; 7] = [
    CONFIG_MAP,
    SLOTS_MAP,
    AFFINITY_MAP,
    BUCKETS_MAP,
    RULES_MAP,
    EVENTS_MAP,
    METRICS_MAP,
];

/// The maps that each family has of its own, without the family's suffix.
const OF_FAMILY: [&str; 14] = [
    NODES_MAP,
    ROUTES_MAP,
    UPLINKS_MAP,
    ANNOUNCED_MAP,
    SERVICES_MAP,
    BACKENDS_MAP,
    SOURCES_MAP,
    STREAMS_MAP,
    SOCKETS_MAP,
    ENDPOINTS_MAP,
    ROWS_MAP,
    CONNTRACK_MAP,
    FRAGMENTS_MAP,
    IDENTITIES_MAP,
];

/// Every map of the ABI.
pub fn names() -> impl Iterator<Item = String> {
    let families = [Address4::SUFFIX, Address6::SUFFIX];
    let of_family = OF_FAMILY
        .into_iter()
        .flat_map(move |name| families.map(|suffix| format!("{name}{suffix}")));
    SHARED.into_iter().map(str::to_owned).chain(of_family)
}

/// Where the maps are pinned.
#[must_use]
pub fn folder(bpf_root: &Path) -> PathBuf {
    bpf_root.join("maps")
}

/// A type whose values are both an address and bytes of a map.
pub trait MapAddress: Address + Pod {}
impl<A: Address + Pod> MapAddress for A {}

/// One family's maps that the agent reads and writes.
pub struct FamilyMaps<A: MapAddress> {
    /// Addresses of nodes.
    pub nodes: HashMap<MapData, A, Node>,
    /// What goes through the tunnel.
    pub routes: LpmTrie<MapData, A, Route>,
    /// Addresses of uplinks.
    pub uplinks: HashMap<MapData, UplinkKey, Uplink<A>>,
    /// Addresses that this node answers for.
    pub announced: HashMap<MapData, A, Announced>,
    /// Services.
    pub services: HashMap<MapData, ServiceKey<A>, Service<A>>,
    /// Backends.
    pub backends: HashMap<MapData, BackendKey, Backend<A>>,
    /// Source ranges of services.
    pub sources: LpmTrie<MapData, SourceKey<A>, Source>,
    /// TCP sockets that talk to backends.
    pub streams: Array<MapData, Stream<A>>,
    /// UDP sockets that talk to backends.
    pub sockets: HashMap<MapData, SocketKey<A>, SocketOrigin<A>>,
    /// Local pods.
    pub endpoints: HashMap<MapData, A, Endpoint>,
    /// Flows.
    pub conntrack: FlowTable<A>,
    /// Identities of addresses.
    pub identities: LpmTrie<MapData, A, Identity>,
}

/// The maps that the agent reads and writes.
pub struct Maps {
    /// The node's settings.
    pub config: Array<MapData, Config>,
    /// Slots of pools.
    pub slots: HashMap<MapData, ChunkKey, Chunk>,
    /// Who keeps which backend.
    pub affinity: HashMap<MapData, AffinityKey, Affinity>,
    /// Limits of bandwidth.
    pub buckets: HashMap<MapData, BucketKey, Bucket>,
    /// Rules of policies.
    pub rules: LpmTrie<MapData, RuleKey, Rule>,
    /// Counters.
    pub metrics: PerCpuArray<MapData, Counter>,
    /// IPv4's.
    pub v4: FamilyMaps<Address4>,
    /// IPv6's.
    pub v6: FamilyMaps<Address6>,
}

/// Wraps a map's error with its name.
pub fn failed(name: &'static str) -> impl Fn(MapError) -> DataplaneError {
    move |source| DataplaneError::Map {
        name,
        source: Box::new(source),
    }
}

/// Every entry of a hash or an array, read at few goes.
///
/// # Errors
/// When the kernel refuses.
pub fn entries<K: Pod + Default, V: Pod + Default>(
    name: &'static str,
    map: &impl IterableMap<K, V>,
) -> Result<Vec<(K, V)>, DataplaneError> {
    let read = || {
        let map = MapData::from_fd(map.map().fd().as_fd().try_clone_to_owned()?).map_err(io::Error::other)?;
        let mut reader = BatchReader::new(map, BATCH)?;
        let mut all = Vec::new();
        while let Some(entries) = reader.next()? {
            all.extend(entries.map(|(key, value)| (*key, *value)));
        }
        Ok(all)
    };
    read().map_err(|source| DataplaneError::Syscall {
        call: format!("read the map {name}"),
        source,
    })
}

/// The slots of [`STREAMS_MAP`] that are in use, with their numbers.
///
/// # Errors
/// When the kernel refuses.
pub fn streams<A: MapAddress>(
    map: &Array<MapData, Stream<A>>,
) -> Result<Vec<(u32, Stream<A>)>, DataplaneError> {
    let mut all = entries(STREAMS_MAP, map)?;
    all.retain(|(_, stream)| stream.cookie != [0; 2]);
    Ok(all)
}

/// Opens a pinned map.
fn pinned(folder: &Path, name: &str) -> Result<Map, DataplaneError> {
    MapData::from_pin(folder.join(name))
        .and_then(Map::from_map_data)
        .map_err(|source| DataplaneError::Pinned {
            name: name.to_owned(),
            source: Box::new(source),
        })
}

/// Opens the table of flows that is pinned in a directory.
///
/// # Errors
/// When it is not there or has another shape, or its memory cannot be mapped.
pub fn pinned_flows<A: MapAddress>(folder: &Path) -> Result<FlowTable<A>, DataplaneError> {
    flows(&mut |name| pinned(folder, name))
}

fn flows<A: MapAddress>(
    find: &mut impl FnMut(&str) -> Result<Map, DataplaneError>,
) -> Result<FlowTable<A>, DataplaneError> {
    FlowTable::new(
        open(ROWS_MAP, A::SUFFIX, find)?,
        open(CONNTRACK_MAP, A::SUFFIX, find)?,
    )
}

fn open<T>(
    name: &'static str,
    suffix: &str,
    find: &mut impl FnMut(&str) -> Result<Map, DataplaneError>,
) -> Result<T, DataplaneError>
where
    T: TryFrom<Map, Error = MapError>,
{
    find(&format!("{name}{suffix}"))?.try_into().map_err(failed(name))
}

impl<A: MapAddress> FamilyMaps<A> {
    fn collect(find: &mut impl FnMut(&str) -> Result<Map, DataplaneError>) -> Result<Self, DataplaneError> {
        Ok(Self {
            nodes: open(NODES_MAP, A::SUFFIX, find)?,
            routes: open(ROUTES_MAP, A::SUFFIX, find)?,
            uplinks: open(UPLINKS_MAP, A::SUFFIX, find)?,
            announced: open(ANNOUNCED_MAP, A::SUFFIX, find)?,
            services: open(SERVICES_MAP, A::SUFFIX, find)?,
            backends: open(BACKENDS_MAP, A::SUFFIX, find)?,
            sources: open(SOURCES_MAP, A::SUFFIX, find)?,
            streams: open(STREAMS_MAP, A::SUFFIX, find)?,
            sockets: open(SOCKETS_MAP, A::SUFFIX, find)?,
            endpoints: open(ENDPOINTS_MAP, A::SUFFIX, find)?,
            conntrack: flows(find)?,
            identities: open(IDENTITIES_MAP, A::SUFFIX, find)?,
        })
    }

    /// Forgets every flow that `over` names; how many entries.
    ///
    /// # Errors
    /// When the flows cannot be read.
    pub fn forget_flows(
        &self,
        over: impl Fn(&Tuple<A>, &Conntrack<A>) -> bool,
    ) -> Result<usize, DataplaneError> {
        let forget = || {
            let flows = self.conntrack.open()?;
            let mut forgotten = 0;
            for (tuple, entry) in flows.all()? {
                // One that has gone by itself meanwhile is as gone as one removed here.
                if over(&tuple, &entry) && flows.remove(&tuple)? {
                    forgotten += 1;
                }
            }
            Ok(forgotten)
        };
        forget().map_err(|source| DataplaneError::Syscall {
            call: "forget flows".to_owned(),
            source,
        })
    }
}

impl Maps {
    /// Takes the maps out of a loaded object.
    ///
    /// # Errors
    /// When the object lacks one or one has another shape.
    pub fn of(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        Self::collect(|name| {
            ebpf.take_map(name)
                .ok_or_else(|| DataplaneError::Missing(name.to_owned()))
        })
    }

    /// Opens the pinned maps under `bpf_root`, for reading beside a running agent.
    ///
    /// # Errors
    /// When one is not there or has another shape.
    pub fn pinned(bpf_root: &Path) -> Result<Self, DataplaneError> {
        let folder = folder(bpf_root);
        Self::collect(|name| pinned(&folder, name))
    }

    fn collect(mut find: impl FnMut(&str) -> Result<Map, DataplaneError>) -> Result<Self, DataplaneError> {
        Ok(Self {
            config: open(CONFIG_MAP, "", &mut find)?,
            slots: open(SLOTS_MAP, "", &mut find)?,
            affinity: open(AFFINITY_MAP, "", &mut find)?,
            buckets: open(BUCKETS_MAP, "", &mut find)?,
            rules: open(RULES_MAP, "", &mut find)?,
            metrics: open(METRICS_MAP, "", &mut find)?,
            v4: FamilyMaps::collect(&mut find)?,
            v6: FamilyMaps::collect(&mut find)?,
        })
    }
}

/// Takes "not there" for removed.
///
/// # Errors
/// Any other refusal.
pub fn gone_or(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

//! The maps, each defined once; their BTF lets `bpftool map dump` print field names.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};

use crate::{Address, config, conntrack, endpoint, event, service};

/// `BPF_F_NO_PREALLOC` (linux/bpf.h): memory grows with the entries in use, not with the capacity.
const ON_DEMAND: usize = 1;

/// The node's settings.
#[btf_map]
pub static ORCH_CONFIG: Array<config::Config, 1> = Array::new();
/// Addresses of nodes.
#[btf_map]
pub static ORCH_NODES: HashMap<Address, config::Node, { config::NODES_MAX }, ON_DEMAND> = HashMap::new();
/// Services.
#[btf_map]
pub static ORCH_SERVICES: HashMap<
    service::ServiceKey,
    service::Service,
    { service::SERVICES_MAX },
    ON_DEMAND,
> = HashMap::new();
/// Slots of pools.
#[btf_map]
pub static ORCH_SLOTS: HashMap<service::SlotKey, service::Slot, { service::SLOTS_MAX }, ON_DEMAND> =
    HashMap::new();
/// Backends.
#[btf_map]
pub static ORCH_BACKENDS: HashMap<
    service::BackendKey,
    service::Backend,
    { service::BACKENDS_MAX },
    ON_DEMAND,
> = HashMap::new();
/// Session affinity.
#[btf_map]
pub static ORCH_AFFINITY: LruHashMap<service::AffinityKey, service::Affinity, { service::AFFINITY_MAX }> =
    LruHashMap::new();
/// What sockets asked for.
#[btf_map]
pub static ORCH_SOCKETS: LruHashMap<service::SocketKey, service::SocketOrigin, { service::SOCKETS_MAX }> =
    LruHashMap::new();
/// This node's pods.
#[btf_map]
pub static ORCH_ENDPOINTS: HashMap<Address, endpoint::Endpoint, { endpoint::ENDPOINTS_MAX }, ON_DEMAND> =
    HashMap::new();
/// Translated flows.
#[btf_map]
pub static ORCH_CONNTRACK: LruHashMap<conntrack::Tuple, conntrack::Conntrack, { conntrack::CONNTRACK_MAX }> =
    LruHashMap::new();
/// Ports of fragmented datagrams.
#[btf_map]
pub static ORCH_FRAGMENTS: LruHashMap<
    conntrack::FragmentKey,
    conntrack::Fragment,
    { conntrack::FRAGMENTS_MAX },
> = LruHashMap::new();
/// Dropped packets.
#[btf_map]
pub static ORCH_EVENTS: RingBuf<event::DropEvent, { event::EVENTS_BYTES }> = RingBuf::new();
/// Counters.
#[btf_map]
pub static ORCH_METRICS: PerCpuArray<event::Counter, { event::METRICS_MAX }> = PerCpuArray::new();

//! The maps, each defined once; their BTF lets `bpftool map dump` print field names.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};

use super::parse::Parsed;
use crate::{
    Address4, Address6,
    bandwidth::{self, Bucket, BucketKey},
    config::{self, Announced, Node, Route, Uplink, UplinkKey},
    conntrack::{self, Conntrack, Fragment, FragmentKey, Tuple},
    endpoint::{self, Endpoint},
    event,
    flow_table::{self, Row, Slot},
    policy::{self, Identity, Rule, RuleKey},
    service::{
        self, Affinity, AffinityKey, Backend, BackendKey, Chunk, ChunkKey, Service, ServiceKey, SocketKey,
        SocketOrigin, Source, SourceKey, Stream,
    },
};

/// `BPF_F_NO_PREALLOC` (linux/bpf.h): memory grows with the entries in use, not with the capacity.
const ON_DEMAND: usize = 1;
/// `BPF_F_MMAPABLE` (linux/bpf.h): the agent works in the same memory, and elements do not straddle pages' lines.
const MAPPED: usize = 1024;

/// Addresses of nodes.
pub type Nodes<A> = HashMap<A, Node, { config::NODES_MAX }, ON_DEMAND>;
/// What goes through the tunnel.
pub type Routes<A> = LpmTrie<A, Route, { config::ROUTES_MAX }>;
/// Addresses of uplinks.
pub type Uplinks<A> = HashMap<UplinkKey, Uplink<A>, { config::UPLINKS_MAX }, ON_DEMAND>;
/// Addresses that this node answers for.
pub type AnnouncedMap<A> = HashMap<A, Announced, { config::ANNOUNCED_MAX }, ON_DEMAND>;
/// Services.
pub type Services<A> = HashMap<ServiceKey<A>, Service<A>, { service::SERVICES_MAX }, ON_DEMAND>;
/// Backends.
pub type Backends<A> = HashMap<BackendKey, Backend<A>, { service::BACKENDS_MAX }, ON_DEMAND>;
/// Source ranges of services.
pub type Sources<A> = LpmTrie<SourceKey<A>, Source, { service::SOURCES_MAX }>;
/// What TCP sockets asked for.
pub type Streams<A> = Array<Stream<A>, { service::STREAMS_MAX }>;
/// What UDP sockets asked for.
pub type Sockets<A> = LruHashMap<SocketKey<A>, SocketOrigin<A>, { service::SOCKETS_MAX }>;
/// This node's pods.
pub type Endpoints<A> = HashMap<A, Endpoint, { endpoint::ENDPOINTS_MAX }, ON_DEMAND>;
/// Flows.
pub type ConntrackMap<A> = Array<Slot<A>, { conntrack::CONNTRACK_MAX }, MAPPED>;
/// What is in which slot of flows.
pub type Rows = Array<Row, { flow_table::ROWS + 1 }, MAPPED>;
/// Ports of fragmented datagrams.
pub type Fragments<A> = LruHashMap<FragmentKey<A>, Fragment, { conntrack::FRAGMENTS_MAX }>;
/// Identities of addresses.
pub type Identities<A> = LpmTrie<A, Identity, { policy::IDENTITIES_MAX }>;

/// What a run of a program is about: it would not fit on the stack beside what its steps need. A run is never
/// interrupted by another on the same CPU, so one slot serves all programs. Not pinned, and no part of the ABI.
#[derive(Clone, Copy)]
pub struct Scratch<A> {
    /// The packet.
    pub parsed: Parsed<A>,
    /// An entry of connection tracking that is being made. Its `macs` may be written before the rest, see `hop`.
    pub entry: Conntrack<A>,
    /// What is known of answers that have no slot of their own yet.
    pub answered: Conntrack<A>,
    /// What the packet of a flow that is being opened becomes.
    pub becomes: Tuple<A>,
    /// The packet that answers it.
    pub answer: Tuple<A>,
    /// The `hop` of its entry, where it is found before that is written; the `macs` are in `entry` then. Zero otherwise.
    pub hop: u32,
    /// Where the packet was sent that carried this one here; [`crate::Address::ANY`] if it came by itself.
    pub carrier: A,
    /// A part of a packet that an error is to quote.
    pub quote: [u32; QUOTE_WORDS],
    /// When the CPU began to count errors, in nanoseconds.
    pub told_since: u64,
    /// How many it has sent since.
    pub told: u64,
}

/// Words of [`Scratch::quote`]: a quarter of what an error quotes at most.
pub const QUOTE_WORDS: usize = 77;

/// One run's scratch memory.
pub type Scratches<A> = PerCpuArray<Scratch<A>, 1>;

/// How packets for the pods of a node leave, as the routes have said within a second. Of one CPU, not pinned, and no part
/// of the ABI.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NodeHop<A> {
    /// The node's address; a slot serves whichever of its nodes came last, and nobody while it is zero.
    pub node: A,
    /// The interface by which they come in and leave.
    pub ifindex: u32,
    /// The kernel's count of ticks when the routes were asked.
    pub ticks: u32,
    /// Ethernet destination and source that they leave with.
    pub macs: [u8; 12],
}

/// Slots of [`NodeHops`].
pub const NODE_HOPS: u32 = 512;

/// What a CPU knows of the ways to nodes.
pub type NodeHops<A> = PerCpuArray<NodeHop<A>, { NODE_HOPS as usize }>;

macro_rules! maps_of_families {
    ($($doc:literal $type:ident $kind:ident $four:ident $six:ident,)+) => {
        $(
            #[doc = concat!($doc, ", IPv4.")]
            #[btf_map]
            pub static $four: $type<Address4> = $kind::new();
            #[doc = concat!($doc, ", IPv6.")]
            #[btf_map]
            pub static $six: $type<Address6> = $kind::new();
        )+
    };
}

maps_of_families! {
    "Addresses of nodes" Nodes HashMap ORCH_NODES4 ORCH_NODES6,
    "What goes through the tunnel" Routes LpmTrie ORCH_ROUTES4 ORCH_ROUTES6,
    "Addresses of uplinks" Uplinks HashMap ORCH_UPLINKS4 ORCH_UPLINKS6,
    "Addresses that this node answers for" AnnouncedMap HashMap ORCH_ANNOUNCED4 ORCH_ANNOUNCED6,
    "Services" Services HashMap ORCH_SERVICES4 ORCH_SERVICES6,
    "Backends" Backends HashMap ORCH_BACKENDS4 ORCH_BACKENDS6,
    "Source ranges of services" Sources LpmTrie ORCH_SOURCES4 ORCH_SOURCES6,
    "What TCP sockets asked for" Streams Array ORCH_STREAMS4 ORCH_STREAMS6,
    "What UDP sockets asked for" Sockets LruHashMap ORCH_SOCKETS4 ORCH_SOCKETS6,
    "This node's pods" Endpoints HashMap ORCH_ENDPOINTS4 ORCH_ENDPOINTS6,
    "Flows" ConntrackMap Array ORCH_CONNTRACK4 ORCH_CONNTRACK6,
    "Ports of fragmented datagrams" Fragments LruHashMap ORCH_FRAGMENTS4 ORCH_FRAGMENTS6,
    "Scratch memory" Scratches PerCpuArray ORCH_SCRATCH4 ORCH_SCRATCH6,
    "Ways to nodes" NodeHops PerCpuArray ORCH_HOPS4 ORCH_HOPS6,
    "Identities of addresses" Identities LpmTrie ORCH_IDENTITIES4 ORCH_IDENTITIES6,
}

/// Rows of flows, IPv4.
#[btf_map]
pub static ORCH_ROWS4: Rows = Array::new();
/// Rows of flows, IPv6.
#[btf_map]
pub static ORCH_ROWS6: Rows = Array::new();
/// The node's settings.
#[btf_map]
pub static ORCH_CONFIG: Array<config::Config, 1> = Array::new();
/// Slots of pools.
#[btf_map]
pub static ORCH_SLOTS: HashMap<ChunkKey, Chunk, { service::SLOTS_MAX }, ON_DEMAND> = HashMap::new();
/// Session affinity.
#[btf_map]
pub static ORCH_AFFINITY: LruHashMap<AffinityKey, Affinity, { service::AFFINITY_MAX }> = LruHashMap::new();
/// Limits of bandwidth.
#[btf_map]
pub static ORCH_BUCKETS: HashMap<BucketKey, Bucket, { bandwidth::BUCKETS_MAX }, ON_DEMAND> = HashMap::new();
/// Rules of policies.
#[btf_map]
pub static ORCH_RULES: LpmTrie<RuleKey, Rule, { policy::RULES_MAX }> = LpmTrie::new();
/// Drops, flows and verdicts.
#[btf_map]
pub static ORCH_EVENTS: RingBuf<event::Event, { event::EVENTS_BYTES }> = RingBuf::new();
/// Counters.
#[btf_map]
pub static ORCH_METRICS: PerCpuArray<event::Counter, { event::METRICS_MAX }> = PerCpuArray::new();

//! Prometheus metrics of the data plane. A scrape reads counters and sizes that somebody keeps anyway, and walks no map
//! that can be large; the tables that only the kernel counts are walked in the background, while somebody scrapes.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant, SystemTime},
};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData},
};
use orch_ebpf::{
    Address4, Address6,
    bandwidth::{BUCKETS_MAP, Bucket, BucketKey},
    config::{ANNOUNCED_MAP, Announced, NODES_MAP, Node, ROUTES_MAP, Route, UPLINKS_MAP, Uplink, UplinkKey},
    conntrack::{FRAGMENTS_MAP, Fragment, FragmentKey},
    endpoint::{ENDPOINTS_MAP, Endpoint},
    event::{DropReason, METRICS_PATHS, Path as Way},
    policy::{IDENTITIES_MAP, Identity, RULES_MAP, Rule, RuleKey},
    service::{
        AFFINITY_MAP, Affinity, AffinityKey, BACKENDS_MAP, Backend, BackendKey, Chunk, ChunkKey,
        SERVICES_MAP, SLOTS_MAP, SOCKETS_MAP, SOURCES_MAP, STREAMS_MAP, Service, ServiceKey, SocketKey,
        SocketOrigin, Source, SourceKey, Stream,
    },
};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{inspect, maps, shared::Shared};

/// How long a walk of one table may take.
const WALK: Duration = Duration::from_millis(100);
/// How old the sizes of walked tables may be.
const WALK_AGE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabels {
    path: &'static str,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MapLabels {
    map: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProgramLabels {
    program: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabels {
    family: &'static str,
}

type Seconds = Counter<f64, AtomicU64>;

/// What is measured while it happens. Cloning is cheap and counts on in the same place.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// From the first watch event that a sync takes up to the maps that show it.
    latency: Histogram,
    /// Of one sync of the service maps.
    sync: Histogram,
    last_sync: Gauge<f64, AtomicU64>,
    failures: Counter,
    /// Entries by map: written by whoever knows.
    entries: Arc<Mutex<BTreeMap<String, u64>>>,
    walked: Arc<Mutex<Option<Instant>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            latency: Histogram::new(exponential_buckets(0.000_25, 2.0, 18)),
            sync: Histogram::new(exponential_buckets(0.000_25, 2.0, 18)),
            last_sync: Gauge::default(),
            failures: Counter::default(),
            entries: Arc::default(),
            walked: Arc::default(),
        }
    }
}

impl Metrics {
    /// A sync that started at `started` has brought the maps up to date with what the watches said from `since` on.
    pub fn synced(&self, since: Instant, started: Instant) {
        self.latency.observe(since.elapsed().as_secs_f64());
        self.sync.observe(started.elapsed().as_secs_f64());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        self.last_sync.set(now.map_or(0.0, |now| now.as_secs_f64()));
    }

    /// A sync failed and will be tried again.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// Somebody has counted the entries of a map.
    pub fn counted(&self, map: &str, suffix: &str, entries: usize) {
        let entries = u64::try_from(entries).unwrap_or(u64::MAX);
        self.entries.lock().insert(format!("{map}{suffix}"), entries);
    }

    /// Puts everything into a registry that is read once.
    pub fn register(&self, shared: &Arc<Shared>, registry: &mut Registry) {
        registry.register(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "How long one sync of the service maps took",
            self.sync.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When the service maps were last brought up to date",
            self.last_sync.clone(),
        );
        registry.register(
            "orch_dataplane_sync_latency_seconds",
            "From a watch event of a Service, EndpointSlice or Node to the maps that show it",
            self.latency.clone(),
        );
        registry.register(
            "orch_dataplane_sync_failures",
            "Syncs of the maps that failed and were tried again",
            self.failures.clone(),
        );
        packets(shared, registry);
        objects(shared, registry);
        programs(shared, registry);
        self.maps(shared, registry);
        self.walk(shared);
    }

    fn maps(&self, shared: &Shared, registry: &mut Registry) {
        let entries = Family::<MapLabels, Gauge<u64, AtomicU64>>::default();
        for (map, count) in self.entries.lock().iter() {
            entries.get_or_create(&MapLabels { map: map.clone() }).set(*count);
        }
        let capacity = Family::<MapLabels, Gauge<u64, AtomicU64>>::default();
        let memory = Family::<MapLabels, Gauge<u64, AtomicU64>>::default();
        for name in maps::names() {
            // A map that cannot be opened has nothing to say.
            let Ok(data) = MapData::from_pin(maps::folder(&shared.config.bpf_root).join(&name)) else {
                continue;
            };
            let labels = MapLabels { map: name };
            if let Ok(info) = data.info() {
                capacity.get_or_create(&labels).set(info.max_entries().into());
            }
            if let Some(bytes) = inspect::map_memory(data.fd()) {
                memory.get_or_create(&labels).set(bytes);
            }
        }
        registry.register(
            "orch_dataplane_map_entries",
            "Entries of a map, as last counted: at a change by who writes it, or at most half a minute ago",
            entries,
        );
        registry.register("orch_dataplane_map_capacity", "Most entries of a map", capacity);
        registry.register(
            "orch_dataplane_map_memory_bytes",
            "Memory that the kernel has given a map (before Linux 6.4, would give it when full)",
            memory,
        );
    }

    /// Counts the tables whose writers do not, unless that was done a short while ago.
    fn walk(&self, shared: &Arc<Shared>) {
        {
            let mut walked = self.walked.lock();
            if walked.is_some_and(|at| at.elapsed() < WALK_AGE) {
                return;
            }
            *walked = Some(Instant::now());
        }
        let (metrics, folder) = (self.clone(), maps::folder(&shared.config.bpf_root));
        let walk = move || {
            for (name, suffix, size) in walkers() {
                let data = MapData::from_pin(folder.join(format!("{name}{suffix}")));
                if let Some(size) = data.ok().and_then(size) {
                    metrics.counted(name, suffix, size);
                }
            }
        };
        // A scrape outside of a runtime, in a test, counts them itself.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(walk)),
            Err(_) => walk(),
        }
    }
}

type Walker = (&'static str, &'static str, fn(MapData) -> Option<usize>);

fn walkers() -> Vec<Walker> {
    let mut all: Vec<Walker> = vec![
        (AFFINITY_MAP, "", |data| hash::<AffinityKey, Affinity>(data)),
        (BUCKETS_MAP, "", |data| hash::<BucketKey, Bucket>(data)),
        (RULES_MAP, "", |data| trie::<RuleKey, Rule>(data)),
        (SLOTS_MAP, "", |data| hash::<ChunkKey, Chunk>(data)),
    ];
    all.extend(walkers_of::<Address4>());
    all.extend(walkers_of::<Address6>());
    all
}

fn walkers_of<A: maps::MapAddress>() -> [Walker; 12] {
    [
        (SERVICES_MAP, A::SUFFIX, |data| {
            hash::<ServiceKey<A>, Service<A>>(data)
        }),
        (BACKENDS_MAP, A::SUFFIX, |data| {
            hash::<BackendKey, Backend<A>>(data)
        }),
        (STREAMS_MAP, A::SUFFIX, |data| {
            let map: Array<MapData, Stream<A>> = Map::from_map_data(data).ok()?.try_into().ok()?;
            Some(maps::streams(&map).ok()?.len())
        }),
        (SOCKETS_MAP, A::SUFFIX, |data| {
            hash::<SocketKey<A>, SocketOrigin<A>>(data)
        }),
        (FRAGMENTS_MAP, A::SUFFIX, |data| {
            hash::<FragmentKey<A>, Fragment>(data)
        }),
        (NODES_MAP, A::SUFFIX, |data| hash::<A, Node>(data)),
        (UPLINKS_MAP, A::SUFFIX, |data| hash::<UplinkKey, Uplink<A>>(data)),
        (ANNOUNCED_MAP, A::SUFFIX, |data| hash::<A, Announced>(data)),
        (ENDPOINTS_MAP, A::SUFFIX, |data| hash::<A, Endpoint>(data)),
        (ROUTES_MAP, A::SUFFIX, |data| trie::<A, Route>(data)),
        (SOURCES_MAP, A::SUFFIX, |data| trie::<SourceKey<A>, Source>(data)),
        (IDENTITIES_MAP, A::SUFFIX, |data| trie::<A, Identity>(data)),
    ]
}

fn hash<K: Pod, V: Pod>(data: MapData) -> Option<usize> {
    let map: HashMap<MapData, K, V> = Map::from_map_data(data).ok()?.try_into().ok()?;
    bounded(map.keys())
}

fn trie<K: Pod, V: Pod>(data: MapData) -> Option<usize> {
    let map: LpmTrie<MapData, K, V> = Map::from_map_data(data).ok()?.try_into().ok()?;
    bounded(map.keys())
}

/// How many there are; `None` when they cannot all be counted in [`WALK`].
fn bounded<T>(keys: impl Iterator<Item = T>) -> Option<usize> {
    let started = Instant::now();
    let mut count = 0;
    for _ in keys {
        count += 1;
        if count % 1024 == 0 && started.elapsed() > WALK {
            return None;
        }
    }
    Some(count)
}

/// Which way a drop's packet went, where the reason says so.
fn of_reason(reason: DropReason) -> &'static str {
    use DropReason as Reason;
    match reason {
        Reason::PolicyIngress | Reason::SourceRange => "ingress",
        Reason::PolicyEgress | Reason::SpoofedSource | Reason::SocketRefused | Reason::NoTunnelRoute => {
            "egress"
        }
        _ => "any",
    }
}

/// Which way a packet went, seen from the node's pods.
fn of_path(path: Way) -> &'static str {
    match path {
        Way::ToPod | Way::XdpPassed => "ingress",
        Way::ToNode | Way::ToTunnel | Way::Socket | Way::Reflected => "egress",
        _ => "any",
    }
}

fn packets(shared: &Shared, registry: &mut Registry) {
    let dropped = Family::<ReasonLabels, Counter>::default();
    let dropped_bytes = Family::<ReasonLabels, Counter>::default();
    let passed = Family::<PathLabels, Counter>::default();
    let passed_bytes = Family::<PathLabels, Counter>::default();
    {
        let maps = shared.maps.lock();
        let read = |index| inspect::counter(&maps.metrics, index).unwrap_or_default();
        for reason in DropReason::ALL {
            let labels = ReasonLabels {
                reason: reason.text(),
                direction: of_reason(*reason),
            };
            let counter = read(*reason as u32);
            dropped.get_or_create(&labels).inc_by(counter.packets);
            dropped_bytes.get_or_create(&labels).inc_by(counter.bytes);
        }
        for path in Way::ALL {
            let labels = PathLabels {
                path: path.text(),
                direction: of_path(*path),
            };
            let counter = read(METRICS_PATHS + *path as u32);
            passed.get_or_create(&labels).inc_by(counter.packets);
            passed_bytes.get_or_create(&labels).inc_by(counter.bytes);
        }
    }
    registry.register(
        "orch_dataplane_dropped_packets",
        "Packets dropped and connections refused",
        dropped,
    );
    registry.register("orch_dataplane_dropped_bytes", "Their bytes", dropped_bytes);
    registry.register(
        "orch_dataplane_packets",
        "Packets by the way they took, connections at sockets",
        passed,
    );
    registry.register("orch_dataplane_bytes", "Their bytes", passed_bytes);
}

/// What the agent has put into the maps, by its own mirror of them.
fn objects(shared: &Shared, registry: &mut Registry) {
    let services = Family::<FamilyLabels, Gauge>::default();
    let backends = Family::<FamilyLabels, Gauge>::default();
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let [v4, v6] = shared.services.lock().sizes();
    for (family, (frontends, _, ends)) in [("ipv4", v4), ("ipv6", v6)] {
        services
            .get_or_create(&FamilyLabels { family })
            .set(number(frontends));
        backends.get_or_create(&FamilyLabels { family }).set(number(ends));
    }
    let pods: Gauge = Gauge::default();
    pods.set(number(shared.pods.lock().iter().count()));
    let nodes = Family::<StateLabels, Gauge>::default();
    for (state, count) in shared.liveness.counts() {
        nodes.get_or_create(&StateLabels { state }).set(number(count));
    }
    registry.register(
        "orch_dataplane_nodes",
        "Other nodes that are asked whether they live, by what they answer",
        nodes,
    );
    registry.register(
        "orch_dataplane_service_ports",
        "Addresses and ports of services, by scope",
        services,
    );
    registry.register(
        "orch_dataplane_backends",
        "Endpoints that services lead to",
        backends,
    );
    registry.register(
        "orch_dataplane_pods",
        "Pods of this node that are connected",
        pods,
    );
}

fn programs(shared: &Shared, registry: &mut Registry) {
    let runs = Family::<ProgramLabels, Counter>::default();
    let seconds = Family::<ProgramLabels, Seconds>::default();
    let mut loaded = shared.programs.lock();
    for info in loaded
        .ebpf()
        .programs()
        .filter_map(|(_, program)| program.info().ok())
    {
        let labels = ProgramLabels {
            program: String::from_utf8_lossy(info.name()).into_owned(),
        };
        runs.get_or_create(&labels).inc_by(info.run_count());
        seconds
            .get_or_create(&labels)
            .inc_by(info.run_time().as_secs_f64());
    }
    registry.register(
        "orch_dataplane_program_runs",
        "Runs of a program; counted only while the sysctl kernel.bpf_stats_enabled is 1",
        runs,
    );
    registry.register(
        "orch_dataplane_program_run_seconds",
        "Time in a program; counted only while the sysctl kernel.bpf_stats_enabled is 1",
        seconds,
    );
}

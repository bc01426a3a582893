//! What the benchmarks share: an API server in memory, a node in a namespace, and what the process and kernel use.

pub mod api;
pub mod frames;
pub mod objects;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use nix::{
    sys::resource::{UsageWho, getrusage},
    time::{ClockId, clock_gettime},
};
use orch_dataplane::{DataplaneConfig, XdpMode};
use orch_ebpf::{
    Address4,
    service::{SERVICES_MAP, Service, ServiceKey},
};
use serde::Serialize;

use crate::tests::{Namespace, Settings, run};

/// The node's address.
pub const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 11);
/// The other node's, which every endpoint is on.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 12);
/// The client's, on the same network.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// Worker threads, as many as the agent's runtime has.
const WORKERS: usize = 2;

/// One measured number, as `cargo xtask bench` reads it.
#[derive(Serialize)]
pub struct Row {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
}

/// A row without a goal.
pub fn row(what: impl Into<String>, value: f64, unit: &'static str) -> Row {
    Row {
        what: what.into(),
        value,
        unit,
        goal: None,
    }
}

/// Prints the rows: the only thing on stdout.
pub fn print(rows: &[Row]) {
    println!("{}", serde_json::to_string_pretty(rows).unwrap());
}

/// A node with an uplink, in network namespaces of its own.
pub struct Place {
    pub outside: Namespace,
    node: Namespace,
}

impl Place {
    /// Makes it and moves the process, which must still have one thread, into the node.
    pub fn enter() -> Self {
        let node = Namespace::new("bench-node");
        let outside = Namespace::new("bench-out");
        node.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}",
            outside.name
        ));
        node.ip(&format!("addr add {NODE}/24 dev eth0"));
        node.ip("link set eth0 up");
        outside.ip(&format!("addr add {CLIENT}/24 dev eth0"));
        outside.ip("link set eth0 up");
        // Without a NAPI context of its own the peer of a veth takes no frames of XDP.
        run(
            "nsenter",
            &[
                &format!("--net={}", outside.path().display()),
                "ethtool",
                "-K",
                "eth0",
                "gro",
                "on",
            ],
        );
        let peer = String::from_utf8(run("ip", &["-n", &outside.name, "-o", "link", "show", "eth0"]).stdout)
            .unwrap();
        let mac = peer
            .split_whitespace()
            .skip_while(|word| *word != "link/ether")
            .nth(1)
            .unwrap();
        node.ip(&format!(
            "neigh replace {OTHER} lladdr {mac} dev eth0 nud permanent"
        ));
        node.ip(&format!(
            "neigh replace {CLIENT} lladdr {mac} dev eth0 nud permanent"
        ));
        node.enter();
        Self { outside, node }
    }
}

/// The settings of a run with this name.
pub fn settings(run: &str) -> Settings {
    let mut settings = Settings::new(&format!("bench-{run}"));
    settings.node_ips = vec![NODE.into()];
    settings.uplinks = vec!["eth0".into()];
    settings.run_dir = std::env::temp_dir();
    settings.cluster_cidrs = vec!["10.128.0.0/9".parse().unwrap()];
    settings.service_cidrs = vec!["10.96.0.0/12".parse().unwrap()];
    settings.cluster_dns = vec![Ipv4Addr::new(10, 96, 0, 10).into()];
    // A veth's driver sends on what its own program returns only to a peer that has a program too.
    settings.xdp = XdpMode::Generic;
    settings
}

/// The runtime, as the agent has it.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .unwrap()
}

/// Waits until the map of IPv4 services holds so many, looking about twenty times a second; returns how much CPU the
/// looking took. Services are written after what they need. Panics when nothing is written any more.
pub async fn until_services(config: &DataplaneConfig, count: usize) -> Duration {
    let path = config.bpf_root.join("maps").join(format!("{SERVICES_MAP}4"));
    let mut looking = Duration::ZERO;
    let (mut found, mut grew) = (0, Instant::now());
    while found < count {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = thread_cpu();
        let now = count_keys(&path);
        looking += thread_cpu() - before;
        if now != found {
            (found, grew) = (now, Instant::now());
        }
        let stalled = grew.elapsed() > Duration::from_secs(60);
        assert!(
            !stalled,
            "the map of services does not come to hold {count}: {found} are there"
        );
    }
    looking
}

fn count_keys(path: &Path) -> usize {
    let map = Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
    let services: HashMap<MapData, ServiceKey<Address4>, Service<Address4>> = map.try_into().unwrap();
    services.keys().count()
}

/// CPU that the process has used.
pub fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    [usage.user_time(), usage.system_time()]
        .map(|time| {
            Duration::from_secs(time.tv_sec().unsigned_abs())
                + Duration::from_micros(time.tv_usec().unsigned_abs())
        })
        .iter()
        .sum()
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    Duration::from(now)
}

/// Resident memory of the process, in bytes (`VmRSS` of proc_pid_status(5)).
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Memory of the BPF maps that the process has open, in bytes (`memlock` of their fdinfo).
pub fn map_memory() -> u64 {
    let mut maps: BTreeMap<String, u64> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
        // The folder's own descriptor is gone by now.
        let Ok(text) = std::fs::read_to_string(entry.path()) else {
            continue;
        };
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id.to_owned(), bytes.parse().unwrap());
        }
    }
    maps.values().sum()
}

/// The value that so large a share of the values is below.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() as f64 * share) as usize;
    values[index.min(values.len() - 1)]
}

//! What it costs an agent to know ten thousand services, and how soon a change is in the maps.
//!
//! The agent's own watches read from an API server in memory, so that the numbers hold all that an agent does for it:
//! reading the JSON, keeping the objects, planning, and writing the maps. What an agent without services takes to load its
//! programs is measured apart. Run by `cargo xtask bench dataplane`.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[expect(dead_code, reason = "each benchmark uses a part of what they share")]
mod support;
#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "of what tests share, a benchmark needs namespaces only")]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use orch_cluster::Cluster;
use orch_dataplane::{Dataplane, DataplaneConfig, inspect};
use support::{
    NODE, OTHER, Place, Row,
    api::{self, Api},
    objects, row,
};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 10;
/// Changes of one endpoint each.
const CHANGES: usize = 2_000;

fn main() {
    let place = Place::enter();
    let settings = support::settings("programming");
    let rows = support::runtime().block_on(measure(&settings));
    drop(settings);
    drop(place);
    support::print(&rows);
}

fn addresses(service: usize) -> Vec<std::net::Ipv4Addr> {
    (0..ENDPOINTS)
        .map(|index| objects::endpoint_ip(service * ENDPOINTS + index))
        .collect()
}

async fn measure(config: &DataplaneConfig) -> Vec<Row> {
    let mut api = Api::default();
    api.list(
        api::NODES,
        [("n1", NODE, "10.128.1.0/24"), ("n2", OTHER, "10.192.0.0/10")]
            .into_iter()
            .map(|(name, address, cidr)| objects::node(name, address, cidr)),
    );
    api.list(
        api::SERVICES,
        (0..SERVICES).map(|number| objects::service(number, false)),
    );
    api.list(
        api::SLICES,
        (0..SERVICES).map(|number| objects::slice(number, &addresses(number))),
    );
    let api = Arc::new(api);

    // An agent whose API server knows nothing, for what the programs and empty maps take.
    let empty = Arc::new(Api::default());
    let cpu = support::cpu();
    let idle = Dataplane::start(config.clone(), Cluster::start(empty.client()))
        .await
        .unwrap();
    let loading = support::cpu() - cpu;
    let (resident, maps) = (support::resident(), support::map_memory());
    drop(idle);

    let (began, cpu) = (Instant::now(), support::cpu());
    let dataplane = Dataplane::start(config.clone(), Cluster::start(api.client()))
        .await
        .unwrap();
    let looking = support::until_services(config, SERVICES).await;
    let took = began.elapsed();
    let cpu = (support::cpu() - cpu - looking).saturating_sub(loading);
    let per_service = |before: u64, now: u64| now.saturating_sub(before) as f64 / SERVICES as f64;
    let own = per_service(resident, support::resident());
    let kernel = per_service(maps, support::map_memory());

    let mut times = changes(&api, &dataplane, config).await;
    vec![
        Row {
            goal: Some("<= 1".into()),
            ..row(
                format!("agent CPU for {SERVICES} services of {ENDPOINTS} from cold"),
                cpu.as_secs_f64(),
                "s",
            )
        },
        row(
            "beside it, to load the programs, most of it the verifier's",
            loading.as_secs_f64(),
            "s",
        ),
        row(
            "until the last is in the maps, seen each 50 ms",
            took.as_secs_f64(),
            "s",
        ),
        row(
            "an endpoint's change, from watch event to map, median",
            support::quantile(&mut times, 0.5) * 1e3,
            "ms",
        ),
        Row {
            goal: Some("<= 5".into()),
            ..row(
                "an endpoint's change, from watch event to map, p99",
                support::quantile(&mut times, 0.99) * 1e3,
                "ms",
            )
        },
        row(
            "the slowest of them",
            support::quantile(&mut times, 1.0) * 1e3,
            "ms",
        ),
        row("agent memory a service", own / 1e3, "kB"),
        row("memory of maps a service", kernel / 1e3, "kB"),
        row("memory of maps without services", maps as f64 / 1e6, "MB"),
    ]
}

/// Replaces one endpoint of one service, again and again, each time until no map offers the old one.
async fn changes(api: &Api, dataplane: &Dataplane, config: &DataplaneConfig) -> Vec<f64> {
    let mut times = Vec::with_capacity(CHANGES);
    let mut last = objects::endpoint_ip(0);
    for change in 0..CHANGES {
        // Spread over all services, each of which changes once.
        let service = change * (SERVICES / CHANGES);
        let mut now = addresses(service);
        let old = now[0];
        last = objects::endpoint_ip(SERVICES * ENDPOINTS + change);
        now[0] = last;
        let event = api::modified(objects::slice(service, &now), change + 2);
        let sent = Instant::now();
        while !api.send(api::SLICES, event.clone()) {
            // The watch begins a moment after the list.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let withdrawn = dataplane.withdrawn(old.into());
        tokio::time::timeout(Duration::from_secs(10), withdrawn)
            .await
            .unwrap();
        times.push(sent.elapsed().as_secs_f64());
    }
    let backends = inspect::read(&config.bpf_root, inspect::View::Backends)
        .unwrap()
        .json()
        .to_string();
    assert!(
        backends.contains(&last.to_string()),
        "the last change is in the maps"
    );
    times
}

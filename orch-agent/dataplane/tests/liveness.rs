//! A node and its neighbours on a switch: whose link is down gets no new connections after a few seconds, long before
//! anybody has told the node.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::mpsc,
    time::{Duration, Instant},
};

use orch_dataplane::{Dataplane, inspect};
use serde_json::json;
use support::{Fake, Namespace, Settings, run};

/// The neighbours, and the node itself, which is the first.
const NODES: std::ops::RangeInclusive<u8> = 1..=4;
/// Within which what a neighbour does not say is noticed, on a busy machine.
const SOON: Duration = Duration::from_secs(8);
/// For how long to see that nothing happens: twice as long as it takes otherwise.
const WHILE: Duration = Duration::from_secs(5);

#[test]
fn helper() {
    support::help();
}

/// Nodes on a switch, of which the first has a data plane; the others answer echoes, as any machine does, but for the
/// last one.
struct Place {
    config: Settings,
    switch: Namespace,
    _nodes: Vec<Namespace>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn name(number: u8) -> String {
    format!("n{number}")
}

/// A service with a backend on each of these nodes.
fn service(fake: &mut Fake, name_of: &str, last: u8, nodes: &[u8]) {
    fake.service(json!({
        "metadata": {"name": name_of},
        "spec": {"type": "NodePort", "clusterIP": format!("10.96.7.{last}"), "sessionAffinity": "ClientIP",
            "ports": [{"port": 80, "nodePort": 30080 + u16::from(last)}]},
    }));
    let endpoints: Vec<_> = nodes
        .iter()
        .map(|node| json!({"addresses": [format!("10.244.{node}.{last}")], "nodeName": name(*node)}))
        .collect();
    fake.slice(json!({
        "metadata": {"name": name_of, "labels": {"kubernetes.io/service-name": name_of}},
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": endpoints,
    }));
}

fn place() -> Place {
    let switch = Namespace::new("lvs");
    switch.ip("link add sw type bridge");
    switch.ip("link set sw up");
    let nodes: Vec<Namespace> = NODES
        .map(|number| {
            let node = Namespace::new(&format!("lv{number}"));
            switch.ip(&format!(
                "link add to{number} type veth peer name eth0 netns {}",
                node.name
            ));
            switch.ip(&format!("link set to{number} master sw up"));
            node.ip("link set eth0 up");
            node.ip(&format!("addr add 172.31.0.{number}/24 dev eth0"));
            node
        })
        .collect();
    let inside = format!("--net={}", nodes[3].path().display());
    run(
        "nsenter",
        &[&inside, "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1"],
    );
    let mut config = Settings::new("liveness");
    config.node_ips = vec![IpAddr::from([172, 31, 0, 1])];
    config.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    let (ready, started) = mpsc::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    let ours = config.clone();
    let thread = nodes[0].thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async move {
            let mut fake = Fake::new();
            fake.open_policies();
            fake.ready();
            for number in NODES {
                fake.node(json!({
                    "metadata": {"name": name(number)},
                    "spec": {"podCIDR": format!("10.244.{number}.0/24")},
                    "status": {"addresses": [{"type": "InternalIP", "address": format!("172.31.0.{number}")}]},
                }));
            }
            service(&mut fake, "all", 1, &[1, 2, 3, 4]);
            service(&mut fake, "second", 2, &[2]);
            let _dataplane = Dataplane::start(ours, fake.cluster.clone()).await.unwrap();
            ready.send(()).unwrap();
            while let Err(mpsc::TryRecvError::Empty) = stopped.try_recv() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    });
    started.recv().unwrap();
    Place {
        switch,
        _nodes: nodes,
        config,
        stop: Some(stop),
        thread: Some(thread),
    }
}

impl Place {
    /// On which nodes the backends are that every frontend of a service leads to; none while frontends differ.
    fn reached(&self, last: u8) -> BTreeSet<u8> {
        let Ok(table) = inspect::read(&self.config.bpf_root, inspect::View::Services) else {
            return BTreeSet::new();
        };
        let rows = table.json();
        let ports = [
            format!("10.96.7.{last}:80"),
            format!("node:{}", 30080 + u16::from(last)),
        ];
        let mut found: Vec<BTreeSet<u8>> = Vec::new();
        for row in rows.as_array().unwrap() {
            if !ports.iter().any(|port| row["service"] == **port) {
                continue;
            }
            let backends = row["backends"].as_array().unwrap().iter();
            let node = |backend: &serde_json::Value| {
                let address = backend["backend"].as_str()?.strip_prefix("10.244.")?;
                address.split('.').next()?.parse().ok()
            };
            found.push(backends.filter_map(node).collect());
        }
        match found.split_first() {
            // The ClusterIP, and the NodePort from inside and from outside.
            Some((first, others)) if others.len() == 2 && others.iter().all(|other| other == first) => {
                first.clone()
            }
            _ => BTreeSet::new(),
        }
    }

    fn until(&self, last: u8, nodes: &[u8]) {
        let began = Instant::now();
        let expected = BTreeSet::from_iter(nodes.iter().copied());
        while self.reached(last) != expected {
            assert!(
                began.elapsed() < SOON,
                "{:?} in place of {expected:?}",
                self.reached(last)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("{expected:?} after {} ms", began.elapsed().as_millis());
    }

    fn stays(&self, last: u8, nodes: &[u8]) {
        let began = Instant::now();
        let expected = BTreeSet::from_iter(nodes.iter().copied());
        while began.elapsed() < WHILE {
            assert_eq!(self.reached(last), expected);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn links(&self, nodes: &[u8], state: &str) {
        for node in nodes {
            self.switch.ip(&format!("link set to{node} {state}"));
        }
    }
}

#[test]
fn silent_nodes_get_no_new_connections_until_they_answer() {
    let place = place();
    place.until(1, &[1, 2, 3, 4]);
    // Who has never answered is judged by the control plane: each must have been heard once.
    std::thread::sleep(Duration::from_secs(3));
    place.links(&[2], "down");
    place.until(1, &[1, 3, 4]);
    assert_eq!(
        place.reached(2),
        BTreeSet::from([2]),
        "what there is no other for stays"
    );
    place.links(&[2], "up");
    place.until(1, &[1, 2, 3, 4]);

    // When most fall silent at once, it is this node that is cut off.
    place.links(&[2, 3], "down");
    place.stays(1, &[1, 2, 3, 4]);
    place.links(&[3], "up");
    place.until(1, &[1, 3, 4]);
    place.links(&[2], "up");
    place.until(1, &[1, 2, 3, 4]);

    // The silence of one that never answered says nothing.
    place.links(&[4], "down");
    place.stays(1, &[1, 2, 3, 4]);
}

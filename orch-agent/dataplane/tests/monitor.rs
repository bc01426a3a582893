//! What a node's agent says of real packets: monitor, settings, metrics.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{path::Path, sync::Arc, time::Duration};

use orch_cluster::policies::{PolicyEvent, Update};
use orch_dataplane::{
    Dataplane, PodAttachment, inspect,
    monitor::{Filter, Kind, Message, PodName, Record, client::Monitor, socket_path},
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use support::{Fake, Namespace, Settings};

#[test]
fn helper() {
    support::help();
}

struct Place {
    config: Settings,
    node: Namespace,
    pods: [Namespace; 2],
    _run_dir: tempfile::TempDir,
}

fn place() -> Place {
    let node = Namespace::new("mn");
    node.ip("link add eth0 type veth peer name eth0-peer");
    node.ip("addr add 172.31.9.11/24 dev eth0");
    node.ip("link set eth0-peer up");
    node.ip("link set eth0 up");
    let run_dir = tempfile::tempdir().unwrap();
    let mut config = Settings::new("monitor");
    config.node_ips = vec!["172.31.9.11".parse().unwrap()];
    config.uplinks = vec!["eth0".into()];
    run_dir.path().clone_into(&mut config.run_dir);
    config.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
    Place {
        node,
        pods: [Namespace::new("ma"), Namespace::new("mb")],
        config,
        _run_dir: run_dir,
    }
}

fn options(root: &Path) -> Value {
    let settings = inspect::read(root, inspect::View::Config).unwrap().json();
    let row = settings
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["setting"] == "options");
    row.unwrap()["value"].clone()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

fn metrics(dataplane: &Dataplane) -> String {
    let mut registry = Registry::default();
    dataplane.register_metrics(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

/// The value of a metric whose line starts so.
fn value(metrics: &str, start: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("{start} in {metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn packets_are_seen_with_their_names_while_somebody_looks() {
    let place = place();
    place.node.enter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(look(&place));
}

async fn look(place: &Place) {
    let mut fake = Fake::new();
    let (events, receiver) = tokio::sync::mpsc::channel(8);
    fake.cluster.set_policy_events(receiver);
    events
        .send(PolicyEvent::Policy(Update::All(Vec::new())))
        .await
        .unwrap();
    fake.node(json!({
        "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.1.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.31.9.11"}]},
    }));
    fake.ready();
    let dataplane = Dataplane::start(place.config.clone(), Arc::clone(&fake.cluster))
        .await
        .unwrap();
    dataplane
        .set_pod_cidrs(&["10.244.1.0/24".parse().unwrap()])
        .await
        .unwrap();
    let mut addresses = Vec::new();
    for (name, namespace) in ["a", "b"].into_iter().zip(&place.pods) {
        let pod = PodAttachment {
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            name: name.into(),
            netns: namespace.path(),
            ..PodAttachment::default()
        };
        addresses.push(dataplane.attach_pod(&pod).await.unwrap()[0]);
    }
    dataplane.name_pods(Box::new(|| {
        let name = |name: &str| PodName {
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            name: name.into(),
        };
        vec![name("a"), name("b")]
    }));
    fake.service(json!({
        "metadata": {"name": "web"}, "spec": {"type": "ClusterIP", "clusterIP": "10.96.7.7",
            "clusterIPs": ["10.96.7.7"], "ipFamilies": ["IPv4"], "ports": [{"name": "http", "port": 80}]},
    }));
    fake.slice(json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": [addresses[1]], "nodeName": "n1", "conditions": {"ready": true}}],
    }));
    let root = &place.config.bpf_root;
    until("the service is in the maps", || {
        let backends = inspect::read(root, inspect::View::Backends).unwrap().json();
        backends.as_array().unwrap().len() == 1
    })
    .await;
    assert_eq!(options(root), json!([]), "nobody listens");

    let socket = socket_path(&place.config.run_dir);
    let (send, mut records) = tokio::sync::mpsc::unbounded_channel();
    let (ready, listening) = tokio::sync::oneshot::channel();
    let listener = std::thread::spawn(move || {
        let filter = Filter {
            types: vec![Kind::Drop, Kind::Flow],
            pod: Some("default/a".into()),
            ..Filter::default()
        };
        let mut monitor = Monitor::connect(&socket, &filter).unwrap();
        assert_eq!(monitor.receive().unwrap().0, Message::Ready { node: "n1".into() });
        ready.send(()).unwrap();
        let mut seen = [false; 2];
        while seen != [true; 2] {
            let (Message::Drop(record) | Message::Flow(record)) = monitor.receive().unwrap().0 else {
                continue;
            };
            seen[usize::from(record.backend.is_some())] = true;
            send.send(record).unwrap();
        }
    });
    listening.await.unwrap();
    assert_eq!(options(root), json!(["drops", "flows"]));

    place.pods[1].serve_tcp("0.0.0.0".parse().unwrap(), 8080, "b");
    let answer = place.pods[0].ask(None, "tcp 10.96.7.7:80 1");
    assert_eq!(answer, format!("b {} peer 10.96.7.7:80", addresses[0]));
    place.pods[0].ask(None, "udp 10.96.9.9:53 1");
    let mut flow: Option<Record> = None;
    let mut drop_seen: Option<Record> = None;
    while let Some(record) = records.recv().await {
        if record.backend.is_some() {
            flow = Some(record);
        } else {
            drop_seen = Some(record);
        }
    }
    listener.join().unwrap();
    let flow = flow.unwrap();
    assert_eq!(flow.source.pod.as_deref(), Some("default/a"));
    assert_eq!(flow.destination.service.as_deref(), Some("default/web"));
    let backend = flow.backend.unwrap();
    assert_eq!(
        (backend.pod.as_deref(), backend.port),
        (Some("default/b"), Some(8080))
    );
    let refused = drop_seen.unwrap();
    assert_eq!(refused.reason, "no service on this port of the service network");
    assert_eq!(refused.protocol, "udp");
    assert_eq!(refused.destination.ip, Some("10.96.9.9".parse().unwrap()));
    assert_eq!(refused.interface.unwrap().pod.as_deref(), Some("default/a"));
    until("the programs are told that nobody listens any more", || {
        options(root) == json!([])
    })
    .await;

    let text = metrics(&dataplane);
    let drops =
        "orch_dataplane_dropped_packets_total{reason=\"no service on this port of the service network\"";
    assert!(value(&text, drops) >= 1.0);
    assert!(
        value(
            &text,
            "orch_dataplane_packets_total{path=\"redirected into a local pod\""
        ) >= 1.0
    );
    assert_eq!(value(&text, "orch_dataplane_backends{family=\"ipv4\"}"), 1.0);
    assert_eq!(value(&text, "orch_dataplane_pods "), 2.0);
    assert!(value(&text, "orch_dataplane_sync_latency_seconds_count") >= 1.0);
    assert!(value(&text, "orch_dataplane_map_capacity{map=\"ORCH_SERVICES4\"}") > 1000.0);
    assert!(value(&text, "orch_dataplane_map_memory_bytes{map=\"ORCH_CONNTRACK4\"}") > 0.0);
    until("the tables are counted in the background", || {
        let text = metrics(&dataplane);
        ["ENDPOINTS4\"} 2", "BACKENDS4\"} 1", "SLOTS\"} "]
            .iter()
            .all(|rest| text.contains(&format!("orch_dataplane_map_entries{{map=\"ORCH_{rest}")))
    })
    .await;
}

//! A node in a namespace, two pods, a second node and a client outside: real packets through the real programs.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use orch_dataplane::{Dataplane, DataplaneConfig, PodAttachment, inspect};
use serde_json::json;
use support::{Fake, Namespace, run};

const NODE_IP: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 11);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const REMOTE_POD: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 5);

#[test]
fn helper() {
    support::help();
}

struct Place {
    node: Namespace,
    outside: Namespace,
    pods: [Namespace; 2],
    config: DataplaneConfig,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = orch_dataplane::remove_pins(&self.config.bpf_root);
        let _ = std::fs::remove_dir(&self.config.cgroup_path);
    }
}

fn place() -> Place {
    let node = Namespace::new("node");
    let outside = Namespace::new("out");
    let pods = [Namespace::new("a"), Namespace::new("b")];
    node.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        outside.name
    ));
    node.ip(&format!("addr add {NODE_IP}/24 dev eth0"));
    node.ip("link set eth0 up");
    outside.ip(&format!("addr add {OUTSIDE}/24 dev eth0"));
    outside.ip(&format!("addr add {REMOTE_POD}/32 dev lo"));
    outside.ip("link set eth0 up");
    outside.ip(&format!("route add 10.244.1.0/24 via {NODE_IP}"));
    let id = std::process::id();
    let unified = PathBuf::from("/sys/fs/cgroup/unified");
    let cgroup = if unified.is_dir() {
        unified
    } else {
        PathBuf::from("/sys/fs/cgroup")
    };
    let config = DataplaneConfig {
        node_name: "n1".into(),
        node_ip: NODE_IP,
        uplink: "eth0".into(),
        bpf_root: format!("/sys/fs/bpf/orch-test-{id}").into(),
        cgroup_path: cgroup.join(format!("orch-test-{id}")),
        run_dir: std::env::temp_dir(),
        cluster_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        cluster_dns: Ipv4Addr::new(10, 96, 0, 10),
    };
    Place {
        node,
        outside,
        pods,
        config,
    }
}

fn slice(port: &str, protocol: &str, number: u16, addresses: &[(Ipv4Addr, &str)]) -> serde_json::Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|(address, node)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}}))
        .collect();
    json!({
        "metadata": {"name": format!("web-{port}"), "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": port, "protocol": protocol, "port": number}],
        "endpoints": endpoints,
    })
}

fn node(name: &str, address: Ipv4Addr, cidr: &str) -> serde_json::Value {
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": cidr},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

fn web() -> serde_json::Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.7.7", "ports": [
            {"name": "http", "port": 80, "nodePort": 30080},
            {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
            {"name": "far", "port": 81, "nodePort": 30081},
            {"name": "none", "port": 82, "nodePort": 30082},
        ]},
    })
}

/// Every answer, sorted and without repetition.
fn set(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    lines
}

async fn until_services(root: &std::path::Path, rows: usize) {
    for _ in 0..200 {
        let table = inspect::read(root, inspect::View::Services).unwrap().json();
        if table.as_array().unwrap().len() == rows {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{}", inspect::read(root, inspect::View::Services).unwrap().text());
}

#[test]
fn traffic_of_every_kind_and_a_restart() {
    let place = place();
    place.node.enter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(scenario(&place));
}

async fn attach(dataplane: &Dataplane, place: &Place) -> [Ipv4Addr; 2] {
    let mut addresses = [Ipv4Addr::UNSPECIFIED; 2];
    for (index, namespace) in place.pods.iter().enumerate() {
        let pod = PodAttachment {
            uid: format!("uid-{index}"),
            namespace: "default".into(),
            name: format!("pod-{index}"),
            netns: namespace.path(),
        };
        addresses[index] = dataplane.attach_pod(&pod).await.unwrap();
    }
    addresses
}

async fn scenario(place: &Place) {
    let mut fake = Fake::new();
    let dataplane = Dataplane::start(place.config.clone(), Arc::clone(&fake.cluster))
        .await
        .unwrap();
    dataplane
        .set_pod_cidr("10.244.1.0/24".parse().unwrap())
        .await
        .unwrap();
    let [a, b] = attach(&dataplane, place).await;
    assert_ne!(a, b);
    assert_eq!(
        attach(&dataplane, place).await,
        [a, b],
        "attaching again changes nothing"
    );
    for (namespace, name) in place.pods.iter().zip(["A", "B"]) {
        namespace.serve_tcp(Ipv4Addr::UNSPECIFIED, 8080, name);
        namespace.serve_udp(Ipv4Addr::UNSPECIFIED, 5353, name);
    }
    place.outside.serve_tcp(Ipv4Addr::UNSPECIFIED, 8080, "OUT");
    place.outside.serve_udp(Ipv4Addr::UNSPECIFIED, 5353, "OUT");
    place.node.serve_udp(Ipv4Addr::new(10, 96, 0, 10), 53, "DNS");

    fake.ready();
    fake.node(node("n1", NODE_IP, "10.244.1.0/24"));
    fake.node(node("n2", OUTSIDE, "10.244.2.0/24"));
    fake.service(web());
    fake.slice(slice("http", "TCP", 8080, &[(a, "n1"), (b, "n1")]));
    fake.slice(slice("dns", "UDP", 5353, &[(a, "n1"), (b, "n1")]));
    fake.slice(slice("far", "TCP", 8080, &[(REMOTE_POD, "n2")]));
    let root = &place.config.bpf_root;
    until_services(root, 12).await;
    let [pod_a, pod_b] = &place.pods;
    let cgroup = Some(place.config.cgroup_path.as_path());

    // Pods, the node and the outside reach one another by address.
    assert_eq!(
        pod_a.ask(None, &format!("tcp {b}:8080 1")),
        format!("B {a} peer {b}:8080")
    );
    assert_eq!(
        place.node.ask(None, &format!("tcp {b}:8080 1")),
        format!("B {NODE_IP} peer {b}:8080")
    );
    assert_eq!(
        pod_a.ask(None, "udp 10.96.0.10:53 1"),
        format!("DNS {a} 5 from 10.96.0.10:53")
    );
    assert_eq!(
        pod_a.ask(None, &format!("tcp {REMOTE_POD}:8080 1")),
        format!("OUT {a} peer {REMOTE_POD}:8080"),
        "a pod keeps its address towards another node's pods"
    );
    assert_eq!(
        place.outside.ask(None, &format!("tcp {b}:8080 1")),
        format!("B {OUTSIDE} peer {b}:8080")
    );

    // Services at the socket.
    assert_eq!(
        set(&pod_a.ask(cgroup, "tcp 10.96.7.7:80 40")),
        [
            format!("A {a} peer 10.96.7.7:80"),
            format!("B {a} peer 10.96.7.7:80")
        ]
    );
    assert_eq!(
        set(&pod_a.ask(cgroup, "tcp [::ffff:10.96.7.7]:80 40")),
        [
            format!("A {a} peer [::ffff:10.96.7.7]:80"),
            format!("B {a} peer [::ffff:10.96.7.7]:80")
        ]
    );
    let udp = [
        format!("A {a} 5 from 10.96.7.7:53"),
        format!("B {a} 5 from 10.96.7.7:53"),
    ];
    assert_eq!(set(&pod_a.ask(cgroup, "udp 10.96.7.7:53 40")), udp);
    assert_eq!(
        set(&pod_a.ask(cgroup, "udp [::ffff:10.96.7.7]:53 40")),
        [
            format!("A {a} 5 from [::ffff:10.96.7.7]:53"),
            format!("B {a} 5 from [::ffff:10.96.7.7]:53")
        ]
    );
    assert_eq!(
        set(&pod_a.ask(cgroup, "udp-connected 10.96.7.7:53 40")),
        [
            format!("A {a} 5 peer 10.96.7.7:53"),
            format!("B {a} 5 peer 10.96.7.7:53")
        ]
    );
    assert_eq!(
        set(&place.node.ask(cgroup, &format!("tcp {NODE_IP}:30080 40"))),
        [
            format!("A {NODE_IP} peer {NODE_IP}:30080"),
            format!("B {NODE_IP} peer {NODE_IP}:30080")
        ]
    );
    assert_eq!(
        pod_a.ask(cgroup, "tcp 10.96.7.7:82 1"),
        "error ConnectionRefused",
        "no backend"
    );

    // The same as packets, from a process that the socket hooks do not see.
    assert_eq!(
        set(&pod_a.ask(None, "tcp 10.96.7.7:80 40")),
        [
            format!("A {NODE_IP} peer 10.96.7.7:80"),
            format!("B {a} peer 10.96.7.7:80")
        ],
        "a pod that reaches itself sees the node as its client"
    );
    assert_eq!(
        set(&pod_a.ask(None, "udp 10.96.7.7:53 40")),
        [
            format!("A {NODE_IP} 5 from 10.96.7.7:53"),
            format!("B {a} 5 from 10.96.7.7:53")
        ]
    );
    assert_eq!(
        set(&pod_b.ask(None, &format!("tcp {NODE_IP}:30080 40"))),
        [
            format!("A {b} peer {NODE_IP}:30080"),
            format!("B {NODE_IP} peer {NODE_IP}:30080")
        ]
    );
    assert_eq!(
        pod_a.ask(None, "tcp 10.96.7.7:81 1"),
        format!("OUT {a} peer 10.96.7.7:81")
    );

    // NodePorts from outside: the source is kept for local backends, and is the node's for remote ones.
    assert_eq!(
        set(&place.outside.ask(None, &format!("tcp {NODE_IP}:30080 40"))),
        [
            format!("A {OUTSIDE} peer {NODE_IP}:30080"),
            format!("B {OUTSIDE} peer {NODE_IP}:30080")
        ]
    );
    assert_eq!(
        set(&place.outside.ask(None, &format!("udp {NODE_IP}:30053 40"))),
        [
            format!("A {OUTSIDE} 5 from {NODE_IP}:30053"),
            format!("B {OUTSIDE} 5 from {NODE_IP}:30053")
        ]
    );
    assert_eq!(
        set(&place.outside.ask(None, &format!("udp-big {NODE_IP}:30053 40"))),
        [
            format!("A {OUTSIDE} 5000 from {NODE_IP}:30053"),
            format!("B {OUTSIDE} 5000 from {NODE_IP}:30053")
        ],
        "fragments follow their first"
    );
    assert_eq!(
        place.outside.ask(None, &format!("tcp {NODE_IP}:30081 1")),
        format!("OUT {NODE_IP} peer {NODE_IP}:30081")
    );

    // Masquerade to the outside, TCP, UDP and ICMP.
    place.outside.ip("addr add 192.0.2.9/32 dev lo");
    place.node.ip(&format!("route add 192.0.2.0/24 via {OUTSIDE}"));
    place.outside.serve_udp(Ipv4Addr::new(192, 0, 2, 9), 5300, "OUT");
    assert_eq!(
        pod_a.ask(None, "tcp 192.0.2.9:8080 1"),
        format!("OUT {NODE_IP} peer 192.0.2.9:8080")
    );
    assert_eq!(
        pod_a.ask(None, "udp 192.0.2.9:5300 1"),
        format!("OUT {NODE_IP} 5 from 192.0.2.9:5300")
    );
    assert_eq!(
        pod_a.ask(None, "udp-big 192.0.2.9:5300 1"),
        format!("OUT {NODE_IP} 5000 from 192.0.2.9:5300")
    );
    let ping = format!("--net={}", pod_a.path().display());
    run(
        "nsenter",
        &[&ping, "busybox", "ping", "-c", "2", "-W", "3", "192.0.2.9"],
    );

    let dump = run(
        "bpftool",
        &[
            "map",
            "dump",
            "pinned",
            &format!("{}/maps/ORCH_SERVICES", root.display()),
        ],
    );
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    for word in [
        "\"address\"",
        "\"port\": 30080",
        "\"pool\"",
        "\"affinity_seconds\"",
    ] {
        assert!(dump.contains(word), "{word} is not in {dump}");
    }

    let dataplane = restart(place, &mut fake, dataplane, [a, b]).await;

    // A backend that goes gets no new connection, and its pod is told when.
    fake.slice(slice("http", "TCP", 8080, &[(b, "n1")]));
    fake.slice(slice("dns", "UDP", 5353, &[(b, "n1")]));
    tokio::time::timeout(Duration::from_secs(5), dataplane.withdrawn(a))
        .await
        .unwrap();
    assert_eq!(
        set(&place.outside.ask(None, &format!("tcp {NODE_IP}:30080 20"))),
        [format!("B {OUTSIDE} peer {NODE_IP}:30080")]
    );
    assert_eq!(
        set(&pod_a.ask(cgroup, "udp 10.96.7.7:53 20")),
        [format!("B {a} 5 from 10.96.7.7:53")]
    );

    fake.remove_service(web());
    until_services(root, 0).await;
    assert_eq!(
        inspect::read(root, inspect::View::Backends).unwrap().json(),
        json!([])
    );
    for uid in ["uid-0", "uid-1", "uid-1"] {
        dataplane.detach_pod(uid).await.unwrap();
    }
    assert!(dataplane.attached().is_empty());
    assert_eq!(
        inspect::read(root, inspect::View::Endpoints).unwrap().json(),
        json!([])
    );
    let links = run("ip", &["-n", &place.node.name, "-o", "link"]);
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains("orch"), "{links}");
    let metrics = inspect::read(root, inspect::View::Metrics).unwrap();
    println!("{}", metrics.text());
    for row in metrics.json().as_array().unwrap() {
        let expected = [
            "service has no ready backend",
            "connection refused at the socket: no ready backend",
        ];
        if row["verdict"] == "dropped" && !expected.contains(&row["what"].as_str().unwrap()) {
            assert_eq!(row["count"], 0, "{row}");
        }
    }
}

/// Connections live through the absence of an agent and the arrival of the next.
async fn restart(
    place: &Place,
    fake: &mut Fake,
    dataplane: Arc<Dataplane>,
    addresses: [Ipv4Addr; 2],
) -> Arc<Dataplane> {
    let mut stream = place
        .outside
        .thread(|| TcpStream::connect((NODE_IP, 30080)).unwrap())
        .join()
        .unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let mut echo = || {
        stream.write_all(b"x").unwrap();
        let mut buffer = [0; 64];
        let length = stream.read(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let before = echo();
    let attached = dataplane.attached();
    drop(dataplane);
    assert_eq!(echo(), before, "without an agent");
    assert!(
        place
            .outside
            .ask(None, &format!("tcp {NODE_IP}:30080 1"))
            .contains("peer"),
        "new without an agent"
    );

    // The caches of the new agent are empty at first: what was known stays.
    let mut empty = Fake::new();
    let dataplane = Dataplane::start(place.config.clone(), Arc::clone(&empty.cluster))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(echo(), before, "with an agent that knows nothing yet");
    assert!(
        place
            .outside
            .ask(None, &format!("tcp {NODE_IP}:30080 1"))
            .contains("peer")
    );
    assert_eq!(dataplane.attached(), attached);
    drop(dataplane);
    empty.ready();

    let dataplane = Dataplane::start(place.config.clone(), Arc::clone(&fake.cluster))
        .await
        .unwrap();
    dataplane
        .set_pod_cidr("10.244.1.0/24".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(attach(&dataplane, place).await, addresses);
    until_services(&place.config.bpf_root, 12).await;
    assert_eq!(echo(), before, "after the restart");
    dataplane
}

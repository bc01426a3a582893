//! Two nodes on networks of their own with a router between: pods reach each other through the tunnel, or by routes
//! where the nodes are neighbours.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::mpsc,
    time::Duration,
};

use ipnet::IpNet;
use orch_dataplane::{Dataplane, DataplaneConfig, PodAttachment, Tunnel, XdpMode, inspect};
use serde_json::json;
use support::{BIG, Fake, Namespace, run};

#[test]
fn helper() {
    support::help();
}

/// How the nodes are connected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    /// A router.
    Router,
    /// A switch.
    Switch,
}

/// A node, its pod, and the thread on which its data plane runs.
struct Node {
    namespace: Namespace,
    pod: Namespace,
    ips: Vec<IpAddr>,
    pod_ips: Vec<IpAddr>,
    config: DataplaneConfig,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = orch_dataplane::remove_pins(&self.config.bpf_root);
        let _ = std::fs::remove_dir(&self.config.cgroup_path);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn node_ips(number: u8, v6_first: bool) -> Vec<IpAddr> {
    let mut ips = vec![
        ip(&format!("172.31.{number}.11")),
        ip(&format!("fd00:31:{number}::11")),
    ];
    if v6_first {
        ips.reverse();
    }
    ips
}

fn pod_cidrs(number: u8, v6_first: bool) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = vec![
        format!("10.244.{number}.0/24").parse().unwrap(),
        format!("fd00:10:244:{number}::/64").parse().unwrap(),
    ];
    if v6_first {
        nets.reverse();
    }
    nets
}

/// The Node objects, and a service with a pod of the second node behind it.
fn cluster(v6_first: bool) -> Fake {
    let mut fake = Fake::new();
    fake.open_policies();
    fake.ready();
    for number in [1, 2] {
        let addresses: Vec<_> = node_ips(number, v6_first)
            .iter()
            .map(|ip| json!({"type": "InternalIP", "address": ip}))
            .collect();
        let cidrs = pod_cidrs(number, v6_first);
        fake.node(json!({
            "metadata": {"name": format!("n{number}")},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {"addresses": addresses},
        }));
    }
    fake.service(json!({
        "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7", "fd00:10:96::77"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
    }));
    for (family, address) in [("IPv4", "10.244.2.1"), ("IPv6", "fd00:10:244:2::1")] {
        fake.slice(json!({
            "metadata": {"name": format!("web-{family}"), "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family,
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [{"addresses": [address], "nodeName": "n2", "conditions": {"ready": true}}],
        }));
    }
    fake
}

fn start(name: &str, number: u8, tunnel: Tunnel, v6_first: bool, between: (Between, &Namespace)) -> Node {
    let namespace = Namespace::new(&format!("{name}{number}"));
    let pod = Namespace::new(&format!("{name}{number}p"));
    let ips = node_ips(number, v6_first);
    let (between, middle) = between;
    middle.ip(&format!(
        "link add to{number} type veth peer name eth0 netns {}",
        namespace.name
    ));
    middle.ip(&format!("link set to{number} up"));
    namespace.ip("link set eth0 up");
    for ip in &ips {
        let nodad = if ip.is_ipv6() { " nodad" } else { "" };
        // Neighbours have one network for both.
        let length = match (between, ip.is_ipv6()) {
            (Between::Router, false) => 24,
            (Between::Router, true) => 64,
            (Between::Switch, false) => 16,
            (Between::Switch, true) => 32,
        };
        namespace.ip(&format!("addr add {ip}/{length} dev eth0{nodad}"));
        if between == Between::Router {
            let gateway = ip.to_string().replace("11", "1");
            middle.ip(&format!("addr add {gateway}/{length} dev to{number}{nodad}"));
            let everywhere = if ip.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
            namespace.ip(&format!("route add {everywhere} via {gateway}"));
        } else if !ip.is_ipv6() {
            middle.ip(&format!("link set to{number} master sw"));
        }
    }
    let id = std::process::id();
    let unified = PathBuf::from("/sys/fs/cgroup/unified");
    let cgroup = if unified.is_dir() {
        unified
    } else {
        PathBuf::from("/sys/fs/cgroup")
    };
    let mut cluster_cidrs: Vec<IpNet> = vec![
        "10.244.0.0/16".parse().unwrap(),
        "fd00:10:244::/56".parse().unwrap(),
    ];
    if v6_first {
        cluster_cidrs.reverse();
    }
    let config = DataplaneConfig {
        node_name: format!("n{number}"),
        node_ips: ips.clone(),
        uplinks: Vec::new(),
        bpf_root: format!("/sys/fs/bpf/orch-nodes-{id}-{name}{number}").into(),
        cgroup_path: cgroup.join(format!("orch-nodes-{id}-{name}{number}")),
        run_dir: std::env::temp_dir().join(format!("orch-nodes-{id}-{name}{number}")),
        cluster_cidrs,
        service_cidrs: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:10:96::/112".parse().unwrap(),
        ],
        cluster_dns: vec![ip("10.96.0.10"), ip("fd00:10:96::a")],
        xdp: XdpMode::Auto,
        tunnel,
        direct_return: false,
        proxy_health: None,
    };
    let mut node = Node {
        namespace,
        pod,
        ips,
        pod_ips: Vec::new(),
        config,
        stop: None,
        thread: None,
    };
    let attachment = PodAttachment {
        uid: format!("uid-{number}"),
        namespace: "default".into(),
        name: format!("pod-{number}"),
        netns: node.pod.path(),
        ..PodAttachment::default()
    };
    let (ready, started) = mpsc::channel();
    let (stop, stopped) = mpsc::channel::<()>();
    let config = node.config.clone();
    node.stop = Some(stop);
    node.thread = Some(node.namespace.thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let fake = cluster(v6_first);
            let dataplane = Dataplane::start(config, fake.cluster.clone()).await.unwrap();
            dataplane
                .set_pod_cidrs(&pod_cidrs(number, v6_first))
                .await
                .unwrap();
            let ips = dataplane.attach_pod(&attachment).await.unwrap();
            ready.send(ips).unwrap();
            while let Err(mpsc::TryRecvError::Empty) = stopped.try_recv() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }));
    node.pod_ips = started.recv().unwrap();
    for any in ["0.0.0.0", "::"] {
        let name = if number == 1 { "ONE" } else { "TWO" };
        // Both families' sockets at once: the one for IPv6 does not take IPv4's connections.
        if any == "::" {
            run(
                "nsenter",
                &[
                    &format!("--net={}", node.pod.path().display()),
                    "sysctl",
                    "-qw",
                    "net.ipv6.bindv6only=1",
                ],
            );
            run(
                "nsenter",
                &[
                    &format!("--net={}", node.namespace.path().display()),
                    "sysctl",
                    "-qw",
                    "net.ipv6.bindv6only=1",
                ],
            );
        }
        node.pod.serve_tcp(ip(any), 8080, name);
        node.pod.serve_echo(ip(any), 9090);
        node.namespace.serve_tcp(ip(any), 8181, name);
    }
    node
}

fn until_services(node: &Node) {
    for _ in 0..500 {
        let rows = inspect::read(&node.config.bpf_root, inspect::View::Services)
            .unwrap()
            .json();
        if rows.as_array().unwrap().len() == 6 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no services");
}

fn like(all: &[IpAddr], v6: bool) -> IpAddr {
    *all.iter().find(|ip| ip.is_ipv6() == v6).unwrap()
}

fn conversations(one: &Node, two: &Node, tunnel: bool) {
    for v6 in [false, true] {
        let (a, b) = (like(&one.pod_ips, v6), like(&two.pod_ips, v6));
        let (m, n) = (like(&one.ips, v6), like(&two.ips, v6));
        let at = |ip: IpAddr, port: u16| SocketAddr::new(ip, port);
        let tcp = |from: &Namespace, to: SocketAddr| from.ask(None, &format!("tcp {to} 1"));
        assert_eq!(
            tcp(&one.pod, at(b, 8080)),
            format!("TWO {a} peer {}", at(b, 8080)),
            "pod to pod"
        );
        assert_eq!(
            one.pod.ask(None, &format!("tcp-big {} 1", at(b, 9090))),
            format!("{BIG} bytes"),
            "large packets"
        );
        assert_eq!(
            tcp(&one.namespace, at(b, 8080)),
            format!("TWO {m} peer {}", at(b, 8080)),
            "node to pod"
        );
        // The other node knows our pods: their address is not hidden from it.
        assert_eq!(
            tcp(&one.pod, at(n, 8181)),
            format!("TWO {a} peer {}", at(n, 8181)),
            "pod to node"
        );
        let service = ip(if v6 { "fd00:10:96::77" } else { "10.96.7.7" });
        assert_eq!(
            tcp(&one.pod, at(service, 80)),
            format!("TWO {a} peer {}", at(service, 80)),
            "service"
        );
        if tunnel {
            // Past the socket hooks, by the default route.
            assert_eq!(
                tcp(&one.namespace, at(service, 80)),
                format!("TWO {m} peer {}", at(service, 80)),
                "the node itself"
            );
        }
        let from_outside = two.namespace.ask(None, &format!("tcp {} 1", at(m, 30080)));
        assert_eq!(
            from_outside,
            format!("TWO {m} peer {}", at(m, 30080)),
            "node port with its pod elsewhere"
        );
    }
    let routes = inspect::read(&one.config.bpf_root, inspect::View::Nodes).unwrap();
    assert!(!routes.text().is_empty());
    let mtu = std::process::Command::new("ip")
        .args(["-n", &one.pod.name, "link", "show", "eth0"])
        .output()
        .unwrap();
    let mtu = String::from_utf8_lossy(&mtu.stdout).into_owned();
    let expected = match (tunnel, one.ips[0].is_ipv6()) {
        (false, _) => "mtu 1500",
        (true, false) => "mtu 1450",
        (true, true) => "mtu 1430",
    };
    assert!(mtu.contains(expected), "{mtu}");
    for row in inspect::read(&two.config.bpf_root, inspect::View::Metrics)
        .unwrap()
        .json()
        .as_array()
        .unwrap()
    {
        // What the kernel reports of its own groups when the tunnel's device comes up is for nobody.
        if row["verdict"] == "dropped" && row["what"] != "no node is known for the destination" {
            assert_eq!(row["count"], 0, "{row}");
        }
    }
}

#[test]
fn tunnel_over_ipv4() {
    let router = router("x");
    let one = start("x", 1, Tunnel::Vxlan, false, (Between::Router, &router));
    let two = start("x", 2, Tunnel::Vxlan, false, (Between::Router, &router));
    until_services(&one);
    until_services(&two);
    conversations(&one, &two, true);
}

#[test]
fn tunnel_over_ipv6() {
    let router = router("y");
    let one = start("y", 1, Tunnel::Vxlan, true, (Between::Router, &router));
    let two = start("y", 2, Tunnel::Vxlan, true, (Between::Router, &router));
    until_services(&one);
    until_services(&two);
    conversations(&one, &two, true);
}

#[test]
fn routes_between_neighbours() {
    let switch = Namespace::new("zs");
    switch.ip("link add sw type bridge");
    switch.ip("link set sw up");
    let one = start("z", 1, Tunnel::Off, false, (Between::Switch, &switch));
    let two = start("z", 2, Tunnel::Off, false, (Between::Switch, &switch));
    until_services(&one);
    until_services(&two);
    conversations(&one, &two, false);
    let links = run("ip", &["-n", &one.namespace.name, "link"]);
    assert!(!String::from_utf8_lossy(&links.stdout).contains("orch-vxlan"));
}

fn router(name: &str) -> Namespace {
    let router = Namespace::new(&format!("{name}r"));
    let inside = format!("--net={}", router.path().display());
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        run("nsenter", &[&inside, "sysctl", "-qw", setting]);
    }
    router
}

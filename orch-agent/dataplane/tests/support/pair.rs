//! Two nodes, each with a data plane and a pod, and a namespace between them that is a router or a switch.

use std::{net::IpAddr, sync::mpsc, time::Duration};

use ipnet::IpNet;
use orch_dataplane::{Dataplane, PodAttachment, Tunnel, XdpMode, inspect};
use serde_json::json;

use crate::support::{Fake, Namespace, Settings, run};

/// How the nodes are connected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// A router.
    Router,
    /// A switch.
    Switch,
}

/// How the nodes' data planes are run.
#[derive(Clone, Copy)]
pub struct Ways {
    pub tunnel: Tunnel,
    pub v6_first: bool,
    pub direct_return: bool,
    pub xdp: XdpMode,
}

/// Rows of services that every node has in the end: a ClusterIP, and a NodePort from inside and from outside, of each
/// port in both families.
const ROWS: usize = 5 * 3 * 2;

/// A node, its pod, and the thread on which its data plane runs.
pub struct Node {
    pub config: Settings,
    pub namespace: Namespace,
    pub pod: Namespace,
    pub ips: Vec<IpAddr>,
    pub pod_ips: Vec<IpAddr>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn node_ips(number: u8, v6_first: bool) -> Vec<IpAddr> {
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

/// The Node objects, a service with a pod of the second node behind it, and one with that node itself.
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
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30080},
                {"name": "echo", "port": 90, "nodePort": 30090},
                {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
            ]},
    }));
    fake.service(json!({
        "metadata": {"name": "host"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.7.8", "clusterIPs": ["10.96.7.8", "fd00:10:96::78"],
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30180},
                {"name": "echo", "port": 90, "nodePort": 30190},
            ]},
    }));
    for (family, address) in [("IPv4", "10.244.2.1"), ("IPv6", "fd00:10:244:2::1")] {
        fake.slice(json!({
            "metadata": {"name": format!("web-{family}"), "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family,
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 8080},
                {"name": "echo", "protocol": "TCP", "port": 9090},
                {"name": "dns", "protocol": "UDP", "port": 5353},
            ],
            "endpoints": [{"addresses": [address], "nodeName": "n2", "conditions": {"ready": true}}],
        }));
        let host = like(&node_ips(2, v6_first), family == "IPv6");
        fake.slice(json!({
            "metadata": {"name": format!("host-{family}"), "labels": {"kubernetes.io/service-name": "host"}},
            "addressType": family,
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 8181},
                {"name": "echo", "protocol": "TCP", "port": 9191},
            ],
            "endpoints": [{"addresses": [host], "nodeName": "n2", "conditions": {"ready": true}}],
        }));
    }
    fake
}

pub fn start(name: &str, number: u8, ways: Ways, between: (Between, &Namespace)) -> Node {
    let v6_first = ways.v6_first;
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
    let mut config = Settings::new(&format!("nodes-{name}{number}"));
    config.node_name = format!("n{number}");
    config.node_ips.clone_from(&ips);
    if v6_first {
        config.cluster_cidrs.reverse();
    }
    config.cluster_dns = vec![ip("10.96.0.10"), ip("fd00:10:96::a")];
    config.xdp = ways.xdp;
    config.tunnel = ways.tunnel;
    config.direct_return = ways.direct_return;
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
        node.pod.serve_udp(ip(any), 5353, name);
        node.namespace.serve_tcp(ip(any), 8181, name);
        node.namespace.serve_echo(ip(any), 9191);
    }
    node
}

pub fn until_services(node: &Node) {
    for _ in 0..500 {
        let rows = inspect::read(&node.config.bpf_root, inspect::View::Services)
            .unwrap()
            .json();
        if rows.as_array().unwrap().len() == ROWS {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no services");
}

pub fn like(all: &[IpAddr], v6: bool) -> IpAddr {
    *all.iter().find(|ip| ip.is_ipv6() == v6).unwrap()
}

pub fn router(name: &str) -> Namespace {
    let router = Namespace::new(&format!("{name}r"));
    let inside = format!("--net={}", router.path().display());
    // What is answered straight comes back by another way than it went.
    for setting in [
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
        "net.ipv4.conf.all.rp_filter=0",
        "net.ipv4.conf.default.rp_filter=0",
    ] {
        run("nsenter", &[&inside, "sysctl", "-qw", setting]);
    }
    router
}

/// A switch whose ports the nodes are on.
pub fn switch(name: &str) -> Namespace {
    let switch = Namespace::new(&format!("{name}s"));
    switch.ip("link add sw type bridge");
    switch.ip("link set sw up");
    switch
}

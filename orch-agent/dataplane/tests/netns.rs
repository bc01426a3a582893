//! A node in a namespace, two pods, a second node and a client outside: real packets through the real programs.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[path = "netns/own.rs"]
mod own;
#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use orch_dataplane::{Dataplane, PodAttachment, XdpMode, inspect};
use serde_json::json;
use support::{Fake, Namespace, Settings, run};

/// The addresses of one family.
#[derive(Clone, Copy)]
struct Plan {
    node: IpAddr,
    outside: IpAddr,
    remote_pod: IpAddr,
    service: IpAddr,
    dns: IpAddr,
    balancer: IpAddr,
    balanced: IpAddr,
    far: IpAddr,
    any: IpAddr,
    link: IpNet,
    pods: IpNet,
    remote_pods: IpNet,
    cluster: IpNet,
    services: IpNet,
    far_net: IpNet,
}

/// The addresses of a family in their order in [`Plan`].
fn plan(v6: bool) -> Plan {
    let text = |v4: &'static str, other: &'static str| if v6 { other } else { v4 };
    let ip = |v4, other| text(v4, other).parse().unwrap();
    let net = |v4, other| text(v4, other).parse().unwrap();
    Plan {
        node: ip("172.31.0.11", "fd00:31::11"),
        outside: ip("172.31.0.1", "fd00:31::1"),
        remote_pod: ip("10.244.2.5", "fd00:10:244:2::5"),
        service: ip("10.96.7.7", "fd00:10:96::77"),
        dns: ip("10.96.0.10", "fd00:10:96::a"),
        balancer: ip("172.31.0.200", "fd00:31::200"),
        balanced: ip("10.96.7.8", "fd00:10:96::78"),
        far: ip("192.0.2.9", "2001:db8::9"),
        any: ip("0.0.0.0", "::"),
        link: net("172.31.0.0/24", "fd00:31::/64"),
        pods: net("10.244.1.0/24", "fd00:10:244:1::/64"),
        remote_pods: net("10.244.2.0/24", "fd00:10:244:2::/64"),
        cluster: net("10.244.0.0/16", "fd00:10:244::/56"),
        services: net("10.96.0.0/16", "fd00:10:96::/112"),
        far_net: net("192.0.2.0/24", "2001:db8::/64"),
    }
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

#[test]
fn helper() {
    support::help();
}

struct Place {
    config: Settings,
    node: Namespace,
    outside: Namespace,
    pods: [Namespace; 2],
    /// The families of the node, the primary one first.
    families: Vec<Plan>,
}

fn place(name: &str, families: Vec<Plan>) -> Place {
    let namespace = |part: &str| Namespace::new(&format!("{name}{part}"));
    let (node, outside) = (namespace("n"), namespace("o"));
    let pods = [namespace("a"), namespace("b")];
    node.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        outside.name
    ));
    node.ip("link set eth0 up");
    outside.ip("link set eth0 up");
    for family in &families {
        let length = family.link.prefix_len();
        let nodad = if family.node.is_ipv6() { " nodad" } else { "" };
        node.ip(&format!("addr add {}/{length} dev eth0{nodad}", family.node));
        outside.ip(&format!("addr add {}/{length} dev eth0{nodad}", family.outside));
        outside.ip(&format!("addr add {} dev lo", IpNet::from(family.remote_pod)));
        outside.ip(&format!("route add {} via {}", family.pods, family.node));
    }
    let mut config = Settings::new(&format!("test-{name}"));
    config.node_ips = families.iter().map(|family| family.node).collect();
    config.cluster_cidrs = families.iter().map(|family| family.cluster).collect();
    config.service_cidrs = families.iter().map(|family| family.services).collect();
    config.cluster_dns = families.iter().map(|family| family.dns).collect();
    config.xdp = XdpMode::Auto;
    Place {
        node,
        outside,
        pods,
        families,
        config,
    }
}

fn slice(port: &str, protocol: &str, number: u16, addresses: &[(IpAddr, &str)]) -> serde_json::Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|(address, node)| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}}))
        .collect();
    let family = if addresses[0].0.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "metadata": {"name": format!("web-{port}"), "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family,
        "ports": [{"name": port, "protocol": protocol, "port": number}],
        "endpoints": endpoints,
    })
}

fn node(name: &str, addresses: &[IpAddr], cidrs: &[IpNet]) -> serde_json::Value {
    let addresses: Vec<_> = addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {"addresses": addresses},
    })
}

fn web(plan: &Plan) -> serde_json::Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "clusterIP": plan.service, "clusterIPs": [plan.service], "ports": [
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
    until_rows(root, inspect::View::Services, rows).await;
}

fn rows(root: &std::path::Path, view: inspect::View) -> usize {
    inspect::read(root, view)
        .unwrap()
        .json()
        .as_array()
        .unwrap()
        .len()
}

async fn until_rows(root: &std::path::Path, view: inspect::View, wanted: usize) {
    for _ in 0..200 {
        if rows(root, view) == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{}", inspect::read(root, view).unwrap().text());
}

fn everything(name: &str, families: Vec<Plan>, plan: Plan) {
    let place = place(name, families);
    place.node.enter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(scenario(&place, &plan));
}

#[test]
fn ipv4_alone() {
    everything("4", vec![plan(false)], plan(false));
}

#[test]
fn ipv6_alone() {
    everything("6", vec![plan(true)], plan(true));
}

#[test]
fn ipv6_beside_ipv4() {
    everything("d", vec![plan(false), plan(true)], plan(true));
}

fn attachment(place: &Place, index: usize) -> PodAttachment {
    PodAttachment {
        uid: format!("uid-{index}"),
        namespace: "default".into(),
        name: format!("pod-{index}"),
        netns: place.pods[index].path(),
        ..PodAttachment::default()
    }
}

async fn attach(dataplane: &Dataplane, place: &Place, plan: &Plan) -> [IpAddr; 2] {
    let mut addresses = [plan.any; 2];
    for (index, address) in addresses.iter_mut().enumerate() {
        let all = dataplane.attach_pod(&attachment(place, index)).await.unwrap();
        assert_eq!(all.len(), place.families.len());
        assert_eq!(
            all[0].is_ipv4(),
            place.families[0].node.is_ipv4(),
            "the primary family comes first"
        );
        let of_family = all.into_iter().find(|ip| ip.is_ipv4() == plan.node.is_ipv4());
        *address = of_family.unwrap();
    }
    addresses
}

async fn start(place: &Place, fake: &mut Fake) -> Arc<Dataplane> {
    fake.open_policies();
    Dataplane::start(place.config.clone(), Arc::clone(&fake.cluster))
        .await
        .unwrap()
}

async fn set_cidrs(dataplane: &Dataplane, place: &Place) {
    let cidrs: Vec<IpNet> = place.families.iter().map(|family| family.pods).collect();
    dataplane.set_pod_cidrs(&cidrs).await.unwrap();
}

async fn scenario(place: &Place, plan: &Plan) {
    let Plan {
        node: node_ip,
        outside,
        remote_pod,
        service,
        dns,
        far,
        any,
        ..
    } = *plan;
    let mut fake = Fake::new();
    let dataplane = start(place, &mut fake).await;
    set_cidrs(&dataplane, place).await;
    let [a, b] = attach(&dataplane, place, plan).await;
    assert_ne!(a, b);
    assert_eq!(
        attach(&dataplane, place, plan).await,
        [a, b],
        "attaching again changes nothing"
    );
    for (namespace, name) in place.pods.iter().zip(["A", "B"]) {
        namespace.serve_tcp(any, 8080, name);
        namespace.serve_udp(any, 5353, name);
    }
    place.outside.serve_tcp(any, 8080, "OUT");
    place.outside.serve_udp(any, 5353, "OUT");
    place.node.serve_udp(dns, 53, "DNS");

    fake.ready();
    let each = |get: fn(&Plan) -> IpAddr| -> Vec<IpAddr> { place.families.iter().map(get).collect() };
    let nets = |get: fn(&Plan) -> IpNet| -> Vec<IpNet> { place.families.iter().map(get).collect() };
    fake.node(node("n1", &each(|plan| plan.node), &nets(|plan| plan.pods)));
    fake.node(node(
        "n2",
        &each(|plan| plan.outside),
        &nets(|plan| plan.remote_pods),
    ));
    fake.service(web(plan));
    fake.slice(slice("http", "TCP", 8080, &[(a, "n1"), (b, "n1")]));
    fake.slice(slice("dns", "UDP", 5353, &[(a, "n1"), (b, "n1")]));
    fake.slice(slice("far", "TCP", 8080, &[(remote_pod, "n2")]));
    let root = &place.config.bpf_root;
    until_services(root, 12).await;
    let [pod_a, pod_b] = &place.pods;
    let cgroup = Some(place.config.cgroup_path.as_path());

    // Pods, the node and the outside reach one another by address.
    assert_eq!(
        pod_a.ask(None, &format!("tcp {} 1", at(b, 8080))),
        format!("B {a} peer {}", at(b, 8080))
    );
    assert_eq!(
        place.node.ask(None, &format!("tcp {} 1", at(b, 8080))),
        format!("B {node_ip} peer {}", at(b, 8080))
    );
    assert_eq!(
        pod_a.ask(None, &format!("udp {} 1", at(dns, 53))),
        format!("DNS {a} 5 from {}", at(dns, 53))
    );
    assert_eq!(
        pod_a.ask(None, &format!("tcp {} 1", at(remote_pod, 8080))),
        format!("OUT {a} peer {}", at(remote_pod, 8080)),
        "a pod keeps its address towards another node's pods"
    );
    assert_eq!(
        place.outside.ask(None, &format!("tcp {} 1", at(b, 8080))),
        format!("B {outside} peer {}", at(b, 8080))
    );

    // Services at the socket.
    assert_eq!(
        set(&pod_a.ask(cgroup, &format!("tcp {} 40", at(service, 80)))),
        [
            format!("A {a} peer {}", at(service, 80)),
            format!("B {a} peer {}", at(service, 80))
        ]
    );
    let udp = [
        format!("A {a} 5 from {}", at(service, 53)),
        format!("B {a} 5 from {}", at(service, 53)),
    ];
    assert_eq!(
        set(&pod_a.ask(cgroup, &format!("udp {} 40", at(service, 53)))),
        udp
    );
    if !any.is_ipv6() {
        assert_eq!(
            set(&pod_a.ask(cgroup, "tcp [::ffff:10.96.7.7]:80 40")),
            [
                format!("A {a} peer [::ffff:10.96.7.7]:80"),
                format!("B {a} peer [::ffff:10.96.7.7]:80")
            ]
        );
        assert_eq!(
            set(&pod_a.ask(cgroup, "udp [::ffff:10.96.7.7]:53 40")),
            [
                format!("A {a} 5 from [::ffff:10.96.7.7]:53"),
                format!("B {a} 5 from [::ffff:10.96.7.7]:53")
            ]
        );
    }
    assert_eq!(
        set(&pod_a.ask(cgroup, &format!("udp-connected {} 40", at(service, 53)))),
        [
            format!("A {node_ip} 5 peer {}", at(service, 53)),
            format!("B {a} 5 peer {}", at(service, 53))
        ],
        "as packets"
    );
    assert_eq!(
        set(&place.node.ask(cgroup, &format!("tcp {} 40", at(node_ip, 30080)))),
        [
            format!("A {node_ip} peer {}", at(node_ip, 30080)),
            format!("B {node_ip} peer {}", at(node_ip, 30080))
        ]
    );
    // The node means itself by its loopback addresses, and a pod itself.
    let loopback: IpAddr = if any.is_ipv6() {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::new(127, 9, 9, 9).into()
    };
    assert_eq!(
        set(&place.node.ask(cgroup, &format!("tcp {} 40", at(loopback, 30080)))),
        [
            format!("A {node_ip} peer {}", at(loopback, 30080)),
            format!("B {node_ip} peer {}", at(loopback, 30080))
        ]
    );
    assert_eq!(
        set(&place.node.ask(cgroup, &format!("udp {} 40", at(loopback, 30053)))),
        [
            format!("A {node_ip} 5 from {}", at(loopback, 30053)),
            format!("B {node_ip} 5 from {}", at(loopback, 30053))
        ]
    );
    assert_eq!(
        pod_a.ask(cgroup, &format!("tcp {} 1", at(loopback, 30080))),
        "error ConnectionRefused"
    );
    own::port_on_loopback(place, &dataplane, loopback, node_ip).await;
    own::source_ranges(place, plan, &mut fake, [a, b]).await;
    assert_eq!(
        pod_a.ask(cgroup, &format!("tcp {} 1", at(service, 82))),
        "error ConnectionRefused",
        "no backend"
    );

    // The same as packets, from a process that the socket hooks do not see.
    assert_eq!(
        set(&pod_a.ask(None, &format!("tcp {} 40", at(service, 80)))),
        [
            format!("A {node_ip} peer {}", at(service, 80)),
            format!("B {a} peer {}", at(service, 80))
        ],
        "a pod that reaches itself sees the node as its client"
    );
    assert_eq!(
        set(&pod_a.ask(None, &format!("udp {} 40", at(service, 53)))),
        [
            format!("A {node_ip} 5 from {}", at(service, 53)),
            format!("B {a} 5 from {}", at(service, 53))
        ]
    );
    assert_eq!(
        set(&pod_b.ask(None, &format!("tcp {} 40", at(node_ip, 30080)))),
        [
            format!("A {b} peer {}", at(node_ip, 30080)),
            format!("B {node_ip} peer {}", at(node_ip, 30080))
        ]
    );
    assert_eq!(
        pod_a.ask(None, &format!("tcp {} 1", at(service, 81))),
        format!("OUT {a} peer {}", at(service, 81))
    );

    // And of the node, whose stack sends what it has no route for to the uplink.
    place
        .node
        .ip(&format!("route add {} via {outside}", plan.services));
    assert_eq!(
        set(&place.node.ask(None, &format!("tcp {} 40", at(service, 80)))),
        [
            format!("A {node_ip} peer {}", at(service, 80)),
            format!("B {node_ip} peer {}", at(service, 80))
        ]
    );
    assert_eq!(
        set(&place.node.ask(None, &format!("udp-big {} 40", at(service, 53)))),
        [
            format!("A {node_ip} 5000 from {}", at(service, 53)),
            format!("B {node_ip} 5000 from {}", at(service, 53))
        ]
    );
    assert_eq!(
        place.node.ask(None, &format!("tcp {} 1", at(service, 81))),
        format!("OUT {node_ip} peer {}", at(service, 81))
    );

    // NodePorts from outside: the source is kept for local backends, and is the node's for remote ones.
    assert_eq!(
        set(&place.outside.ask(None, &format!("tcp {} 40", at(node_ip, 30080)))),
        [
            format!("A {outside} peer {}", at(node_ip, 30080)),
            format!("B {outside} peer {}", at(node_ip, 30080))
        ]
    );
    assert_eq!(
        set(&place.outside.ask(None, &format!("udp {} 40", at(node_ip, 30053)))),
        [
            format!("A {outside} 5 from {}", at(node_ip, 30053)),
            format!("B {outside} 5 from {}", at(node_ip, 30053))
        ]
    );
    assert_eq!(
        set(&place
            .outside
            .ask(None, &format!("udp-big {} 40", at(node_ip, 30053)))),
        [
            format!("A {outside} 5000 from {}", at(node_ip, 30053)),
            format!("B {outside} 5000 from {}", at(node_ip, 30053))
        ],
        "fragments follow their first"
    );
    assert_eq!(
        place.outside.ask(None, &format!("tcp {} 1", at(node_ip, 30081))),
        format!("OUT {node_ip} peer {}", at(node_ip, 30081))
    );

    // Masquerade to the outside, TCP, UDP and ICMP.
    let nodad = if far.is_ipv6() { " nodad" } else { "" };
    place
        .outside
        .ip(&format!("addr add {} dev lo{nodad}", IpNet::from(far)));
    place
        .node
        .ip(&format!("route add {} via {outside}", plan.far_net));
    place.outside.serve_udp(far, 5300, "OUT");
    assert_eq!(
        pod_a.ask(None, &format!("tcp {} 1", at(far, 8080))),
        format!("OUT {node_ip} peer {}", at(far, 8080))
    );
    assert_eq!(
        pod_a.ask(None, &format!("udp {} 1", at(far, 5300))),
        format!("OUT {node_ip} 5 from {}", at(far, 5300))
    );
    assert_eq!(
        pod_a.ask(None, &format!("udp-big {} 1", at(far, 5300))),
        format!("OUT {node_ip} 5000 from {}", at(far, 5300))
    );
    let ping_name = if far.is_ipv6() { "ping6" } else { "ping" };
    let ping = format!("--net={}", pod_a.path().display());
    run(
        "nsenter",
        &[
            &ping,
            "busybox",
            ping_name,
            "-c",
            "2",
            "-W",
            "3",
            &far.to_string(),
        ],
    );

    let dump = run(
        "bpftool",
        &[
            "map",
            "dump",
            "pinned",
            &format!(
                "{}/maps/ORCH_SERVICES{}",
                root.display(),
                if any.is_ipv6() { 6 } else { 4 }
            ),
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

    let dataplane = restart(place, plan, &mut fake, dataplane, [a, b]).await;

    let moving = pod_a.asking(cgroup, &format!("udp-moving {} 1", at(service, 53)));
    tokio::time::sleep(Duration::from_millis(500)).await;

    // One that comes gets its part of the sockets that send to the service, and nobody else gets any.
    let known = rows(root, inspect::View::Sockets);
    let asking = pod_a.asking(cgroup, &format!("udp-held {} 1", at(service, 53)));
    while rows(root, inspect::View::Sockets) < known + support::HELD {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fake.slice(slice(
        "dns",
        "UDP",
        5353,
        &[(a, "n1"), (b, "n1"), (remote_pod, "n2")],
    ));
    while !asking.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let said = asking.join().unwrap();
    let [stay, newcomer, others] = said.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{said}")
    };
    assert!(stay != "0" && newcomer != "0" && others == "0", "{said}");

    // A backend that goes gets no new connection, and its pod is told when. A connected UDP socket notices nothing.
    fake.slice(slice("http", "TCP", 8080, &[(b, "n1")]));
    fake.slice(slice("dns", "UDP", 5353, &[(b, "n1")]));
    tokio::time::timeout(Duration::from_secs(5), dataplane.withdrawn(a))
        .await
        .unwrap();
    assert_eq!(
        set(&place.outside.ask(None, &format!("tcp {} 20", at(node_ip, 30080)))),
        [format!("B {outside} peer {}", at(node_ip, 30080))]
    );
    assert_eq!(
        set(&pod_a.ask(cgroup, &format!("udp {} 20", at(service, 53)))),
        [format!("B {a} 5 from {}", at(service, 53))]
    );
    assert_eq!(moving.join().unwrap(), "A, then B");

    fake.remove_service(web(plan));
    until_services(root, 0).await;
    // A program that has just found one of them may still be reading it.
    until_rows(root, inspect::View::Backends, 0).await;
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
            "source is outside the service's loadBalancerSourceRanges",
        ];
        if row["verdict"] == "dropped" && !expected.contains(&row["what"].as_str().unwrap()) {
            assert_eq!(row["count"], 0, "{row}");
        }
    }
}

/// Connections live through the absence of an agent and the arrival of the next.
async fn restart(
    place: &Place,
    plan: &Plan,
    fake: &mut Fake,
    dataplane: Arc<Dataplane>,
    addresses: [IpAddr; 2],
) -> Arc<Dataplane> {
    let node_ip = plan.node;
    let mut stream = place
        .outside
        .thread(move || TcpStream::connect((node_ip, 30080)).unwrap())
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
            .ask(None, &format!("tcp {} 1", at(node_ip, 30080)))
            .contains("peer"),
        "new without an agent"
    );

    // The caches of the new agent are empty at first: what was known stays.
    let mut empty = Fake::new();
    let dataplane = start(place, &mut empty).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(echo(), before, "with an agent that knows nothing yet");
    assert!(
        place
            .outside
            .ask(None, &format!("tcp {} 1", at(node_ip, 30080)))
            .contains("peer")
    );
    assert_eq!(dataplane.attached(), attached);
    drop(dataplane);
    empty.ready();

    let dataplane = start(place, fake).await;
    set_cidrs(&dataplane, place).await;
    assert_eq!(attach(&dataplane, place, plan).await, addresses);
    until_services(&place.config.bpf_root, 12).await;
    assert_eq!(echo(), before, "after the restart");
    dataplane
}

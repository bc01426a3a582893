//! A node with two uplinks: other nodes on one, which has the node's address, the world on the other, which has the
//! default route. The second is an interface of its own or, where the kernel has them, a VLAN on the first.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use orch_dataplane::{Dataplane, PodAttachment, inspect};
use serde_json::{Value, json};
use support::{Fake, Namespace, Settings, run};

/// The addresses of one family.
#[derive(Clone, Copy)]
struct Plan {
    /// The node on the first uplink, and the node beyond it with its pod.
    node: IpAddr,
    neighbour: IpAddr,
    remote_pod: IpAddr,
    /// The node on the second uplink, a client there, and a server beyond it.
    public: IpAddr,
    client: IpAddr,
    far: IpAddr,
    service: IpAddr,
    any: IpAddr,
    link: IpNet,
    public_link: IpNet,
    pods: IpNet,
    remote_pods: IpNet,
    cluster: IpNet,
    services: IpNet,
}

fn plan(v6: bool) -> Plan {
    let text = |v4: &'static str, other: &'static str| if v6 { other } else { v4 };
    let ip = |v4, other| text(v4, other).parse().unwrap();
    let net = |v4, other| text(v4, other).parse().unwrap();
    Plan {
        node: ip("172.31.0.11", "fd00:31::11"),
        neighbour: ip("172.31.0.1", "fd00:31::1"),
        remote_pod: ip("10.244.2.5", "fd00:10:244:2::5"),
        public: ip("198.51.100.11", "2001:db8:51::11"),
        client: ip("198.51.100.1", "2001:db8:51::1"),
        far: ip("192.0.2.9", "2001:db8::9"),
        service: ip("10.96.7.7", "fd00:10:96::77"),
        any: ip("0.0.0.0", "::"),
        link: net("172.31.0.0/24", "fd00:31::/64"),
        public_link: net("198.51.100.0/24", "2001:db8:51::/64"),
        pods: net("10.244.1.0/24", "fd00:10:244:1::/64"),
        remote_pods: net("10.244.2.0/24", "fd00:10:244:2::/64"),
        cluster: net("10.244.0.0/16", "fd00:10:244::/56"),
        services: net("10.96.0.0/16", "fd00:10:96::/112"),
    }
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

#[test]
fn helper() {
    support::help();
}

/// What the second uplink is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Second {
    /// An interface.
    Interface,
    /// A VLAN on the first; its tag comes beside the packet, as drivers leave it that take it out, or within.
    Vlan { within: bool },
}

impl Second {
    fn device(self) -> &'static str {
        match self {
            Self::Interface => "eth1",
            Self::Vlan { .. } => "eth0.7",
        }
    }
}

struct Place {
    config: Settings,
    node: Namespace,
    outside: Namespace,
    pod: Namespace,
}

/// Whether the kernel has VLAN interfaces; that of the reference machine has none, that of `cargo xtask verify-kernel`
/// has.
fn has_vlans() -> bool {
    let probe = Namespace::new("probe");
    probe.ip("link add near type veth peer name far");
    let made = Command::new("ip")
        .args(["-n", &probe.name, "link", "add", "link", "near", "name", "tagged"])
        .args(["type", "vlan", "id", "7"])
        .output();
    made.unwrap().status.success()
}

fn place(name: &str, plan: &Plan, second: Second) -> Place {
    let namespace = |part: &str| Namespace::new(&format!("{name}{part}"));
    let (node, outside, pod) = (namespace("n"), namespace("o"), namespace("p"));
    node.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        outside.name
    ));
    let device = second.device();
    match second {
        Second::Interface => node.ip(&format!(
            "link add eth1 type veth peer name eth1 netns {}",
            outside.name
        )),
        Second::Vlan { within } => {
            node.ip("link add link eth0 name eth0.7 type vlan id 7");
            // Without this flag a sender writes the tag into the frame.
            let flag = if within { "off" } else { "on" };
            outside.ip(&format!(
                "link add link eth0 name eth0.7 type vlan id 7 reorder_hdr {flag}"
            ));
        }
    }
    // An address on its way out, as privacy extensions leave them, is nobody's source; the kernel names the newest first.
    let spare = plan.public.to_string().replace("11", "99");
    // Who answers for any of its addresses on any interface would hide what leaves by the wrong one.
    run(
        "nsenter",
        &[
            &format!("--net={}", outside.path().display()),
            "sysctl",
            "-qw",
            "net.ipv4.conf.all.arp_ignore=1",
        ],
    );
    let nodad = if plan.node.is_ipv6() { " nodad" } else { "" };
    for (side, near, wide) in [
        (&node, plan.node, plan.public),
        (&outside, plan.neighbour, plan.client),
    ] {
        side.ip("link set eth0 up");
        side.ip(&format!("link set {device} up"));
        side.ip(&format!(
            "addr add {near}/{} dev eth0{nodad}",
            plan.link.prefix_len()
        ));
        side.ip(&format!(
            "addr add {wide}/{} dev {device}{nodad}",
            plan.public_link.prefix_len()
        ));
    }
    node.ip(&format!(
        "addr add {spare}/{} dev {device} preferred_lft 0{nodad}",
        plan.public_link.prefix_len()
    ));
    node.ip(&format!("route add default via {}", plan.client));
    for address in [plan.remote_pod, plan.far] {
        outside.ip(&format!("addr add {} dev lo{nodad}", IpNet::from(address)));
    }
    outside.ip(&format!("route add {} via {}", plan.pods, plan.node));
    let mut config = Settings::new(&format!("uplinks-{name}"));
    config.node_ips = vec![plan.node];
    config.cluster_cidrs = vec![plan.cluster];
    config.service_cidrs = vec![plan.services];
    Place {
        node,
        outside,
        pod,
        config,
    }
}

fn slice(port: &str, number: u16, address: IpAddr, node: &str) -> Value {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "metadata": {"name": format!("web-{port}"), "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family,
        "ports": [{"name": port, "protocol": "TCP", "port": number}],
        "endpoints": [{"addresses": [address], "nodeName": node, "conditions": {"ready": true}}],
    })
}

fn node(name: &str, address: IpAddr, cidr: IpNet) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

async fn until_services(root: &Path, rows: usize) {
    for _ in 0..200 {
        let table = inspect::read(root, inspect::View::Services).unwrap().json();
        if table.as_array().unwrap().len() == rows {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{}", inspect::read(root, inspect::View::Services).unwrap().text());
}

fn everything(name: &str, v6: bool, second: Second) {
    let plan = plan(v6);
    let place = place(name, &plan, second);
    place.node.enter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(scenario(&place, &plan));
}

async fn scenario(place: &Place, plan: &Plan) {
    let mut fake = Fake::new();
    fake.open_policies();
    let dataplane = Dataplane::start(place.config.clone(), Arc::clone(&fake.cluster))
        .await
        .unwrap();
    dataplane.set_pod_cidrs(&[plan.pods]).await.unwrap();
    let pod = PodAttachment {
        uid: "uid".into(),
        namespace: "default".into(),
        name: "pod".into(),
        netns: place.pod.path(),
        ..PodAttachment::default()
    };
    let [pod_ip] = dataplane.attach_pod(&pod).await.unwrap()[..] else {
        panic!("one family")
    };
    place.pod.serve_tcp(plan.any, 8080, "POD");
    place.pod.serve_echo(plan.any, 9090);
    place.outside.serve_tcp(plan.any, 8080, "OUT");
    place.outside.serve_echo(plan.any, 9090);
    fake.ready();
    fake.node(node("n1", plan.node, plan.pods));
    fake.node(node("n2", plan.neighbour, plan.remote_pods));
    fake.service(json!({
        "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "clusterIP": plan.service, "clusterIPs": [plan.service], "ports": [
            {"name": "here", "port": 80, "nodePort": 30080},
            {"name": "there", "port": 81, "nodePort": 30081},
            {"name": "here-big", "port": 82, "nodePort": 30082},
            {"name": "there-big", "port": 83, "nodePort": 30083},
        ]},
    }));
    fake.slice(slice("here", 8080, pod_ip, "n1"));
    fake.slice(slice("there", 8080, plan.remote_pod, "n2"));
    fake.slice(slice("here-big", 9090, pod_ip, "n1"));
    fake.slice(slice("there-big", 9090, plan.remote_pod, "n2"));
    until_services(&place.config.bpf_root, 12).await;

    let Plan {
        node,
        public,
        client,
        far,
        neighbour,
        ..
    } = *plan;
    let ask = |words: String| place.outside.ask(None, &words);
    for (address, sender) in [(node, neighbour), (public, client)] {
        assert_eq!(
            ask(format!("tcp {} 1", at(address, 30080))),
            format!("POD {sender} peer {}", at(address, 30080)),
            "a backend here"
        );
        assert_eq!(
            ask(format!("tcp {} 1", at(address, 30081))),
            format!("OUT {node} peer {}", at(address, 30081)),
            "a backend there"
        );
        for port in [30082, 30083] {
            assert_eq!(
                ask(format!("tcp-big {} 1", at(address, port))),
                format!("{} bytes", support::BIG),
                "much, by {port}"
            );
        }
    }
    // The outside has the pod's network behind the first uplink, and may send to it by the second as well.
    place
        .outside
        .ip(&format!("route replace {} via {public}", IpNet::from(pod_ip)));
    assert_eq!(
        ask(format!("tcp {} 1", at(pod_ip, 8080))),
        format!("POD {client} peer {}", at(pod_ip, 8080)),
        "a pod by its address"
    );
    assert_eq!(
        place.pod.ask(None, &format!("tcp {} 1", at(far, 8080))),
        format!("OUT {public} peer {}", at(far, 8080)),
        "who leaves by the second uplink has its address"
    );
    assert_eq!(
        place
            .pod
            .ask(None, &format!("tcp {} 1", at(plan.remote_pod, 8080))),
        format!("OUT {pod_ip} peer {}", at(plan.remote_pod, 8080)),
        "and no other's"
    );
    for row in inspect::read(&place.config.bpf_root, inspect::View::Metrics)
        .unwrap()
        .json()
        .as_array()
        .unwrap()
    {
        if row["verdict"] == "dropped" {
            assert_eq!(row["count"], 0, "{row}");
        }
    }
}

#[test]
fn two_interfaces() {
    for (name, v6) in [("i4", false), ("i6", true)] {
        everything(name, v6, Second::Interface);
    }
}

#[test]
fn an_interface_and_a_vlan_on_it() {
    if !has_vlans() {
        return;
    }
    for within in [false, true] {
        for (name, v6) in [("v4", false), ("v6", true)] {
            everything(name, v6, Second::Vlan { within });
        }
    }
}

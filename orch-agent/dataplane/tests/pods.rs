//! Pods that come and go leave nothing behind, keep to their limits, and find the node as it changes.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{collections::BTreeMap, fs, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use orch_cluster::policies::NamedPort;
use orch_dataplane::{Bandwidth, Dataplane, HostPort, PodAttachment, XdpMode, inspect};
use serde_json::json;
use support::{Fake, Namespace, Settings, run};

#[test]
fn helper() {
    support::help();
}

struct Place {
    config: Settings,
    node: Namespace,
    outside: Namespace,
}

fn place(name: &str) -> Place {
    let node = Namespace::new(&format!("{name}n"));
    let outside = Namespace::new(&format!("{name}o"));
    node.ip(&format!(
        "link add eth0 type veth peer name eth0 netns {}",
        outside.name
    ));
    node.ip("link set eth0 up");
    outside.ip("link set eth0 up");
    node.ip("addr add 172.31.0.11/24 dev eth0");
    node.ip("addr add fd00:31::11/64 dev eth0 nodad");
    outside.ip("addr add 172.31.0.1/24 dev eth0");
    outside.ip("addr add fd00:31::1/64 dev eth0 nodad");
    let mut config = Settings::new(&format!("pods-{name}"));
    config.cluster_dns = vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()];
    config.xdp = XdpMode::Auto;
    Place {
        node,
        outside,
        config,
    }
}

/// Runs `work` on a node's data plane.
fn on_node(name: &str, work: impl AsyncFnOnce(&Place, Arc<Dataplane>, Fake)) {
    let place = place(name);
    place.node.enter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut fake = Fake::new();
        fake.open_policies();
        fake.ready();
        // The client is a node too, so that pods' answers keep their addresses.
        fake.node(json!({
            "metadata": {"name": "n2"},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.31.0.1"}]},
        }));
        let dataplane = Dataplane::start(place.config.clone(), Arc::clone(&fake.cluster))
            .await
            .unwrap();
        let cidrs = [
            "10.244.1.0/24".parse().unwrap(),
            "fd00:10:244:1::/64".parse().unwrap(),
        ];
        dataplane.set_pod_cidrs(&cidrs).await.unwrap();
        work(&place, dataplane, fake).await;
    });
}

fn pod(uid: &str, namespace: &Namespace) -> PodAttachment {
    PodAttachment {
        uid: uid.to_owned(),
        namespace: "default".into(),
        name: uid.to_owned(),
        netns: namespace.path(),
        ..PodAttachment::default()
    }
}

/// Everything that a pod could leave on the node, counted or listed.
fn inventory(place: &Place) -> BTreeMap<&'static str, String> {
    let ip = |arguments: &[&str]| {
        let all: Vec<&str> = ["-n", &place.node.name]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        let mut lines: Vec<String> = String::from_utf8_lossy(&run("ip", &all).stdout)
            .lines()
            // Ages and states of neighbours change by themselves.
            .map(|line| line.split_whitespace().take(5).collect::<Vec<_>>().join(" "))
            .collect();
        lines.sort();
        lines.join("\n")
    };
    let entries = |path: PathBuf| {
        let mut names: Vec<String> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.join("\n")
    };
    let root = &place.config.bpf_root;
    let view = |view| inspect::read(root, view).unwrap().text();
    let buckets = run(
        "bpftool",
        &[
            "map",
            "dump",
            "pinned",
            &format!("{}/maps/ORCH_BUCKETS", root.display()),
        ],
    );
    BTreeMap::from([
        ("interfaces", ip(&["-o", "link"])),
        ("routes", ip(&["route"])),
        ("IPv6 routes", ip(&["-6", "route"])),
        ("neighbours", ip(&["neigh", "show", "nud", "permanent"])),
        ("pins", entries(root.join("links"))),
        ("endpoints", view(inspect::View::Endpoints)),
        ("services", view(inspect::View::Services)),
        ("buckets", String::from_utf8_lossy(&buckets.stdout).into_owned()),
        (
            "descriptors",
            fs::read_dir("/proc/thread-self/fd").unwrap().count().to_string(),
        ),
        (
            "threads",
            fs::read_dir("/proc/self/task").unwrap().count().to_string(),
        ),
    ])
}

/// The only test of this binary that counts what the process has: the others are asked to wait.
static ALONE: std::sync::RwLock<()> = std::sync::RwLock::new(());

#[test]
fn two_hundred_pods_leave_nothing() {
    let _alone = ALONE.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    on_node("many", async |place, dataplane, _fake| {
        let namespace = Namespace::new("manyp");
        let busy = |uid: &str| PodAttachment {
            bandwidth: Bandwidth {
                ingress: Some(1_000_000),
                egress: Some(2_000_000),
            },
            host_ports: vec![HostPort {
                host_ip: None,
                host_port: 8080,
                container_port: 80,
                protocol: 6,
            }],
            named_ports: vec![NamedPort {
                name: "http".into(),
                protocol: 6,
                port: 80,
            }],
            ..pod(uid, &namespace)
        };
        // The first makes what is made once.
        dataplane.attach_pod(&busy("first")).await.unwrap();
        dataplane.detach_pod("first").await.unwrap();
        settle().await;
        let before = inventory(place);
        let mut addresses = std::collections::BTreeSet::new();
        for number in 0..200 {
            let uid = format!("uid-{number}");
            addresses.extend(dataplane.attach_pod(&busy(&uid)).await.unwrap());
            dataplane.detach_pod(&uid).await.unwrap();
        }
        assert_eq!(
            addresses.len(),
            400,
            "an address rests as long as others have not been used"
        );
        settle().await;
        let after = inventory(place);
        for (what, before) in &before {
            assert_eq!(&after[what], before, "{what}");
        }
    });
}

/// Connections to namespaces close when their tasks have run.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[test]
fn a_host_port_leads_to_the_pod_as_long_as_there_is_one() {
    let _beside = ALONE.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    on_node("port", async |place, dataplane, _fake| {
        let namespace = Namespace::new("portp");
        let wants = PodAttachment {
            host_ports: vec![HostPort {
                host_ip: None,
                host_port: 8088,
                container_port: 80,
                protocol: 6,
            }],
            ..pod("uid-1", &namespace)
        };
        dataplane.attach_pod(&wants).await.unwrap();
        namespace.serve_tcp("0.0.0.0".parse().unwrap(), 80, "POD");
        assert_eq!(
            place.outside.ask(None, "tcp 172.31.0.11:8088 1"),
            "POD 172.31.0.1 peer 172.31.0.11:8088"
        );
        dataplane.detach_pod("uid-1").await.unwrap();
        assert_eq!(
            place.outside.ask(None, "tcp 172.31.0.11:8088 1"),
            "error ConnectionRefused"
        );
    });
}

#[test]
fn limits_of_bandwidth_are_kept() {
    let _beside = ALONE.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    on_node("slow", async |place, dataplane, _fake| {
        let namespace = Namespace::new("slowp");
        let mut limited = pod("uid-1", &namespace);
        // 64 KiB pass at once, and then a byte each 8 ms.
        limited.bandwidth.ingress = Some(1_000);
        let ips = dataplane.attach_pod(&limited).await.unwrap();
        place.outside.ip("route add 10.244.1.0/24 via 172.31.0.11");
        namespace.serve_tcp("0.0.0.0".parse().unwrap(), 80, "POD");
        namespace.serve_echo("0.0.0.0".parse().unwrap(), 90);
        let small = format!("tcp {}:80 1", ips[0]);
        assert_eq!(
            place.outside.ask(None, &small),
            format!("POD 172.31.0.1 peer {}:80", ips[0])
        );
        let large = format!("tcp-big {}:90 1", ips[0]);
        assert!(place.outside.ask(None, &large).starts_with("error"), "a megabyte");
        // Attached again without a limit, as after a change of the annotation.
        limited.bandwidth.ingress = None;
        dataplane.attach_pod(&limited).await.unwrap();
        assert_eq!(place.outside.ask(None, &large), format!("{} bytes", support::BIG));
    });
}

#[test]
fn addresses_and_interfaces_are_followed() {
    let _beside = ALONE.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    on_node("live", async |place, dataplane, _fake| {
        let root = &place.config.bpf_root;
        let nodes = || inspect::read(root, inspect::View::Nodes).unwrap().text();
        assert!(
            nodes().contains("172.31.0.11") && nodes().contains("fd00:31::11"),
            "{}",
            nodes()
        );
        assert!(
            !nodes().contains("10.96.0.10") && !nodes().contains("127.0.0.1"),
            "{}",
            nodes()
        );
        place.node.ip("addr add 172.31.0.77/24 dev eth0");
        place.node.ip("link add d0 type veth peer name d1");
        place.node.ip("addr add 203.0.113.7/32 dev d0");
        until("new addresses", || {
            nodes().contains("172.31.0.77") && nodes().contains("203.0.113.7")
        })
        .await;
        place.node.ip("addr del 172.31.0.77/24 dev eth0");
        place.node.ip("link del d0");
        until("old addresses", || {
            !nodes().contains("172.31.0.77") && !nodes().contains("203.0.113.7")
        })
        .await;

        let config = || inspect::read(root, inspect::View::Config).unwrap().text();
        place.node.ip("link set eth0 mtu 1400");
        until("the MTU", || config().contains("1400")).await;

        // The uplink goes and comes again, with another index.
        let namespace = Namespace::new("livep");
        let ips = dataplane.attach_pod(&pod("uid-1", &namespace)).await.unwrap();
        namespace.serve_tcp("0.0.0.0".parse().unwrap(), 80, "POD");
        let before = config();
        place.node.ip("link del eth0");
        place.node.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}",
            place.outside.name
        ));
        place.node.ip("addr add 172.31.0.11/24 dev eth0");
        place.node.ip("addr add fd00:31::11/64 dev eth0 nodad");
        place.node.ip("link set eth0 up");
        place.outside.ip("addr add 172.31.0.1/24 dev eth0");
        place.outside.ip("link set eth0 up");
        place.outside.ip("route add 10.244.1.0/24 via 172.31.0.11");
        until("the new uplink", || config() != before).await;
        let redirected = || {
            let metrics = inspect::read(root, inspect::View::Metrics).unwrap().json();
            let row = metrics
                .as_array()
                .unwrap()
                .iter()
                .find(|row| row["what"] == "redirected into a local pod")
                .unwrap()["count"]
                .as_u64();
            row.unwrap()
        };
        let count = redirected();
        let said = place.outside.ask(None, &format!("tcp {}:80 1", ips[0]));
        assert_eq!(said, format!("POD 172.31.0.1 peer {}:80", ips[0]));
        assert!(redirected() > count, "by the program on the new uplink");
    });
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..300 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

#[test]
fn a_pod_cannot_speak_for_another() {
    let _beside = ALONE.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    on_node("spoof", async |place, dataplane, _fake| {
        let (one, two) = (Namespace::new("spoofp"), Namespace::new("spoofq"));
        let first: Vec<IpAddr> = dataplane.attach_pod(&pod("uid-1", &one)).await.unwrap();
        let second: Vec<IpAddr> = dataplane.attach_pod(&pod("uid-2", &two)).await.unwrap();
        for (mine, theirs) in first.iter().zip(&second) {
            two.serve_udp(
                if theirs.is_ipv6() {
                    "fd00:10:244:1::2".parse().unwrap()
                } else {
                    *theirs
                },
                53,
                "TWO",
            );
            let ask = format!("udp {} 1", std::net::SocketAddr::new(*theirs, 53));
            assert!(one.ask(None, &ask).starts_with(&format!("TWO {mine}")));
            // The namespace is the pod's, and it may be privileged enough to do this.
            let (length, other) = if mine.is_ipv6() {
                (128, "fd00:10:244:1::99")
            } else {
                (32, "10.244.1.99")
            };
            one.ip(&format!("addr add {other}/{length} dev eth0"));
            one.ip(&format!(
                "route add {}/{length} dev eth0 via {} src {other}",
                theirs,
                if mine.is_ipv6() { "fe80::1" } else { "169.254.1.1" }
            ));
            assert!(
                one.ask(None, &ask).starts_with("error"),
                "{other} is not the pod's"
            );
        }
        let metrics = inspect::read(&place.config.bpf_root, inspect::View::Metrics)
            .unwrap()
            .json();
        let spoofed = metrics
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["what"] == "source address is not the pod's");
        assert!(spoofed.unwrap()["count"].as_u64().unwrap() >= 2);
    });
}

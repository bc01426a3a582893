//! Two nodes on networks of their own with a router between: pods reach each other through the tunnel, or by routes
//! where the nodes are neighbours.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[path = "support/pair.rs"]
mod pair;
#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::net::{IpAddr, SocketAddr};

use orch_dataplane::{Tunnel, XdpMode, inspect};
use pair::{Between, Node, Ways, ip, like, router, start, switch, until_services};
use support::{BIG, Namespace, run};

#[test]
fn helper() {
    support::help();
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

const TUNNEL4: Ways = Ways {
    tunnel: Tunnel::Vxlan,
    v6_first: false,
    direct_return: false,
    xdp: XdpMode::Auto,
};
const TUNNEL6: Ways = Ways {
    v6_first: true,
    ..TUNNEL4
};
const ROUTES: Ways = Ways {
    tunnel: Tunnel::Off,
    ..TUNNEL4
};

fn pair(name: &str, ways: Ways, between: (Between, &Namespace)) -> (Node, Node) {
    let one = start(name, 1, ways, between);
    let two = start(name, 2, ways, between);
    until_services(&one);
    until_services(&two);
    (one, two)
}

#[test]
fn tunnel_over_ipv4() {
    let router = router("x");
    let (one, two) = pair("x", TUNNEL4, (Between::Router, &router));
    conversations(&one, &two, true);
}

#[test]
fn tunnel_over_ipv6() {
    let router = router("y");
    let (one, two) = pair("y", TUNNEL6, (Between::Router, &router));
    conversations(&one, &two, true);
}

#[test]
fn routes_between_neighbours() {
    let switch = switch("z");
    let (one, two) = pair("z", ROUTES, (Between::Switch, &switch));
    conversations(&one, &two, false);
    let links = run("ip", &["-n", &one.namespace.name, "link"]);
    assert!(!String::from_utf8_lossy(&links.stdout).contains("orch-vxlan"));
}

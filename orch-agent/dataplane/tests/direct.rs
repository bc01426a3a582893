//! Direct server return with real packets: a client outside talks to one node, and the other node, which has the backend,
//! answers it.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[path = "support/pair.rs"]
mod pair;
#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::programs::Program;
use orch_dataplane::{
    Tunnel, XdpMode, inspect,
    load::{self, Programs},
};
use pair::{Between, Node, Ways, ip, like, router, start, switch, until_services};
use support::{BIG, Namespace, run};

#[test]
fn helper() {
    support::help();
}

/// What a node has counted.
fn count(node: &Node, what: &str) -> u64 {
    let metrics = inspect::read(&node.config.bpf_root, inspect::View::Metrics).unwrap();
    let rows = metrics.json();
    let row = rows.as_array().unwrap().iter().find(|row| row["what"] == what);
    row.unwrap_or_else(|| panic!("{what} is not in {}", metrics.text()))["count"]
        .as_u64()
        .unwrap()
}

/// What a client is answered by services of an address: the kind of traffic, the port, and how often.
fn asks(client: &Namespace, front: IpAddr) -> impl Fn(&str, u16, u32) -> String {
    move |kind, port, times| client.ask(None, &format!("{kind} {} {times}", SocketAddr::new(front, port)))
}

/// What a client outside sends by one node reaches the pod and the process on the other one, which see the client.
fn client_is_seen(client: &Namespace, address: impl Fn(bool) -> IpAddr, one: &Node) {
    for v6 in [false, true] {
        let (me, front) = (address(v6), like(&one.ips, v6));
        let at = |port: u16| SocketAddr::new(front, port);
        let ask = asks(client, front);
        for port in [30_080, 30_180] {
            let answers = ask("tcp", port, 20);
            let wanted = format!("TWO {me} peer {}", at(port));
            assert!(answers.lines().all(|answer| answer == wanted), "{answers}");
            assert_eq!(answers.lines().count(), 20);
        }
        let answers = ask("udp", 30_053, 5);
        let wanted = format!("TWO {me} 5 from {}", at(30_053));
        assert!(answers.lines().all(|answer| answer == wanted), "{answers}");
    }
}

/// A client in the namespace between the nodes asks the first, whose every service is on the second.
fn client_outside(client: &Namespace, address: impl Fn(bool) -> IpAddr, one: &Node, two: &Node) {
    client_is_seen(client, &address, one);
    for v6 in [false, true] {
        let ask = asks(client, like(&one.ips, v6));
        // Much in both directions, to a pod, which asks for segments that fit,
        assert_eq!(count(one, TOO_BIG), 0);
        assert_eq!(
            ask("tcp-big", 30_090, 3),
            vec![format!("{BIG} bytes"); 3].join("\n")
        );
        assert_eq!(count(one, TOO_BIG), 0, "segments to a pod fit");
    }
    for v6 in [false, true] {
        let (me, front) = (address(v6), like(&one.ips, v6));
        let at = |port: u16| SocketAddr::new(front, port);
        let ask = asks(client, front);
        // and to a node, which does not: the client is told.
        let before = (count(one, TOO_BIG), count(one, TOLD));
        assert_eq!(
            ask("tcp-big", 30_190, 3),
            vec![format!("{BIG} bytes"); 3].join("\n")
        );
        assert!(count(one, TOO_BIG) > before.0, "a packet was too big");
        assert!(count(one, TOLD) > before.1, "the client was told");
        // What it learned holds for fragments as well.
        let answers = ask("udp-big", 30_053, 2);
        let wanted = format!("TWO {me} 5000 from {}", at(30_053));
        assert_eq!(answers.lines().last(), Some(wanted.as_str()), "{answers}");
    }
    assert_eq!(count(one, "packet translated"), 0, "no answer came by here");
    assert!(count(one, "sent on unchanged to the backend's node") > 0);
    assert!(count(two, "unpacked, as another node had sent it on") > 0);
    let flows = inspect::read(&one.config.bpf_root, inspect::View::Conntrack).unwrap();
    let flows = flows.json();
    let kinds: Vec<_> = flows.as_array().unwrap().iter().map(|row| &row["kind"]).collect();
    assert!(kinds.iter().all(|kind| *kind == "direct"), "{kinds:?}");
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
    // The other node is no client outside: the backend is its own.
    for v6 in [false, true] {
        let front = SocketAddr::new(like(&one.ips, v6), 30_080);
        assert_eq!(
            two.namespace.ask(None, &format!("tcp {front} 1")),
            format!("TWO {} peer {front}", front.ip())
        );
    }
}

const TOO_BIG: &str = "packet does not fit into one that would carry it to its backend's node";
const TOLD: &str = "sender told that its packet is too big";

const WAYS: Ways = Ways {
    tunnel: Tunnel::Off,
    v6_first: false,
    direct_return: true,
    xdp: XdpMode::Off,
};

/// One after the other: each keeps both processors of a small machine busy.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pair(name: &str, ways: [Ways; 2], between: (Between, &Namespace)) -> (Node, Node) {
    let one = start(name, 1, ways[0], between);
    let two = start(name, 2, ways[1], between);
    until_services(&one);
    until_services(&two);
    (one, two)
}

/// A client on the nodes' own network.
fn neighbour(v6: bool) -> IpAddr {
    ip(if v6 { "fd00:31:9::9" } else { "172.31.9.9" })
}

fn switched(name: &str) -> Namespace {
    let switch = switch(name);
    switch.ip(&format!("addr add {}/16 dev sw", neighbour(false)));
    switch.ip(&format!("addr add {}/32 dev sw nodad", neighbour(true)));
    switch
}

#[test]
fn by_routes() {
    let _turn = turn();
    let switch = switched("r");
    let (one, two) = pair("r", [WAYS; 2], (Between::Switch, &switch));
    client_outside(&switch, neighbour, &one, &two);
    for (node, advmss) in [(&one, "advmss 1440"), (&two, "advmss 1440")] {
        let routes = run("ip", &["-n", &node.pod.name, "route"]);
        let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
        assert!(routes.contains(advmss), "{routes}");
        let routes = run("ip", &["-n", &node.pod.name, "-6", "route"]);
        let routes = String::from_utf8_lossy(&routes.stdout).into_owned();
        assert!(routes.contains("advmss 1400"), "{routes}");
    }
}

#[test]
fn to_a_node_that_has_not_been_switched_yet() {
    let _turn = turn();
    let switch = switched("n");
    let later = Ways {
        direct_return: false,
        ..WAYS
    };
    let (one, two) = pair("n", [WAYS, later], (Between::Switch, &switch));
    client_is_seen(&switch, neighbour, &one);
    assert_eq!(count(&one, "packet translated"), 0, "no answer came by here");
    assert!(count(&two, "unpacked, as another node had sent it on") > 0);
}

/// The switch's ports as those of a real one.
struct Ports {
    root: PathBuf,
    _programs: Programs,
}

impl Ports {
    /// A veth hands over packets whose checksums nobody has computed yet, which no driver of a real card does; and it
    /// takes what the driver at its other end sends only if it has a program itself: one that nobody has told what to do
    /// lets everything pass.
    fn of(switch: &Namespace) -> Self {
        let root = PathBuf::from(format!("/sys/fs/bpf/orch-ports-{}", std::process::id()));
        let inside = format!("--net={}", switch.path().display());
        for port in ["to1", "to2"] {
            run("nsenter", &[&inside, "ethtool", "-K", port, "tx", "off"]);
        }
        let pins = root.clone();
        let attached = switch.thread(move || {
            let (mut programs, _maps) = load::load(&pins).unwrap();
            let Some(Program::Xdp(program)) = programs.ebpf().program_mut("uplink_xdp") else {
                panic!("there is no such program")
            };
            for port in ["to1", "to2"] {
                program.attach(port, aya::programs::xdp::XdpMode::Driver).unwrap();
            }
            programs
        });
        Self {
            root,
            _programs: attached.join().unwrap(),
        }
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        let _ = orch_dataplane::remove_pins(&self.root);
    }
}

#[test]
fn at_the_driver() {
    let _turn = turn();
    let switch = switched("d");
    let ways = Ways {
        xdp: XdpMode::Native,
        ..WAYS
    };
    let (one, two) = pair("d", [ways; 2], (Between::Switch, &switch));
    let _ports = Ports::of(&switch);
    client_outside(&switch, neighbour, &one, &two);
    assert!(count(&one, "sent back out by XDP") > 0);
}

/// The router's own addresses on the way to the first node.
fn at_the_router(v6: bool) -> IpAddr {
    ip(if v6 { "fd00:31:1::1" } else { "172.31.1.1" })
}

#[test]
fn through_the_tunnel() {
    let _turn = turn();
    let router = router("t");
    let ways = Ways {
        tunnel: Tunnel::Vxlan,
        ..WAYS
    };
    let (one, two) = pair("t", [ways; 2], (Between::Router, &router));
    client_outside(&router, at_the_router, &one, &two);
    assert!(count(&one, "sent through the tunnel") > 0);
}

//! What comes in and goes out by the uplink.

use std::collections::BTreeSet;

use orch_ebpf::{
    conntrack::NAT_PORTS,
    event::{
        DropReason::{NoBackend, NoLocalBackend, SourceRange, TtlExceeded},
        Path::{NewFlow, ToNode, ToPod, ToStack, Translated},
    },
    service::{SERVICE_LOCAL, SERVICE_SOURCES},
};

use crate::{
    bench::Bench,
    case::{At, Case, Count, PASS, REDIRECT, drops, passes, turns},
    packet::{ACK, IP_IN_IP, Message, Packet, SCTP, SYN, TCP, UDP, echo},
    spec::Spec,
    world::{OTHER_MACS, POD_MACS, WORLDS, World},
};

fn opens_to_other(name: &'static str, sent: Packet, world: &World) -> Case {
    let out = sent.to((world.other, 8080)).with_macs(OTHER_MACS);
    turns(
        name,
        At::FromUplink,
        sent,
        REDIRECT,
        out,
        &[NewFlow, Translated, ToPod],
    )
}

/// An answer from outside that reaches the pod as another packet.
fn answers_pod(name: &'static str, answer: Packet, arrived: Packet) -> Case {
    turns(
        name,
        At::FromUplink,
        answer,
        REDIRECT,
        arrived,
        &[Translated, ToPod],
    )
}

/// A packet that passes to the stack, counted as without a backend.
fn refused_by_the_stack(name: &'static str, sent: Packet) -> Case {
    let mut case = passes(name, At::FromUplink, sent);
    case.counts = vec![Count::Dropped(NoBackend), Count::Took(ToStack)];
    case
}

fn is_nat_port(port: u16) -> bool {
    NAT_PORTS
        .iter()
        .any(|(first, count)| (*first..=first + (count - 1)).contains(&port))
}

fn table(world: &World) -> Vec<Case> {
    let mut list = Vec::new();
    for protocol in [TCP, UDP, SCTP] {
        let from = |to| world.by_client(protocol, to);
        let direct = from((world.other, 7));
        list.extend([
            turns(
                "to a pod",
                At::FromUplink,
                direct.clone(),
                REDIRECT,
                direct.with_macs(OTHER_MACS),
                &[ToPod],
            ),
            opens_to_other("NodePort", from((world.node, 30_080)), world),
            opens_to_other("load balancer's address", from((world.balancer, 80)), world),
            passes("another port of the node", At::FromUplink, from((world.node, 22))),
            passes(
                "a ClusterIP from outside",
                At::FromUplink,
                from((world.service, 80)),
            ),
            passes(
                "another node's NodePort",
                At::FromUplink,
                from((world.neighbour, 30_080)),
            ),
            passes(
                "a NodePort on somebody's address",
                At::FromUplink,
                from((world.stranger, 30_080)),
            ),
            refused_by_the_stack("no backend", from((world.node, 30_082))),
            drops(
                "no backend at the balancer",
                At::FromUplink,
                from((world.balancer, 82)),
                NoBackend,
            ),
            passes(
                "another port of the balancer",
                At::FromUplink,
                from((world.balancer, 22)),
            ),
            passes("a remote pod", At::FromUplink, from((world.remote, 80))),
        ]);
        let out = world.packet(protocol, (world.node, 4000), (world.client, 443));
        let leaves = world.by_pod(protocol, (world.remote, 443));
        let node = world.by_pod(protocol, (world.neighbour, 443));
        list.extend([
            passes("node to the outside", At::ToUplink, out),
            passes("pod to a remote pod leaves", At::ToUplink, leaves),
            passes("pod to another node leaves", At::ToUplink, node),
        ]);
    }
    list.extend([
        passes(
            "no flow and no SYN",
            At::FromUplink,
            world.by_client(TCP, (world.node, 30_080)).with_flags(ACK),
        ),
        passes(
            "a ping of the node",
            At::FromUplink,
            world.by_client(world.icmp, (world.node, 0)),
        ),
        passes(
            "another protocol",
            At::FromUplink,
            world.packet(IP_IN_IP, (world.client, 0), (world.node, 0)),
        ),
    ]);
    let short = Packet {
        payload: Vec::new(),
        padding: 8,
        ..world.by_client(UDP, (world.node, 30_080))
    };
    list.push(opens_to_other("a short frame, filled up", short, world));
    let ping = world.by_client(world.icmp, (world.other, 0));
    let out = ping.with_macs(OTHER_MACS);
    list.push(turns(
        "a ping of a pod",
        At::FromUplink,
        ping,
        REDIRECT,
        out,
        &[ToPod],
    ));
    list
}

#[test]
fn packets_from_outside() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        bench.check_each(world, &table(world));
    }
}

#[test]
fn a_local_backend_answers_in_the_services_name() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            for front in [(world.node, 30_080), (world.balancer, 80)] {
                bench.forget();
                let ask = world.by_client(protocol, front);
                bench.check(world, &opens_to_other("the first packet", ask.clone(), world));
                let answer = ask.to((world.other, 8080)).answer();
                bench.check(
                    world,
                    &passes("routed by the stack first", At::FromOther, answer.clone()),
                );
                let out = answer.from(front);
                bench.check(
                    world,
                    &turns(
                        "the answer",
                        At::ToUplink,
                        answer,
                        PASS,
                        out,
                        &[Translated, ToStack],
                    ),
                );
            }
        }
    }
}

#[test]
fn a_remote_backend_answers_through_this_node() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            for front in [(world.node, 30_081), (world.balancer, 81)] {
                bench.forget();
                let ask = world.by_client(protocol, front);
                let before = bench.counters();
                let (verdict, seen) = bench.see(At::FromUplink, &ask);
                assert_eq!(verdict, REDIRECT);
                let counts = [NewFlow, Translated, ToNode].map(Count::Took);
                let counted: Vec<_> = bench
                    .counted(&before)
                    .into_iter()
                    .map(|(count, _)| count)
                    .collect();
                assert!(counts.iter().all(|count| counted.contains(count)), "{counted:?}");
                let port = seen.source.1;
                assert!(is_nat_port(port), "{port}");
                let next = ask.with_flags(ACK);
                let out = next
                    .between((world.node, port), (world.remote, 8080))
                    .with_ttl(63);
                bench.check(
                    world,
                    &turns(
                        "the second packet",
                        At::FromUplink,
                        next.clone(),
                        REDIRECT,
                        out,
                        &[Translated, ToNode],
                    ),
                );
                let mut last = drops("the last hop", At::FromUplink, next.with_ttl(1), TtlExceeded);
                last.out = next.between((world.node, port), (world.remote, 8080)).with_ttl(1);
                last.counts.push(Count::Took(Translated));
                bench.check(world, &last);
                let answer = world
                    .packet(protocol, (world.remote, 8080), (world.node, port))
                    .with_flags(SYN | ACK);
                let out = answer.between(front, (world.client, 4000)).with_ttl(63);
                bench.check(
                    world,
                    &turns(
                        "the answer",
                        At::FromUplink,
                        answer,
                        REDIRECT,
                        out,
                        &[Translated, ToNode],
                    ),
                );
            }
        }
    }
}

#[test]
fn pods_are_masqueraded_and_get_their_answers() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP, world.icmp] {
            let port = if protocol == world.icmp { 0 } else { 443 };
            let out = world.by_pod(protocol, (world.client, port));
            let (verdict, seen) = bench.see(At::ToUplink, &out);
            assert_eq!(
                (verdict, seen.source.0),
                (PASS, world.node),
                "{} {protocol}",
                world.name
            );
            let left = out.from(seen.source);
            assert!(is_nat_port(seen.source.1));
            bench.check(
                world,
                &turns(
                    "one flow, one port",
                    At::ToUplink,
                    out.clone(),
                    PASS,
                    left.clone(),
                    &[Translated, ToStack],
                ),
            );
            let answer = left.answer();
            let arrived = answer.to((world.pod, 4000)).with_macs(POD_MACS);
            bench.check(world, &answers_pod("the answer", answer, arrived));
        }
        // What has no port gets the node's address.
        let sent = world.packet(IP_IN_IP, (world.pod, 0), (world.client, 0));
        let left = sent.from((world.node, 0));
        bench.check(
            world,
            &turns(
                "without a port",
                At::ToUplink,
                sent,
                PASS,
                left,
                &[NewFlow, Translated, ToStack],
            ),
        );
        let answer = world.packet(IP_IN_IP, (world.client, 0), (world.node, 0));
        let arrived = answer.to((world.pod, 0)).with_macs(POD_MACS);
        bench.check(world, &answers_pod("its answer", answer, arrived));
        // A client that routes to pods by itself has asked for the pod's own address.
        let answer = world.by_pod(TCP, (world.client, 55_000)).with_flags(SYN | ACK);
        bench.check(world, &passes("an answer to a client", At::ToUplink, answer));
        let reply = echo((world.pod, 0), (world.client, 77), Message::Reply);
        bench.check(world, &passes("an echo's reply", At::ToUplink, reply));
    }
}

/// A service without a selector may name an endpoint outside, which the pod's packets reach with the node's address.
#[test]
fn a_backend_outside_answers_a_pod_in_the_services_name() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let backend = (world.client, 9087);
        for protocol in [TCP, UDP, SCTP] {
            bench.forget();
            bench.put(world, "outside", &Spec::new(87, protocol, &[backend]));
            let ask = world.by_pod(protocol, (world.service, 87));
            let next = ask.with_flags(ACK);
            // What has asked for the backend itself, from another port, is answered by it.
            let direct = world.packet(protocol, (world.pod, 4001), backend);
            for (sent, paths) in [
                (&ask, &[NewFlow, Translated, ToStack][..]),
                (&direct, &[ToStack]),
                (&next, &[Translated, ToStack]),
            ] {
                let routed = sent.to(backend);
                bench.check(
                    world,
                    &turns(
                        "the question",
                        At::FromPod,
                        sent.clone(),
                        PASS,
                        routed.clone(),
                        paths,
                    ),
                );
                let (verdict, seen) = bench.see(At::ToUplink, &routed);
                assert_eq!((verdict, seen.source.0), (PASS, world.node), "{}", world.name);
                let answer = routed.from(seen.source).answer();
                let arrived = sent.answer().with_macs(POD_MACS);
                bench.check(world, &answers_pod("the answer", answer, arrived));
            }
        }
    }
}

#[test]
fn two_pods_with_the_same_port_get_different_ones() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let [one, other] = [world.pod, world.other].map(|pod| {
            let out = world.packet(UDP, (pod, 4000), (world.client, 53));
            bench.see(At::ToUplink, &out).1.source
        });
        assert_eq!(one.0, other.0);
        assert_ne!(one.1, other.1, "{}", world.name);
    }
}

#[test]
fn source_ranges_and_traffic_policy() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let mut ranges = Spec::new(84, TCP, &[(world.other, 8080)]);
        ranges.flags = SERVICE_SOURCES;
        ranges.sources = vec![(world.bits() - 8, world.client)];
        bench.put(world, "ranges", &ranges);
        let mut local = Spec::new(85, TCP, &[]);
        local.flags = SERVICE_LOCAL;
        bench.put(world, "local", &local);
        let client = world.by_client(TCP, (world.balancer, 84));
        let stranger = client.from((world.stranger, 4000));
        bench.check_each(
            world,
            &[
                opens_to_other("in range", client, world),
                drops("out of range", At::FromUplink, stranger, SourceRange),
                drops(
                    "no local backend",
                    At::FromUplink,
                    world.by_client(TCP, (world.balancer, 85)),
                    NoLocalBackend,
                ),
                drops(
                    "nor on a NodePort",
                    At::FromUplink,
                    world.by_client(TCP, (world.node, 30_085)),
                    NoLocalBackend,
                ),
            ],
        );
    }
}

/// The destination of a client's first packet to the NodePort.
fn chosen(bench: &mut Bench, world: &World, port: u16) -> std::net::IpAddr {
    let ask = world.packet(TCP, (world.client, port), (world.node, 30_086));
    let (verdict, seen) = bench.see(At::FromUplink, &ask);
    assert_eq!((verdict, seen.destination.1), (REDIRECT, 8080));
    seen.destination.0
}

#[test]
fn affinity_keeps_a_client_on_its_backend() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let mut sticky = Spec::new(
            86,
            TCP,
            &[(world.other, 8080), (world.pod, 8080), (world.remote, 8080)],
        );
        bench.put(world, "sticky", &sticky);
        let free: BTreeSet<_> = (1..60).map(|port| chosen(&mut bench, world, port)).collect();
        assert_eq!(free.len(), 3, "without affinity all are chosen");
        bench.forget();
        sticky.affinity_seconds = 100;
        bench.put(world, "sticky", &sticky);
        let kept: BTreeSet<_> = (1..60).map(|port| chosen(&mut bench, world, port)).collect();
        assert_eq!(kept.len(), 1, "{}", world.name);
        // Whoever is gone is kept by nobody.
        bench.forget();
        sticky.backends.retain(|(ip, _)| !kept.contains(ip));
        bench.put(world, "sticky", &sticky);
        let rest: BTreeSet<_> = (1..60).map(|port| chosen(&mut bench, world, port)).collect();
        assert!(rest.len() == 1 && rest.is_disjoint(&kept), "{rest:?}");
    }
}

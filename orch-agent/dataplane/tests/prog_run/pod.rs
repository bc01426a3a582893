//! What comes from a pod, and what the network stack sends to one.

use std::net::Ipv6Addr;

use orch_ebpf::event::{
    DropReason::{Malformed, SpoofedSource},
    Path::{ToNode, ToPod},
};

use crate::{
    bench::Bench,
    case::{At, Case, Count, PASS, REDIRECT, XDP_PASS, drops, passes, turns},
    packet::{ACK, IP_IN_IP, IPV6_IN_IP, Packet, SCTP, TCP, UDP, neighbour, packet},
    world::{MTU, OTHER_MACS, TUNNEL_MTU, WORLDS, World},
};

/// A packet that goes into the other pod as it is.
fn to_other(name: &'static str, at: At, sent: Packet) -> Case {
    let out = sent.with_macs(OTHER_MACS);
    turns(name, at, sent, REDIRECT, out, &[ToPod])
}

fn without_services(world: &World) -> Vec<Case> {
    let from = |protocol, to| world.by_pod(protocol, to);
    let mut list = vec![
        passes("pod to the outside", At::FromPod, from(TCP, (world.client, 443))),
        passes("pod to its node", At::FromPod, from(TCP, (world.node, 22))),
        passes(
            "pod to another node",
            At::FromPod,
            from(TCP, (world.neighbour, 22)),
        ),
        passes("pod to DNS", At::FromPod, from(UDP, (world.dns, 53))),
        passes(
            "pod pings its node",
            At::FromPod,
            from(world.icmp, (world.node, 0)),
        ),
        to_other("pod to pod", At::FromPod, from(TCP, (world.other, 7))),
        to_other("pod to pod over UDP", At::FromPod, from(UDP, (world.other, 7))),
        to_other("pod to pod over SCTP", At::FromPod, from(SCTP, (world.other, 7))),
        to_other("pod pings pod", At::FromPod, from(world.icmp, (world.other, 0))),
        to_other(
            "pod to pod in a tunnel",
            At::FromPod,
            from(IP_IN_IP, (world.other, 0)),
        ),
        to_other(
            "pod to pod in a tunnel of IPv6",
            At::FromPod,
            from(IPV6_IN_IP, (world.other, 0)),
        ),
        to_other(
            "a segment without a flow",
            At::FromPod,
            from(TCP, (world.other, 7)).with_flags(ACK),
        ),
        to_other(
            "the last hop to a pod",
            At::FromPod,
            from(TCP, (world.other, 7)).with_ttl(1),
        ),
        drops(
            "another pod's address",
            At::FromPod,
            world.packet(UDP, (world.other, 1), (world.client, 53)),
            SpoofedSource,
        ),
        drops(
            "an address outside",
            At::FromPod,
            world.packet(UDP, (world.client, 1), (world.other, 53)),
            SpoofedSource,
        ),
        drops(
            "the node's address",
            At::FromPod,
            world.packet(UDP, (world.node, 1), (world.other, 53)),
            SpoofedSource,
        ),
        drops(
            "the first pod's address at the second",
            At::FromOther,
            from(UDP, (world.client, 53)),
            SpoofedSource,
        ),
        passes(
            "the last hop to another node's pod",
            At::FromPod,
            from(TCP, (world.remote, 80)).with_ttl(1),
        ),
    ];
    let remote = from(TCP, (world.remote, 80));
    list.push(turns(
        "pod to a remote pod",
        At::FromPod,
        remote.clone(),
        REDIRECT,
        remote.with_ttl(63),
        &[ToNode],
    ));
    let headers = remote.ip().len() - remote.payload.len();
    let mut full = remote.clone();
    full.payload = vec![1; MTU as usize - headers];
    list.push(turns(
        "as long as the uplink's packets",
        At::FromPod,
        full.clone(),
        REDIRECT,
        full.with_ttl(63),
        &[ToNode],
    ));
    full.payload.push(1);
    list.push(passes("too long for the uplink", At::FromPod, full));
    list
}

#[test]
fn packets_without_services_reach_pods_nodes_and_the_stack() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        bench.check_each(world, &without_services(world));
        assert_eq!(bench.flows(world), [], "nobody has to remember these");
    }
}

#[test]
fn a_packet_of_several_segments_is_as_long_as_they_are() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let mut long = world.by_pod(TCP, (world.remote, 80)).with_flags(ACK);
        long.payload = vec![1; 3000];
        let (verdict, _) = bench.run_segmented(At::FromPod, &long.bytes(), 1400);
        assert_eq!(verdict, REDIRECT, "{}", world.name);
        assert_eq!(bench.run(At::FromPod, &long.bytes()).0, PASS, "{}", world.name);
    }
}

#[test]
fn neighbour_discovery_of_a_pod_passes_and_other_link_local_addresses_do_not() {
    let mut bench = Bench::new();
    let [_, world] = &WORLDS;
    let gateway = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let own = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77).into();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1).into();
    let mac = Some([2, 1, 1, 1, 1, 1]);
    let nowhere = Ipv6Addr::UNSPECIFIED.into();
    bench.check_each(
        world,
        &[
            passes(
                "a solicitation",
                At::FromPod,
                neighbour::solicitation(own, group, gateway, mac),
            ),
            passes(
                "from the pod's address",
                At::FromPod,
                neighbour::solicitation(world.pod, group, gateway, mac),
            ),
            passes(
                "a probe of the gateway",
                At::FromPod,
                neighbour::solicitation(own, gateway.into(), gateway, mac),
            ),
            passes(
                "detection of duplicates",
                At::FromPod,
                neighbour::solicitation(nowhere, group, gateway, None),
            ),
            drops(
                "link-local to a pod",
                At::FromPod,
                packet(UDP, (own, 1), (world.other, 1)),
                SpoofedSource,
            ),
            drops(
                "nobody to a pod",
                At::FromPod,
                packet(UDP, (nowhere, 1), (world.other, 1)),
                SpoofedSource,
            ),
        ],
    );
}

#[test]
fn the_stack_sends_to_pods_what_it_likes() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for (protocol, from) in [
            (TCP, world.node),
            (UDP, world.client),
            (SCTP, world.client),
            (world.icmp, world.node),
        ] {
            let sent = world.packet(protocol, (from, 4000), (world.pod, 80));
            let mut case = passes("to a pod", At::ToPod, sent);
            case.counts.clear();
            bench.check(world, &case);
            let mut case = passes(
                "to nobody",
                At::ToPod,
                world.packet(protocol, (from, 4000), (world.remote, 80)),
            );
            case.counts.clear();
            bench.check(world, &case);
        }
        let cut = world.packet(TCP, (world.node, 1), (world.pod, 80)).bytes();
        let before = bench.counters();
        bench.run(At::ToPod, &cut[..cut.len() - 8]);
        assert_eq!(bench.counted(&before), [(Count::Dropped(Malformed), 1)]);
    }
}

#[test]
fn without_settings_every_packet_passes() {
    let mut bench = Bench::new();
    bench.configure(|config| config.abi_version = 0);
    for world in &WORLDS {
        for at in At::ALL {
            let sent = world.packet(TCP, (world.client, 1), (world.node, 30_080)).bytes();
            let verdict = if at == At::Driver { XDP_PASS } else { PASS };
            assert_eq!(bench.run(at, &sent), (verdict, sent), "{} {at:?}", world.name);
        }
    }
}

#[test]
fn a_family_without_an_address_has_no_networks() {
    let mut bench = Bench::new();
    bench.configure(|config| {
        config.v6 = orch_ebpf::config::FamilyConfig::default();
        config.tunnel_mtu = TUNNEL_MTU;
    });
    let [_, world] = &WORLDS;
    bench.check_each(
        world,
        &[
            passes(
                "a remote pod is the stack's",
                At::FromPod,
                world.by_pod(TCP, (world.remote, 80)),
            ),
            passes(
                "no port of a network of services",
                At::FromPod,
                world.by_pod(TCP, (world.service, 9)),
            ),
        ],
    );
}

//! What comes from a pod, and what the network stack sends to one.

use std::net::Ipv6Addr;

use orch_ebpf::event::{
    DropReason::{Malformed, NoBackend, NoLocalBackend, NoService, SourceRange, SpoofedSource},
    Path::{NewFlow, ToNode, ToPod, Translated},
};
use orch_ebpf::{
    conntrack::NAT_PORTS,
    service::{SERVICE_LOCAL, SERVICE_SOURCES},
};

use crate::{
    bench::Bench,
    case::{At, Case, PASS, REDIRECT, drops, passes, turns},
    packet::{ACK, IP_IN_IP, IPV6_IN_IP, Packet, RST, SCTP, SYN, TCP, UDP, neighbour, packet},
    spec::Spec,
    world::{MTU, OTHER_MACS, POD_MACS, TUNNEL_MTU, WORLDS, World},
};

/// A packet that goes into the other pod as it is.
fn to_other(name: &'static str, at: At, sent: Packet) -> Case {
    let out = sent.with_macs(OTHER_MACS);
    turns(name, at, sent, REDIRECT, out, &[ToPod])
}

/// A packet whose flow is opened, and which goes into the other pod.
fn opens_to_other(name: &'static str, at: At, sent: Packet, world: &World) -> Case {
    let out = sent.to((world.other, 8080)).with_macs(OTHER_MACS);
    turns(name, at, sent, REDIRECT, out, &[NewFlow, Translated, ToPod])
}

fn without_services(world: &World) -> Vec<Case> {
    let from = |protocol, to| world.from_pod(protocol, to);
    let mut list = vec![
        passes("pod to the outside", At::FromPod, from(TCP, (world.client, 443))),
        passes("pod to its node", At::FromPod, from(TCP, (world.node, 22))),
        passes("pod to another node", At::FromPod, from(TCP, (world.neighbour, 22))),
        passes("pod to DNS", At::FromPod, from(UDP, (world.dns, 53))),
        passes("pod pings its node", At::FromPod, from(world.icmp, (world.node, 0))),
        to_other("pod to pod", At::FromPod, from(TCP, (world.other, 7))),
        to_other("pod to pod over UDP", At::FromPod, from(UDP, (world.other, 7))),
        to_other("pod to pod over SCTP", At::FromPod, from(SCTP, (world.other, 7))),
        to_other("pod pings pod", At::FromPod, from(world.icmp, (world.other, 0))),
        to_other("pod to pod in a tunnel", At::FromPod, from(IP_IN_IP, (world.other, 0))),
        to_other("pod to pod in a tunnel of IPv6", At::FromPod, from(IPV6_IN_IP, (world.other, 0))),
        to_other("a segment without a flow", At::FromPod, from(TCP, (world.other, 7)).with_flags(ACK)),
        to_other("the last hop to a pod", At::FromPod, from(TCP, (world.other, 7)).with_ttl(1)),
        drops("another pod's address", At::FromPod, world.packet(UDP, (world.other, 1), (world.client, 53)), SpoofedSource),
        drops("an address outside", At::FromPod, world.packet(UDP, (world.client, 1), (world.other, 53)), SpoofedSource),
        drops("the node's address", At::FromPod, world.packet(UDP, (world.node, 1), (world.other, 53)), SpoofedSource),
        drops("the first pod's address at the second", At::FromOther, from(UDP, (world.client, 53)), SpoofedSource),
        passes("the last hop to another node's pod", At::FromPod, from(TCP, (world.remote, 80)).with_ttl(1)),
    ];
    let remote = from(TCP, (world.remote, 80));
    list.push(turns("pod to a remote pod", At::FromPod, remote.clone(), REDIRECT, remote.with_ttl(63), &[ToNode]));
    let headers = remote.ip().len() - remote.payload.len();
    let mut full = remote.clone();
    full.payload = vec![1; MTU as usize - headers];
    list.push(turns("as long as the uplink's packets", At::FromPod, full.clone(), REDIRECT, full.with_ttl(63), &[ToNode]));
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
        let mut long = world.from_pod(TCP, (world.remote, 80)).with_flags(ACK);
        long.payload = vec![1; 3000];
        let (verdict, _) = bench.run_segmented(At::FromPod, &long.bytes(), 1400);
        assert_eq!(verdict, REDIRECT, "{}", world.name);
        assert_eq!(bench.run(At::FromPod, &long.bytes()).0, PASS, "{}", world.name);
    }
}

fn with_services(world: &World) -> Vec<Case> {
    let from = |protocol, to| world.from_pod(protocol, to);
    let mut list = vec![
        drops("no such service", At::FromPod, from(TCP, (world.service, 9999)), NoService),
        drops("a ping of a service", At::FromPod, from(world.icmp, (world.service, 0)), NoService),
        passes("another port of the node", At::FromPod, from(TCP, (world.node, 80))),
        passes("a NodePort of another node", At::FromPod, from(TCP, (world.neighbour, 30_080))),
        passes("another port of the balancer", At::FromPod, from(TCP, (world.balancer, 22))),
        passes("no flow and no first SYN", At::FromPod, from(TCP, (world.service, 80)).with_flags(ACK)),
        passes("a reset without a flow", At::FromPod, from(TCP, (world.service, 80)).with_flags(RST | SYN)),
    ];
    for protocol in [TCP, UDP, SCTP] {
        let from = |to| world.from_pod(protocol, to);
        list.extend([
            opens_to_other("ClusterIP", At::FromPod, from((world.service, 80)), world),
            opens_to_other("NodePort on the own node", At::FromPod, from((world.node, 30_080)), world),
            opens_to_other("load balancer's address", At::FromPod, from((world.balancer, 80)), world),
            drops("no backend", At::FromPod, from((world.service, 82)), NoBackend),
            drops("no backend at a NodePort", At::FromPod, from((world.node, 30_082)), NoBackend),
        ]);
        let remote = from((world.service, 81));
        let out = remote.to((world.remote, 8080)).with_ttl(63);
        list.push(turns("ClusterIP with a remote backend", At::FromPod, remote, REDIRECT, out, &[NewFlow, Translated, ToNode]));
    }
    list
}

#[test]
fn services_are_translated_on_the_way_from_a_pod() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        bench.check_each(world, &with_services(world));
    }
}

#[test]
fn a_backend_answers_a_pod_in_the_services_name() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            for front in [(world.service, 80), (world.node, 30_080), (world.balancer, 80)] {
                bench.forget();
                let ask = world.from_pod(protocol, front);
                bench.check(world, &opens_to_other("the first packet", At::FromPod, ask.clone(), world));
                let answer = ask.to((world.other, 8080)).answer();
                let out = answer.from(front).with_macs(POD_MACS);
                bench.check(world, &turns("the answer", At::FromOther, answer, REDIRECT, out, &[Translated, ToPod]));
                let next = ask.with_flags(ACK);
                let out = next.to((world.other, 8080)).with_macs(OTHER_MACS);
                bench.check(world, &turns("the second packet", At::FromPod, next, REDIRECT, out, &[Translated, ToPod]));
            }
            let ask = world.from_pod(protocol, (world.service, 81));
            bench.run(At::FromPod, &ask.bytes());
            let answer = ask.to((world.remote, 8080)).answer();
            let out = answer.from((world.service, 81)).with_macs(POD_MACS);
            bench.check(world, &turns("the remote answer", At::FromUplink, answer, REDIRECT, out, &[Translated, ToPod]));
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_a_service_with_the_nodes_address() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            let ask = world.from_pod(protocol, (world.service, 83));
            let (_, seen) = bench.see(At::FromPod, &ask);
            let port = seen.source.1;
            assert!(
                NAT_PORTS.iter().any(|(first, count)| (*first..=first + (count - 1)).contains(&port)),
                "{port}"
            );
            let arrived = ask.between((world.node, port), (world.pod, 8080)).with_macs(POD_MACS);
            bench.check(world, &turns("hairpin", At::FromPod, ask.with_flags(ACK), REDIRECT, arrived.with_flags(ACK), &[Translated, ToPod]));
            let answer = world.packet(protocol, (world.pod, 8080), (world.node, port)).with_flags(SYN | ACK);
            let out = answer.between((world.service, 83), (world.pod, 4000)).with_macs(POD_MACS);
            bench.check(world, &turns("hairpin's answer", At::FromPod, answer, REDIRECT, out, &[Translated, ToPod]));
        }
    }
}

#[test]
fn a_traffic_policy_and_source_ranges_hold_for_pods_as_well() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let mut local = Spec::new(84, TCP, &[]);
        local.flags = SERVICE_LOCAL;
        bench.put(world, "local", &local);
        let mut ranges = Spec::new(85, TCP, &[(world.other, 8080)]);
        ranges.flags = SERVICE_SOURCES;
        ranges.sources = vec![(world.bits() - 8, world.client)];
        bench.put(world, "ranges", &ranges);
        bench.check_each(
            world,
            &[
                drops("no local backend", At::FromPod, world.from_pod(TCP, (world.service, 84)), NoLocalBackend),
                drops("out of range", At::FromPod, world.from_pod(TCP, (world.balancer, 85)), SourceRange),
            ],
        );
        ranges.sources.push((world.bits() - 8, world.pod));
        bench.put(world, "ranges", &ranges);
        bench.check_each(
            world,
            &[opens_to_other("in range", At::FromPod, world.from_pod(TCP, (world.balancer, 85)), world)],
        );
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
            passes("a solicitation", At::FromPod, neighbour::solicitation(own, group, gateway, mac)),
            passes("from the pod's address", At::FromPod, neighbour::solicitation(world.pod, group, gateway, mac)),
            passes("a probe of the gateway", At::FromPod, neighbour::solicitation(own, gateway.into(), gateway, mac)),
            passes("detection of duplicates", At::FromPod, neighbour::solicitation(nowhere, group, gateway, None)),
            drops("link-local to a pod", At::FromPod, packet(UDP, (own, 1), (world.other, 1)), SpoofedSource),
            drops("nobody to a pod", At::FromPod, packet(UDP, (nowhere, 1), (world.other, 1)), SpoofedSource),
        ],
    );
}

#[test]
fn the_stack_sends_to_pods_what_it_likes() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for (protocol, from) in [(TCP, world.node), (UDP, world.client), (SCTP, world.client), (world.icmp, world.node)] {
            let sent = world.packet(protocol, (from, 4000), (world.pod, 80));
            let mut case = passes("to a pod", At::ToPod, sent);
            case.counts.clear();
            bench.check(world, &case);
            let mut case = passes("to nobody", At::ToPod, world.packet(protocol, (from, 4000), (world.remote, 80)));
            case.counts.clear();
            bench.check(world, &case);
        }
        let cut = world.packet(TCP, (world.node, 1), (world.pod, 80)).bytes();
        let before = bench.counters();
        bench.run(At::ToPod, &cut[..cut.len() - 8]);
        assert_eq!(bench.counted(&before), [(crate::case::Count::Dropped(Malformed), 1)]);
    }
}

#[test]
fn without_settings_every_packet_passes() {
    let mut bench = Bench::new();
    bench.configure(|config| config.abi_version = 0);
    for world in &WORLDS {
        for at in At::ALL {
            let sent = world.packet(TCP, (world.client, 1), (world.node, 30_080)).bytes();
            let verdict = if at == At::Driver { crate::case::XDP_PASS } else { PASS };
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
            passes("a remote pod is the stack's", At::FromPod, world.from_pod(TCP, (world.remote, 80))),
            passes("no port of a network of services", At::FromPod, world.from_pod(TCP, (world.service, 9))),
        ],
    );
}

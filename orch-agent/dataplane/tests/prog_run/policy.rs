//! What NetworkPolicies allow, packet by packet.

use std::net::{IpAddr, Ipv6Addr};

use orch_ebpf::{
    endpoint::{ISOLATED_EGRESS, ISOLATED_INGRESS},
    event::{
        DropReason::{self, PolicyEgress, PolicyIngress},
        Path::PolicyAllowed,
    },
    policy::{
        EGRESS, IDENTITY_ANY, IDENTITY_FIRST, IDENTITY_WORLD, INGRESS, RULE_ANY_PORT_BITS,
        RULE_ANY_PROTOCOL_BITS, RULE_PORT_BITS, RuleKey,
    },
};

use crate::{
    bench::Bench,
    case::{At, Count, DROP},
    packet::{ACK, FIN, IP_IN_IP, Packet, SCTP, SYN, TCP, UDP, error, neighbour},
    world::{WORLDS, World},
};

const POLICY: u32 = 7;
const FRIEND: u32 = IDENTITY_FIRST + 3;
const NETWORK: u32 = IDENTITY_FIRST + 9;

fn rule(identity: u32, direction: u8, protocol: u8, port: u16) -> RuleKey {
    let [port_high, port_low] = port.to_be_bytes();
    RuleKey {
        policy: POLICY,
        identity,
        direction,
        protocol,
        port_high,
        port_low,
        ..RuleKey::default()
    }
}

/// Whether the packet passes, and if not, whether for this reason and no other.
fn passes(bench: &mut Bench, at: At, packet: &Packet, reason: DropReason) -> bool {
    let before = bench.counters();
    let (verdict, _) = bench.see(at, packet);
    let counted = bench.counted(&before);
    if verdict == DROP {
        assert!(counted.contains(&(Count::Dropped(reason), 1)), "{counted:?}");
    } else {
        let drop = counted
            .iter()
            .find(|(count, _)| matches!(count, Count::Dropped(_)));
        assert_eq!(drop, None);
    }
    verdict != DROP
}

fn ingress(bench: &mut Bench, at: At, packet: &Packet) -> bool {
    passes(bench, at, packet, PolicyIngress)
}

fn egress(bench: &mut Bench, packet: &Packet) -> bool {
    passes(bench, At::FromPod, packet, PolicyEgress)
}

/// Lets the pod reach, or be reached, as the flags say, only by rules.
fn isolated(world: &World, flags: u32) -> Bench {
    let mut bench = Bench::new();
    isolate(&mut bench, world, flags);
    bench
}

/// The same, once more: flows are forgotten, rules are not.
fn isolate(bench: &mut Bench, world: &World, flags: u32) {
    bench.forget();
    bench.isolate(world.pod, POLICY, flags);
    bench.identify((world.bits(), world.other), FRIEND);
    bench.identify((world.bits() - 8, world.client), NETWORK);
}

#[test]
fn an_isolated_pod_gets_what_rules_allow() {
    for world in &WORLDS {
        let mut bench = isolated(world, ISOLATED_INGRESS);
        let from = |source, protocol, port| world.packet(protocol, (source, 4000), (world.pod, port));
        for protocol in [TCP, UDP, SCTP, world.icmp, IP_IN_IP] {
            for source in [world.client, world.stranger, world.remote, world.neighbour] {
                assert!(!ingress(&mut bench, At::FromUplink, &from(source, protocol, 80)));
                assert!(!ingress(&mut bench, At::ToPod, &from(source, protocol, 80)));
            }
            assert!(!ingress(
                &mut bench,
                At::FromOther,
                &from(world.other, protocol, 80)
            ));
            assert!(
                ingress(&mut bench, At::ToPod, &from(world.node, protocol, 80)),
                "the node"
            );
        }
        bench.allow(RULE_PORT_BITS, rule(FRIEND, INGRESS, TCP, 80));
        let before = bench.counters();
        assert!(ingress(&mut bench, At::FromOther, &from(world.other, TCP, 80)));
        assert!(bench.counted(&before).contains(&(Count::Took(PolicyAllowed), 1)));
        for (source, protocol, port) in [(world.other, TCP, 81), (world.other, UDP, 80)] {
            assert!(!ingress(&mut bench, At::FromOther, &from(source, protocol, port)));
        }
        for source in [world.client, world.remote] {
            assert!(!ingress(&mut bench, At::FromUplink, &from(source, TCP, 80)));
        }
        // Nobody else's pods are touched.
        assert!(ingress(
            &mut bench,
            At::FromUplink,
            &from(world.client, TCP, 80).to((world.other, 80))
        ));
    }
}

#[test]
fn an_isolated_pod_reaches_what_rules_allow() {
    for world in &WORLDS {
        let mut bench = isolated(world, ISOLATED_EGRESS);
        let to = |destination: IpAddr, protocol, port| world.by_pod(protocol, (destination, port));
        for protocol in [TCP, UDP, SCTP, world.icmp, IP_IN_IP] {
            for destination in [
                world.client,
                world.other,
                world.remote,
                world.neighbour,
                world.dns,
            ] {
                assert!(
                    !egress(&mut bench, &to(destination, protocol, 80)),
                    "{destination}"
                );
            }
            assert!(egress(&mut bench, &to(world.node, protocol, 22)), "the node");
        }
        bench.allow(RULE_PORT_BITS, rule(FRIEND, EGRESS, TCP, 80));
        assert!(egress(&mut bench, &to(world.other, TCP, 80)));
        assert!(!egress(&mut bench, &to(world.other, TCP, 81)));
        assert!(!egress(&mut bench, &to(world.remote, TCP, 80)));
        // A service is what it leads to.
        assert!(
            !egress(&mut bench, &to(world.service, TCP, 80)),
            "port 8080 of the backend"
        );
        bench.allow(RULE_PORT_BITS, rule(FRIEND, EGRESS, TCP, 8080));
        assert!(egress(&mut bench, &to(world.service, TCP, 80)));
        assert!(egress(&mut bench, &to(world.service, TCP, 80).with_flags(ACK)));
        assert!(
            !egress(&mut bench, &to(world.service, TCP, 81)),
            "a remote backend"
        );
    }
}

#[test]
fn both_sides_must_agree() {
    for world in &WORLDS {
        let mut bench = isolated(world, ISOLATED_INGRESS | ISOLATED_EGRESS);
        bench.isolate(world.other, POLICY, ISOLATED_INGRESS | ISOLATED_EGRESS);
        bench.identify((world.bits(), world.pod), NETWORK);
        let ask = world.by_pod(TCP, (world.other, 80));
        assert!(!egress(&mut bench, &ask));
        bench.allow(RULE_PORT_BITS, rule(FRIEND, EGRESS, TCP, 80));
        assert!(!ingress(&mut bench, At::FromPod, &ask), "{}", world.name);
        bench.allow(RULE_PORT_BITS, rule(NETWORK, INGRESS, TCP, 80));
        assert!(ingress(&mut bench, At::FromPod, &ask));
        let answer = ask.answer();
        assert!(
            passes(&mut bench, At::FromOther, &answer, PolicyEgress),
            "what answers passes"
        );
        assert!(egress(&mut bench, &ask.with_flags(ACK)));
        // Nobody else's port, and no flow the other way.
        assert!(!passes(
            &mut bench,
            At::FromOther,
            &answer.to((world.pod, 4001)),
            PolicyEgress
        ));
        let back = world.packet(TCP, (world.other, 5000), (world.pod, 80));
        assert!(!passes(&mut bench, At::FromOther, &back, PolicyEgress));
    }
}

/// A flow of one protocol from the pod to somewhere, and what answers it there.
fn answers(bench: &mut Bench, world: &World, protocol: u8) {
    let port = if protocol == world.icmp { 0 } else { 443 };
    let ask = world.by_pod(protocol, (world.remote, port));
    let answer = ask.answer();
    assert!(
        !ingress(bench, At::FromUplink, &answer),
        "{} {protocol}: nobody has asked",
        world.name
    );
    assert!(egress(bench, &ask));
    assert!(
        ingress(bench, At::FromUplink, &answer),
        "{} {protocol}",
        world.name
    );
    assert!(
        ingress(bench, At::ToPod, &answer),
        "by whatever interface it came"
    );
    let (kind, code) = if world.pod.is_ipv4() { (3, 3) } else { (1, 4) };
    let refused = error(world.gateway, world.pod, kind, code, 0, ask.quote(8));
    assert!(ingress(bench, At::FromUplink, &refused), "an error about it");
    if protocol != world.icmp {
        assert!(!ingress(
            bench,
            At::FromUplink,
            &answer.from((world.remote, 444)).with_flags(SYN)
        ));
    }
    let outside = world.by_pod(protocol, (world.client, port));
    assert!(egress(bench, &outside));
    let (_, seen) = bench.see(At::ToUplink, &outside);
    assert_eq!(seen.source.0, world.node);
    let answer = outside.from(seen.source).answer();
    assert!(ingress(bench, At::FromUplink, &answer), "a masqueraded flow's");
}

#[test]
fn answers_to_what_the_pod_asks_pass() {
    for world in &WORLDS {
        let mut bench = isolated(world, ISOLATED_INGRESS);
        for protocol in [TCP, UDP, SCTP, world.icmp] {
            answers(&mut bench, world, protocol);
        }
        for (port, at) in [(80, At::FromOther), (81, At::FromUplink)] {
            let ask = world.by_pod(TCP, (world.service, port));
            let (_, seen) = bench.see(At::FromPod, &ask);
            let answer = ask.to(seen.destination).answer();
            assert!(ingress(&mut bench, at, &answer), "a service's");
        }
    }
}

#[test]
fn answers_of_a_pod_that_may_not_ask_pass() {
    for world in &WORLDS {
        let mut bench = isolated(world, ISOLATED_EGRESS);
        for protocol in [TCP, UDP, SCTP, world.icmp] {
            for (source, at) in [
                (world.client, At::FromUplink),
                (world.other, At::FromOther),
                (world.node, At::ToPod),
            ] {
                let ask = world.packet(protocol, (source, 4000), (world.pod, 80));
                assert!(source == world.node || !egress(&mut bench, &ask.answer()));
                assert!(ingress(&mut bench, at, &ask));
                assert!(
                    egress(&mut bench, &ask.answer()),
                    "{} {protocol} {at:?}",
                    world.name
                );
            }
        }
        bench.refill(TCP, 80, |world| vec![(world.pod, 8080)]);
        let ask = world.packet(TCP, (world.stranger, 4000), (world.node, 30_080));
        assert!(ingress(&mut bench, At::FromUplink, &ask));
        let answer = ask.to((world.pod, 8080)).answer();
        assert!(egress(&mut bench, &answer), "a NodePort's");
    }
}

#[test]
fn rules_for_everybody_networks_protocols_and_ranges() {
    for world in &WORLDS {
        let from = |source, protocol, port| world.packet(protocol, (source, 4000), (world.pod, port));
        let mut bench = isolated(world, ISOLATED_INGRESS);
        let mut held = None;
        let mut only = |bench: &mut Bench, bits, key| {
            if let Some((bits, key)) = held.replace((bits, key)) {
                bench.disallow(bits, key);
            }
            bench.forget();
            bench.allow(bits, key);
        };
        only(&mut bench, RULE_PORT_BITS, rule(IDENTITY_ANY, INGRESS, TCP, 80));
        for source in [world.client, world.stranger, world.remote] {
            assert!(
                ingress(&mut bench, At::FromUplink, &from(source, TCP, 80)),
                "everybody"
            );
            assert!(!ingress(&mut bench, At::FromUplink, &from(source, TCP, 81)));
        }
        only(&mut bench, RULE_PORT_BITS, rule(IDENTITY_WORLD, INGRESS, TCP, 80));
        assert!(
            ingress(&mut bench, At::FromUplink, &from(world.stranger, TCP, 80)),
            "what has no identity"
        );
        assert!(!ingress(&mut bench, At::FromUplink, &from(world.client, TCP, 80)));
        only(&mut bench, RULE_ANY_PROTOCOL_BITS, rule(NETWORK, INGRESS, 0, 0));
        for protocol in [TCP, UDP, SCTP, world.icmp, IP_IN_IP] {
            for port in [0, 80, 65_535] {
                assert!(
                    ingress(&mut bench, At::FromUplink, &from(world.client, protocol, port)),
                    "a network"
                );
                assert!(!ingress(
                    &mut bench,
                    At::FromUplink,
                    &from(world.stranger, protocol, port)
                ));
            }
        }
        only(&mut bench, RULE_ANY_PORT_BITS, rule(NETWORK, INGRESS, UDP, 0));
        assert!(
            ingress(&mut bench, At::FromUplink, &from(world.client, UDP, 9)),
            "every port"
        );
        assert!(!ingress(&mut bench, At::FromUplink, &from(world.client, TCP, 9)));
        // 8192 to 16383 and 80 to 83, as blocks of ports.
        only(
            &mut bench,
            RULE_ANY_PORT_BITS + 3,
            rule(NETWORK, INGRESS, TCP, 8192),
        );
        bench.allow(RULE_PORT_BITS - 2, rule(NETWORK, INGRESS, TCP, 80));
        for (port, allowed) in [
            (79, false),
            (80, true),
            (83, true),
            (84, false),
            (8191, false),
            (8192, true),
            (9000, true),
            (16_383, true),
            (16_384, false),
        ] {
            assert_eq!(
                ingress(&mut bench, At::FromUplink, &from(world.client, TCP, port)),
                allowed,
                "{port}"
            );
        }
        bench.disallow(RULE_PORT_BITS - 2, rule(NETWORK, INGRESS, TCP, 80));
        only(&mut bench, RULE_PORT_BITS, rule(NETWORK, INGRESS, TCP, 80));
        assert!(ingress(&mut bench, At::FromUplink, &from(world.client, TCP, 80)));
        // The innermost network decides who one is.
        bench.identify((world.bits(), world.client), FRIEND);
        assert!(!ingress(
            &mut bench,
            At::FromUplink,
            &from(world.client, TCP, 80).from((world.client, 4001))
        ));
        // Another policy's rules and the other direction's are not ours.
        for key in [
            RuleKey {
                policy: POLICY + 1,
                ..rule(IDENTITY_ANY, INGRESS, TCP, 80)
            },
            rule(IDENTITY_ANY, EGRESS, TCP, 80),
        ] {
            only(&mut bench, RULE_PORT_BITS, key);
            assert!(!ingress(&mut bench, At::FromUplink, &from(world.client, TCP, 80)));
        }
    }
}

#[test]
fn a_pod_is_never_kept_from_itself() {
    for world in &WORLDS {
        let mut bench = isolated(world, ISOLATED_INGRESS | ISOLATED_EGRESS);
        for protocol in [TCP, UDP, SCTP] {
            let ask = world.by_pod(protocol, (world.service, 83));
            assert!(egress(&mut bench, &ask), "{} {protocol}", world.name);
            let (_, seen) = bench.see(At::FromPod, &ask.with_flags(ACK));
            let answer = world
                .packet(protocol, (world.pod, 8080), seen.source)
                .with_flags(SYN | ACK);
            assert!(egress(&mut bench, &answer), "{} {protocol}", world.name);
        }
    }
}

#[test]
fn neighbour_discovery_of_an_isolated_pod_passes() {
    let [_, world] = &WORLDS;
    let mut bench = isolated(world, ISOLATED_INGRESS | ISOLATED_EGRESS);
    let gateway = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1).into();
    let mac = Some([2, 1, 1, 1, 1, 1]);
    for from in [world.pod, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77).into()] {
        for to in [group, gateway.into()] {
            assert!(
                egress(&mut bench, &neighbour::solicitation(from, to, gateway, mac)),
                "{from} {to}"
            );
        }
    }
    // The node's stack asks and answers by the link's addresses.
    let IpAddr::V6(pod) = world.pod else { panic!() };
    let asks = neighbour::solicitation(gateway.into(), world.pod, pod, mac);
    assert!(ingress(&mut bench, At::ToPod, &asks));
    let answers = neighbour::advertisement(gateway.into(), world.pod, gateway, [2, 9, 9, 9, 9, 9]);
    assert!(ingress(&mut bench, At::ToPod, &answers));
    // Discovery is of the link: what has come by a router is none.
    assert!(!egress(
        &mut bench,
        &neighbour::solicitation(world.pod, group, gateway, mac).with_ttl(254)
    ));
    let far = neighbour::advertisement(gateway.into(), world.pod, gateway, [2, 9, 9, 9, 9, 9]).with_ttl(254);
    assert!(!ingress(&mut bench, At::ToPod, &far));
}

/// Packets of a live flow to the pod, with its answers passing all the while.
#[test]
fn a_change_takes_effect_on_a_live_flow_to_the_pod() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for flags in [ISOLATED_INGRESS, ISOLATED_INGRESS | ISOLATED_EGRESS] {
            for protocol in [TCP, UDP] {
                isolate(&mut bench, world, flags);
                let key = rule(NETWORK, INGRESS, protocol, 80);
                bench.allow(RULE_PORT_BITS, key);
                let ask = world.packet(protocol, (world.client, 4000), (world.pod, 80));
                let (data, answer) = (ask.with_flags(ACK), ask.answer());
                assert!(ingress(&mut bench, At::FromUplink, &ask));
                assert!(egress(&mut bench, &answer));
                assert!(ingress(&mut bench, At::FromUplink, &data));
                bench.disallow(RULE_PORT_BITS, key);
                assert!(
                    !ingress(&mut bench, At::FromUplink, &data),
                    "{} {protocol} {flags}",
                    world.name
                );
                bench.allow(RULE_PORT_BITS, key);
                assert!(ingress(&mut bench, At::FromUplink, &data));
                assert!(egress(&mut bench, &answer.with_flags(ACK)));
                assert!(ingress(&mut bench, At::FromUplink, &data.with_flags(FIN | ACK)));
                bench.disallow(RULE_PORT_BITS, key);
            }
        }
    }
}

#[test]
fn a_change_takes_effect_on_a_live_flow_of_the_pod() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for flags in [ISOLATED_EGRESS, ISOLATED_INGRESS | ISOLATED_EGRESS] {
            for protocol in [TCP, UDP] {
                isolate(&mut bench, world, flags);
                let key = rule(NETWORK, EGRESS, protocol, 443);
                bench.allow(RULE_PORT_BITS, key);
                for ask in [
                    world.packet(protocol, (world.pod, 4000), (world.client, 443)),
                    world.packet(protocol, (world.pod, 4001), (world.client, 443)),
                ] {
                    let data = ask.with_flags(ACK);
                    let masqueraded = ask.source_port == 4001;
                    let out = if masqueraded {
                        bench.see(At::ToUplink, &ask).1.source
                    } else {
                        (ask.source, ask.source_port)
                    };
                    let answer = ask.from(out).answer();
                    assert!(egress(&mut bench, &ask));
                    assert!(ingress(&mut bench, At::FromUplink, &answer));
                    assert!(egress(&mut bench, &data));
                    bench.disallow(RULE_PORT_BITS, key);
                    assert!(
                        !egress(&mut bench, &data),
                        "{} {protocol} {flags} {masqueraded}",
                        world.name
                    );
                    bench.allow(RULE_PORT_BITS, key);
                    assert!(egress(&mut bench, &data));
                }
                bench.disallow(RULE_PORT_BITS, key);
            }
        }
    }
}

/// A pod that becomes isolated while it talks: what it has asked for goes on.
#[test]
fn a_pods_own_flows_outlive_its_isolation() {
    for world in &WORLDS {
        let mut bench = isolated(world, 0);
        let ask = world.by_pod(TCP, (world.remote, 443));
        assert!(egress(&mut bench, &ask));
        bench.isolate(world.pod, POLICY, ISOLATED_INGRESS);
        assert!(egress(&mut bench, &ask.with_flags(ACK)));
        assert!(
            ingress(&mut bench, At::FromUplink, &ask.answer().with_flags(ACK)),
            "{}",
            world.name
        );
    }
}

//! A pod's packets to services, and their answers.

use orch_ebpf::{
    conntrack::NAT_PORTS,
    event::{
        DropReason::{NoBackend, NoLocalBackend, NoService, SourceRange},
        Path::{NewFlow, ToNode, ToPod, ToStack, Translated},
    },
    service::{SERVICE_LOCAL, SERVICE_SOURCES},
};

use crate::{
    bench::Bench,
    case::{At, Case, PASS, REDIRECT, drops, passes, turns},
    packet::{ACK, Packet, RST, SCTP, SYN, TCP, UDP},
    spec::Spec,
    world::{OTHER_MACS, POD_MACS, WORLDS, World},
};

/// A packet whose flow is opened, and which goes into the other pod.
fn opens_to_other(name: &'static str, at: At, sent: Packet, world: &World) -> Case {
    let out = sent.to((world.other, 8080)).with_macs(OTHER_MACS);
    turns(name, at, sent, REDIRECT, out, &[NewFlow, Translated, ToPod])
}

fn with_services(world: &World) -> Vec<Case> {
    let from = |protocol, to| world.by_pod(protocol, to);
    let mut list = vec![
        drops(
            "no such service",
            At::FromPod,
            from(TCP, (world.service, 9999)),
            NoService,
        ),
        drops(
            "a ping of a service",
            At::FromPod,
            from(world.icmp, (world.service, 0)),
            NoService,
        ),
        passes(
            "another port of the node",
            At::FromPod,
            from(TCP, (world.node, 80)),
        ),
        passes(
            "a NodePort of another node",
            At::FromPod,
            from(TCP, (world.neighbour, 30_080)),
        ),
        passes(
            "another port of the balancer",
            At::FromPod,
            from(TCP, (world.balancer, 22)),
        ),
        passes(
            "no flow and no first SYN",
            At::FromPod,
            from(TCP, (world.service, 80)).with_flags(ACK),
        ),
        passes(
            "a reset without a flow",
            At::FromPod,
            from(TCP, (world.service, 80)).with_flags(RST | SYN),
        ),
    ];
    for protocol in [TCP, UDP, SCTP] {
        let from = |to| world.by_pod(protocol, to);
        list.extend([
            opens_to_other("ClusterIP", At::FromPod, from((world.service, 80)), world),
            opens_to_other(
                "NodePort on the own node",
                At::FromPod,
                from((world.node, 30_080)),
                world,
            ),
            opens_to_other(
                "load balancer's address",
                At::FromPod,
                from((world.balancer, 80)),
                world,
            ),
            drops("no backend", At::FromPod, from((world.service, 82)), NoBackend),
            drops(
                "no backend at a NodePort",
                At::FromPod,
                from((world.node, 30_082)),
                NoBackend,
            ),
        ]);
        let remote = from((world.service, 81));
        let out = remote.to((world.remote, 8080)).with_ttl(63);
        list.push(turns(
            "ClusterIP with a remote backend",
            At::FromPod,
            remote,
            REDIRECT,
            out,
            &[NewFlow, Translated, ToNode],
        ));
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
                let ask = world.by_pod(protocol, front);
                bench.check(
                    world,
                    &opens_to_other("the first packet", At::FromPod, ask.clone(), world),
                );
                let answer = ask.to((world.other, 8080)).answer();
                let out = answer.from(front).with_macs(POD_MACS);
                bench.check(
                    world,
                    &turns(
                        "the answer",
                        At::FromOther,
                        answer,
                        REDIRECT,
                        out,
                        &[Translated, ToPod],
                    ),
                );
                let next = ask.with_flags(ACK);
                let out = next.to((world.other, 8080)).with_macs(OTHER_MACS);
                bench.check(
                    world,
                    &turns(
                        "the second packet",
                        At::FromPod,
                        next,
                        REDIRECT,
                        out,
                        &[Translated, ToPod],
                    ),
                );
            }
            let ask = world.by_pod(protocol, (world.service, 81));
            bench.run(At::FromPod, &ask.bytes());
            let answer = ask.to((world.remote, 8080)).answer();
            let out = answer.from((world.service, 81)).with_macs(POD_MACS);
            bench.check(
                world,
                &turns(
                    "the remote answer",
                    At::FromUplink,
                    answer,
                    REDIRECT,
                    out,
                    &[Translated, ToPod],
                ),
            );
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_a_service_with_the_nodes_address() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            let ask = world.by_pod(protocol, (world.service, 83));
            let (_, seen) = bench.see(At::FromPod, &ask);
            let port = seen.source.1;
            assert!(
                NAT_PORTS
                    .iter()
                    .any(|(first, count)| (*first..=first + (count - 1)).contains(&port)),
                "{port}"
            );
            let arrived = ask
                .between((world.node, port), (world.pod, 8080))
                .with_macs(POD_MACS);
            bench.check(
                world,
                &turns(
                    "hairpin",
                    At::FromPod,
                    ask.with_flags(ACK),
                    REDIRECT,
                    arrived.with_flags(ACK),
                    &[Translated, ToPod],
                ),
            );
            let answer = world
                .packet(protocol, (world.pod, 8080), (world.node, port))
                .with_flags(SYN | ACK);
            let out = answer
                .between((world.service, 83), (world.pod, 4000))
                .with_macs(POD_MACS);
            bench.check(
                world,
                &turns(
                    "hairpin's answer",
                    At::FromPod,
                    answer,
                    REDIRECT,
                    out,
                    &[Translated, ToPod],
                ),
            );
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
                drops(
                    "no local backend",
                    At::FromPod,
                    world.by_pod(TCP, (world.service, 84)),
                    NoLocalBackend,
                ),
                drops(
                    "out of range",
                    At::FromPod,
                    world.by_pod(TCP, (world.balancer, 85)),
                    SourceRange,
                ),
            ],
        );
        ranges.sources.push((world.bits() - 8, world.pod));
        bench.put(world, "ranges", &ranges);
        bench.check_each(
            world,
            &[opens_to_other(
                "in range",
                At::FromPod,
                world.by_pod(TCP, (world.balancer, 85)),
                world,
            )],
        );
    }
}

/// As the API server's service has.
#[test]
fn a_backend_in_the_nodes_network_answers_in_the_services_name() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            let name = format!("host-{protocol}");
            bench.put(world, &name, &Spec::new(87, protocol, &[(world.node, 6443)]));
            let ask = world.by_pod(protocol, (world.service, 87));
            let arrived = ask.to((world.node, 6443));
            let paths = [NewFlow, Translated, ToStack];
            bench.check(
                world,
                &turns(
                    "from a pod",
                    At::FromPod,
                    ask.clone(),
                    PASS,
                    arrived.clone(),
                    &paths,
                ),
            );
            let (answer, out) = (arrived.answer(), ask.answer());
            bench.check(
                world,
                &turns("its answer", At::ToPod, answer, PASS, out, &[Translated]),
            );
            let ask = world.by_client(protocol, (world.node, 30_087));
            let arrived = ask.to((world.node, 6443));
            bench.check(
                world,
                &turns(
                    "from outside",
                    At::FromUplink,
                    ask.clone(),
                    PASS,
                    arrived.clone(),
                    &paths,
                ),
            );
            let (answer, out) = (arrived.answer(), ask.answer());
            bench.check(
                world,
                &turns(
                    "its answer",
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

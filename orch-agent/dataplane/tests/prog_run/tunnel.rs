//! The tunnel between nodes.

use orch_ebpf::{
    config::TUNNEL_MAC,
    event::{
        DropReason::NoTunnelRoute,
        Path::{NewFlow, ToNode, ToPod, ToStack, ToTunnel, Translated},
    },
};

use crate::{
    bench::Bench,
    case::{At, Count, PASS, REDIRECT, drops, passes, turns},
    packet::{ACK, Packet, SCTP, SYN, TCP, UDP},
    world::{OTHER_MACS, POD_MACS, TUNNEL, TUNNEL_MTU, WORLDS, World},
};

/// A bench whose remote pods are behind the tunnel, whose ends are of the other family for each.
fn tunnelled() -> Bench {
    tunnelled_with(0)
}

/// The same with these flags of the node's settings.
pub fn tunnelled_with(flags: u32) -> Bench {
    let mut bench = Bench::new();
    bench.configure(|config| {
        config.tunnel_ifindex = TUNNEL;
        config.flags = flags;
    });
    let [four, six] = &WORLDS;
    bench.route((24, four.remote), six.neighbour);
    bench.route((64, six.remote), four.neighbour);
    bench.route((32, four.neighbour), four.neighbour);
    bench.route((128, six.neighbour), six.neighbour);
    bench
}

/// As the packet goes into the tunnel.
fn inside(packet: &Packet) -> Packet {
    let mut macs = packet.macs;
    macs[..6].copy_from_slice(&TUNNEL_MAC);
    packet.with_macs(macs).with_ttl(packet.ttl - 1)
}

/// As the stack's packet goes into the tunnel: its source is not the device's own.
fn from_stack(packet: &Packet) -> Packet {
    let mut macs = packet.macs;
    macs[6..].copy_from_slice(&TUNNEL_MAC);
    macs[11] = !macs[11];
    packet.with_macs(macs)
}

#[test]
fn a_pod_reaches_remote_pods_through_it() {
    let mut bench = tunnelled();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP, world.icmp] {
            let sent = world.by_pod(protocol, (world.remote, 80));
            let out = inside(&sent);
            bench.check(
                world,
                &turns("to a remote pod", At::FromPod, sent, REDIRECT, out, &[ToTunnel]),
            );
        }
        let sent = world.by_pod(TCP, (world.remote, 80));
        let headers = sent.ip().len() - sent.payload.len();
        let payload = vec![1; TUNNEL_MTU as usize - headers];
        let mut full = Packet {
            payload,
            ..sent.clone()
        };
        let out = inside(&full);
        bench.check(
            world,
            &turns(
                "as long as the tunnel's",
                At::FromPod,
                full.clone(),
                REDIRECT,
                out,
                &[ToTunnel],
            ),
        );
        full.payload.push(1);
        bench.check(world, &passes("too long for the tunnel", At::FromPod, full));
        bench.check(world, &passes("the last hop", At::FromPod, sent.with_ttl(1)));
        bench.check(
            world,
            &passes("elsewhere", At::FromPod, world.by_pod(TCP, (world.client, 80))),
        );
        let ask = world.by_pod(TCP, (world.service, 81));
        let out = inside(&ask.to((world.remote, 8080)));
        bench.check(
            world,
            &turns(
                "a service",
                At::FromPod,
                ask.clone(),
                REDIRECT,
                out,
                &[NewFlow, Translated, ToTunnel],
            ),
        );
        let answer = ask.to((world.remote, 8080)).answer();
        let out = answer.from((world.service, 81)).with_macs(POD_MACS);
        bench.check(
            world,
            &turns(
                "its answer",
                At::FromTunnel,
                answer,
                REDIRECT,
                out,
                &[Translated, ToPod],
            ),
        );
        let direct = world.packet(UDP, (world.remote, 1), (world.other, 2));
        let out = direct.with_macs(OTHER_MACS);
        bench.check(
            world,
            &turns(
                "from a remote pod",
                At::FromTunnel,
                direct,
                REDIRECT,
                out,
                &[ToPod],
            ),
        );
    }
}

#[test]
fn a_client_outside_reaches_remote_backends_through_it() {
    let mut bench = tunnelled();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            let ask = world.by_client(protocol, (world.node, 30_081));
            let (_, seen) = bench.see(At::FromUplink, &ask);
            let left = ask.between(seen.source, (world.remote, 8080));
            let next = ask.with_flags(ACK);
            let out = inside(&left.with_flags(ACK));
            bench.check(
                world,
                &turns(
                    "the second packet",
                    At::FromUplink,
                    next.clone(),
                    REDIRECT,
                    out,
                    &[Translated, ToTunnel],
                ),
            );
            let out = left.with_flags(ACK).with_ttl(1);
            bench.check(
                world,
                &turns(
                    "the last hop",
                    At::FromUplink,
                    next.with_ttl(1),
                    PASS,
                    out,
                    &[Translated, ToStack],
                ),
            );
            let answer = left.answer();
            let out = answer
                .between((world.node, 30_081), (world.client, 4000))
                .with_ttl(63);
            bench.check(
                world,
                &turns(
                    "the answer",
                    At::FromTunnel,
                    answer,
                    REDIRECT,
                    out,
                    &[Translated, ToNode],
                ),
            );
        }
    }
}

#[test]
fn what_the_stack_sends_is_told_its_way() {
    let mut bench = tunnelled();
    for world in &WORLDS {
        let sent = world.packet(TCP, (world.node, 1), (world.remote, 2));
        let out = from_stack(&sent);
        bench.check(
            world,
            &turns("from the node", At::ToTunnel, sent, PASS, out, &[ToStack]),
        );
        let mut case = drops(
            "to nowhere",
            At::ToTunnel,
            world.packet(TCP, (world.node, 1), (world.client, 2)),
            NoTunnelRoute,
        );
        case.counts.push(Count::Took(ToStack));
        bench.check(world, &case);
        let sent = world.by_pod(UDP, (world.neighbour, 53));
        let out = from_stack(&sent);
        bench.check(
            world,
            &turns("no masquerade inside", At::ToTunnel, sent, PASS, out, &[ToStack]),
        );
    }
}

#[test]
fn an_answer_through_it_has_the_services_name() {
    let mut bench = tunnelled();
    for world in &WORLDS {
        let ask = world.packet(TCP, (world.neighbour, 4000), (world.node, 30_080));
        let arrived = ask.to((world.other, 8080));
        let out = arrived.with_macs(OTHER_MACS);
        bench.check(
            world,
            &turns(
                "another node asks",
                At::FromTunnel,
                ask,
                REDIRECT,
                out,
                &[NewFlow, Translated, ToPod],
            ),
        );
        let answer = arrived.answer().with_flags(SYN | ACK);
        let out = inside(&answer);
        bench.check(
            world,
            &turns(
                "not yet",
                At::FromOther,
                answer.clone(),
                REDIRECT,
                out,
                &[ToTunnel],
            ),
        );
        let out = from_stack(&answer.from((world.node, 30_080)));
        bench.check(
            world,
            &turns(
                "the answer",
                At::ToTunnel,
                answer,
                PASS,
                out,
                &[Translated, ToStack],
            ),
        );
    }
}

#[test]
fn the_driver_leaves_it_what_is_its() {
    let mut bench = tunnelled();
    for world in &WORLDS as &[World; 2] {
        let ask = world.by_client(UDP, (world.node, 30_081));
        let mut case = passes("no flow is opened", At::Driver, ask);
        case.verdict = crate::case::XDP_PASS;
        case.counts.clear();
        bench.check(world, &case);
        assert_eq!(bench.flows(world), []);
    }
}

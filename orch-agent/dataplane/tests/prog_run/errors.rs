//! ICMP errors about translated flows: what they quote is what their receiver sent.

use std::net::IpAddr;

use orch_ebpf::event::Path::{self, ToNode, ToPod, ToStack, Translated};

use crate::{
    bench::Bench,
    case::{At, Case, PASS, REDIRECT, passes, turns},
    packet::{DESTINATION_OPTIONS, Extension, ICMP, Packet, SCTP, TCP, UDP, error},
    world::{OTHER_MACS, POD_MACS, WORLDS, World},
};

/// Kind, code and second word of an unreachable port, a packet that is too big, an exceeded hop limit, and a bad
/// header.
fn kinds(world: &World) -> [(u8, u8, u32); 4] {
    if world.icmp == ICMP {
        [(3, 3, 0), (3, 4, 1400), (11, 0, 0), (12, 0, 0x1400_0000)]
    } else {
        [(1, 4, 0), (2, 0, 1400), (3, 0, 0), (4, 0, 6)]
    }
}

/// An error from one to the other about a packet.
struct About<'a> {
    from: IpAddr,
    to: IpAddr,
    packet: &'a Packet,
}

/// What becomes of an error, for every kind of it, with as little quoted as may be and with more.
fn each_kind(
    bench: &mut Bench,
    world: &World,
    (name, at): (&'static str, At),
    sent: &About<'_>,
    (verdict, paths): (u32, &[Path]),
    out: &About<'_>,
) {
    for (kind, code, word) in kinds(world) {
        for bytes in [8, 24, 400] {
            let quoted = sent.packet.quote(bytes);
            let now = out.packet.requote(&quoted);
            let sent = error(sent.from, sent.to, kind, code, word, quoted);
            let mut out = error(out.from, out.to, kind, code, word, now);
            if paths.contains(&ToNode) {
                out.ttl -= 1;
            }
            if paths.contains(&ToPod) {
                out.macs = if out.destination == world.pod { POD_MACS } else { OTHER_MACS };
            }
            bench.check(world, &turns(name, at, sent, verdict, out, paths));
        }
    }
}

/// As [`each_kind`], for what is left to the stack as it is.
fn each_passes(bench: &mut Bench, world: &World, (name, at): (&'static str, At), sent: &About<'_>) {
    each_kind(bench, world, (name, at), sent, (PASS, &[ToStack]), sent);
}

#[test]
fn about_a_flow_to_a_local_backend() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            for front in [(world.node, 30_080), (world.balancer, 80)] {
                bench.forget();
                let asked = world.from_client(protocol, front);
                bench.run(At::FromUplink, &asked.bytes());
                let arrived = asked.to((world.other, 8080));
                let sent = About { from: world.other, to: world.client, packet: &arrived };
                each_passes(&mut bench, world, ("from the backend, not routed yet", At::FromOther), &sent);
                let out = About { from: front.0, to: world.client, packet: &asked };
                each_kind(&mut bench, world, ("from the backend", At::ToUplink), &sent, (PASS, &[Translated, ToStack]), &out);
                // About the backend's answer.
                let (answer, translated) = (arrived.answer(), asked.answer());
                for (from, name) in [(world.client, "from the client"), (world.stranger, "from a router")] {
                    let sent = About { from, to: front.0, packet: &translated };
                    let out = About { from, to: world.other, packet: &answer };
                    each_kind(&mut bench, world, (name, At::FromUplink), &sent, (REDIRECT, &[Translated, ToPod]), &out);
                }
            }
        }
    }
}

#[test]
fn about_a_flow_to_a_remote_backend() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            for front in [(world.node, 30_081), (world.balancer, 81)] {
                bench.forget();
                let asked = world.from_client(protocol, front);
                let (_, seen) = bench.see(At::FromUplink, &asked);
                let left = asked.between(seen.source, (world.remote, 8080));
                for (from, becomes, name) in [
                    (world.remote, front.0, "from the backend"),
                    (world.neighbour, world.neighbour, "from the backend's node"),
                ] {
                    let sent = About { from, to: world.node, packet: &left };
                    let out = About { from: becomes, to: world.client, packet: &asked };
                    each_kind(&mut bench, world, (name, At::FromUplink), &sent, (REDIRECT, &[Translated, ToNode]), &out);
                }
                let (answer, translated) = (left.answer(), asked.answer());
                for (from, becomes, name) in [
                    (world.client, world.node, "from the client"),
                    (world.stranger, world.stranger, "from a router"),
                ] {
                    let sent = About { from, to: front.0, packet: &translated };
                    let out = About { from: becomes, to: world.remote, packet: &answer };
                    each_kind(&mut bench, world, (name, At::FromUplink), &sent, (REDIRECT, &[Translated, ToNode]), &out);
                }
            }
        }
    }
}

#[test]
fn about_a_pods_flow_to_a_service() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            let asked = world.from_pod(protocol, (world.service, 80));
            bench.run(At::FromPod, &asked.bytes());
            let arrived = asked.to((world.other, 8080));
            let sent = About { from: world.other, to: world.pod, packet: &arrived };
            let out = About { from: world.service, to: world.pod, packet: &asked };
            each_kind(&mut bench, world, ("from the backend", At::FromOther), &sent, (REDIRECT, &[Translated, ToPod]), &out);
            let (answer, translated) = (arrived.answer(), asked.answer());
            let sent = About { from: world.pod, to: world.service, packet: &translated };
            let out = About { from: world.pod, to: world.other, packet: &answer };
            each_kind(&mut bench, world, ("from the pod", At::FromPod), &sent, (REDIRECT, &[Translated, ToPod]), &out);

            let asked = world.from_pod(protocol, (world.service, 81));
            bench.run(At::FromPod, &asked.bytes());
            let left = asked.to((world.remote, 8080));
            for (from, becomes, name) in [
                (world.remote, world.service, "from the remote backend"),
                (world.gateway, world.gateway, "from a router"),
            ] {
                let sent = About { from, to: world.pod, packet: &left };
                let out = About { from: becomes, to: world.pod, packet: &asked };
                each_kind(&mut bench, world, (name, At::FromUplink), &sent, (REDIRECT, &[Translated, ToPod]), &out);
            }
            // The node's own stack, which the packet was too long for.
            let sent = About { from: world.node, to: world.pod, packet: &left };
            let out = About { from: world.node, to: world.pod, packet: &asked };
            each_kind(&mut bench, world, ("from the node", At::ToPod), &sent, (PASS, &[Translated]), &out);
        }
    }
}

#[test]
fn about_a_flow_of_a_pod_to_itself() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            let asked = world.from_pod(protocol, (world.service, 83));
            let (_, seen) = bench.see(At::FromPod, &asked);
            let arrived = asked.between(seen.source, (world.pod, 8080));
            let sent = About { from: world.pod, to: world.node, packet: &arrived };
            let out = About { from: world.service, to: world.pod, packet: &asked };
            each_kind(&mut bench, world, ("hairpin", At::FromPod), &sent, (REDIRECT, &[Translated, ToPod]), &out);
        }
    }
}

#[test]
fn about_a_masqueraded_flow() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP, world.icmp] {
            let port = if protocol == world.icmp { 0 } else { 443 };
            let asked = world.from_pod(protocol, (world.client, port));
            let (_, seen) = bench.see(At::ToUplink, &asked);
            let left = asked.from(seen.source);
            for from in [world.client, world.gateway] {
                let sent = About { from, to: world.node, packet: &left };
                let out = About { from, to: world.pod, packet: &asked };
                each_kind(&mut bench, world, ("from outside", At::FromUplink), &sent, (REDIRECT, &[Translated, ToPod]), &out);
            }
            let (arrived, answer) = (asked.answer(), left.answer());
            let sent = About { from: world.pod, to: world.client, packet: &arrived };
            each_passes(&mut bench, world, ("from the pod, not routed yet", At::FromPod), &sent);
            let out = About { from: world.node, to: world.client, packet: &answer };
            each_kind(&mut bench, world, ("from the pod", At::ToUplink), &sent, (PASS, &[Translated, ToStack]), &out);
        }
    }
}

#[test]
fn about_a_flow_that_nobody_translates() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let flow = world.packet(UDP, (world.node, 5000), (world.client, 53));
        let sent = About { from: world.gateway, to: world.node, packet: &flow };
        each_passes(&mut bench, world, ("the node's own", At::FromUplink), &sent);
        let flow = world.from_pod(UDP, (world.other, 53));
        let sent = About { from: world.other, to: world.pod, packet: &flow };
        each_kind(&mut bench, world, ("between pods", At::FromOther), &sent, (REDIRECT, &[ToPod]), &sent);
        // Nobody asked for this one, so there is no flow to open for it either.
        let flow = world.from_client(UDP, (world.pod, 53));
        let sent = About { from: world.pod, to: world.client, packet: &flow };
        let out = About { from: world.node, to: world.client, packet: &flow };
        let _ = out;
        each_passes(&mut bench, world, ("of a pod to the outside", At::ToUplink), &sent);
        assert_eq!(bench.flows(world), []);
    }
}

#[test]
fn that_quote_too_little_or_otherwise_pass() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let asked = world.from_client(UDP, (world.node, 30_081));
        let (_, seen) = bench.see(At::FromUplink, &asked);
        let left = asked.between(seen.source, (world.remote, 8080));
        let (kind, code, word) = kinds(world)[0];
        let mut list: Vec<Case> = (0..left.quote(8).len())
            .map(|length| {
                let mut quoted = left.quote(8);
                quoted.truncate(length);
                let sent = error(world.remote, world.node, kind, code, word, quoted);
                passes("cut", At::FromUplink, sent)
            })
            .collect();
        // A later fragment, another version, and a header that is too short.
        for (at, value) in [(7, 9), (0, 0x55), (0, 0x44)] {
            if world.icmp != ICMP && at == 7 {
                continue;
            }
            let mut quoted = left.quote(8);
            quoted[at] = value;
            if world.icmp == ICMP {
                // The checksum of the header follows.
                let before = u16::from_be_bytes([left.quote(8)[at & !1], left.quote(8)[(at & !1) + 1]]);
                let now = u16::from_be_bytes([quoted[at & !1], quoted[(at & !1) + 1]]);
                let sum = u32::from(!u16::from_be_bytes([quoted[10], quoted[11]]))
                    + u32::from(!before)
                    + u32::from(now);
                let sum = (sum & 0xffff) + (sum >> 16);
                let sum = (sum & 0xffff) + (sum >> 16);
                quoted[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            }
            let sent = error(world.remote, world.node, kind, code, word, quoted);
            list.push(passes("quoted otherwise", At::FromUplink, sent));
        }
        for case in &list {
            let (verdict, out) = bench.run(case.at, &case.sent.bytes());
            assert_eq!((verdict, out), (PASS, case.sent.bytes()), "{} {}", world.name, case.name);
        }
    }
}

#[test]
fn that_quote_options() {
    let mut bench = Bench::new();
    let [four, six] = &WORLDS;
    let mut asked = four.from_client(UDP, (four.node, 30_081));
    asked.option_words = 3;
    let (_, seen) = bench.see(At::FromUplink, &asked);
    let left = asked.between(seen.source, (four.remote, 8080));
    let sent = About { from: four.neighbour, to: four.node, packet: &left };
    let out = About { from: four.neighbour, to: four.client, packet: &asked };
    each_kind(&mut bench, four, ("options", At::FromUplink), &sent, (REDIRECT, &[Translated, ToNode]), &out);

    // A quoted packet with extension headers is about no flow that is looked for.
    let mut asked = six.from_client(UDP, (six.node, 30_081));
    asked.extensions = vec![Extension::padding(DESTINATION_OPTIONS, 1)];
    let (_, seen) = bench.see(At::FromUplink, &asked);
    let left = asked.between(seen.source, (six.remote, 8080));
    let sent = About { from: six.neighbour, to: six.node, packet: &left };
    each_passes(&mut bench, six, ("extensions", At::FromUplink), &sent);
}

#[test]
fn with_options_of_their_own() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let asked = world.from_client(TCP, (world.node, 30_081));
        let (_, seen) = bench.see(At::FromUplink, &asked);
        let left = asked.between(seen.source, (world.remote, 8080));
        let (kind, code, word) = kinds(world)[1];
        let dress = |packet: Packet| {
            if world.icmp == ICMP {
                Packet { option_words: 2, ..packet }
            } else {
                let extensions = vec![Extension::padding(DESTINATION_OPTIONS, 2)];
                Packet { extensions, ..packet }
            }
        };
        let quoted = left.quote(64);
        let now = asked.requote(&quoted);
        let sent = dress(error(world.neighbour, world.node, kind, code, word, quoted));
        let out = dress(error(world.neighbour, world.client, kind, code, word, now)).with_ttl(63);
        bench.check(world, &turns("options", At::FromUplink, sent, REDIRECT, out, &[Translated, ToNode]));
    }
}

//! ICMP errors about translated flows: what they quote is what their receiver sent.

use std::net::IpAddr;

use orch_ebpf::event::Path::{self, ToNode, ToPod, ToStack, Translated};

use crate::{
    bench::Bench,
    case::{At, PASS, REDIRECT, turns},
    packet::{ICMP, Packet, SCTP, TCP, UDP, error},
    world::{OTHER_MACS, POD_MACS, WORLDS, World},
};

/// Kind, code and second word of an unreachable port, a packet that is too big, an exceeded hop limit, and a bad
/// header.
pub fn kinds(world: &World) -> [(u8, u8, u32); 4] {
    if world.icmp == ICMP {
        [(3, 3, 0), (3, 4, 1400), (11, 0, 0), (12, 0, 0x1400_0000)]
    } else {
        [(1, 4, 0), (2, 0, 1400), (3, 0, 0), (4, 0, 6)]
    }
}

/// An error from one to the other about a packet.
pub struct About<'a> {
    pub from: IpAddr,
    pub to: IpAddr,
    pub packet: &'a Packet,
}

/// What becomes of an error, for every kind of it, with as little quoted as may be and with more.
pub fn each_kind(
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
                out.macs = if out.destination == world.pod {
                    POD_MACS
                } else {
                    OTHER_MACS
                };
            }
            bench.check(world, &turns(name, at, sent, verdict, out, paths));
        }
    }
}

/// As [`each_kind`], for what is left to the stack as it is.
pub fn each_passes(bench: &mut Bench, world: &World, (name, at): (&'static str, At), sent: &About<'_>) {
    each_kind(bench, world, (name, at), sent, (PASS, &[ToStack]), sent);
}

#[test]
fn about_a_flow_to_a_local_backend() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            for front in [(world.node, 30_080), (world.balancer, 80)] {
                bench.forget();
                let asked = world.by_client(protocol, front);
                bench.run(At::FromUplink, &asked.bytes());
                let arrived = asked.to((world.other, 8080));
                let sent = About {
                    from: world.other,
                    to: world.client,
                    packet: &arrived,
                };
                each_passes(
                    &mut bench,
                    world,
                    ("from the backend, not routed yet", At::FromOther),
                    &sent,
                );
                let out = About {
                    from: front.0,
                    to: world.client,
                    packet: &asked,
                };
                each_kind(
                    &mut bench,
                    world,
                    ("from the backend", At::ToUplink),
                    &sent,
                    (PASS, &[Translated, ToStack]),
                    &out,
                );
                // About the backend's answer.
                let (answer, translated) = (arrived.answer(), asked.answer());
                for (from, name) in [
                    (world.client, "from the client"),
                    (world.stranger, "from a router"),
                ] {
                    let sent = About {
                        from,
                        to: front.0,
                        packet: &translated,
                    };
                    let out = About {
                        from,
                        to: world.other,
                        packet: &answer,
                    };
                    each_kind(
                        &mut bench,
                        world,
                        (name, At::FromUplink),
                        &sent,
                        (REDIRECT, &[Translated, ToPod]),
                        &out,
                    );
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
                let asked = world.by_client(protocol, front);
                let (_, seen) = bench.see(At::FromUplink, &asked);
                let left = asked.between(seen.source, (world.remote, 8080));
                for (from, becomes, name) in [
                    (world.remote, front.0, "from the backend"),
                    (world.neighbour, world.neighbour, "from the backend's node"),
                ] {
                    let sent = About {
                        from,
                        to: world.node,
                        packet: &left,
                    };
                    let out = About {
                        from: becomes,
                        to: world.client,
                        packet: &asked,
                    };
                    each_kind(
                        &mut bench,
                        world,
                        (name, At::FromUplink),
                        &sent,
                        (REDIRECT, &[Translated, ToNode]),
                        &out,
                    );
                }
                let (answer, translated) = (left.answer(), asked.answer());
                for (from, becomes, name) in [
                    (world.client, world.node, "from the client"),
                    (world.stranger, world.stranger, "from a router"),
                ] {
                    let sent = About {
                        from,
                        to: front.0,
                        packet: &translated,
                    };
                    let out = About {
                        from: becomes,
                        to: world.remote,
                        packet: &answer,
                    };
                    each_kind(
                        &mut bench,
                        world,
                        (name, At::FromUplink),
                        &sent,
                        (REDIRECT, &[Translated, ToNode]),
                        &out,
                    );
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
            let asked = world.by_pod(protocol, (world.service, 80));
            bench.run(At::FromPod, &asked.bytes());
            let arrived = asked.to((world.other, 8080));
            let sent = About {
                from: world.other,
                to: world.pod,
                packet: &arrived,
            };
            let out = About {
                from: world.service,
                to: world.pod,
                packet: &asked,
            };
            each_kind(
                &mut bench,
                world,
                ("from the backend", At::FromOther),
                &sent,
                (REDIRECT, &[Translated, ToPod]),
                &out,
            );
            let (answer, translated) = (arrived.answer(), asked.answer());
            let sent = About {
                from: world.pod,
                to: world.service,
                packet: &translated,
            };
            let out = About {
                from: world.pod,
                to: world.other,
                packet: &answer,
            };
            each_kind(
                &mut bench,
                world,
                ("from the pod", At::FromPod),
                &sent,
                (REDIRECT, &[Translated, ToPod]),
                &out,
            );

            let asked = world.by_pod(protocol, (world.service, 81));
            bench.run(At::FromPod, &asked.bytes());
            let left = asked.to((world.remote, 8080));
            for (from, becomes, name) in [
                (world.remote, world.service, "from the remote backend"),
                (world.gateway, world.gateway, "from a router"),
            ] {
                let sent = About {
                    from,
                    to: world.pod,
                    packet: &left,
                };
                let out = About {
                    from: becomes,
                    to: world.pod,
                    packet: &asked,
                };
                each_kind(
                    &mut bench,
                    world,
                    (name, At::FromUplink),
                    &sent,
                    (REDIRECT, &[Translated, ToPod]),
                    &out,
                );
            }
            // The node's own stack, which the packet was too long for.
            let sent = About {
                from: world.node,
                to: world.pod,
                packet: &left,
            };
            let out = About {
                from: world.node,
                to: world.pod,
                packet: &asked,
            };
            each_kind(
                &mut bench,
                world,
                ("from the node", At::ToPod),
                &sent,
                (PASS, &[Translated]),
                &out,
            );
        }
    }
}

#[test]
fn about_a_flow_of_a_pod_to_itself() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            let asked = world.by_pod(protocol, (world.service, 83));
            let (_, seen) = bench.see(At::FromPod, &asked);
            let arrived = asked.between(seen.source, (world.pod, 8080));
            let sent = About {
                from: world.pod,
                to: world.node,
                packet: &arrived,
            };
            let out = About {
                from: world.service,
                to: world.pod,
                packet: &asked,
            };
            each_kind(
                &mut bench,
                world,
                ("hairpin", At::FromPod),
                &sent,
                (REDIRECT, &[Translated, ToPod]),
                &out,
            );
        }
    }
}

#[test]
fn about_a_masqueraded_flow() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP, world.icmp] {
            let port = if protocol == world.icmp { 0 } else { 443 };
            let asked = world.by_pod(protocol, (world.client, port));
            let (_, seen) = bench.see(At::ToUplink, &asked);
            let left = asked.from(seen.source);
            for from in [world.client, world.gateway] {
                let sent = About {
                    from,
                    to: world.node,
                    packet: &left,
                };
                let out = About {
                    from,
                    to: world.pod,
                    packet: &asked,
                };
                each_kind(
                    &mut bench,
                    world,
                    ("from outside", At::FromUplink),
                    &sent,
                    (REDIRECT, &[Translated, ToPod]),
                    &out,
                );
            }
            let (arrived, answer) = (asked.answer(), left.answer());
            let sent = About {
                from: world.pod,
                to: world.client,
                packet: &arrived,
            };
            each_passes(
                &mut bench,
                world,
                ("from the pod, not routed yet", At::FromPod),
                &sent,
            );
            let out = About {
                from: world.node,
                to: world.client,
                packet: &answer,
            };
            each_kind(
                &mut bench,
                world,
                ("from the pod", At::ToUplink),
                &sent,
                (PASS, &[Translated, ToStack]),
                &out,
            );
        }
    }
}

#[test]
fn about_a_flow_that_nobody_translates() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let flow = world.packet(UDP, (world.node, 5000), (world.client, 53));
        let sent = About {
            from: world.gateway,
            to: world.node,
            packet: &flow,
        };
        each_passes(&mut bench, world, ("the node's own", At::FromUplink), &sent);
        let flow = world.by_pod(UDP, (world.other, 53));
        let sent = About {
            from: world.other,
            to: world.pod,
            packet: &flow,
        };
        each_kind(
            &mut bench,
            world,
            ("between pods", At::FromOther),
            &sent,
            (REDIRECT, &[ToPod]),
            &sent,
        );
        // Nobody asked for this one, so there is no flow to open for it either.
        let flow = world.by_client(UDP, (world.pod, 53));
        let sent = About {
            from: world.pod,
            to: world.client,
            packet: &flow,
        };
        each_passes(
            &mut bench,
            world,
            ("of a pod to the outside", At::ToUplink),
            &sent,
        );
        assert_eq!(bench.flows(world), []);
    }
}

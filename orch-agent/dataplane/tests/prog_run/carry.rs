//! Direct server return, where clients' packets come in: they go on as they are, to the node of their backend.

use orch_ebpf::{
    config::{CONFIG_DSR, TUNNEL_MAC},
    conntrack::{HOP_PASS, HOP_REFLECT, KIND_DIRECT},
    event::Path::{Carried, NewFlow, Reflected, ToNode, ToPod, ToStack, ToTunnel, Translated},
};

use crate::{
    bench::Bench,
    case::{At, Count, REDIRECT, XDP_PASS, XDP_TX, passes, turns},
    errors::kinds,
    flows::Sides,
    packet::{
        ACK, DESTINATION_OPTIONS, Extension, FIN, Packet, RST, SCTP, SYN, TCP, UDP,
        carried::{carried, with_macs},
        error,
        fragments::split,
    },
    spec::Spec,
    tunnel::tunnelled_with,
    world::{GATEWAY_MAC, MTU, NEIGHBOUR_MAC, OTHER_MACS, TUNNEL_MTU, WORLDS, World},
    xdp::{connected, macs},
};

fn took<const N: usize>(paths: [orch_ebpf::event::Path; N]) -> [Count; N] {
    paths.map(Count::Took)
}

/// A bench of a node that sends on.
fn direct() -> Bench {
    let mut bench = Bench::new();
    bench.configure(|config| config.flags = CONFIG_DSR);
    bench
}

/// The same with routes and neighbours, for the driver.
fn direct_driver() -> Bench {
    let mut bench = connected();
    bench.configure(|config| config.flags = CONFIG_DSR);
    bench
}

/// As the packet leaves for the remote pod.
fn out(world: &World, frame: &[u8]) -> Vec<u8> {
    carried(frame, world.node, world.remote)
}

/// Insists that the packet has the only flow, and that this goes to the backend as it is.
fn is_direct(bench: &Bench, world: &World, ask: &Packet) {
    let [flow] = &bench.flows(world)[..] else {
        panic!("{}: {:?}", world.name, bench.flows(world));
    };
    assert_eq!(flow.kind, KIND_DIRECT);
    assert_ne!(flow.backend, 0);
    assert_eq!(flow.key, Sides::of(ask));
    assert_eq!(flow.becomes, Sides::of(&ask.to((world.remote, 8080))));
}

fn fronts(world: &World) -> [(std::net::IpAddr, u16); 2] {
    [(world.node, 30_081), (world.balancer, 81)]
}

#[test]
fn packets_keep_every_byte() {
    let mut bench = direct();
    for world in &WORLDS {
        for (protocol, front) in [TCP, UDP, SCTP]
            .into_iter()
            .flat_map(|protocol| fronts(world).map(|front| (protocol, front)))
        {
            bench.forget();
            let ask = world.by_client(protocol, front);
            let title = format!("{} {protocol}", world.name);
            let frame = ask.bytes();
            let sides = (&frame[..], REDIRECT, &out(world, &frame)[..]);
            bench.insist(&title, At::FromUplink, sides, &took([NewFlow, Carried, ToNode]));
            is_direct(&bench, world, &ask);
            for (flags, ttl, padding) in [(ACK, 64, 0), (ACK | FIN, 1, 7), (ACK, 0, 1)] {
                let next = Packet {
                    flags,
                    ttl,
                    padding,
                    payload: vec![7; 33],
                    ..ask.clone()
                };
                let mut frame = next.bytes();
                // Expedited, able to mark congestion, in a flow: IPv4's checksum is none of this node's business.
                frame[15] ^= if world.pod.is_ipv4() { 0xb9 } else { 0x95 };
                let sides = (&frame[..], REDIRECT, &out(world, &frame)[..]);
                bench.insist(&title, At::FromUplink, sides, &took([Carried, ToNode]));
            }
            is_direct(&bench, world, &ask);
        }
    }
}

#[test]
fn so_do_headers_errors_and_fragments() {
    let mut bench = direct();
    for world in &WORLDS {
        let ask = world.by_client(UDP, (world.node, 30_081));
        let dressed = if world.pod.is_ipv4() {
            Packet {
                option_words: 3,
                ..ask.clone()
            }
        } else {
            Packet {
                extensions: vec![Extension::padding(DESTINATION_OPTIONS, 2)],
                ..ask.clone()
            }
        };
        let frame = dressed.bytes();
        let sides = (&frame[..], REDIRECT, &out(world, &frame)[..]);
        bench.insist(
            "options",
            At::FromUplink,
            sides,
            &took([NewFlow, Carried, ToNode]),
        );
        // Somebody on the way back cannot deliver an answer.
        for (kind, code, word) in kinds(world) {
            let about = error(
                world.stranger,
                world.node,
                kind,
                code,
                word,
                ask.answer().quote(40),
            );
            let frame = about.bytes();
            let sides = (&frame[..], REDIRECT, &out(world, &frame)[..]);
            bench.insist("an error", At::FromUplink, sides, &took([Carried, ToNode]));
        }
        let long = Packet {
            payload: vec![1; 100],
            ..ask
        };
        for piece in split(&long.bytes(), 5, 9) {
            let sides = (&piece[..], REDIRECT, &out(world, &piece)[..]);
            bench.insist("a fragment", At::FromUplink, sides, &took([Carried, ToNode]));
        }
        let lost = split(&long.bytes(), 5, 10)[1].clone();
        let (verdict, left) = bench.run(At::FromUplink, &lost);
        assert_eq!((verdict, left), (0, lost), "its first fragment never came");
    }
}

#[test]
fn a_connection_goes_on_where_its_node_has_gone() {
    let mut bench = direct();
    for world in &WORLDS {
        bench.forget();
        let ask = world.by_client(TCP, (world.node, 30_081));
        bench.check(
            world,
            &passes("the end of one", At::FromUplink, ask.with_flags(RST)),
        );
        let frame = ask.with_flags(ACK).bytes();
        let sides = (&frame[..], REDIRECT, &out(world, &frame)[..]);
        bench.insist(
            "the middle of one",
            At::FromUplink,
            sides,
            &took([NewFlow, Carried, ToNode]),
        );
        is_direct(&bench, world, &ask);
        // Its backend is on this node: it had come by another.
        let ask = world.by_client(TCP, (world.node, 30_080)).with_flags(ACK);
        let arrived = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
        let paths = [NewFlow, Translated, ToPod];
        bench.check(
            world,
            &turns(
                "of a local backend",
                At::FromUplink,
                ask,
                REDIRECT,
                arrived,
                &paths,
            ),
        );
    }
}

#[test]
fn a_new_connection_from_an_old_port_chooses_anew() {
    let mut bench = direct();
    for world in &WORLDS {
        let ask = world.by_client(TCP, (world.node, 30_081));
        bench.run(At::FromUplink, &ask.bytes());
        bench.run(At::FromUplink, &ask.with_flags(ACK | FIN).bytes());
        let before = bench.counters();
        bench.run(At::FromUplink, &ask.bytes());
        assert!(
            bench.counted(&before).contains(&(Count::Took(NewFlow), 1)),
            "{}",
            world.name
        );
        bench.refill(TCP, 81, |world| vec![(world.remote, 9090)]);
        bench.run(At::FromUplink, &ask.bytes());
        let flow = bench.flows(world)[0];
        assert_eq!(
            flow.becomes.destination,
            (world.remote, 9090),
            "its backend had gone"
        );
        bench.refill(TCP, 81, |world| vec![(world.remote, 8080)]);
        bench.forget();
    }
}

#[test]
fn backends_here_and_clients_of_the_cluster_are_translated() {
    let mut bench = direct();
    for world in &WORLDS {
        let ask = world.by_client(TCP, (world.node, 30_080));
        let arrived = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
        let paths = [NewFlow, Translated, ToPod];
        bench.check(
            world,
            &turns("a backend here", At::FromUplink, ask, REDIRECT, arrived, &paths),
        );
        for client in [world.neighbour, world.remote] {
            let ask = world.packet(TCP, (client, 4000), (world.node, 30_081));
            let before = bench.counters();
            let (verdict, seen) = bench.see(At::FromUplink, &ask);
            assert_eq!((verdict, seen.destination), (REDIRECT, (world.remote, 8080)));
            assert_eq!(seen.source.0, world.node);
            let counted = took([NewFlow, Translated, ToNode]).map(|count| (count, 1));
            let mut found = bench.counted(&before);
            found.sort_by_key(|(count, _)| counted.iter().position(|(wanted, _)| wanted == count));
            assert_eq!(found, counted);
            bench.forget();
        }
    }
}

#[test]
fn a_host_network_backend_is_sent_to_by_its_nodes_address() {
    let mut bench = direct();
    for world in &WORLDS {
        bench.put(world, "host", &Spec::new(87, UDP, &[(world.neighbour, 9000)]));
        let frame = world.by_client(UDP, (world.balancer, 87)).bytes();
        let out = carried(&frame, world.node, world.neighbour);
        let sides = (&frame[..], REDIRECT, &out[..]);
        bench.insist(
            world.name,
            At::FromUplink,
            sides,
            &took([NewFlow, Carried, ToNode]),
        );
    }
}

#[test]
fn the_tunnel_carries_what_carries() {
    let mut bench = tunnelled_with(CONFIG_DSR);
    for world in &WORLDS {
        let ask = world.by_client(UDP, (world.node, 30_081));
        let room = TUNNEL_MTU as usize - if world.pod.is_ipv4() { 20 } else { 40 };
        let headers = ask.ip().len() - ask.payload.len();
        let full = Packet {
            payload: vec![1; room - headers],
            ..ask.clone()
        };
        let frame = full.bytes();
        let out = out(world, &frame);
        let out = [&TUNNEL_MAC[..], &out[6..]].concat();
        let sides = (&frame[..], REDIRECT, &out[..]);
        bench.insist(
            world.name,
            At::FromUplink,
            sides,
            &took([NewFlow, Carried, ToTunnel]),
        );
        // The driver leaves it to tc.
        let sides = (&frame[..], XDP_PASS, &frame[..]);
        bench.insist(world.name, At::Driver, sides, &[]);
    }
}

#[test]
fn the_driver_sends_on_too() {
    let mut bench = direct_driver();
    for world in &WORLDS {
        for (protocol, front) in [TCP, UDP]
            .into_iter()
            .flat_map(|protocol| fronts(world).map(|front| (protocol, front)))
        {
            bench.forget();
            let ask = world.by_client(protocol, front);
            let title = format!("{} {protocol}", world.name);
            let leaves = |frame: &[u8]| with_macs(&out(world, frame), macs(NEIGHBOUR_MAC));
            let frame = ask.bytes();
            let sides = (&frame[..], XDP_TX, &leaves(&frame)[..]);
            bench.insist(&title, At::Driver, sides, &took([NewFlow, Carried, Reflected]));
            is_direct(&bench, world, &ask);
            assert_eq!(bench.flows(world)[0].hop, HOP_REFLECT);
            for (length, padding) in [(0, 0), (1, 3), (1200, 0)] {
                let next = Packet {
                    flags: ACK,
                    payload: vec![3; length],
                    padding,
                    ..ask.clone()
                };
                let frame = next.bytes();
                let sides = (&frame[..], XDP_TX, &leaves(&frame)[..]);
                bench.insist(&title, At::Driver, sides, &took([Carried, Reflected]));
                // And tc would do the same.
                let sides = (&frame[..], REDIRECT, &out(world, &frame)[..]);
                bench.insist(&title, At::FromUplink, sides, &took([Carried, ToNode]));
            }
            let room = MTU as usize - if world.pod.is_ipv4() { 20 } else { 40 };
            let full = Packet {
                flags: ACK,
                payload: vec![3; room - (ask.ip().len() - ask.payload.len())],
                ..ask.clone()
            };
            let frame = full.bytes();
            let sides = (&frame[..], XDP_TX, &leaves(&frame)[..]);
            bench.insist(&title, At::Driver, sides, &took([Carried, Reflected]));
            let mut longer = full;
            longer.payload.push(3);
            let frame = longer.bytes();
            bench.insist(&title, At::Driver, (&frame, XDP_PASS, &frame), &[]);
            let frame = ask.with_ttl(1).bytes();
            bench.insist(&title, At::Driver, (&frame, XDP_PASS, &frame), &[]);
        }
    }
}

#[test]
fn the_driver_asks_for_the_way_to_the_backend() {
    let mut bench = direct_driver();
    for world in &WORLDS {
        let ask = world.by_client(UDP, (world.balancer, 81));
        bench.run(At::Driver, &ask.bytes());
        let known = bench.flows(world)[0];
        assert_eq!(known.macs, macs(NEIGHBOUR_MAC));
        crate::bench::ip(&format!(
            "neigh replace {} lladdr 02:00:00:00:00:01 dev uplink nud permanent",
            world.neighbour
        ));
        bench.put_flow(&crate::flows::Flow {
            last_seen: 1,
            ticks: 0,
            ..known
        });
        let frame = ask.bytes();
        let leaves = with_macs(&out(world, &frame), macs(GATEWAY_MAC));
        let sides = (&frame[..], XDP_TX, &leaves[..]);
        bench.insist(world.name, At::Driver, sides, &took([Carried, Reflected]));
    }
    // Without a neighbour it is left, and tc goes on with the flow.
    let mut bench = direct();
    for world in &WORLDS {
        let frame = world.by_client(TCP, (world.node, 30_081)).with_flags(SYN).bytes();
        bench.insist(
            world.name,
            At::Driver,
            (&frame, XDP_PASS, &frame),
            &took([NewFlow]),
        );
        assert_eq!(bench.flows(world)[0].hop, HOP_PASS);
        let sides = (&frame[..], REDIRECT, &out(world, &frame)[..]);
        bench.insist(world.name, At::FromUplink, sides, &took([Carried, ToNode]));
    }
}

#[test]
fn a_flow_stays_as_it_began() {
    let mut bench = direct();
    for world in &WORLDS {
        let frame = world.by_client(UDP, (world.node, 30_081)).bytes();
        bench.run(At::FromUplink, &frame);
    }
    bench.configure(|_| ());
    for world in &WORLDS {
        let frame = world.by_client(UDP, (world.node, 30_081)).bytes();
        let sides = (&frame[..], REDIRECT, &out(world, &frame)[..]);
        bench.insist("sent on", At::FromUplink, sides, &took([Carried, ToNode]));
        bench.check(
            world,
            &passes(
                "no service",
                At::FromUplink,
                world.by_client(UDP, (world.node, 22)),
            ),
        );
        let ask = world.packet(UDP, (world.client, 4001), (world.node, 30_081));
        let before = bench.counters();
        bench.run(At::FromUplink, &ask.bytes());
        assert!(bench.counted(&before).contains(&(Count::Took(Translated), 1)));
        assert!(!bench.counted(&before).contains(&(Count::Took(ToStack), 1)));
    }
}

//! What is remembered of flows, and when it holds no more.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use orch_ebpf::{
    conntrack::{
        DIRECTION_ORIGINAL, DIRECTION_REPLY, KIND_MASQUERADE, KIND_POLICY, KIND_SERVICE, SEEN_FIN, SEEN_RST,
        SEEN_SYN, SEEN_TRAFFIC,
    },
    event::Path::NewFlow,
};

use crate::{
    bench::Bench,
    case::{At, Count, REDIRECT},
    flows::{Flow, Sides},
    packet::{ACK, FIN, Packet, RST, SCTP, SYN, TCP, UDP, error},
    world::{WORLDS, World},
};

/// The flow whose packets are like this one.
fn flow(bench: &Bench, world: &World, packet: &Packet) -> Flow {
    let wanted = Sides::of(packet);
    bench
        .flows(world)
        .into_iter()
        .find(|flow| flow.key == wanted)
        .unwrap()
}

/// Whether the packet opens a flow, and where it leads.
fn opens(bench: &mut Bench, packet: &Packet) -> (bool, IpAddr) {
    let before = bench.counters();
    let (verdict, seen) = bench.see(At::FromUplink, packet);
    assert_eq!(verdict, REDIRECT);
    let opened = bench.counted(&before).contains(&(Count::Took(NewFlow), 1));
    (opened, seen.destination.0)
}

#[test]
fn both_directions_say_what_becomes_of_the_flow() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP] {
            let ask = world.by_client(protocol, (world.node, 30_080));
            bench.run(At::FromUplink, &ask.bytes());
            let arrived = ask.to((world.other, 8080));
            let [there, back] = [flow(&bench, world, &ask), flow(&bench, world, &arrived.answer())];
            assert_eq!((there.kind, back.kind), (KIND_SERVICE, KIND_SERVICE));
            assert_eq!(
                (there.direction, back.direction),
                (DIRECTION_ORIGINAL, DIRECTION_REPLY)
            );
            assert_eq!(there.becomes, Sides::of(&arrived));
            assert_eq!(back.becomes, Sides::of(&ask.answer()));
            assert!(there.backend != 0 && there.backend == back.backend);
            let syn = if protocol == TCP { SEEN_SYN } else { 0 };
            assert_eq!((there.seen, back.seen, there.hop), (syn, 0, 0));
            assert!(there.last_seen > 0);
        }
        let out = world.by_pod(UDP, (world.client, 53));
        let (_, seen) = bench.see(At::ToUplink, &out);
        let left = out.from(seen.source);
        let [there, back] = [flow(&bench, world, &out), flow(&bench, world, &left.answer())];
        assert_eq!(
            (there.kind, back.kind, there.backend),
            (KIND_MASQUERADE, KIND_MASQUERADE, 0)
        );
        assert_eq!(
            (there.becomes, back.becomes),
            (Sides::of(&left), Sides::of(&out.answer()))
        );
    }
}

#[test]
fn flags_that_pass_are_noted_on_their_side() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = world.by_client(TCP, (world.node, 30_080));
        let answer = ask.to((world.other, 8080)).answer();
        bench.run(At::FromUplink, &ask.bytes());
        for (packet, at, flags, seen) in [
            (&answer, At::FromOther, SYN | ACK, SEEN_SYN | SEEN_TRAFFIC),
            (&ask, At::FromUplink, ACK, SEEN_SYN | SEEN_TRAFFIC),
            (
                &ask,
                At::FromUplink,
                FIN | ACK,
                SEEN_SYN | SEEN_TRAFFIC | SEEN_FIN,
            ),
            (&answer, At::FromOther, RST, SEEN_SYN | SEEN_TRAFFIC | SEEN_RST),
            (&answer, At::FromOther, ACK, SEEN_SYN | SEEN_TRAFFIC | SEEN_RST),
        ] {
            bench.run(at, &packet.with_flags(flags).bytes());
            assert_eq!(
                flow(&bench, world, packet).seen,
                seen,
                "{} {flags:#x}",
                world.name
            );
        }
    }
}

#[test]
fn time_is_written_again_after_a_second_but_not_for_an_error() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = world.by_client(UDP, (world.node, 30_080));
        bench.run(At::FromUplink, &ask.bytes());
        let fresh = flow(&bench, world, &ask);
        bench.run(At::FromUplink, &ask.bytes());
        assert_eq!(
            flow(&bench, world, &ask).last_seen,
            fresh.last_seen,
            "not again within a second"
        );
        let old = Flow {
            last_seen: 1,
            ticks: 0,
            ..fresh
        };
        bench.put_flow(&old);
        let quoted = ask.answer().quote(8);
        let (kind, code) = if world.pod.is_ipv4() { (3, 3) } else { (1, 4) };
        let sent = error(world.client, world.node, kind, code, 0, quoted);
        assert_eq!(bench.see(At::FromUplink, &sent).1.destination.0, world.other);
        assert_eq!(
            flow(&bench, world, &ask).last_seen,
            1,
            "an error is no sign of life"
        );
        bench.run(At::FromUplink, &ask.bytes());
        assert!(flow(&bench, world, &ask).last_seen >= fresh.last_seen);
    }
}

#[test]
fn an_established_flow_keeps_its_backend_and_a_reused_port_gets_a_live_one() {
    let mut bench = Bench::new();
    let ask = |world: &World| world.by_client(TCP, (world.node, 30_080));
    for world in &WORLDS {
        bench.run(At::FromUplink, &ask(world).bytes());
    }
    bench.refill(TCP, 80, |world| vec![(world.pod, 8080)]);
    for world in &WORLDS {
        let ask = ask(world);
        assert_eq!(
            opens(&mut bench, &ask.with_flags(ACK)),
            (false, world.other),
            "{}",
            world.name
        );
        assert_eq!(
            opens(&mut bench, &ask.from((world.client, 4001))),
            (true, world.pod)
        );
        assert_eq!(opens(&mut bench, &ask), (true, world.pod), "its backend is gone");
        assert_eq!(opens(&mut bench, &ask.with_flags(ACK)), (false, world.pod));
    }
}

#[test]
fn a_first_segment_on_a_finished_flow_opens_anew() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = world.by_client(TCP, (world.node, 30_080));
        assert!(opens(&mut bench, &ask).0);
        assert!(!opens(&mut bench, &ask).0, "sent again");
        for end in [FIN | ACK, RST, RST | ACK] {
            assert!(!opens(&mut bench, &ask.with_flags(end)).0);
            assert!(!opens(&mut bench, &ask.with_flags(ACK)).0);
            assert!(!opens(&mut bench, &ask.with_flags(SYN | ACK)).0);
            assert!(opens(&mut bench, &ask).0, "{} after {end:#x}", world.name);
        }
    }
}

#[test]
fn a_finished_flow_to_a_remote_backend_gets_another_port_of_the_node() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = world.by_client(TCP, (world.node, 30_081));
        bench.run(At::FromUplink, &ask.bytes());
        bench.run(At::FromUplink, &ask.with_flags(FIN | ACK).bytes());
        let (_, seen) = bench.see(At::FromUplink, &ask);
        assert_eq!(flow(&bench, world, &ask).becomes.source, seen.source);
        let answer = ask.between((world.remote, 8080), seen.source);
        let (_, seen) = bench.see(At::FromUplink, &answer.with_flags(SYN | ACK));
        assert_eq!(
            (seen.source, seen.destination),
            ((world.node, 30_081), (world.client, 4000))
        );
    }
}

/// The port that a flow wants is taken when another flow's answers carry the same tuple.
#[test]
fn flows_through_the_node_never_share_a_port() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let mut ports = std::collections::BTreeSet::new();
        for port in 1..2000 {
            let ask = world.packet(UDP, (world.client, port), (world.node, 30_081));
            let (verdict, seen) = bench.see(At::FromUplink, &ask);
            assert_eq!(verdict, REDIRECT);
            assert!(ports.insert(seen.source.1), "{} {port}", world.name);
        }
    }
}

/// Two CPUs open flows in the same rows, of which some are the very same.
#[test]
fn flows_that_are_opened_at_once_are_all_remembered() {
    const EACH: u16 = 4000;
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = |port| world.packet(UDP, (world.client, port), (world.node, 30_081));
        // A quarter is in both.
        let lists =
            [1..=EACH, EACH - EACH / 4..=2 * EACH].map(|ports| ports.map(|port| ask(port).bytes()).collect());
        let verdicts = bench.run_at_once(At::FromUplink, lists);
        let refused = verdicts.iter().filter(|verdict| **verdict != REDIRECT).count();
        // Two packets of one flow may meet; its next is the one that opens it.
        assert!(refused < EACH as usize / 8, "{refused} of {}", verdicts.len());
        let flows = bench.flows(world);
        let known: HashMap<_, _> = flows
            .iter()
            .map(|flow| (format!("{:?}", flow.key), flow))
            .collect();
        let mut sources = std::collections::HashSet::new();
        let mut found = 0;
        for port in 1..=2 * EACH {
            let Some(there) = known.get(&format!("{:?}", Sides::of(&ask(port)))) else {
                continue;
            };
            found += 1;
            let becomes = there.becomes;
            assert!(
                sources.insert(format!("{becomes:?}")),
                "two flows are {becomes:?}"
            );
            let answer = Sides {
                protocol: becomes.protocol,
                source: becomes.destination,
                destination: becomes.source,
            };
            let back = known[&format!("{answer:?}")];
            assert_eq!(back.becomes, Sides::of(&ask(port).answer()), "{}", world.name);
        }
        assert!(found + refused >= 2 * EACH as usize, "{found} and {refused}");
    }
}

/// More flows than there are slots, on two CPUs, while connections are all that the table remembers.
#[test]
fn a_flood_of_first_packets_takes_no_connections_place() {
    const CONNECTIONS: u32 = 60_000;
    const EACH: u32 = 110_000;
    let mut bench = Bench::new();
    bench.refill(UDP, 81, |world| {
        (0..20).map(|number| (world.remote, 8080 + number)).collect()
    });
    for world in &WORLDS {
        // From as many addresses as it takes, each with its ports.
        let from = |number: u32| {
            let (address, port) = (number / 50_000, (number % 50_000) as u16);
            let client = match world.client {
                IpAddr::V4(client) => Ipv4Addr::from_bits(client.to_bits() + address).into(),
                IpAddr::V6(client) => Ipv6Addr::from_bits(client.to_bits() + u128::from(address)).into(),
            };
            (client, 1024 + port)
        };
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
        let now = now.as_nanos() as u64;
        let connections: Vec<Flow> = (0..CONNECTIONS)
            .map(|number| {
                let sides = Sides::of(&world.packet(TCP, from(number), (world.pod, 80)));
                Flow {
                    key: sides,
                    becomes: sides,
                    last_seen: now,
                    backend: 0,
                    kind: KIND_POLICY,
                    direction: DIRECTION_REPLY,
                    seen: SEEN_TRAFFIC,
                    hop: 0,
                    macs: [0; 12],
                    ticks: 0,
                }
            })
            .collect();
        let without = bench.put_flows(&connections);
        let ask = |number| world.packet(UDP, from(number), (world.node, 30_081));
        let lists = [0..EACH, EACH..2 * EACH].map(|all| all.map(|number| ask(number).bytes()).collect());
        let verdicts = bench.run_at_once(At::FromUplink, lists);
        let refused = verdicts.iter().filter(|verdict| **verdict != REDIRECT).count();
        assert!(refused < EACH as usize / 1000, "{refused} of {}", verdicts.len());
        let known: HashMap<Sides, Flow> = bench
            .flows(world)
            .into_iter()
            .map(|flow| (flow.key, flow))
            .collect();
        let lost = connections.iter().filter(|flow| !known.contains_key(&flow.key));
        assert_eq!(lost.count(), without, "{}", world.name);
        // Of what one CPU opened last much is there, though the other went on, for longer if it was slower; and packets find all that are, wherever they stand.
        let last = EACH - 2000..EACH;
        let mut found = 0;
        for number in last.clone() {
            let ask = ask(number);
            let Some(there) = known.get(&Sides::of(&ask)) else {
                continue;
            };
            found += 1;
            let before = bench.counters();
            let (verdict, seen) = bench.see(At::FromUplink, &ask);
            assert_eq!(verdict, REDIRECT);
            assert_eq!(
                (seen.source, seen.destination),
                (there.becomes.source, there.becomes.destination)
            );
            assert!(
                !bench.counted(&before).contains(&(Count::Took(NewFlow), 1)),
                "{number}"
            );
        }
        assert!(
            found * 5 > last.len(),
            "{}: {found} of {}",
            world.name,
            last.len()
        );
    }
}

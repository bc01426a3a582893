//! Direct server return, where the backend is: what another node has sent on reaches its backend, and the answer the
//! client.

use std::net::IpAddr;

use orch_ebpf::{
    config::{CONFIG_DSR, CONFIG_MOVING, CONFIG_UNPACK},
    conntrack::{KIND_DIRECT, KIND_SERVICE},
    endpoint::ISOLATED_INGRESS,
    event::{
        DropReason::{self, ConntrackFull, Malformed, Misdirected, PolicyIngress, SourceRange},
        Path::{self, NewFlow, ToNode, ToPod, ToStack, Translated, Unpacked},
    },
    service::{SERVICE_LOCAL, SERVICE_SOURCES},
};

use crate::{
    bench::Bench,
    case::{At, Count, DROP, PASS, REDIRECT, turns},
    errors::kinds,
    packet::{
        ACK, ETHERNET, Packet, RST, SCTP, TCP, UDP,
        carried::{carried, with_macs},
        error,
        fragments::{join, split},
        read::read,
    },
    spec::Spec,
    world::{OTHER_MACS, POD_MACS, WORLDS, World},
};

/// What a node says that is in the mode; one that was in it says the second alone, and one that never was neither.
const DIRECT: u32 = CONFIG_DSR | CONFIG_UNPACK;

/// A bench of a node that unpacks.
fn direct() -> Bench {
    let mut bench = Bench::new();
    bench.configure(|config| config.flags = DIRECT);
    bench
}

/// As the neighbour sends it on to the other pod.
fn sent_on(world: &World, packet: &Packet) -> Vec<u8> {
    carried(&packet.bytes(), world.neighbour, world.other)
}

fn took(paths: &[Path]) -> Vec<Count> {
    paths.iter().copied().map(Count::Took).collect()
}

fn refused(reason: DropReason, paths: &[Path]) -> Vec<Count> {
    [took(paths), vec![Count::Dropped(reason)]].concat()
}

/// What of a refused packet is left is nobody's business.
fn drops(bench: &mut Bench, title: &str, sent: &[u8], counts: &[Count]) {
    let before = bench.counters();
    let (verdict, _) = bench.run(At::FromUplink, sent);
    let counted = bench.counted(&before);
    assert_eq!(verdict, DROP, "{title}: {counted:?}");
    let mut counts: Vec<_> = counts.iter().map(|count| (*count, 1)).collect();
    counts.sort_by_key(|(count, _)| count.index());
    assert_eq!(counted, counts, "{title}");
}

fn fronts(world: &World) -> [(IpAddr, u16); 2] {
    [(world.neighbour, 30_080), (world.balancer, 80)]
}

#[test]
fn a_pod_sees_the_client_and_answers_it() {
    let mut bench = direct();
    for (world, at, flags) in WORLDS.iter().flat_map(|world| {
        let ways = [At::FromUplink, At::FromTunnel];
        ways.into_iter()
            .flat_map(move |at| [DIRECT, CONFIG_UNPACK, 0].map(|flags| (world, at, flags)))
    }) {
        bench.configure(|config| config.flags = flags);
        for (protocol, front) in [TCP, UDP, SCTP]
            .into_iter()
            .flat_map(|protocol| fronts(world).map(|front| (protocol, front)))
        {
            bench.forget();
            let title = format!("{} {protocol} {at:?}", world.name);
            let ask = world.by_client(protocol, front);
            let arrived = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
            let sides = (&sent_on(world, &ask)[..], REDIRECT, &arrived.bytes()[..]);
            bench.insist(&title, at, sides, &took(&[Unpacked, NewFlow, Translated, ToPod]));
            let kinds: Vec<u8> = bench.flows(world).iter().map(|flow| flow.kind).collect();
            assert_eq!(kinds, [KIND_SERVICE; 2]);
            for padding in [0, 4] {
                let next = Packet {
                    flags: ACK,
                    padding,
                    payload: vec![9; 21],
                    ..ask.clone()
                };
                let arrived = next.to((world.other, 8080)).with_macs(OTHER_MACS);
                let sides = (&sent_on(world, &next)[..], REDIRECT, &arrived.bytes()[..]);
                bench.insist(&title, at, sides, &took(&[Unpacked, Translated, ToPod]));
            }
            let answer = ask.to((world.other, 8080)).answer();
            let out = answer.from(front);
            let paths = [Translated, ToStack];
            bench.check(world, &turns("answer", At::ToUplink, answer, PASS, out, &paths));
        }
    }
}

#[test]
fn so_does_a_backend_in_the_nodes_network() {
    let mut bench = direct();
    for world in &WORLDS {
        bench.put(world, "host", &Spec::new(87, TCP, &[(world.node, 9000)]));
        let ask = world.by_client(TCP, (world.neighbour, 30_087));
        let sent = carried(&ask.bytes(), world.neighbour, world.node);
        let arrived = ask.to((world.node, 9000));
        let sides = (&sent[..], PASS, &arrived.bytes()[..]);
        let paths = took(&[Unpacked, NewFlow, Translated, ToStack]);
        bench.insist(world.name, At::FromUplink, sides, &paths);
        let answer = arrived.answer();
        let out = answer.from((world.neighbour, 30_087));
        let paths = [Translated, ToStack];
        bench.check(world, &turns("answer", At::ToUplink, answer, PASS, out, &paths));
    }
}

#[test]
fn the_other_nodes_choice_counts() {
    let mut bench = direct();
    for world in &WORLDS {
        // One of a thousand, in a table of 65,521 slots: the flow's own slot is another's.
        let mut backends: Vec<(IpAddr, u16)> = (1..1000).map(|port| (world.remote, port)).collect();
        backends.push((world.other, 8080));
        bench.put(world, "many", &Spec::new(86, UDP, &backends));
        let mut found = 0;
        for port in 1..200 {
            bench.forget();
            let ask = world.packet(UDP, (world.client, port), (world.neighbour, 30_086));
            let (verdict, out) = bench.run(At::FromUplink, &sent_on(world, &ask));
            assert_eq!(verdict, REDIRECT);
            if read(&out).destination == (world.other, 8080) {
                let arrived = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
                assert_eq!(out, arrived.bytes());
                found += 1;
            }
        }
        // 4,096 slots of a thousand backends: two in a hundred are not found and go elsewhere.
        assert!((185..200).contains(&found), "{}: {found}", world.name);
        let few: Vec<_> = (1..10)
            .map(|port| (world.remote, port))
            .chain([(world.pod, 7), (world.other, 8080)])
            .collect();
        bench.put(world, "many", &Spec::new(86, UDP, &few));
        for port in 1..200 {
            bench.forget();
            let ask = world.packet(UDP, (world.client, port), (world.neighbour, 30_086));
            let (_, out) = bench.run(At::FromUplink, &sent_on(world, &ask));
            assert_eq!(read(&out).destination, (world.other, 8080));
        }
    }
}

#[test]
fn a_backend_that_has_left_is_replaced() {
    let mut bench = direct();
    for world in &WORLDS {
        // By one on this node, which the client sees answer itself,
        let ask = world.by_client(TCP, (world.balancer, 83));
        let arrived = ask.to((world.pod, 8080)).with_macs(POD_MACS);
        let sides = (&sent_on(world, &ask)[..], REDIRECT, &arrived.bytes()[..]);
        let paths = took(&[Unpacked, NewFlow, Translated, ToPod]);
        bench.insist("here", At::FromUplink, sides, &paths);
        // or by one elsewhere, translated: it is not sent on twice.
        let ask = world.by_client(TCP, (world.balancer, 81));
        let before = bench.counters();
        let (verdict, out) = bench.run(At::FromUplink, &sent_on(world, &ask));
        let mut counts: Vec<_> = took(&[Unpacked, NewFlow, Translated, ToNode])
            .into_iter()
            .map(|count| (count, 1))
            .collect();
        counts.sort_by_key(|(count, _)| count.index());
        assert_eq!(bench.counted(&before), counts);
        let seen = read(&out);
        assert_eq!((verdict, seen.source.0), (REDIRECT, world.node));
        assert_eq!(
            out,
            ask.between(seen.source, (world.remote, 8080))
                .with_ttl(63)
                .bytes()
        );
        // Nor is a flow that this node itself had sent on before.
        bench.forget();
        bench.run(At::FromUplink, &ask.bytes());
        assert_eq!(bench.flows(world)[0].kind, KIND_DIRECT);
        let (_, out) = bench.run(At::FromUplink, &sent_on(world, &ask));
        assert_eq!(read(&out).destination, (world.remote, 8080));
        let missing = sent_on(world, &world.by_client(TCP, (world.balancer, 82)));
        drops(
            &mut bench,
            "no backend",
            &missing,
            &refused(DropReason::NoBackend, &[Unpacked]),
        );
        let mut local = Spec::new(88, TCP, &[]);
        local.flags = SERVICE_LOCAL;
        bench.put(world, "local", &local);
        let sent = sent_on(world, &world.by_client(TCP, (world.balancer, 88)));
        drops(
            &mut bench,
            "no local backend",
            &sent,
            &refused(DropReason::NoLocalBackend, &[Unpacked]),
        );
    }
}

#[test]
fn what_is_in_the_middle_finds_its_pod() {
    let mut bench = direct();
    for world in &WORLDS {
        let ask = world.by_client(TCP, (world.balancer, 80)).with_flags(ACK);
        let arrived = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
        let sides = (&sent_on(world, &ask)[..], REDIRECT, &arrived.bytes()[..]);
        let paths = took(&[Unpacked, NewFlow, Translated, ToPod]);
        bench.insist("a segment", At::FromUplink, sides, &paths);
        // The pod's answer comes back unheard: the error is for the pod.
        let answer = arrived.answer();
        for (kind, code, word) in kinds(world) {
            for bytes in [8, 24, 400] {
                let quoted = answer.from((world.balancer, 80)).quote(bytes);
                let now = answer.requote(&quoted);
                let about = error(world.stranger, world.balancer, kind, code, word, quoted);
                let sent = sent_on(world, &about);
                let arrived = error(world.stranger, world.other, kind, code, word, now);
                let arrived = arrived.with_macs(OTHER_MACS).bytes();
                let sides = (&sent[..], REDIRECT, &arrived[..]);
                bench.insist(
                    "an error",
                    At::FromUplink,
                    sides,
                    &took(&[Unpacked, Translated, ToPod]),
                );
            }
        }
        let long = Packet {
            payload: vec![5; 120],
            ..world.by_client(UDP, (world.balancer, 80))
        };
        let pieces = split(&long.bytes(), 6, 77).map(|piece| {
            let (verdict, out) = bench.run(At::FromUplink, &carried(&piece, world.neighbour, world.other));
            assert_eq!(verdict, REDIRECT, "{}", world.name);
            out
        });
        let arrived = long.to((world.other, 8080)).with_macs(OTHER_MACS);
        assert_eq!(join([&pieces[0], &pieces[1]]), arrived.bytes(), "{}", world.name);
    }
}

#[test]
fn what_no_node_has_sent_on_stays_as_it_is() {
    let mut bench = direct();
    for world in &WORLDS {
        let ask = world.by_client(TCP, (world.balancer, 80)).bytes();
        let to_pod = |from| carried(&ask, from, world.other);
        for from in [world.client, world.remote, world.pod, world.node] {
            let sent = to_pod(from);
            let sides = (&sent[..], REDIRECT, &with_macs(&sent, OTHER_MACS)[..]);
            bench.insist("from a stranger", At::FromUplink, sides, &took(&[ToPod]));
        }
        let sent = carried(&ask, world.neighbour, world.gateway);
        bench.insist(
            "to a stranger",
            At::FromUplink,
            (&sent, PASS, &sent),
            &took(&[ToStack]),
        );
        // The other family inside, as its number says.
        let mut sent = to_pod(world.neighbour);
        if world.pod.is_ipv4() {
            sent[ETHERNET + 9] = 41;
        } else {
            sent[ETHERNET + 6] = 4;
        }
        let sides = (&sent[..], REDIRECT, &with_macs(&sent, OTHER_MACS)[..]);
        bench.insist("another family", At::FromUplink, sides, &took(&[ToPod]));
        // Fragments of the outer packet.
        for piece in split(&to_pod(world.neighbour), 3, 1) {
            let sides = (&piece[..], REDIRECT, &with_macs(&piece, OTHER_MACS)[..]);
            bench.insist("a fragment", At::FromUplink, sides, &took(&[ToPod]));
        }
        // A node that has never been in the mode takes what is for a service, and leaves others their tunnels.
        bench.configure(|config| config.flags = 0);
        for packet in [
            world.by_client(TCP, (world.neighbour, 22)),
            world.by_client(TCP, (world.other, 8080)),
            world.by_client(world.icmp, (world.balancer, 0)),
        ] {
            let sent = sent_on(world, &packet);
            let sides = (&sent[..], REDIRECT, &with_macs(&sent, OTHER_MACS)[..]);
            bench.insist("for no service", At::FromUplink, sides, &took(&[ToPod]));
        }
        let long = Packet {
            payload: vec![1; 99],
            ..world.by_client(UDP, (world.balancer, 80))
        };
        let [_, later] = split(&long.bytes(), 3, 3);
        let sent = carried(&later, world.neighbour, world.other);
        let sides = (&sent[..], REDIRECT, &with_macs(&sent, OTHER_MACS)[..]);
        bench.insist("a later fragment", At::FromUplink, sides, &took(&[ToPod]));
        bench.configure(|config| config.flags = DIRECT);
    }
}

#[test]
fn what_is_for_nobody_is_dropped() {
    let mut bench = direct();
    for world in &WORLDS {
        let none = refused(Misdirected, &[Unpacked]);
        for (title, packet) in [
            ("no service", world.by_client(TCP, (world.neighbour, 22))),
            ("to a pod", world.by_client(TCP, (world.other, 8080))),
            (
                "an end",
                world.by_client(TCP, (world.balancer, 80)).with_flags(RST),
            ),
            ("a ping", world.by_client(world.icmp, (world.balancer, 0))),
        ] {
            drops(&mut bench, title, &sent_on(world, &packet), &none);
        }
        let ask = world.by_client(UDP, (world.balancer, 80));
        let later = split(
            &Packet {
                payload: vec![1; 99],
                ..ask.clone()
            }
            .bytes(),
            3,
            3,
        )[1]
        .clone();
        let sent = carried(&later, world.neighbour, world.other);
        drops(&mut bench, "a fragment", &sent, &none);
        let about = error(world.stranger, world.balancer, 3, 1, 0, ask.answer().quote(8));
        drops(&mut bench, "an error", &sent_on(world, &about), &none);
        let twice = carried(&sent_on(world, &ask), world.neighbour, world.other);
        drops(&mut bench, "one more around it", &twice, &none);

        let malformed = refused(Malformed, &[Unpacked]);
        let good = sent_on(world, &ask);
        let header = if world.pod.is_ipv4() { 20 } else { 40 };
        let mut other = good.clone();
        other[ETHERNET + header] ^= 0x20;
        drops(&mut bench, "another version", &other, &malformed);
        let mut long = good.clone();
        let at = ETHERNET + header + if world.pod.is_ipv4() { 2 } else { 4 };
        long[at] = 0x7f;
        drops(&mut bench, "longer than it is", &long, &malformed);
        let short = Packet {
            payload: vec![0x45; header - 1],
            ..world.packet(
                good[ETHERNET + if header == 20 { 9 } else { 6 }],
                (world.neighbour, 0),
                (world.other, 0),
            )
        };
        drops(&mut bench, "no header", &short.bytes(), &refused(Malformed, &[]));
    }
}

#[test]
fn policies_and_source_ranges_are_about_the_client() {
    let mut bench = direct();
    for world in &WORLDS {
        bench.identify((world.bits(), world.neighbour), 20);
        bench.isolate(world.other, 7, ISOLATED_INGRESS);
        let ask = sent_on(world, &world.by_client(TCP, (world.balancer, 80)));
        let paths = [Unpacked, NewFlow, Translated];
        drops(&mut bench, "isolated", &ask, &refused(PolicyIngress, &paths));
        bench.isolate(world.other, 0, 0);
        let mut ranges = Spec::new(84, TCP, &[(world.other, 8080)]);
        ranges.flags = SERVICE_SOURCES;
        ranges.sources = vec![(world.bits() - 8, world.neighbour)];
        bench.put(world, "ranges", &ranges);
        let ask = sent_on(world, &world.by_client(TCP, (world.balancer, 84)));
        drops(
            &mut bench,
            "out of range",
            &ask,
            &refused(SourceRange, &[Unpacked]),
        );
        bench.configure(|config| config.flags = DIRECT | CONFIG_MOVING);
        let ask = world
            .packet(TCP, (world.client, 4001), (world.balancer, 80))
            .with_flags(ACK);
        let moving = refused(ConntrackFull, &[Unpacked]);
        drops(
            &mut bench,
            "its flow is on its way",
            &sent_on(world, &ask),
            &moving,
        );
        bench.configure(|config| config.flags = DIRECT);
    }
}

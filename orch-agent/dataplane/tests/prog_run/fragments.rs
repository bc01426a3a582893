//! Fragments: the later ones follow the first.

use orch_ebpf::event::Path::{NewFlow, ToNode, ToPod, ToStack, Translated};

use crate::{
    bench::Bench,
    case::{At, PASS, REDIRECT, passes},
    packet::{
        DESTINATION_OPTIONS, Extension, HOP_BY_HOP, Packet, TCP, UDP,
        fragments::{join, split},
        read::read,
    },
    world::{OTHER_MACS, POD_MACS, WORLDS, World},
};

/// A packet with enough to cut.
fn long(packet: Packet) -> Packet {
    let payload = (0..100_u8).collect();
    Packet { payload, ..packet }
}

/// Sends both parts and puts what comes out together.
fn through(bench: &mut Bench, at: At, frame: &[u8], identification: u16) -> ([u32; 2], Vec<u8>) {
    let pieces = split(frame, 5, identification);
    let [first, later] = pieces.map(|piece| bench.run(at, &piece));
    let whole = join([&first.1, &later.1]);
    read(&whole);
    ([first.0, later.0], whole)
}

fn dresses(world: &World) -> Vec<Packet> {
    let plain = long(world.by_client(UDP, (world.node, 30_080)));
    if world.pod.is_ipv4() {
        let option_words = 4;
        return vec![
            plain.clone(),
            Packet {
                option_words,
                ..plain
            },
        ];
    }
    let extensions = vec![Extension::padding(HOP_BY_HOP, 1)];
    vec![plain.clone(), Packet { extensions, ..plain }]
}

#[test]
fn to_a_local_backend_and_back() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for (number, ask) in dresses(world).into_iter().enumerate() {
            let id = number as u16 * 10;
            let (verdicts, whole) = through(&mut bench, At::FromUplink, &ask.bytes(), id);
            assert_eq!(verdicts, [REDIRECT; 2], "{}", world.name);
            let arrived = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
            assert_eq!(whole, arrived.bytes(), "{}", world.name);
            let answer = ask.to((world.other, 8080)).answer();
            let (verdicts, whole) = through(&mut bench, At::ToUplink, &answer.bytes(), id + 1);
            assert_eq!(verdicts, [PASS; 2]);
            assert_eq!(whole, answer.from((world.node, 30_080)).bytes());
        }
    }
}

#[test]
fn to_a_remote_backend_and_back() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP] {
            let ask = long(world.by_client(protocol, (world.node, 30_081)));
            let id = u16::from(protocol) * 10;
            let (verdicts, whole) = through(&mut bench, At::FromUplink, &ask.bytes(), id);
            assert_eq!(verdicts, [REDIRECT; 2], "{}", world.name);
            let source = read(&whole).source;
            assert_eq!(
                whole,
                ask.between(source, (world.remote, 8080)).with_ttl(63).bytes()
            );
            let answer = ask.between((world.remote, 8080), source);
            let (verdicts, whole) = through(&mut bench, At::FromUplink, &answer.bytes(), id + 1);
            assert_eq!(verdicts, [REDIRECT; 2]);
            let out = answer.between((world.node, 30_081), (world.client, 4000));
            assert_eq!(whole, out.with_ttl(63).bytes());
        }
    }
}

#[test]
fn from_a_pod_and_back() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP] {
            let ask = long(world.by_pod(protocol, (world.service, 80)));
            let id = 1000 + u16::from(protocol) * 10;
            let (_, whole) = through(&mut bench, At::FromPod, &ask.bytes(), id);
            assert_eq!(whole, ask.to((world.other, 8080)).with_macs(OTHER_MACS).bytes());
            let answer = ask.to((world.other, 8080)).answer();
            let (_, whole) = through(&mut bench, At::FromOther, &answer.bytes(), id + 1);
            assert_eq!(
                whole,
                answer.from((world.service, 80)).with_macs(POD_MACS).bytes()
            );
        }
        for protocol in [TCP, UDP, world.icmp] {
            let port = if protocol == world.icmp { 0 } else { 443 };
            let out = long(world.by_pod(protocol, (world.client, port)));
            let id = 2000 + u16::from(protocol) * 10;
            let (verdicts, whole) = through(&mut bench, At::ToUplink, &out.bytes(), id);
            assert_eq!(verdicts, [PASS; 2]);
            let source = read(&whole).source;
            assert_eq!(source.0, world.node);
            assert_eq!(whole, out.from(source).bytes(), "{} {protocol}", world.name);
            let answer = out.from(source).answer();
            let (verdicts, whole) = through(&mut bench, At::FromUplink, &answer.bytes(), id + 1);
            assert_eq!(verdicts, [REDIRECT; 2]);
            assert_eq!(whole, answer.to((world.pod, 4000)).with_macs(POD_MACS).bytes());
        }
    }
}

#[test]
fn a_later_one_without_its_first_is_left_alone() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = long(world.by_client(UDP, (world.node, 30_080)));
        let [first, later] = split(&ask.bytes(), 5, 77);
        assert_eq!(
            bench.run(At::FromUplink, &later),
            (PASS, later.clone()),
            "nobody knows the ports"
        );
        assert_eq!(bench.run(At::FromUplink, &first).0, REDIRECT);
        let (verdict, out) = bench.run(At::FromUplink, &later);
        assert_eq!((verdict, read(&out).destination.0), (REDIRECT, world.other));
        // Another datagram, another pair of hosts.
        let [_, other] = split(&ask.bytes(), 5, 78);
        assert_eq!(bench.run(At::FromUplink, &other), (PASS, other.clone()));
        let [_, other] = split(&ask.from((world.stranger, 4000)).bytes(), 5, 77);
        assert_eq!(bench.run(At::FromUplink, &other), (PASS, other.clone()));
        // A pod's fragment of nothing known opens no masquerade.
        let out = long(world.by_pod(UDP, (world.client, 53)));
        let [_, later] = split(&out.bytes(), 5, 79);
        assert_eq!(bench.run(At::ToUplink, &later), (PASS, later.clone()));
    }
}

#[test]
fn a_first_one_opens_a_flow_and_is_counted() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = long(world.by_client(UDP, (world.node, 30_080)));
        let [first, later] = split(&ask.bytes(), 5, 80);
        let paths = |counted: Vec<(crate::case::Count, u64)>| counted.len();
        let before = bench.counters();
        bench.run(At::FromUplink, &first);
        let counts = [ToPod, NewFlow, Translated].map(|path| (crate::case::Count::Took(path), 1));
        assert_eq!(bench.counted(&before), counts);
        let before = bench.counters();
        bench.run(At::FromUplink, &later);
        assert_eq!(paths(bench.counted(&before)), 2, "no second flow");
    }
}

/// A fragment header on a whole datagram (RFC 6946).
#[test]
fn an_atomic_one_is_a_packet_like_any() {
    let mut bench = Bench::new();
    let [_, world] = &WORLDS;
    let header = Extension {
        kind: crate::packet::FRAGMENT,
        rest: vec![0, 0, 0, 0, 0, 0, 9],
    };
    let ask = Packet {
        extensions: vec![header, Extension::padding(DESTINATION_OPTIONS, 1)],
        ..world.by_client(UDP, (world.node, 30_080))
    };
    let out = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
    let (verdict, bytes) = bench.run(At::FromUplink, &ask.bytes());
    assert_eq!((verdict, bytes), (REDIRECT, out.bytes()));
}

#[test]
fn a_pods_fragments_without_services_go_their_way() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let remote = long(world.by_pod(UDP, (world.remote, 53)));
        for (number, piece) in split(&remote.bytes(), 5, 90).into_iter().enumerate() {
            let before = bench.counters();
            let (verdict, out) = bench.run(At::FromPod, &piece);
            assert_eq!(
                (verdict, read(&out).ttl),
                (REDIRECT, 63),
                "{} {number}",
                world.name
            );
            assert_eq!(bench.counted(&before), [(crate::case::Count::Took(ToNode), 1)]);
        }
        let outside = long(world.by_pod(UDP, (world.client, 53)));
        for piece in split(&outside.bytes(), 5, 91) {
            let before = bench.counters();
            assert_eq!(bench.run(At::FromPod, &piece), (PASS, piece.clone()));
            assert_eq!(bench.counted(&before), [(crate::case::Count::Took(ToStack), 1)]);
        }
        let whole = passes("as a whole", At::FromPod, outside);
        bench.check(world, &whole);
    }
}

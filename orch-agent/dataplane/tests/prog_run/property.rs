//! Whatever comes in: a verdict, the same length or one that says what happened, and no checksum made wrong.

use std::{cell::RefCell, net::IpAddr};

use orch_ebpf::{
    config::{CONFIG_DROPS, CONFIG_DSR, CONFIG_FLOWS, CONFIG_UNPACK},
    policy::EGRESS,
};
use proptest::prelude::*;

use crate::{
    bench::Bench,
    case::{At, DROP, PASS, REDIRECT, XDP_PASS, XDP_TX},
    packet::{
        DESTINATION_OPTIONS, ETHERNET, Extension, HOP_BY_HOP, IP_IN_IP, Message, Packet, SCTP, TCP, UDP,
        carried::carried, error, fragments::split, packet, read::checks,
    },
    tunnel::tunnelled_with,
    world::{TUNNEL, UPLINK, WORLDS, World},
    xdp::connected,
};

/// A bench with everything switched on.
fn bench() -> RefCell<Bench> {
    let mut bench = Bench::new();
    bench.configure(|config| {
        config.tunnel_ifindex = TUNNEL;
        config.flags = CONFIG_DROPS | CONFIG_FLOWS;
    });
    for world in &WORLDS {
        bench.announce(world.balancer, UPLINK, [2, 0, 0, 0, 0, 1]);
        bench.route((world.bits(), world.remote), world.neighbour);
        bench.identify((world.bits(), world.client), 20);
    }
    bench.limit(
        orch_ebpf::bandwidth::BucketKey {
            ifindex: 1,
            direction: u32::from(EGRESS),
        },
        orch_ebpf::bandwidth::Bucket {
            rate: 1,
            burst: 1,
            tokens: 1,
            last: 0,
        },
    );
    RefCell::new(bench)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

/// Runs every program over the frame.
fn holds(bench: &mut Bench, frame: &[u8]) -> Result<(), TestCaseError> {
    let before = checks(frame);
    for at in At::ALL {
        let (verdict, out) = bench.run(at, frame);
        if out.len() != frame.len() {
            direct(at, frame, verdict, &out)?;
            continue;
        }
        if at == At::Driver {
            prop_assert!(
                [XDP_PASS, XDP_TX].contains(&verdict),
                "verdict {} at {:?}",
                verdict,
                at
            );
            prop_assert!(
                verdict == XDP_TX || out == frame,
                "a frame that the driver left is another"
            );
        } else {
            prop_assert!(
                [PASS, DROP, REDIRECT].contains(&verdict),
                "verdict {} at {:?}",
                verdict,
                at
            );
        }
        if verdict == DROP && at != At::Driver {
            continue;
        }
        let after = checks(&out);
        prop_assert!(
            after.as_right_as(&before),
            "{:?}: {:?} became {:?}: {:02x?}",
            at,
            before,
            after,
            out
        );
    }
    Ok(())
}

/// A frame that came out longer or shorter: put into another packet, taken out of one, or answered.
fn direct(at: At, frame: &[u8], verdict: u32, out: &[u8]) -> Result<(), TestCaseError> {
    let (header, told) = if frame[ETHERNET] >> 4 == 4 {
        (20, ETHERNET + 576)
    } else {
        (40, ETHERNET + 1280)
    };
    let ingress = [At::FromUplink, At::FromTunnel, At::Driver].contains(&at);
    prop_assert!(ingress, "{:?} changed a length", at);
    // What is left of a packet that is dropped is nobody's business.
    if verdict == DROP && at != At::Driver {
        return Ok(());
    }
    let (before, after) = (checks(frame), checks(out));
    if out.len() == frame.len() + header {
        prop_assert_eq!(verdict, if at == At::Driver { XDP_TX } else { REDIRECT });
        prop_assert_eq!(&out[ETHERNET + header..], &frame[ETHERNET..]);
        prop_assert!(after.header != Some(false), "{:02x?}", out);
    } else if out.len() + header == frame.len() {
        prop_assert!([PASS, REDIRECT].contains(&verdict));
        let inside = [&frame[..ETHERNET], &frame[ETHERNET + header..]].concat();
        let before = checks(&inside);
        prop_assert!(
            after.as_right_as(&before),
            "{:?} became {:?}: {:02x?}",
            before,
            after,
            out
        );
    } else {
        prop_assert_eq!(out.len(), told, "{:?}", at);
        prop_assert_eq!(verdict, REDIRECT);
        prop_assert_eq!((after.header != Some(false), after.layer4), (true, Some(true)));
        prop_assert!(after.quoted == before.header, "{:02x?}", out);
    }
    Ok(())
}

fn any_side(world: World) -> impl Strategy<Value = (IpAddr, u16)> {
    let addresses = vec![
        world.pod,
        world.other,
        world.remote,
        world.node,
        world.neighbour,
        world.client,
        world.service,
        world.dns,
        world.balancer,
    ];
    let ports = prop_oneof![
        prop::sample::select(vec![
            80, 81, 82, 83, 4000, 30_080, 30_081, 30_082, 30_083, 0, 65_535
        ]),
        any::<u16>()
    ];
    (prop::sample::select(addresses), ports)
}

fn any_extension(world: World) -> impl Strategy<Value = Extension> {
    prop_oneof![
        (1..4_u8).prop_map(|eights| Extension::padding(HOP_BY_HOP, eights)),
        (1..4_u8).prop_map(|eights| Extension::padding(DESTINATION_OPTIONS, eights)),
        (0..2_u8).prop_map(move |left| Extension::routing(world.stranger, left)),
        Just(Extension::authentication()),
    ]
}

/// A packet of the world's family with all its checksums right.
fn any_packet_of(world: World) -> impl Strategy<Value = Packet> {
    let sides = (any_side(world), any_side(world));
    let message = prop_oneof![
        Just(Message::Request),
        Just(Message::Reply),
        (any::<u8>(), any::<u8>(), any::<u32>()).prop_map(|(kind, code, word)| Message::Other {
            kind,
            code,
            word
        }),
        (prop::sample::select(vec![1_u8, 2, 3, 4, 11, 12, 135, 136])).prop_map(|kind| Message::Other {
            kind,
            code: 0,
            word: 0
        }),
    ];
    let protocol = prop::sample::select(vec![TCP, TCP, UDP, UDP, SCTP, world.icmp, IP_IN_IP, 47]);
    let headers = (
        any::<u8>(),
        prop_oneof![Just(64), Just(255), any::<u8>()],
        message,
        0..=10_u8,
        prop::collection::vec(any_extension(world), 0..4),
    );
    let rest = (
        any::<bool>(),
        prop::collection::vec(any::<u8>(), 0..100),
        0..20_usize,
    );
    (sides, protocol, headers, rest).prop_map(move |((from, to), protocol, headers, rest)| {
        let (flags, ttl, message, option_words, extensions) = headers;
        let (zero_checksum, payload, padding) = rest;
        Packet {
            flags,
            ttl,
            message,
            option_words,
            extensions,
            zero_checksum,
            payload,
            padding,
            ..packet(protocol, from, to)
        }
    })
}

fn any_packet() -> impl Strategy<Value = Packet> {
    prop::sample::select(WORLDS.to_vec()).prop_flat_map(any_packet_of)
}

/// An error about a packet, most often one that some flow has.
fn any_error() -> impl Strategy<Value = Packet> {
    let of = |world: World| {
        let kinds = if world.pod.is_ipv4() {
            vec![3_u8, 11, 12, 5]
        } else {
            vec![1, 2, 3, 4]
        };
        let sides = (any_side(world), any_side(world));
        (
            sides,
            any_packet_of(world),
            prop::sample::select(kinds),
            any::<u8>(),
            any::<u32>(),
            0..80_usize,
        )
            .prop_map(|((from, to), about, kind, code, word, bytes)| {
                error(from.0, to.0, kind, code, word, about.quote(bytes))
            })
    };
    prop::sample::select(WORLDS.to_vec()).prop_flat_map(of)
}

/// A bench of a node that sends on and unpacks, through a tunnel or not.
fn direct_bench(tunnel: bool) -> RefCell<Bench> {
    let flags = CONFIG_DROPS | CONFIG_FLOWS | CONFIG_DSR | CONFIG_UNPACK;
    let mut bench = if tunnel {
        tunnelled_with(flags)
    } else {
        connected()
    };
    if !tunnel {
        bench.configure(|config| config.flags = flags);
    }
    RefCell::new(bench)
}

/// A frame from a client to a service, of any length; or whatever, inside another packet.
fn any_direct() -> impl Strategy<Value = Vec<u8>> {
    let of = |world: World| {
        let to = prop::sample::select(vec![
            (world.node, 30_081),
            (world.balancer, 81),
            (world.node, 30_080),
        ]);
        let asked = (any_packet_of(world), any::<u16>(), to, 0..1700_usize)
            .prop_map(move |(packet, port, to, more)| {
                let payload = [packet.payload.clone(), vec![7; more]].concat();
                Packet { payload, ..packet }
                    .between((world.client, port), to)
                    .bytes()
            })
            .boxed();
        let from = prop::sample::select(vec![world.neighbour, world.neighbour, world.client]);
        let to = prop::sample::select(vec![world.pod, world.other, world.node, world.remote]);
        let inside = prop_oneof![
            any_packet_of(world).prop_map(|packet| packet.bytes()),
            asked.clone(),
        ];
        let sent_on = (inside, from, to).prop_map(|(frame, from, to)| carried(&frame, from, to));
        prop_oneof![asked, sent_on]
    };
    prop::sample::select(WORLDS.to_vec()).prop_flat_map(of)
}

#[test]
fn nor_does_a_packet_that_is_sent_on() {
    for tunnel in [false, true] {
        let bench = direct_bench(tunnel);
        proptest::test_runner::TestRunner::new(config(3000))
            .run(&any_direct(), |frame| holds(&mut bench.borrow_mut(), &frame))
            .unwrap();
    }
}

#[test]
fn nor_does_one_that_is_sent_on_broken() {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let all = (any_direct(), changes, any::<prop::sample::Index>(), any::<bool>());
    for tunnel in [false, true] {
        let bench = direct_bench(tunnel);
        proptest::test_runner::TestRunner::new(config(3000))
            .run(&all, |(mut frame, changes, cut, whole)| {
                let shortest = ETHERNET + if frame[ETHERNET] >> 4 == 4 { 20 } else { 40 };
                if !whole {
                    frame.truncate(shortest + cut.index(frame.len() - shortest + 1));
                }
                // The first headers' ends are where it hurts.
                for (at, value) in changes {
                    let at = ETHERNET + at.index((frame.len() - ETHERNET).min(120));
                    frame[at] = value;
                }
                holds(&mut bench.borrow_mut(), &frame)
            })
            .unwrap();
    }
}

#[test]
fn no_packet_comes_out_with_a_wrong_checksum() {
    let bench = bench();
    proptest::test_runner::TestRunner::new(config(4000))
        .run(&any_packet(), |packet| {
            holds(&mut bench.borrow_mut(), &packet.bytes())
        })
        .unwrap();
}

#[test]
fn nor_does_an_error() {
    let bench = bench();
    let both = (any_packet(), any_error(), 8..60_usize);
    proptest::test_runner::TestRunner::new(config(3000))
        .run(&both, |(packet, unknown, quoted)| {
            let bench = &mut *bench.borrow_mut();
            holds(bench, &unknown.bytes())?;
            // About a packet that came out of a translation, from its receiver.
            for at in [At::FromPod, At::FromUplink, At::ToUplink] {
                let (verdict, out) = bench.run(at, &packet.bytes());
                // One that quotes nonsense itself has nothing right to be kept.
                if !checks(&out).right() {
                    continue;
                }
                if verdict == DROP
                    || packet
                        .extensions
                        .iter()
                        .any(|extension| extension.kind != HOP_BY_HOP)
                {
                    continue;
                }
                let seen = crate::packet::read::read(&out);
                let arrived = packet.between(seen.source, seen.destination);
                let kind = if packet.source.is_ipv4() { 3 } else { 1 };
                let about = error(
                    seen.destination.0,
                    seen.source.0,
                    kind,
                    0,
                    0,
                    arrived.quote(quoted),
                );
                holds(bench, &about.bytes())?;
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn nor_does_a_fragment() {
    let bench = bench();
    let parts = (any_packet(), 1..8_usize, any::<u16>());
    proptest::test_runner::TestRunner::new(config(3000))
        .run(&parts, |(packet, eights, identification)| {
            // Enough to cut.
            let payload = [packet.payload, vec![7; 64]].concat();
            let frame = Packet {
                payload,
                padding: 0,
                ..packet
            }
            .bytes();
            for piece in split(&frame, eights, identification) {
                holds(&mut bench.borrow_mut(), &piece)?;
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn nor_does_a_packet_that_was_cut_or_whose_bits_were_turned() {
    let bench = bench();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let all = (
        prop_oneof![any_packet(), any_error()],
        changes,
        any::<prop::sample::Index>(),
        any::<bool>(),
    );
    proptest::test_runner::TestRunner::new(config(5000))
        .run(&all, |(packet, changes, cut, whole)| {
            let mut frame = packet.bytes();
            // The kernel runs no test with less than the header of the frame's type.
            let shortest = ETHERNET + if packet.source.is_ipv4() { 20 } else { 40 };
            if !whole {
                frame.truncate(shortest + cut.index(frame.len() - shortest + 1));
            }
            for (at, value) in changes {
                let at = ETHERNET + at.index(frame.len() - ETHERNET);
                frame[at] = value;
            }
            holds(&mut bench.borrow_mut(), &frame)
        })
        .unwrap();
}

#[test]
fn random_bytes_get_a_verdict() {
    let bench = bench();
    let kinds = prop::sample::select(vec![[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0]]);
    let bytes = (
        prop::collection::vec(any::<u8>(), ETHERNET + 40..300),
        kinds,
        any::<bool>(),
    );
    proptest::test_runner::TestRunner::new(config(4000))
        .run(&bytes, |(mut bytes, kind, version)| {
            bytes[ETHERNET - 2..ETHERNET].copy_from_slice(&kind);
            if version {
                bytes[ETHERNET] = if kind == [8, 0] { 0x45 } else { 0x60 };
                bytes[ETHERNET + 2] = 0;
                bytes[ETHERNET + 4] = 0;
            }
            holds(&mut bench.borrow_mut(), &bytes)
        })
        .unwrap();
}

//! Options, extension headers, checksums that are none or become zero, tags, and other types of frames.

use orch_ebpf::event::{
    DropReason::HeaderChain,
    Path::{NewFlow, ToPod, ToStack, Translated},
};

use crate::{
    bench::Bench,
    case::{At, Case, PASS, REDIRECT, XDP_PASS, drops, passes, turns},
    packet::{DESTINATION_OPTIONS, ETHERNET, Extension, HOP_BY_HOP, Packet, SCTP, TCP, UDP},
    world::{OTHER_MACS, WORLDS, World},
};

fn opens(name: &'static str, sent: Packet, world: &World) -> Case {
    let out = sent.to((world.other, 8080)).with_macs(OTHER_MACS);
    turns(
        name,
        At::FromUplink,
        sent,
        REDIRECT,
        out,
        &[NewFlow, Translated, ToPod],
    )
}

#[test]
fn options_of_every_length() {
    let mut bench = Bench::new();
    let [world, _] = &WORLDS;
    for protocol in [TCP, UDP, SCTP] {
        for option_words in 0..=10 {
            let sent = Packet {
                option_words,
                ..world.by_client(protocol, (world.node, 30_080))
            };
            bench.check_each(world, &[opens("options", sent, world)]);
        }
    }
}

#[test]
fn extension_headers_of_every_kind() {
    let mut bench = Bench::new();
    let [_, world] = &WORLDS;
    let padding = Extension::padding;
    let six = || -> Vec<_> { (0..6).map(|_| padding(DESTINATION_OPTIONS, 1)).collect() };
    let chains = [
        vec![padding(HOP_BY_HOP, 1)],
        vec![padding(DESTINATION_OPTIONS, 32)],
        vec![Extension::routing(world.stranger, 0)],
        vec![Extension::authentication()],
        vec![
            padding(HOP_BY_HOP, 2),
            Extension::routing(world.stranger, 0),
            padding(DESTINATION_OPTIONS, 1),
        ],
        six(),
    ];
    for extensions in chains {
        for protocol in [TCP, UDP, SCTP] {
            let sent = Packet {
                extensions: extensions.clone(),
                ..world.by_client(protocol, (world.node, 30_080))
            };
            bench.check_each(world, &[opens("extensions", sent, world)]);
        }
        let ping = Packet {
            extensions: extensions.clone(),
            ..world.by_pod(world.icmp, (world.client, 0))
        };
        let (verdict, seen) = bench.see(At::ToUplink, &ping);
        assert_eq!((verdict, seen.source.0), (PASS, world.node));
    }
    let seven = [six(), vec![padding(HOP_BY_HOP, 1)]].concat();
    let long = Packet {
        extensions: seven,
        ..world.by_client(UDP, (world.node, 30_080))
    };
    bench.check_each(
        world,
        &[drops(
            "a chain that is too long",
            At::FromUplink,
            long,
            HeaderChain,
        )],
    );
}

/// The checksum is about where a packet ends up, and its destination is not there yet.
#[test]
fn what_a_routing_header_sends_on_is_not_translated() {
    let mut bench = Bench::new();
    let [_, world] = &WORLDS;
    let dress = |packet: Packet| Packet {
        extensions: vec![
            Extension::padding(HOP_BY_HOP, 1),
            Extension::routing(world.stranger, 1),
        ],
        ..packet
    };
    for protocol in [TCP, UDP, world.icmp] {
        let sent = dress(world.by_client(protocol, (world.node, 30_080)));
        bench.check_each(world, &[passes("to the node", At::FromUplink, sent)]);
    }
    let out = dress(world.by_pod(UDP, (world.client, 53)));
    bench.check_each(world, &[passes("from a pod", At::ToUplink, out)]);
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let zero = |packet: Packet| Packet {
            zero_checksum: true,
            ..packet
        };
        let sent = zero(world.by_client(UDP, (world.node, 30_080)));
        bench.check_each(world, &[opens("to a backend", sent.clone(), world)]);
        let answer = sent.to((world.other, 8080)).answer();
        let out = answer.from((world.node, 30_080));
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

/// One that comes out as zero is sent as all ones, since zero says "none" (RFC 768).
#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_all_ones() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let mut sent = world.by_client(UDP, (world.node, 30_080));
        sent.payload = vec![0, 0];
        let arrived = sent.to((world.other, 8080));
        let checksum = arrived.bytes();
        let field = checksum.len() - 4;
        // What is missing to a sum of all ones.
        sent.payload = checksum[field..field + 2].to_vec();
        let out = sent.to((world.other, 8080)).with_macs(OTHER_MACS).bytes();
        assert_eq!(out[field..field + 2], [0xff, 0xff], "the test's own packet");
        bench.check_each(world, &[opens("all ones", sent, world)]);
    }
}

#[test]
fn other_frames_pass_as_they_are() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let tagged = Packet {
            vlan: Some(7),
            ..world.by_client(TCP, (world.node, 30_080))
        };
        let mut frames = vec![tagged.bytes()];
        for kind in [[0x88, 0xcc], [0x08, 0x06], [0x88, 0xa8], [0x81, 0x00]] {
            let mut frame = world.by_client(TCP, (world.node, 30_080)).bytes();
            frame[ETHERNET - 2..ETHERNET].copy_from_slice(&kind);
            frames.push(frame);
        }
        for frame in frames {
            for at in At::ALL {
                let verdict = if at == At::Driver { XDP_PASS } else { PASS };
                assert_eq!(
                    bench.run(at, &frame),
                    (verdict, frame.clone()),
                    "{} {at:?}",
                    world.name
                );
            }
        }
    }
}

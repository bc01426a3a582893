//! ICMP errors that quote too little, or more than usual.

use orch_ebpf::event::Path::{ToNode, Translated};

use crate::{
    bench::Bench,
    case::{At, Case, PASS, REDIRECT, passes, turns},
    errors::{About, each_kind, each_passes, kinds},
    packet::{DESTINATION_OPTIONS, Extension, ICMP, Packet, TCP, UDP, error},
    world::WORLDS,
};

#[test]
fn that_quote_too_little_or_otherwise_pass() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let asked = world.by_client(UDP, (world.node, 30_081));
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
            assert_eq!(
                (verdict, out),
                (PASS, case.sent.bytes()),
                "{} {}",
                world.name,
                case.name
            );
        }
    }
}

#[test]
fn that_quote_options() {
    let mut bench = Bench::new();
    let [four, six] = &WORLDS;
    let mut asked = four.by_client(UDP, (four.node, 30_081));
    asked.option_words = 3;
    let (_, seen) = bench.see(At::FromUplink, &asked);
    let left = asked.between(seen.source, (four.remote, 8080));
    let sent = About {
        from: four.neighbour,
        to: four.node,
        packet: &left,
    };
    let out = About {
        from: four.neighbour,
        to: four.client,
        packet: &asked,
    };
    each_kind(
        &mut bench,
        four,
        ("options", At::FromUplink),
        &sent,
        (REDIRECT, &[Translated, ToNode]),
        &out,
    );

    // A quoted packet with extension headers is about no flow that is looked for.
    let mut asked = six.by_client(UDP, (six.node, 30_081));
    asked.extensions = vec![Extension::padding(DESTINATION_OPTIONS, 1)];
    let (_, seen) = bench.see(At::FromUplink, &asked);
    let left = asked.between(seen.source, (six.remote, 8080));
    let sent = About {
        from: six.neighbour,
        to: six.node,
        packet: &left,
    };
    each_passes(&mut bench, six, ("extensions", At::FromUplink), &sent);
}

#[test]
fn with_options_of_their_own() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let asked = world.by_client(TCP, (world.node, 30_081));
        let (_, seen) = bench.see(At::FromUplink, &asked);
        let left = asked.between(seen.source, (world.remote, 8080));
        let (kind, code, word) = kinds(world)[1];
        let dress = |packet: Packet| {
            if world.icmp == ICMP {
                Packet {
                    option_words: 2,
                    ..packet
                }
            } else {
                let extensions = vec![Extension::padding(DESTINATION_OPTIONS, 2)];
                Packet { extensions, ..packet }
            }
        };
        let quoted = left.quote(64);
        let now = asked.requote(&quoted);
        let sent = dress(error(world.neighbour, world.node, kind, code, word, quoted));
        let out = dress(error(world.neighbour, world.client, kind, code, word, now)).with_ttl(63);
        bench.check(
            world,
            &turns(
                "options",
                At::FromUplink,
                sent,
                REDIRECT,
                out,
                &[Translated, ToNode],
            ),
        );
    }
}

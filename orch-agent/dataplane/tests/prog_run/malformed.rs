//! Packets that are cut or contradict themselves.

use orch_ebpf::event::DropReason::Malformed;

use crate::{
    bench::Bench,
    case::{At, Count, DROP, XDP_PASS},
    packet::{DESTINATION_OPTIONS, ETHERNET, Extension, Packet, SCTP, TCP, UDP},
    world::{WORLDS, World},
};

/// The kernel itself refuses to run a test with less than an IP header of the frame's kind (net/bpf/test_run.c).
fn shortest(world: &World) -> usize {
    ETHERNET + if world.pod.is_ipv4() { 20 } else { 40 }
}

const TC: [At; 5] = [
    At::FromPod,
    At::FromUplink,
    At::ToUplink,
    At::FromTunnel,
    At::ToPod,
];

fn is_dropped(bench: &mut Bench, at: At, bytes: &[u8], name: &str) {
    let before = bench.counters();
    assert_eq!(bench.run(at, bytes), (DROP, bytes.to_vec()), "{name} {at:?}");
    assert_eq!(bench.counted(&before), [(Count::Dropped(Malformed), 1)], "{name}");
}

#[test]
fn a_packet_that_is_cut_anywhere_is_dropped() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for protocol in [TCP, UDP, SCTP, world.icmp] {
            let whole = world
                .packet(protocol, (world.client, 1), (world.node, 30_080))
                .bytes();
            for length in shortest(world)..whole.len() {
                for at in TC {
                    is_dropped(&mut bench, at, &whole[..length], world.name);
                }
                let cut = whole[..length].to_vec();
                assert_eq!(bench.run(At::Driver, &cut), (XDP_PASS, cut));
            }
        }
    }
}

#[test]
fn a_packet_that_ends_within_its_headers_is_dropped() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let header = shortest(world) - ETHERNET;
        for (protocol, length) in [(TCP, 20), (UDP, 8), (SCTP, 12), (world.icmp, 8)] {
            let whole = world
                .packet(protocol, (world.client, 1), (world.node, 30_080))
                .bytes();
            for short in 0..length {
                // The frame is as long as ever, the packet is not.
                let mut bytes = whole.clone();
                let (field, value) = if world.pod.is_ipv4() {
                    (2, header + short)
                } else {
                    (4, short)
                };
                if value == 0 {
                    continue;
                }
                bytes[ETHERNET + field..ETHERNET + field + 2].copy_from_slice(&(value as u16).to_be_bytes());
                for at in TC {
                    is_dropped(&mut bench, at, &bytes, world.name);
                }
                assert_eq!(bench.run(At::Driver, &bytes), (XDP_PASS, bytes.clone()));
            }
        }
    }
}

#[test]
fn headers_that_contradict_themselves_are_dropped() {
    let mut bench = Bench::new();
    let [four, six] = &WORLDS;
    // Another version, a header that is too short, and a packet that is longer than its frame or shorter than its header.
    for (world, changes) in [
        (four, &[(0, 0x35), (0, 0x65), (0, 0x44), (2, 0xff), (3, 19)][..]),
        (six, &[(0, 0x50), (0, 0x45), (4, 0xff), (5, 255)][..]),
    ] {
        for (offset, value) in changes {
            let mut bytes = world.by_client(UDP, (world.node, 30_080)).bytes();
            bytes[ETHERNET + offset] = *value;
            for at in TC {
                is_dropped(&mut bench, at, &bytes, &format!("byte {offset} is {value}"));
            }
            assert_eq!(bench.run(At::Driver, &bytes), (XDP_PASS, bytes.clone()));
        }
    }
}

#[test]
fn an_extension_header_that_leads_outside_is_dropped() {
    let mut bench = Bench::new();
    let [_, world] = &WORLDS;
    let whole = Packet {
        extensions: vec![Extension::padding(DESTINATION_OPTIONS, 1)],
        ..world.by_client(UDP, (world.node, 30_080))
    }
    .bytes();
    for length in [3, 5, 100, 255] {
        let mut bytes = whole.clone();
        bytes[ETHERNET + 41] = length;
        for at in TC {
            is_dropped(&mut bench, at, &bytes, "an extension header");
        }
    }
}

#[test]
fn an_error_that_is_cut_is_no_reason_to_write_outside() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = world.by_client(UDP, (world.node, 30_081));
        let (_, seen) = bench.see(At::FromUplink, &ask);
        let left = ask.between(seen.source, (world.remote, 8080));
        let (kind, code) = if world.pod.is_ipv4() { (3, 3) } else { (1, 4) };
        let whole = crate::packet::error(world.remote, world.node, kind, code, 0, left.quote(8)).bytes();
        for length in shortest(world)..whole.len() {
            is_dropped(&mut bench, At::FromUplink, &whole[..length], world.name);
        }
    }
}

//! SCTP's checksum after a change of ports, for packets of every length.

use orch_ebpf::event::{DropReason::SctpFragment, Path::ToPod};

use crate::{
    bench::Bench,
    case::{At, Count, DROP, REDIRECT},
    packet::{Packet, SCTP, fragments::split, read::read},
    world::{OTHER_MACS, WORLDS},
};

#[test]
fn of_every_length() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let lengths = (0..70).chain([127, 128, 255, 256, 511, 1000, 1023, 1024, 1400, 2047, 3000]);
        for length in lengths {
            let payload = (0..length).map(|index| (index * 7) as u8).collect();
            let padding = length % 3;
            let ask = Packet {
                payload,
                padding,
                ..world.by_client(SCTP, (world.node, 30_080))
            };
            let (verdict, out) = bench.run(At::FromUplink, &ask.bytes());
            read(&out);
            let arrived = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
            assert_eq!(
                (verdict, out),
                (REDIRECT, arrived.bytes()),
                "{} {length}",
                world.name
            );
        }
    }
}

/// The checksum covers what the first fragment does not have, so that new ports would leave it wrong.
#[test]
fn a_fragment_is_dropped_where_its_ports_would_change() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let payload = vec![7; 100];
        let ask = Packet {
            payload: payload.clone(),
            ..world.by_client(SCTP, (world.node, 30_080))
        };
        let [first, _] = split(&ask.bytes(), 5, 40);
        let before = bench.counters();
        assert_eq!(bench.run(At::FromUplink, &first).0, DROP, "{}", world.name);
        assert!(
            bench
                .counted(&before)
                .contains(&(Count::Dropped(SctpFragment), 1))
        );
        let direct = Packet {
            payload,
            ..world.by_client(SCTP, (world.other, 7))
        };
        for piece in split(&direct.bytes(), 5, 41) {
            let before = bench.counters();
            assert_eq!(bench.run(At::FromUplink, &piece).0, REDIRECT);
            assert_eq!(bench.counted(&before), [(Count::Took(ToPod), 1)]);
        }
    }
}

//! What does not fit into a packet that would carry it: its sender is told what does.

use std::net::IpAddr;

use orch_ebpf::{
    config::CONFIG_DSR,
    event::{
        DropReason::TooBig,
        Path::{Carried, NewFlow, ToNode, ToTunnel, ToldTooBig},
    },
};

use crate::{
    bench::Bench,
    case::{At, Count, DROP, PASS, REDIRECT},
    packet::{
        ACK, DESTINATION_OPTIONS, ETHERNET, Extension, Packet, SCTP, TCP, UDP, error,
        fragments::split,
        read::{Quoted, read},
        sums::sum,
    },
    tunnel::tunnelled_with,
    world::{MTU, TUNNEL_MTU, WORLDS, World},
};

/// The packet with a payload that makes it as long.
fn of_length(packet: &Packet, length: usize) -> Packet {
    let headers = packet.ip().len() - packet.payload.len();
    Packet {
        payload: (0..length - headers).map(|index| (index * 7) as u8).collect(),
        ..packet.clone()
    }
}

fn header(world: &World) -> usize {
    if world.pod.is_ipv4() { 20 } else { 40 }
}

/// Insists that the answer is an error of the family about the packet, and that it names the size.
fn tells(world: &World, frame: &[u8], told: &[u8], room: usize) {
    let seen = read(told);
    assert_eq!((seen.source.0, seen.destination.0), (world.node, world.client));
    assert_eq!((seen.protocol, seen.ttl), (world.icmp, 64));
    let asked = read(frame);
    let quoted = Quoted {
        source: asked.source,
        destination: asked.destination,
    };
    assert_eq!(seen.quoted, Some(quoted));
    let header = header(world);
    let (whole, start) = if world.pod.is_ipv4() {
        (576, vec![3, 4])
    } else {
        (1280, vec![2, 0])
    };
    assert_eq!(told.len(), ETHERNET + whole, "as much as may be");
    let icmp = &told[ETHERNET + header..];
    assert_eq!(icmp[..2], start);
    assert_eq!(icmp[4..8], (room as u32).to_be_bytes());
    // All but a checksum that nobody can check is what was sent.
    let (quote, sent) = (&icmp[8..], &frame[ETHERNET..]);
    let field = match asked.protocol {
        TCP => header + 16,
        UDP => header + 6,
        _ => return assert_eq!(*quote, sent[..quote.len()]),
    };
    assert_eq!(quote[..field], sent[..field]);
    assert_eq!(quote[field + 2..], sent[field + 2..quote.len()]);
}

/// What the kernel makes of the checksum of a packet that has none yet is what already stands there.
fn is_settled(world: &World, told: &[u8], field: usize) {
    let layer4 = &told[ETHERNET + 2 * header(world) + 8..];
    let filled = match !sum(&[layer4]) {
        0 => 0xffff,
        filled => filled,
    };
    assert_eq!(layer4[field..field + 2], filled.to_be_bytes());
}

fn check(bench: &mut Bench, world: &World, mtu: u32, sent: u32) {
    let room = mtu as usize - header(world);
    for (protocol, field) in [(TCP, Some(16)), (UDP, Some(6)), (SCTP, None)] {
        for front in [(world.node, 30_081), (world.balancer, 81)] {
            bench.forget();
            let ask = world.by_client(protocol, front);
            bench.run(At::FromUplink, &ask.bytes());
            let before = bench.counters();
            let (verdict, _) = bench.run(At::FromUplink, &of_length(&ask, room).with_flags(ACK).bytes());
            assert_eq!(verdict, REDIRECT);
            let way = if sent == TUNNEL_MTU { ToTunnel } else { ToNode };
            let mut counts = vec![(Count::Took(way), 1), (Count::Took(Carried), 1)];
            counts.sort_by_key(|(count, _)| count.index());
            assert_eq!(bench.counted(&before), counts, "what fits");
            for length in [room + 1, mtu as usize, 3000] {
                let frame = of_length(&ask, length).with_flags(ACK).bytes();
                let before = bench.counters();
                let (verdict, told) = bench.run(At::FromUplink, &frame);
                assert_eq!(verdict, REDIRECT, "{} {protocol}", world.name);
                assert_eq!(
                    bench.counted(&before),
                    [(Count::Dropped(TooBig), 1), (Count::Took(ToldTooBig), 1)]
                );
                tells(world, &frame, &told, room);
                if let Some(field) = field {
                    is_settled(world, &told, field);
                }
            }
        }
    }
}

#[test]
fn the_sender_is_told_what_fits() {
    let mut bench = Bench::new();
    bench.configure(|config| config.flags = CONFIG_DSR);
    for world in &WORLDS {
        check(&mut bench, world, MTU, MTU);
    }
    let mut bench = tunnelled_with(CONFIG_DSR);
    for world in &WORLDS {
        check(&mut bench, world, TUNNEL_MTU, TUNNEL_MTU);
    }
}

/// The stack would tell this node, whose address a translated packet has as its source.
#[test]
fn a_client_is_told_what_fits_through_the_tunnel() {
    let mut bench = tunnelled_with(0);
    for world in &WORLDS {
        let room = TUNNEL_MTU as usize;
        for (protocol, field) in [(TCP, Some(16)), (UDP, Some(6)), (SCTP, None)] {
            bench.forget();
            let ask = world.by_client(protocol, (world.node, 30_081));
            bench.run(At::FromUplink, &ask.bytes());
            let fits = of_length(&ask, room).with_flags(ACK).bytes();
            let (verdict, _) = bench.run(At::FromUplink, &whole(world, fits));
            assert_eq!(verdict, REDIRECT, "what fits");
            let frame = of_length(&ask, room + 1).with_flags(ACK).bytes();
            let before = bench.counters();
            let (verdict, told) = bench.run(At::FromUplink, &whole(world, frame.clone()));
            assert_eq!(verdict, REDIRECT, "{} {protocol}", world.name);
            assert_eq!(
                bench.counted(&before),
                [(Count::Dropped(TooBig), 1), (Count::Took(ToldTooBig), 1)]
            );
            tells(world, &whole(world, frame.clone()), &told, room);
            if let Some(field) = field {
                is_settled(world, &told, field);
            }
            if world.pod.is_ipv4() {
                // The stack cuts it.
                let (verdict, _) = bench.run(At::FromUplink, &frame);
                assert_eq!(verdict, PASS, "{protocol}");
            }
        }
    }
}

/// The frame as one that says that it must not be cut, where the family has a bit for that.
fn whole(world: &World, mut frame: Vec<u8>) -> Vec<u8> {
    if world.pod.is_ipv4() {
        frame[ETHERNET + 6] |= 0x40;
        frame[ETHERNET + 10..ETHERNET + 12].fill(0);
        let checksum = !sum(&[&frame[ETHERNET..ETHERNET + 20]]);
        frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

#[test]
fn a_checksum_is_settled_whatever_its_sum() {
    let mut bench = Bench::new();
    bench.configure(|config| config.flags = CONFIG_DSR);
    for world in &WORLDS {
        for number in 0..300_u16 {
            let mut ask = of_length(&world.by_client(UDP, (world.node, 30_081)), 1490);
            ask.payload[..2].copy_from_slice(&number.wrapping_mul(219).to_be_bytes());
            ask.zero_checksum = number % 3 == 0;
            let frame = ask.bytes();
            let (_, told) = bench.run(At::FromUplink, &frame);
            tells(world, &frame, &told, MTU as usize - header(world));
            is_settled(world, &told, 6);
        }
    }
}

#[test]
fn headers_and_first_fragments_are_quoted_as_they_came() {
    let mut bench = Bench::new();
    bench.configure(|config| config.flags = CONFIG_DSR);
    for world in &WORLDS {
        let ask = world.by_client(UDP, (world.node, 30_081));
        let dressed = if world.pod.is_ipv4() {
            Packet {
                option_words: 2,
                ..ask.clone()
            }
        } else {
            Packet {
                extensions: vec![Extension::padding(DESTINATION_OPTIONS, 1)],
                ..ask.clone()
            }
        };
        let [first, later] = split(&of_length(&ask, 2985).bytes(), 184, 7);
        for frame in [of_length(&dressed, 1490).bytes(), first] {
            let (verdict, told) = bench.run(At::FromUplink, &frame);
            assert_eq!(verdict, REDIRECT);
            read(&told);
            let quote = &told[ETHERNET + header(world) + 8..];
            assert_eq!(*quote, frame[ETHERNET..][..quote.len()]);
        }
        let before = bench.counters();
        let (verdict, _) = bench.run(At::FromUplink, &later);
        assert_eq!(verdict, DROP, "a later fragment");
        assert_eq!(bench.counted(&before), [(Count::Dropped(TooBig), 1)]);
    }
}

#[test]
fn errors_are_not_answered() {
    let mut bench = Bench::new();
    bench.configure(|config| config.flags = CONFIG_DSR);
    for world in &WORLDS {
        let ask = world.by_client(UDP, (world.node, 30_081));
        bench.run(At::FromUplink, &ask.bytes());
        let kind = if world.pod.is_ipv4() { 3 } else { 1 };
        let quoted = of_length(&ask.answer(), 1460).quote(1440);
        let stranger: IpAddr = world.stranger;
        let frame = error(stranger, world.node, kind, 0, 0, quoted).bytes();
        let before = bench.counters();
        let (verdict, _) = bench.run(At::FromUplink, &frame);
        assert_eq!(verdict, DROP);
        assert_eq!(bench.counted(&before), [(Count::Dropped(TooBig), 1)]);
    }
}

#[test]
fn a_sender_is_told_so_often_and_no_more() {
    let mut bench = Bench::new();
    bench.configure(|config| config.flags = CONFIG_DSR);
    for world in &WORLDS {
        let frame = of_length(&world.by_client(UDP, (world.node, 30_081)), 1490).bytes();
        let before = bench.counters();
        let start = std::time::Instant::now();
        while start.elapsed().as_millis() < 900 {
            bench.run(At::FromUplink, &frame);
        }
        let count = |wanted| {
            let counted = bench.counted(&before);
            counted
                .iter()
                .find(|(count, _)| *count == wanted)
                .map_or(0, |(_, number)| *number)
        };
        let (dropped, told) = (count(Count::Dropped(TooBig)), count(Count::Took(ToldTooBig)));
        let most = 2000 * std::thread::available_parallelism().map_or(1, usize::from) as u64;
        assert!(told > 0 && told <= most, "{told} of {dropped}");
        assert!(dropped > told, "{told} of {dropped}");
        assert_eq!(count(Count::Took(NewFlow)), 1);
    }
}

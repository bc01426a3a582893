//! Services for clients outside at the driver: what it sends back out, and what it leaves as it came.

use nix::time::{ClockId, clock_gettime};
use orch_ebpf::{
    conntrack::{HOP_PASS, HOP_REFLECT},
    event::Path::{NewFlow, Reflected, ToNode, ToPod, Translated},
};

use crate::{
    bench::{Bench, ip},
    case::{At, Case, Count, REDIRECT, XDP_PASS, XDP_TX, turns},
    flows::{Flow, Sides},
    packet::{
        ACK, DESTINATION_OPTIONS, Extension, Packet, SCTP, SYN, TCP, UDP, error,
        fragments::split,
        read::{Seen, read},
    },
    spec::Spec,
    world::{GATEWAY_MAC, MTU, NEIGHBOUR_MAC, OTHER_MACS, WORLDS, World},
};

const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 11];

/// A bench whose uplink knows its routes and neighbours.
pub fn connected() -> Bench {
    let bench = Bench::new();
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let [four, six] = &WORLDS;
    let (neighbour, gateway) = (mac(NEIGHBOUR_MAC), mac(GATEWAY_MAC));
    let mut lines = format!(
        "link set uplink address {} up\nlink set far up\naddr add {}/24 dev uplink\naddr add {}/64 dev uplink nodad\n",
        mac(UPLINK_MAC),
        four.node,
        six.node
    );
    lines += &format!(
        "link set other up\nroute add {} dev other\nroute add {} dev other\n",
        four.other, six.other
    );
    for (world, remote) in [(four, "10.244.2.0/24"), (six, "fd00:10:244:2::/64")] {
        lines += &format!(
            "route add {remote} via {} dev uplink\nroute add default via {} dev uplink\n\
             neigh add {} lladdr {neighbour} dev uplink nud permanent\n\
             neigh add {} lladdr {gateway} dev uplink nud permanent\n",
            world.neighbour, world.gateway, world.neighbour, world.gateway
        );
    }
    ip(&lines);
    for path in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{path}"), "1").unwrap();
    }
    bench
}

/// To a neighbour, from the uplink.
pub fn macs(to: [u8; 6]) -> [u8; 12] {
    [to, UPLINK_MAC].concat().try_into().unwrap()
}

/// A frame that the driver leaves as it came, with nothing counted.
fn left(name: &'static str, sent: Packet) -> Case {
    turns(name, At::Driver, sent.clone(), XDP_PASS, sent, &[])
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

fn flow(bench: &Bench, world: &World, packet: &Packet) -> Flow {
    let wanted = Sides::of(packet);
    bench
        .flows(world)
        .into_iter()
        .find(|flow| flow.key == wanted)
        .unwrap()
}

#[test]
fn a_known_flow_leaves_by_the_hop_in_its_entry() {
    let mut bench = Bench::new();
    let hop: [u8; 12] = [2, 5, 5, 5, 5, 1, 2, 5, 5, 5, 5, 2];
    for world in &WORLDS {
        for protocol in [TCP, UDP] {
            for front in [(world.node, 30_081), (world.balancer, 81)] {
                bench.forget();
                let ask = world.by_client(protocol, front);
                let (_, seen) = bench.see(At::FromUplink, &ask);
                let gone = ask.between(seen.source, (world.remote, 8080));
                for packet in [&ask, &gone.answer()] {
                    let known = flow(&bench, world, packet);
                    bench.put_flow(&Flow {
                        hop: HOP_REFLECT,
                        macs: hop,
                        last_seen: now(),
                        ..known
                    });
                }
                for length in [0, 1, 2, 5, 100, 1001, 1400] {
                    for ttl in [2, 64, 255] {
                        let payload: Vec<u8> = (0..length).map(|index| (index * 3) as u8).collect();
                        let dress = |packet: &Packet| Packet {
                            payload: payload.clone(),
                            flags: ACK,
                            ttl,
                            ..packet.clone()
                        };
                        let sent = dress(&ask);
                        let out = dress(&gone).with_ttl(ttl - 1).with_macs(hop);
                        bench.check(
                            world,
                            &turns("there", At::Driver, sent, XDP_TX, out, &[Reflected]),
                        );
                        let sent = dress(&gone.answer());
                        let out = dress(&ask.answer()).with_ttl(ttl - 1).with_macs(hop);
                        bench.check(world, &turns("back", At::Driver, sent, XDP_TX, out, &[Reflected]));
                    }
                }
            }
        }
        // Without a checksum there is none after, and one that becomes zero is sent as all ones.
        let known = world.by_client(UDP, (world.balancer, 81));
        let becomes = flow(&bench, world, &known).becomes;
        let zero = Packet {
            zero_checksum: true,
            ..known.clone()
        };
        let out = zero
            .between(becomes.source, becomes.destination)
            .with_ttl(63)
            .with_macs(hop);
        bench.check(
            world,
            &turns("no checksum", At::Driver, zero, XDP_TX, out, &[Reflected]),
        );
        let mut sent = Packet {
            payload: vec![0, 0],
            ..known
        };
        let bytes = sent.between(becomes.source, becomes.destination).bytes();
        let field = bytes.len() - 4;
        sent.payload = bytes[field..field + 2].to_vec();
        let out = sent
            .between(becomes.source, becomes.destination)
            .with_ttl(63)
            .with_macs(hop);
        assert_eq!(out.bytes()[field..field + 2], [0xff, 0xff]);
        bench.check(
            world,
            &turns("all ones", At::Driver, sent, XDP_TX, out, &[Reflected]),
        );
    }
}

#[test]
fn a_new_flow_asks_the_routes() {
    let mut bench = connected();
    for world in &WORLDS {
        for protocol in [TCP, UDP] {
            for front in [(world.node, 30_081), (world.balancer, 81)] {
                bench.forget();
                let ask = world.by_client(protocol, front);
                let before = bench.counters();
                let (verdict, bytes) = bench.run(At::Driver, &ask.bytes());
                let counted = bench.counted(&before);
                assert_eq!(verdict, XDP_TX, "{} {protocol}", world.name);
                assert_eq!(counted, [(Count::Took(NewFlow), 1), (Count::Took(Reflected), 1)]);
                let Seen { source, .. } = read(&bytes);
                let gone = ask.between(source, (world.remote, 8080));
                assert_eq!(bytes, gone.with_ttl(63).with_macs(macs(NEIGHBOUR_MAC)).bytes());
                let known = flow(&bench, world, &ask);
                assert_eq!((known.hop, known.macs), (HOP_REFLECT, macs(NEIGHBOUR_MAC)));
                let answer = gone.answer();
                let out = ask.answer().with_ttl(63).with_macs(macs(GATEWAY_MAC));
                bench.check(
                    world,
                    &turns("the answer", At::Driver, answer, XDP_TX, out, &[Reflected]),
                );
            }
        }
    }
}

#[test]
fn the_routes_are_asked_again_after_a_second() {
    let mut bench = connected();
    for world in &WORLDS {
        let ask = world.by_client(UDP, (world.node, 30_081));
        bench.run(At::Driver, &ask.bytes());
        let known = flow(&bench, world, &ask);
        ip(&format!(
            "neigh replace {} lladdr 02:00:00:00:00:99 dev uplink nud permanent",
            world.neighbour
        ));
        let out = |mac| {
            ask.between(known.becomes.source, known.becomes.destination)
                .with_ttl(63)
                .with_macs(macs(mac))
        };
        bench.check(
            world,
            &turns(
                "at once",
                At::Driver,
                ask.clone(),
                XDP_TX,
                out(NEIGHBOUR_MAC),
                &[Reflected],
            ),
        );
        bench.put_flow(&Flow {
            last_seen: 1,
            ticks: 0,
            ..known
        });
        bench.check(
            world,
            &turns(
                "later",
                At::Driver,
                ask.clone(),
                XDP_TX,
                out([2, 0, 0, 0, 0, 0x99]),
                &[Reflected],
            ),
        );
        assert!(flow(&bench, world, &ask).last_seen > 1);
        ip(&format!("neigh del {} dev uplink", world.neighbour));
        bench.put_flow(&Flow {
            last_seen: 1,
            ticks: 0,
            ..known
        });
        bench.check(world, &left("the neighbour is gone", ask.clone()));
        assert_eq!(flow(&bench, world, &ask).hop, HOP_PASS);
    }
}

#[test]
fn new_flows_to_a_node_share_its_way_for_a_second() {
    let mut bench = connected();
    let moved = [2, 0, 0, 0, 0, 0x99];
    let mut port = 5000;
    let mut open = |bench: &mut Bench, world: &World, (front, backend), mac| {
        port += 1;
        let ask = world.packet(UDP, (world.client, port), (world.balancer, front));
        let (verdict, bytes) = bench.run(At::Driver, &ask.bytes());
        assert_eq!(verdict, XDP_TX, "{} {front}", world.name);
        let Seen { source, .. } = read(&bytes);
        let out = ask.between(source, (backend, 8080)).with_ttl(63);
        assert_eq!(bytes, out.with_macs(macs(mac)).bytes(), "{} {front}", world.name);
        let known = flow(bench, world, &ask);
        assert_eq!((known.hop, known.macs), (HOP_REFLECT, macs(mac)));
    };
    for world in &WORLDS {
        bench.put(world, "beyond", &Spec::new(86, UDP, &[(world.stranger, 8080)]));
        let (near, beyond) = ((81, world.remote), (86, world.stranger));
        for _ in 0..3 {
            open(&mut bench, world, near, NEIGHBOUR_MAC);
            open(&mut bench, world, beyond, GATEWAY_MAC);
        }
        ip(&format!(
            "neigh replace {} lladdr 02:00:00:00:00:99 dev uplink nud permanent",
            world.neighbour
        ));
        // A hundred ticks, of which a kernel has a hundred a second or more.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        for _ in 0..3 {
            open(&mut bench, world, near, moved);
            open(&mut bench, world, beyond, GATEWAY_MAC);
        }
    }
}

#[test]
fn without_a_neighbour_tc_goes_on_with_the_flow() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = world.by_client(TCP, (world.node, 30_081));
        bench.check(
            world,
            &turns("new", At::Driver, ask.clone(), XDP_PASS, ask.clone(), &[NewFlow]),
        );
        let known = flow(&bench, world, &ask);
        assert_eq!(known.hop, HOP_PASS);
        let out = ask
            .between(known.becomes.source, known.becomes.destination)
            .with_ttl(63);
        bench.check(
            world,
            &turns("at tc", At::FromUplink, ask, REDIRECT, out, &[Translated, ToNode]),
        );
    }
}

fn leftovers(world: &World) -> Vec<Case> {
    let from = |protocol, to| world.by_client(protocol, to);
    let remote = from(UDP, (world.node, 30_081));
    let headers = remote.ip().len() - remote.payload.len();
    let long = Packet {
        payload: vec![1; MTU as usize - headers + 1],
        ..remote.clone()
    };
    let dressed = if world.pod.is_ipv4() {
        Packet {
            option_words: 1,
            ..remote.clone()
        }
    } else {
        Packet {
            extensions: vec![Extension::padding(DESTINATION_OPTIONS, 1)],
            ..remote.clone()
        }
    };
    vec![
        left("a local backend", from(TCP, (world.node, 30_080))),
        left("a local backend over UDP", from(UDP, (world.balancer, 80))),
        left("no backend", from(TCP, (world.node, 30_082))),
        left("no service", from(TCP, (world.node, 22))),
        left("a ClusterIP", from(TCP, (world.service, 81))),
        left("another node's NodePort", from(TCP, (world.neighbour, 30_081))),
        left(
            "no flow and no SYN",
            from(TCP, (world.node, 30_081)).with_flags(ACK),
        ),
        left(
            "an answer without a flow",
            from(TCP, (world.node, 30_081)).with_flags(SYN | ACK),
        ),
        left("SCTP", from(SCTP, (world.node, 30_081))),
        left("a ping", from(world.icmp, (world.node, 0))),
        left("to a pod", from(TCP, (world.other, 80))),
        left("the last hop", remote.with_ttl(1)),
        left("no hop", remote.with_ttl(0)),
        left("too long", long),
        left("options", dressed),
        left(
            "a tag",
            Packet {
                vlan: Some(5),
                ..remote
            },
        ),
    ]
}

#[test]
fn everything_else_is_left_as_it_came() {
    let mut bench = connected();
    for world in &WORLDS {
        for case in leftovers(world) {
            bench.forget();
            let frame = case.sent.bytes();
            let before = bench.counters();
            assert_eq!(
                bench.run(At::Driver, &frame),
                (XDP_PASS, frame),
                "{} {}",
                world.name,
                case.name
            );
            assert_eq!(bench.counted(&before), [], "{} {}", world.name, case.name);
            assert_eq!(bench.flows(world), [], "{} {}", world.name, case.name);
        }
        let ask = Packet {
            payload: vec![1; 100],
            ..world.by_client(UDP, (world.node, 30_081))
        };
        for piece in split(&ask.bytes(), 5, 9) {
            assert_eq!(
                bench.run(At::Driver, &piece),
                (XDP_PASS, piece.clone()),
                "a fragment"
            );
        }
        let mut ranges = Spec::new(84, TCP, &[(world.remote, 8080)]);
        ranges.flags = orch_ebpf::service::SERVICE_SOURCES;
        ranges.sources = vec![(world.bits() - 8, world.stranger)];
        bench.put(world, "ranges", &ranges);
        bench.check(
            world,
            &left("out of range", world.by_client(TCP, (world.balancer, 84))),
        );
    }
}

#[test]
fn other_flows_are_left_to_tc() {
    let mut bench = connected();
    for world in &WORLDS {
        let out = world.by_pod(UDP, (world.client, 53));
        let (_, seen) = bench.see(At::ToUplink, &out);
        bench.check(
            world,
            &left("a masqueraded flow's answer", out.from(seen.source).answer()),
        );
        let ask = world.by_client(TCP, (world.node, 30_080));
        let arrived = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
        bench.check(
            world,
            &turns(
                "local",
                At::FromUplink,
                ask.clone(),
                REDIRECT,
                arrived,
                &[NewFlow, Translated, ToPod],
            ),
        );
        bench.check(world, &left("a local backend's flow", ask.with_flags(ACK)));
        let ask = world.by_client(UDP, (world.node, 30_081));
        bench.run(At::Driver, &ask.bytes());
        let becomes = flow(&bench, world, &ask).becomes;
        let gone = ask.between(becomes.source, becomes.destination);
        let (kind, code) = if world.pod.is_ipv4() { (3, 4) } else { (2, 0) };
        let about = error(world.neighbour, world.node, kind, code, 1400, gone.quote(64));
        bench.check(world, &left("an error", about));
    }
}

/// What the driver and tc make of the same flow is the same.
#[test]
fn the_driver_chooses_as_tc_does() {
    let mut driver = connected();
    for world in &WORLDS {
        let backends: Vec<_> = (8080..8090).map(|port| (world.remote, port)).collect();
        driver.put(world, "many", &Spec::new(86, UDP, &backends));
        for port in 1..300 {
            let ask = world.packet(UDP, (world.client, port), (world.node, 30_086));
            driver.forget();
            let (_, at_driver) = driver.see(At::Driver, &ask);
            driver.forget();
            let (_, at_tc) = driver.see(At::FromUplink, &ask);
            assert_eq!(at_driver.destination, at_tc.destination, "{} {port}", world.name);
        }
    }
}

//! Answers for load balancers' addresses.

use std::net::{IpAddr, Ipv6Addr};

use orch_ebpf::event::{
    DropReason::NoService,
    Path::{Announced, NewFlow, ToPod, Translated},
};

use crate::{
    bench::Bench,
    case::{At, Count, PASS, REDIRECT, drops, passes, turns},
    packet::{
        TCP, UDP,
        neighbour::{advertisement, arp, solicitation},
        read::read,
    },
    world::{OTHER_LINK, OTHER_MACS, UPLINK, WORLDS},
};

const MAC: [u8; 6] = [2, 0xaa, 0xbb, 0xcc, 0xdd, 0xee];
const ASKER: [u8; 6] = [2, 7, 7, 7, 7, 7];
const NOBODY: [u8; 6] = [0; 6];
const ALL: [u8; 6] = [0xff; 6];

#[test]
fn arp_for_an_announced_address() {
    let mut bench = Bench::new();
    let [world, _] = &WORLDS;
    let [IpAddr::V4(address), IpAddr::V4(asker), IpAddr::V4(node)] =
        [world.balancer, world.gateway, world.node]
    else {
        panic!()
    };
    let request = arp(1, ALL, (ASKER, asker), (NOBODY, address));
    assert_eq!(
        bench.run(At::FromUplink, &request),
        (PASS, request.clone()),
        "nobody announces it"
    );
    bench.announce(world.balancer, UPLINK, MAC);
    let before = bench.counters();
    let answer = arp(2, ASKER, (MAC, address), (ASKER, asker));
    assert_eq!(bench.run(At::FromUplink, &request), (REDIRECT, answer));
    assert_eq!(bench.counted(&before), [(Count::Took(Announced), 1)]);
    let mut short = request.clone();
    short.resize(60, 0);
    let (verdict, out) = bench.run(At::FromUplink, &short);
    assert_eq!(
        (verdict, out.len(), &out[42..]),
        (REDIRECT, 60, &[0; 18][..]),
        "a frame filled up"
    );
    let mut hardware = request.clone();
    hardware[15] = 6;
    for (frame, name) in [
        (arp(1, ALL, (ASKER, asker), (NOBODY, node)), "another address"),
        (arp(2, MAC, (ASKER, asker), (MAC, address)), "an answer"),
        (arp(1, ALL, (ASKER, address), (NOBODY, asker)), "from the address"),
        (hardware, "other hardware"),
        (request[..30].to_vec(), "cut"),
    ] {
        assert_eq!(bench.run(At::FromUplink, &frame), (PASS, frame.clone()), "{name}");
    }
    assert_eq!(bench.run(At::FromPod, &request), (PASS, request.clone()), "a pod");
    bench.announce(world.balancer, OTHER_LINK, MAC);
    assert_eq!(
        bench.run(At::FromUplink, &request),
        (PASS, request.clone()),
        "another interface"
    );
}

#[test]
fn neighbour_solicitations_for_an_announced_address() {
    let mut bench = Bench::new();
    let [_, world] = &WORLDS;
    let [IpAddr::V6(address), IpAddr::V6(node)] = [world.balancer, world.node] else {
        panic!()
    };
    let group: IpAddr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x200).into();
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77).into();
    let ask = |from, to, mac| solicitation(from, to, address, mac);
    let group_ask = ask(world.gateway, group, Some(ASKER));
    bench.check(
        world,
        &passes("nobody announces it", At::FromUplink, group_ask.clone()),
    );
    bench.announce(world.balancer, UPLINK, MAC);
    let macs: [u8; 12] = [ASKER, MAC].concat().try_into().unwrap();
    for (from, to) in [
        (world.gateway, group),
        (link_local, group),
        (world.gateway, world.balancer),
    ] {
        let answer = advertisement(world.balancer, from, address, MAC).with_macs(macs);
        bench.check(
            world,
            &turns(
                "asked",
                At::FromUplink,
                ask(from, to, Some(ASKER)),
                REDIRECT,
                answer,
                &[Announced],
            ),
        );
    }
    let nobody = Ipv6Addr::UNSPECIFIED.into();
    for (sent, name) in [
        (
            solicitation(world.gateway, group, node, Some(ASKER)),
            "another address",
        ),
        (group_ask.with_ttl(254), "by a router"),
        (ask(nobody, group, None), "detection of duplicates"),
        (ask(nobody, group, Some(ASKER)), "from nobody"),
        (ask(world.gateway, group, None), "without the asker's address"),
        (advertisement(world.gateway, group, address, ASKER), "an answer"),
    ] {
        bench.check(world, &passes(name, At::FromUplink, sent));
    }
    bench.announce(world.balancer, OTHER_LINK, MAC);
    bench.check(world, &passes("another interface", At::FromUplink, group_ask));
}

#[test]
fn an_announced_address_has_its_services_and_nothing_else() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        bench.announce(world.balancer, UPLINK, MAC);
        for sent in [
            world.by_client(TCP, (world.balancer, 22)),
            world.by_client(UDP, (world.balancer, 22)),
            world.by_client(world.icmp, (world.balancer, 0)),
        ] {
            bench.check(world, &drops("no service", At::FromUplink, sent, NoService));
        }
        let ask = world.by_client(TCP, (world.balancer, 80));
        let out = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
        bench.check(
            world,
            &turns(
                "a service",
                At::FromUplink,
                ask,
                REDIRECT,
                out,
                &[NewFlow, Translated, ToPod],
            ),
        );
    }
}

/// An answer's checksum for many askers.
#[test]
fn every_answers_checksum_is_right() {
    let mut bench = Bench::new();
    let [_, world] = &WORLDS;
    let IpAddr::V6(address) = world.balancer else {
        panic!()
    };
    for number in 0..500_u16 {
        let [high, low] = number.wrapping_mul(0x9e37).to_be_bytes();
        let mac = [2, high, low, !high, 0xff, low];
        bench.announce(world.balancer, UPLINK, mac);
        let from = Ipv6Addr::new(0xfd00, number, 0xffff, !number, 0, number.wrapping_mul(7), 1, 2).into();
        let sent = solicitation(from, world.balancer, address, Some(ASKER));
        let (verdict, out) = bench.run(At::FromUplink, &sent.bytes());
        assert_eq!(verdict, REDIRECT);
        read(&out);
    }
}

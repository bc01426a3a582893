//! While maps move to another layout, the entry of a flow may be on its way: its segments are dropped and sent again, and
//! nobody answers them with a reset.

use orch_ebpf::{
    config::CONFIG_MOVING,
    conntrack::NAT_PORTS,
    event::{
        DropReason::ConntrackFull,
        Path::{NewFlow, ToPod, Translated},
    },
};

use crate::{
    bench::Bench,
    case::{At, Case, REDIRECT, drops, passes, turns},
    packet::{ACK, FIN, SYN, TCP, UDP},
    world::{OTHER_MACS, WORLDS, World},
};

fn table(world: &World) -> Vec<Case> {
    let mut list = Vec::new();
    let [(first, _), last] = NAT_PORTS;
    for flags in [ACK, SYN | ACK, FIN | ACK] {
        let to = |port| world.by_client(TCP, (world.node, port)).with_flags(flags);
        list.extend([
            drops("of a NodePort", At::FromUplink, to(30_080), ConntrackFull),
            drops("of a translated source", At::FromUplink, to(first), ConntrackFull),
            drops(
                "of its last one",
                At::FromUplink,
                to(last.0 + (last.1 - 1)),
                ConntrackFull,
            ),
            passes("of a port of the node", At::FromUplink, to(22)),
            drops(
                "of a pod to the outside",
                At::ToUplink,
                world.by_pod(TCP, (world.client, 443)).with_flags(flags),
                ConntrackFull,
            ),
            passes(
                "of a pod to another node",
                At::ToUplink,
                world.by_pod(TCP, (world.neighbour, 443)).with_flags(flags),
            ),
            passes(
                "of the node",
                At::ToUplink,
                world
                    .packet(TCP, (world.node, 443), (world.client, 1))
                    .with_flags(flags),
            ),
        ]);
    }
    let ask = world.by_client(TCP, (world.node, 30_080));
    let out = ask.to((world.other, 8080)).with_macs(OTHER_MACS);
    list.push(turns(
        "a new flow",
        At::FromUplink,
        ask,
        REDIRECT,
        out,
        &[NewFlow, Translated, ToPod],
    ));
    list.push(passes(
        "a datagram to no service",
        At::FromUplink,
        world.by_client(UDP, (world.node, first)),
    ));
    list
}

#[test]
fn what_looks_like_a_flows_is_dropped_and_the_rest_goes_on() {
    let mut bench = Bench::new();
    bench.configure(|config| config.flags |= CONFIG_MOVING);
    for world in &WORLDS {
        bench.check_each(world, &table(world));
        // A flow whose entry has arrived goes on.
        let ask = world.by_client(TCP, (world.node, 30_080));
        bench.run(At::FromUplink, &ask.bytes());
        let out = ask.to((world.other, 8080)).with_macs(OTHER_MACS).with_flags(ACK);
        let next = ask.with_flags(ACK);
        bench.check(
            world,
            &turns("known", At::FromUplink, next, REDIRECT, out, &[Translated, ToPod]),
        );
    }
}

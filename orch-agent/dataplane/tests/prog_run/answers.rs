//! Answers whose flow shares a slot with the one that they answer, until the first of them comes.

use std::collections::HashMap;

use aya::maps::{Array, Map, MapData};
use orch_dataplane::maps::folder;
use orch_ebpf::{
    conntrack::{DIRECTION_REPLY, KIND_SERVICE, SEEN_TRAFFIC},
    flow_table::{HELD, ROWS, ROWS_MAP, Row, SHARED, USED},
};

use crate::{
    bench::Bench,
    case::{At, REDIRECT},
    flows::{Flow, Sides},
    packet::{Packet, UDP},
    world::{WORLDS, World},
};

/// How many flows of the world's family are known, and how many of them share a slot.
fn counted(bench: &Bench, world: &World) -> (usize, usize) {
    let family = if world.pod.is_ipv4() { '4' } else { '6' };
    let pin = folder(&bench.root).join(format!("{ROWS_MAP}{family}"));
    let map = Map::Array(MapData::from_pin(pin).unwrap());
    let rows = Array::<_, Row>::try_from(map).unwrap();
    let words = (0..ROWS as u32).flat_map(|row| rows.get(&row, 0).unwrap().words);
    let used: Vec<u32> = words.filter(|word| word & (USED | HELD) == USED).collect();
    let shared = used.iter().filter(|word| *word & SHARED != 0).count();
    (used.len(), shared)
}

fn known(bench: &Bench, world: &World) -> HashMap<Sides, Flow> {
    let flows = bench.flows(world).into_iter();
    flows.map(|flow| (flow.key, flow)).collect()
}

/// What a client sends to a service whose backend is on another node.
fn ask(world: &World, port: u16) -> Packet {
    world.packet(UDP, (world.client, port), (world.node, 30_081))
}

/// What the backend sends for it, by what the flow became.
fn answer(world: &World, flow: &Flow) -> Packet {
    world.packet(UDP, flow.becomes.destination, flow.becomes.source)
}

#[test]
fn answers_get_a_slot_when_the_first_one_comes() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        let ask = ask(world, 4000);
        bench.run(At::FromUplink, &ask.bytes());
        assert_eq!(counted(&bench, world), (2, 1), "{}", world.name);
        let flows = known(&bench, world);
        let there = flows[&Sides::of(&ask)];
        let answer = answer(world, &there);
        let back = flows[&Sides::of(&answer)];
        assert_eq!(
            (back.becomes, back.backend, back.kind, back.direction, back.seen),
            (
                Sides::of(&ask.answer()),
                there.backend,
                KIND_SERVICE,
                DIRECTION_REPLY,
                0
            )
        );
        for _ in 0..2 {
            let (verdict, seen) = bench.see(At::FromUplink, &answer);
            assert_eq!(
                (verdict, seen.source, seen.destination),
                (REDIRECT, (world.node, 30_081), (world.client, 4000))
            );
            assert_eq!(counted(&bench, world), (2, 0), "{}", world.name);
            let flows = known(&bench, world);
            assert_eq!(flows[&Sides::of(&ask)], there);
            assert_eq!(
                flows[&Sides::of(&answer)],
                Flow {
                    seen: SEEN_TRAFFIC,
                    ticks: flows[&Sides::of(&answer)].ticks,
                    last_seen: flows[&Sides::of(&answer)].last_seen,
                    ..back
                }
            );
        }
    }
}

#[test]
fn a_flow_that_is_forgotten_takes_what_shares_its_slot_along() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for port in 1..=500 {
            bench.run(At::FromUplink, &ask(world, port).bytes());
        }
        let (used, shared) = counted(&bench, world);
        assert_eq!((used, bench.flows(world).len()), (1000, 1000));
        assert!(shared > 450, "{}: {shared} of 500", world.name);
        for port in 1..=500 {
            bench.remove_flow(&Sides::of(&ask(world, port)));
        }
        assert_eq!(counted(&bench, world), (500 - shared, 0), "{}", world.name);
        assert_eq!(bench.flows(world).len(), 500 - shared);
    }
}

/// Of the answers to one flow, which come in by two CPUs, none is lost.
#[test]
fn first_answers_that_meet_all_go_on() {
    const FLOWS: u16 = 4000;
    let mut bench = Bench::new();
    for world in &WORLDS {
        for port in 1..=FLOWS {
            bench.run(At::FromUplink, &ask(world, port).bytes());
        }
        let flows = known(&bench, world);
        assert_eq!(flows.len(), 2 * usize::from(FLOWS));
        let answers: Vec<Packet> = (1..=FLOWS)
            .map(|port| answer(world, &flows[&Sides::of(&ask(world, port))]))
            .collect();
        let bytes: Vec<_> = answers.iter().map(Packet::bytes).collect();
        let verdicts = bench.run_at_once(At::FromUplink, [bytes.clone(), bytes]);
        assert!(verdicts.iter().all(|verdict| *verdict == REDIRECT));
        assert_eq!(counted(&bench, world), (2 * usize::from(FLOWS), 0));
        let now = known(&bench, world);
        for (port, answer) in (1..).zip(&answers) {
            let there = now[&Sides::of(&ask(world, port))];
            assert_eq!(there, flows[&there.key]);
            let back = now[&Sides::of(answer)];
            assert_eq!(back.becomes, flows[&back.key].becomes);
            let (_, seen) = bench.see(At::FromUplink, answer);
            assert_eq!(seen.destination, (world.client, port));
        }
    }
}

//! How flows from outside are spread over the backends: by rank among a service's members, else by a Maglev table, alike
//! on every node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use orch_dataplane::maps::entries;
use orch_ebpf::service::{MEMBERS_MAX, SLOTS_MAP};

use crate::{
    bench::Bench,
    case::{At, REDIRECT},
    packet::{TCP, UDP},
    spec::Spec,
    world::{WORLDS, World},
};

/// Where the client's flows to the NodePort lead, by its port.
fn choices(bench: &mut Bench, world: &World, protocol: u8, flows: u16) -> BTreeMap<u16, (IpAddr, u16)> {
    bench.forget();
    (1..=flows)
        .map(|port| {
            let ask = world.packet(protocol, (world.client, port), (world.node, 30_086));
            let (verdict, seen) = bench.see(At::FromUplink, &ask);
            assert_eq!(verdict, REDIRECT);
            (port, seen.destination)
        })
        .collect()
}

fn many(world: &World, count: u16) -> Vec<(IpAddr, u16)> {
    (8000..8000 + count).map(|port| (world.other, port)).collect()
}

/// Two nodes with the same services choose alike, whatever the numbers of backends and pools are there.
#[test]
fn every_node_chooses_the_same_backend_for_a_flow() {
    let on_a_node = |first: bool| -> Vec<_> {
        let mut bench = Bench::new();
        let mut all = Vec::new();
        for (world, more) in WORLDS.iter().flat_map(|world| [0, 12].map(|more| (world, more))) {
            let mut backends = vec![(world.other, 8080), (world.pod, 8080), (world.remote, 8080)];
            backends.extend(many(world, more));
            if first {
                // Numbers come in the order of what was written before.
                backends.rotate_left(1);
                bench.put(world, "else", &Spec::new(90, UDP, &[(world.stranger, 5)]));
            }
            for protocol in [TCP, UDP] {
                bench.put(
                    world,
                    &format!("table-{protocol}"),
                    &Spec::new(86, protocol, &backends),
                );
                all.push((3 + more, choices(&mut bench, world, protocol, 200)));
            }
        }
        all
    };
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| on_a_node(true));
        let other = scope.spawn(|| on_a_node(false));
        (one.join().unwrap(), other.join().unwrap())
    });
    assert_eq!(one, other);
    for (count, choices) in one {
        let backends: BTreeSet<_> = choices.values().collect();
        assert_eq!(backends.len(), usize::from(count), "every backend is somebody's");
    }
}

/// So few are members of their service, and so many have slots.
const NUMBERS: [u16; 2] = [8, 16];

#[test]
fn shares_are_even() {
    const FLOWS: u16 = 4000;
    let mut bench = Bench::new();
    for (world, count) in WORLDS
        .iter()
        .flat_map(|world| NUMBERS.map(|count| (world, count)))
    {
        bench.put(world, "many", &Spec::new(86, UDP, &many(world, count)));
        let mut shares: BTreeMap<_, u16> = BTreeMap::new();
        for backend in choices(&mut bench, world, UDP, FLOWS).into_values() {
            *shares.entry(backend).or_default() += 1;
        }
        assert_eq!(shares.len(), usize::from(count));
        let even = FLOWS / count;
        // The standard deviation of 16 is six in a hundred, and the hash is always the same.
        assert!(
            shares.values().all(|share| share.abs_diff(even) <= even / 4),
            "{} {shares:?}",
            world.name
        );
    }
}

#[test]
fn few_flows_move_when_a_backend_leaves() {
    let mut bench = Bench::new();
    for (world, count) in WORLDS
        .iter()
        .flat_map(|world| NUMBERS.map(|count| (world, count)))
    {
        let mut backends = many(world, count);
        bench.put(world, "many", &Spec::new(86, UDP, &backends));
        let before = choices(&mut bench, world, UDP, 2000);
        let gone = backends.remove(3);
        bench.put(world, "many", &Spec::new(86, UDP, &backends));
        let after = choices(&mut bench, world, UDP, 2000);
        let stayed: Vec<_> = before.iter().filter(|(_, backend)| **backend != gone).collect();
        let moved = stayed
            .iter()
            .filter(|(port, backend)| after[*port] != **backend)
            .count();
        assert!(after.values().all(|backend| *backend != gone));
        let most = if usize::from(count) <= MEMBERS_MAX {
            0
        } else {
            stayed.len() / 10
        };
        assert!(moved <= most, "{}: {moved} of {}", world.name, stayed.len());
    }
}

/// Every choice is a backend of the table's, and a table has as many slots as it counts.
#[test]
fn a_table_is_as_long_as_its_service_says() {
    let mut bench = Bench::new();
    let [world, _] = &WORLDS;
    for (count, size) in [(11, 1021), (41, 4093)] {
        bench.put(world, "many", &Spec::new(86, UDP, &many(world, count)));
        let services = entries("services", &bench.maps.v4.services).unwrap();
        let (_, service) = services
            .iter()
            .find(|(key, service)| key.port == 30_086 && service.count == size)
            .unwrap();
        let slots: Vec<u32> = {
            let mut chunks = entries(SLOTS_MAP, &bench.maps.slots).unwrap();
            chunks.retain(|(key, _)| key.pool == service.pool);
            chunks.sort_unstable_by_key(|(key, _)| key.chunk);
            chunks
                .iter()
                .flat_map(|(_, chunk)| chunk.backends)
                .take(size as usize)
                .collect()
        };
        assert_eq!(slots.len(), size as usize);
        let different: BTreeSet<_> = slots.iter().collect();
        assert!(different.len() == usize::from(count) && !different.contains(&0));
        let chosen: BTreeSet<_> = choices(&mut bench, world, UDP, 2000).into_values().collect();
        assert_eq!(chosen.len(), usize::from(count), "each backend is somebody's");
    }
}

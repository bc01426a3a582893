//! Limits of a pod's bandwidth.

use orch_ebpf::{
    bandwidth::{Bucket, BucketKey},
    endpoint::{LIMITED_EGRESS, LIMITED_INGRESS},
    event::DropReason::Bandwidth,
    policy::{EGRESS, INGRESS},
};

use crate::{
    bench::Bench,
    case::{At, Count, DROP},
    packet::{Packet, UDP},
    world::{POD_LINK, WORLDS, World},
};

/// So slow that a test's time earns nothing.
const NEVER: u64 = 0;

fn key(direction: u8) -> BucketKey {
    BucketKey {
        ifindex: POD_LINK,
        direction: u32::from(direction),
    }
}

/// How many of the packets pass one after the other before one is dropped.
fn passes(bench: &mut Bench, at: At, packet: &Packet) -> usize {
    for number in 0..1000 {
        let before = bench.counters();
        if bench.run(at, &packet.bytes()).0 == DROP {
            assert!(bench.counted(&before).contains(&(Count::Dropped(Bandwidth), 1)));
            return number;
        }
    }
    1000
}

fn full(rate: u64, burst: u64) -> Bucket {
    Bucket {
        rate,
        burst,
        tokens: burst,
        last: 0,
    }
}

fn ways(world: &World) -> [(u8, u32, At, Packet); 3] {
    let to_pod = |source| world.packet(UDP, (source, 4000), (world.pod, 80));
    [
        (
            EGRESS,
            LIMITED_EGRESS,
            At::FromPod,
            world.by_pod(UDP, (world.other, 80)),
        ),
        (INGRESS, LIMITED_INGRESS, At::FromUplink, to_pod(world.client)),
        (INGRESS, LIMITED_INGRESS, At::ToPod, to_pod(world.node)),
    ]
}

#[test]
fn a_bucket_lets_its_bytes_pass_and_no_more() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for (direction, flag, at, packet) in ways(world) {
            let size = packet.bytes().len() as u64;
            bench.limit(key(direction), full(NEVER, size * 5 + size / 2));
            assert_eq!(
                passes(&mut bench, at, &packet),
                1000,
                "without the flag nobody looks"
            );
            bench.isolate(world.pod, 0, flag);
            assert_eq!(passes(&mut bench, at, &packet), 5, "{} {at:?}", world.name);
            assert_eq!(passes(&mut bench, at, &packet), 0);
            let left = bench.maps.buckets.get(&key(direction), 0).unwrap();
            assert_eq!((left.tokens, left.rate), (size / 2, NEVER));
            // The other direction is another's.
            let (back, out) = if direction == EGRESS {
                (
                    At::FromUplink,
                    world.packet(UDP, (world.client, 1), (world.pod, 1)),
                )
            } else {
                (At::FromPod, world.by_pod(UDP, (world.other, 80)))
            };
            assert_eq!(passes(&mut bench, back, &out), 1000);
            bench.isolate(world.pod, 0, 0);
        }
    }
}

#[test]
fn time_fills_a_bucket_up_to_its_burst() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for (direction, flag, at, packet) in ways(world) {
            let size = packet.bytes().len() as u64;
            bench.isolate(world.pod, 0, flag);
            // Empty since the clock began, at a byte a second: what four seconds earn and no more.
            let empty = Bucket {
                rate: 1,
                burst: size * 3,
                tokens: 0,
                last: 0,
            };
            bench.limit(key(direction), empty);
            assert_eq!(passes(&mut bench, at, &packet), 0);
            let left = bench.maps.buckets.get(&key(direction), 0).unwrap();
            assert!(left.last > 0 && left.tokens <= 4, "{left:?}");
            // At a high rate it is full, and not fuller.
            bench.limit(
                key(direction),
                Bucket {
                    rate: 1 << 20,
                    burst: size,
                    ..empty
                },
            );
            bench.run(at, &packet.bytes());
            let left = bench.maps.buckets.get(&key(direction), 0).unwrap();
            assert_eq!(left.tokens, 0, "{} {at:?}", world.name);
            bench.isolate(world.pod, 0, 0);
        }
    }
}

#[test]
fn what_is_longer_than_the_burst_passes_a_full_bucket_and_is_paid_for_later() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for (direction, flag, at, packet) in ways(world) {
            let (size, burst) = (packet.bytes().len() as u64, 10);
            bench.isolate(world.pod, 0, flag);
            let almost = Bucket {
                tokens: burst - 1,
                ..full(NEVER, burst)
            };
            bench.limit(key(direction), almost);
            assert_eq!(passes(&mut bench, at, &packet), 0, "{} {at:?}", world.name);
            // At a byte a second; four of them are counted at most.
            bench.limit(key(direction), full(1, burst));
            assert_eq!(passes(&mut bench, at, &packet), 1, "{} {at:?}", world.name);
            let left = bench.maps.buckets.get(&key(direction), 0).unwrap();
            assert!(
                left.tokens == 0 && left.last > (size - burst) * 1_000_000_000,
                "earns again when the rest is paid: {left:?}"
            );
            // A fast one has paid at once.
            bench.limit(key(direction), full(1 << 40, burst));
            bench.run(at, &packet.bytes());
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert_ne!(passes(&mut bench, at, &packet), 0, "{} {at:?}", world.name);
            bench.isolate(world.pod, 0, 0);
        }
    }
}

#[test]
fn a_pod_without_a_bucket_has_no_limit() {
    let mut bench = Bench::new();
    for world in &WORLDS {
        for (_, flag, at, packet) in ways(world) {
            bench.isolate(world.pod, 0, flag);
            assert_eq!(passes(&mut bench, at, &packet), 1000);
            bench.isolate(world.pod, 0, 0);
        }
    }
}

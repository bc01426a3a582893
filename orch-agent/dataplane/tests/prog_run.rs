//! The tc programs under `BPF_PROG_TEST_RUN`: packets and maps in, verdict and packet out.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[path = "support/packet.rs"]
mod packet;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions};
use orch_dataplane::{
    load::{self, Programs},
    maps::Maps,
    plan::{Desired, Frontend, Planner},
};
use orch_ebpf::{
    ABI_VERSION,
    config::{Config, NODE_LOCAL, NODE_REMOTE, Node},
    conntrack::NAT_PORTS,
    endpoint::Endpoint,
    event::DropReason,
    service::{ANY_ADDRESS, BACKEND_LOCAL, Backend, SCOPE_EXTERNAL, SCOPE_INTERNAL, ServiceKey},
};
use packet::{ACK, ICMP, Packet, SYN, Seen, TCP, UDP, packet, read};
use proptest::prelude::*;

const PASS: u32 = 0;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;
/// Bytes of Ethernet and IPv4 headers.
const SHORTEST: usize = 34;

const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 5);
const NODE: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 11);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 12);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 7);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const POD_MACS: [u8; 12] = [2, 1, 1, 1, 1, 1, 2, 9, 9, 9, 9, 9];
const OTHER_MACS: [u8; 12] = [2, 2, 2, 2, 2, 2, 2, 9, 9, 9, 9, 9];

struct Bench {
    programs: Programs,
    maps: Maps,
    planner: Planner,
    root: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = orch_dataplane::remove_pins(&self.root);
    }
}

fn backend(address: Ipv4Addr, port: u16, protocol: u8, flags: u8) -> Backend {
    Backend {
        address: address.octets(),
        port,
        protocol,
        flags,
    }
}

/// A service port on a ClusterIP and a NodePort, with these backends.
fn service(port: u16, protocol: u8, backends: &[Backend]) -> Desired {
    let front = |address, port, scope| Frontend {
        key: ServiceKey {
            address,
            port,
            protocol,
            scope,
        },
        affinity_seconds: 0,
        pool: 0,
    };
    Desired {
        frontends: vec![
            front(SERVICE.octets(), port, SCOPE_INTERNAL),
            front(ANY_ADDRESS, 30000 + port, SCOPE_INTERNAL),
            front(ANY_ADDRESS, 30000 + port, SCOPE_EXTERNAL),
        ],
        pools: vec![backends.iter().copied().collect::<BTreeSet<_>>()],
    }
}

impl Bench {
    /// Two local pods (the first on the interface of test runs, `lo`), and services: 80 on the other pod, 81 on a
    /// remote one, 82 on none, and 53 over UDP on the other pod.
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!("/sys/fs/bpf/orch-run-{}-{number}", std::process::id()));
        let (programs, mut maps) = load::load(&root).unwrap();
        let config = Config {
            abi_version: ABI_VERSION,
            uplink_ifindex: 1,
            uplink_mtu: 1500,
            node_address: NODE.octets(),
            cluster_address: [10, 244, 0, 0],
            cluster_mask: [255, 255, 0, 0],
            service_address: [10, 96, 0, 0],
            service_mask: [255, 255, 0, 0],
            dns_address: DNS.octets(),
            flags: 0,
        };
        maps.config.set(0, config, 0).unwrap();
        maps.nodes
            .insert(NODE.octets(), Node { kind: NODE_LOCAL }, 0)
            .unwrap();
        maps.nodes
            .insert(NEIGHBOUR.octets(), Node { kind: NODE_REMOTE }, 0)
            .unwrap();
        for (address, ifindex, macs) in [(POD, 1, POD_MACS), (OTHER, 77, OTHER_MACS)] {
            let (pod, node) = macs.split_at(6);
            let endpoint = Endpoint {
                ifindex,
                pod_mac: pod.try_into().unwrap(),
                node_mac: node.try_into().unwrap(),
                uid: [0; 40],
            };
            maps.endpoints.insert(address.octets(), endpoint, 0).unwrap();
        }
        let mut bench = Self {
            programs,
            maps,
            planner: Planner::default(),
            root,
        };
        bench.put(
            "near",
            &service(80, TCP, &[backend(OTHER, 8080, TCP, BACKEND_LOCAL)]),
        );
        bench.put("far", &service(81, TCP, &[backend(REMOTE, 8080, TCP, 0)]));
        bench.put("none", &service(82, TCP, &[]));
        bench.put(
            "dns",
            &service(53, UDP, &[backend(OTHER, 5353, UDP, BACKEND_LOCAL)]),
        );
        bench
    }

    fn put(&mut self, name: &str, desired: &Desired) {
        let (ops, refused) = self.planner.update(name, desired);
        assert!(refused.is_empty());
        self.maps.apply(&ops).unwrap();
    }

    fn run(&mut self, program: &str, bytes: &[u8]) -> (u32, Vec<u8>) {
        let Some(Program::SchedClassifier(program)) = self.programs.ebpf().program(program) else {
            panic!()
        };
        let mut out = vec![0; bytes.len() + 256];
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        let result = SchedClassifier::test_run(program, options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    fn see(&mut self, program: &str, packet: &Packet) -> (u32, Seen) {
        let (verdict, bytes) = self.run(program, &packet.bytes());
        (verdict, read(&bytes))
    }

    fn drops(&self, reason: DropReason) -> u64 {
        self.maps
            .metrics
            .get(&(reason as u32), 0)
            .unwrap()
            .iter()
            .map(|counter| counter.packets)
            .sum()
    }
}

struct Case {
    name: &'static str,
    program: &'static str,
    packet: Packet,
    verdict: u32,
    /// Source, destination and TTL of what comes out.
    out: ((Ipv4Addr, u16), (Ipv4Addr, u16), u8),
    /// Hardware addresses, where they are rewritten.
    macs: Option<[u8; 12]>,
}

fn unchanged(name: &'static str, program: &'static str, packet: Packet, verdict: u32) -> Case {
    let ports = packet.protocol != ICMP;
    let source = (packet.source, packet.source_port);
    let destination = (
        packet.destination,
        if ports { packet.destination_port } else { 0 },
    );
    let ttl = packet.ttl;
    Case {
        name,
        program,
        packet,
        verdict,
        out: (source, destination, ttl),
        macs: None,
    }
}

fn cases() -> Vec<Case> {
    let from_pod = |protocol, to: (Ipv4Addr, u16)| packet(protocol, (POD, 4000), to);
    let from_client = |protocol, to: (Ipv4Addr, u16)| packet(protocol, (CLIENT, 4000), to);
    let to_pod = |name, program, packet: Packet, destination| {
        let source = (packet.source, packet.source_port);
        let ttl = packet.ttl;
        Case {
            name,
            program,
            packet,
            verdict: REDIRECT,
            out: (source, destination, ttl),
            macs: Some(OTHER_MACS),
        }
    };
    let mut list = vec![
        unchanged(
            "pod to the outside",
            "pod_ingress",
            from_pod(TCP, (CLIENT, 443)),
            PASS,
        ),
        unchanged("pod to its node", "pod_ingress", from_pod(TCP, (NODE, 22)), PASS),
        unchanged("pod to DNS", "pod_ingress", from_pod(UDP, (DNS, 53)), PASS),
        unchanged(
            "pod pings its node",
            "pod_ingress",
            from_pod(ICMP, (NODE, 0)),
            PASS,
        ),
        unchanged(
            "no such service",
            "pod_ingress",
            from_pod(TCP, (SERVICE, 9999)),
            DROP,
        ),
        unchanged("no backend", "pod_ingress", from_pod(TCP, (SERVICE, 82)), DROP),
        unchanged(
            "spoofed source",
            "pod_ingress",
            packet(UDP, (OTHER, 4000), (CLIENT, 53)),
            DROP,
        ),
        unchanged(
            "unknown source",
            "pod_ingress",
            packet(UDP, (CLIENT, 4000), (OTHER, 53)),
            DROP,
        ),
        unchanged(
            "another port of the node",
            "uplink_ingress",
            from_client(TCP, (NODE, 22)),
            PASS,
        ),
        unchanged(
            "no backend outside",
            "uplink_ingress",
            from_client(TCP, (NODE, 30082)),
            DROP,
        ),
        unchanged(
            "a ClusterIP from outside",
            "uplink_ingress",
            from_client(TCP, (SERVICE, 80)),
            PASS,
        ),
        unchanged(
            "another node's NodePort",
            "uplink_ingress",
            from_client(TCP, (NEIGHBOUR, 30080)),
            PASS,
        ),
        unchanged(
            "node to the outside",
            "uplink_egress",
            packet(TCP, (NODE, 4000), (CLIENT, 443)),
            PASS,
        ),
        unchanged(
            "pod to another node",
            "uplink_egress",
            from_pod(TCP, (NEIGHBOUR, 22)),
            PASS,
        ),
        unchanged(
            "pod to a remote pod leaves",
            "uplink_egress",
            from_pod(TCP, (REMOTE, 80)),
            PASS,
        ),
        to_pod("pod to pod", "pod_ingress", from_pod(TCP, (OTHER, 7)), (OTHER, 7)),
        to_pod(
            "pod pings pod",
            "pod_ingress",
            from_pod(ICMP, (OTHER, 0)),
            (OTHER, 0),
        ),
        to_pod(
            "another protocol",
            "pod_ingress",
            Packet {
                source_port: 0,
                ..from_pod(132, (OTHER, 0))
            },
            (OTHER, 0),
        ),
        to_pod(
            "outside to pod",
            "uplink_ingress",
            from_client(TCP, (OTHER, 7)),
            (OTHER, 7),
        ),
        to_pod(
            "service over TCP",
            "pod_ingress",
            from_pod(TCP, (SERVICE, 80)),
            (OTHER, 8080),
        ),
        to_pod(
            "service over UDP",
            "pod_ingress",
            from_pod(UDP, (SERVICE, 53)),
            (OTHER, 5353),
        ),
        to_pod(
            "NodePort inside",
            "pod_ingress",
            from_pod(TCP, (NODE, 30080)),
            (OTHER, 8080),
        ),
        to_pod(
            "NodePort over TCP",
            "uplink_ingress",
            from_client(TCP, (NODE, 30080)),
            (OTHER, 8080),
        ),
        to_pod(
            "NodePort over UDP",
            "uplink_ingress",
            from_client(UDP, (NODE, 30053)),
            (OTHER, 5353),
        ),
    ];
    let mut long = from_client(UDP, (NODE, 30053));
    long.option_words = 10;
    list.push(to_pod("with every option", "uplink_ingress", long, (OTHER, 5353)));
    let mut late = from_client(TCP, (NODE, 30080));
    late.flags = ACK;
    list.push(unchanged("no flow and no SYN", "uplink_ingress", late, PASS));
    let mut remote = from_pod(TCP, (REMOTE, 80));
    list.push(Case {
        out: ((POD, 4000), (REMOTE, 80), 63),
        ..unchanged("pod to a remote pod", "pod_ingress", remote.clone(), REDIRECT)
    });
    remote.ttl = 1;
    list.push(unchanged("the last hop", "pod_ingress", remote.clone(), PASS));
    remote.ttl = 64;
    remote.payload = vec![1; 1600];
    list.push(unchanged("too long for the uplink", "pod_ingress", remote, PASS));
    list
}

#[test]
fn table() {
    for case in cases() {
        let mut bench = Bench::new();
        let (verdict, seen) = bench.see(case.program, &case.packet);
        assert_eq!(verdict, case.verdict, "{}: verdict", case.name);
        assert_eq!(
            (seen.source, seen.destination, seen.ttl),
            case.out,
            "{}",
            case.name
        );
        if let Some(macs) = case.macs {
            assert_eq!(seen.macs, macs, "{}: hardware addresses", case.name);
        }
    }
}

#[test]
fn every_drop_is_counted_by_its_reason() {
    let mut bench = Bench::new();
    let mut drop = |packet: Packet, reason| {
        let before = bench.drops(reason);
        assert_eq!(bench.run("pod_ingress", &packet.bytes()).0, DROP, "{reason:?}");
        assert_eq!(bench.drops(reason), before + 1, "{reason:?}");
    };
    drop(packet(TCP, (OTHER, 1), (CLIENT, 2)), DropReason::SpoofedSource);
    drop(packet(TCP, (POD, 1), (SERVICE, 82)), DropReason::NoBackend);
    drop(packet(TCP, (POD, 1), (SERVICE, 9)), DropReason::NoService);
    let mut bytes = packet(TCP, (POD, 1), (CLIENT, 2)).bytes();
    bytes.truncate(14 + 20 + 10);
    assert_eq!(bench.run("pod_ingress", &bytes).0, DROP);
    assert_eq!(bench.drops(DropReason::Malformed), 1);
}

#[test]
fn what_is_cut_or_malformed_is_dropped_and_what_is_not_ipv4_passes() {
    let mut bench = Bench::new();
    let whole = packet(UDP, (CLIENT, 1), (NODE, 30053)).bytes();
    // The kernel itself refuses to run a test with less than the headers of its kind (net/bpf/test_run.c).
    for length in SHORTEST..whole.len() {
        let (verdict, out) = bench.run("uplink_ingress", &whole[..length]);
        assert_eq!((verdict, &out[..]), (DROP, &whole[..length]), "{length} bytes");
    }
    for (at, value) in [(14, 0x35), (14, 0x44), (16, 0xff), (17, 19)] {
        let mut bytes = whole.clone();
        bytes[at] = value;
        assert_eq!(
            bench.run("uplink_ingress", &bytes).0,
            DROP,
            "byte {at} is {value}"
        );
    }
    for kind in [[0x08, 0x06], [0x86, 0xdd], [0x81, 0x00]] {
        let mut bytes = whole.clone();
        bytes[12..14].copy_from_slice(&kind);
        for program in ["pod_ingress", "uplink_ingress", "uplink_egress"] {
            assert_eq!(
                bench.run(program, &bytes),
                (PASS, bytes.clone()),
                "{kind:?} at {program}"
            );
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_zero() {
    let mut bench = Bench::new();
    let mut packet = packet(UDP, (CLIENT, 1), (NODE, 30053));
    packet.zero_checksum = true;
    let (verdict, seen) = bench.see("uplink_ingress", &packet);
    assert_eq!(
        (verdict, seen.destination, seen.udp_checksum),
        (REDIRECT, (OTHER, 5353), Some(0))
    );
}

#[test]
fn later_fragments_follow_the_first() {
    let mut bench = Bench::new();
    let mut first = packet(UDP, (CLIENT, 4000), (NODE, 30053));
    first.fragment = 0x2000;
    let mut later = first.clone();
    later.fragment = 185;
    let (verdict, _) = bench.see("uplink_ingress", &later);
    assert_eq!(verdict, PASS, "without the first nobody knows the ports");
    let (verdict, seen) = bench.see("uplink_ingress", &first);
    assert_eq!((verdict, seen.destination), (REDIRECT, (OTHER, 5353)));
    let (verdict, seen) = bench.see("uplink_ingress", &later);
    assert_eq!(
        (verdict, seen.destination.0, seen.macs),
        (REDIRECT, OTHER, OTHER_MACS)
    );
}

#[test]
fn a_local_backend_answers_in_the_services_name() {
    let mut bench = Bench::new();
    bench.put(
        "near",
        &service(80, TCP, &[backend(POD, 8080, TCP, BACKEND_LOCAL)]),
    );
    let (verdict, seen) = bench.see("uplink_ingress", &packet(TCP, (CLIENT, 4000), (NODE, 30080)));
    assert_eq!(
        (verdict, seen.source, seen.destination),
        (REDIRECT, (CLIENT, 4000), (POD, 8080))
    );
    let reply = Packet {
        flags: SYN | ACK,
        ..packet(TCP, (POD, 8080), (CLIENT, 4000))
    };
    let (verdict, seen) = bench.see("pod_ingress", &reply);
    assert_eq!(
        (verdict, seen.source),
        (PASS, (POD, 8080)),
        "routed by the stack first"
    );
    let (verdict, seen) = bench.see("uplink_egress", &reply);
    assert_eq!(
        (verdict, seen.source, seen.destination),
        (PASS, (NODE, 30080), (CLIENT, 4000))
    );
}

#[test]
fn a_remote_backend_answers_through_this_node() {
    let mut bench = Bench::new();
    let (verdict, seen) = bench.see("uplink_ingress", &packet(TCP, (CLIENT, 4000), (NODE, 30081)));
    assert_eq!(
        (verdict, seen.source.0, seen.destination, seen.ttl),
        (REDIRECT, NODE, (REMOTE, 8080), 63)
    );
    let port = seen.source.1;
    assert!(
        NAT_PORTS
            .iter()
            .any(|(first, count)| (*first..=first + (count - 1)).contains(&port)),
        "{port}"
    );
    let reply = Packet {
        flags: SYN | ACK,
        ..packet(TCP, (REMOTE, 8080), (NODE, port))
    };
    let (verdict, seen) = bench.see("uplink_ingress", &reply);
    assert_eq!(
        (verdict, seen.source, seen.destination),
        (REDIRECT, (NODE, 30081), (CLIENT, 4000))
    );
}

#[test]
fn pods_are_masqueraded_and_get_their_answers() {
    for protocol in [TCP, UDP, ICMP] {
        let mut bench = Bench::new();
        let port = if protocol == ICMP { 0 } else { 443 };
        let out = packet(protocol, (POD, 4000), (CLIENT, port));
        let (verdict, seen) = bench.see("uplink_egress", &out);
        assert_eq!(
            (verdict, seen.source.0, seen.destination),
            (PASS, NODE, (CLIENT, port))
        );
        let (_, again) = bench.see("uplink_egress", &out);
        assert_eq!(again.source, seen.source, "one flow, one port");
        let mut reply = packet(protocol, (CLIENT, port), (NODE, seen.source.1));
        reply.icmp_kind = 0;
        reply.flags = SYN | ACK;
        let (verdict, seen) = bench.see("uplink_ingress", &reply);
        assert_eq!(
            (verdict, seen.destination, seen.macs),
            (REDIRECT, (POD, 4000), POD_MACS)
        );
    }
}

#[test]
fn an_established_flow_keeps_its_backend_and_a_reused_port_gets_a_live_one() {
    let mut bench = Bench::new();
    let open = packet(TCP, (CLIENT, 4000), (NODE, 30080));
    let data = Packet {
        flags: ACK,
        ..open.clone()
    };
    bench.see("uplink_ingress", &open);
    bench.put(
        "near",
        &service(80, TCP, &[backend(POD, 8080, TCP, BACKEND_LOCAL)]),
    );
    assert_eq!(bench.see("uplink_ingress", &data).1.destination, (OTHER, 8080));
    let fresh = packet(TCP, (CLIENT, 4001), (NODE, 30080));
    assert_eq!(bench.see("uplink_ingress", &fresh).1.destination, (POD, 8080));
    assert_eq!(
        bench.see("uplink_ingress", &open).1.destination,
        (POD, 8080),
        "its backend is gone"
    );
}

#[test]
fn affinity_keeps_a_client_on_its_backend() {
    let mut bench = Bench::new();
    let mut sticky = service(
        80,
        TCP,
        &[
            backend(OTHER, 8080, TCP, BACKEND_LOCAL),
            backend(POD, 8080, TCP, BACKEND_LOCAL),
        ],
    );
    for frontend in &mut sticky.frontends {
        frontend.affinity_seconds = 100;
    }
    bench.put("near", &sticky);
    let chosen: BTreeSet<_> = (1..40)
        .map(|port| {
            bench
                .see("uplink_ingress", &packet(TCP, (CLIENT, port), (NODE, 30080)))
                .1
                .destination
        })
        .collect();
    assert_eq!(chosen.len(), 1);
}

/// Verified instructions are what the kernel walks at load: a jump means that paths multiply.
#[test]
fn programs_stay_small_for_the_verifier() {
    let mut bench = Bench::new();
    for (name, program) in bench.programs.ebpf().programs() {
        let count = program.info().unwrap().verified_instruction_count().unwrap();
        println!("{name}: {count}");
        let most = if matches!(program, Program::SchedClassifier(_)) {
            60_000
        } else {
            8_000
        };
        assert!(count < most, "{name} costs the verifier {count} instructions");
    }
}

fn any_address() -> impl Strategy<Value = Ipv4Addr> {
    prop::sample::select(vec![POD, OTHER, REMOTE, NODE, NEIGHBOUR, CLIENT, SERVICE, DNS])
}

fn any_port() -> impl Strategy<Value = u16> {
    prop_oneof![
        prop::sample::select(vec![80, 81, 82, 53, 30080, 30081, 30082, 30053, 0, 65535]),
        any::<u16>()
    ]
}

prop_compose! {
    fn any_packet()(
        source in any_address(), destination in any_address(),
        protocol in prop::sample::select(vec![TCP, TCP, UDP, UDP, ICMP, 132, 4]),
        source_port in any_port(), destination_port in any_port(),
        flags in any::<u8>(), ttl in any::<u8>(), option_words in 0u8..=10,
        fragment in prop::sample::select(vec![0, 0, 0, 0x4000, 0x2000, 1, 185, 0x2001]),
        zero_checksum in any::<bool>(), icmp_kind in prop::sample::select(vec![0, 8, 3, 11]),
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) -> Packet {
        Packet {
            source, destination, protocol, source_port, destination_port, flags, ttl, option_words, fragment,
            zero_checksum, icmp_kind, payload,
        }
    }
}

#[test]
fn no_packet_comes_out_with_a_wrong_checksum() {
    let bench = RefCell::new(Bench::new());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4000));
    runner
        .run(&any_packet(), |packet| {
            let bytes = packet.bytes();
            for program in ["pod_ingress", "uplink_ingress", "uplink_egress"] {
                let (verdict, out) = bench.borrow_mut().run(program, &bytes);
                prop_assert!([PASS, DROP, REDIRECT].contains(&verdict), "verdict {verdict}");
                prop_assert_eq!(out.len(), bytes.len());
                if verdict == DROP {
                    continue;
                }
                read(&out);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn random_bytes_never_change_length_and_get_a_verdict() {
    let bench = RefCell::new(Bench::new());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4000));
    let bytes =
        (prop::collection::vec(any::<u8>(), SHORTEST..200), any::<bool>()).prop_map(|(mut bytes, ipv4)| {
            bytes[12..14].copy_from_slice(if ipv4 { &[8, 0] } else { &[8, 6] });
            bytes
        });
    runner
        .run(&bytes, |bytes| {
            for program in ["pod_ingress", "uplink_ingress", "uplink_egress"] {
                let (verdict, out) = bench.borrow_mut().run(program, &bytes);
                prop_assert!([PASS, DROP, REDIRECT].contains(&verdict), "verdict {verdict}");
                prop_assert_eq!(out.len(), bytes.len());
            }
            Ok(())
        })
        .unwrap();
}

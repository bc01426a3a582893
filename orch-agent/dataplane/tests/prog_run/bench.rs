//! Loaded programs on maps of their own, in a network namespace of their own.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use aya::programs::{Program, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use nix::sched::{CloneFlags, unshare};
use orch_dataplane::{
    load::{self, Programs},
    maps::{FamilyMaps, MapAddress, Maps, entries},
    model::Both,
    services::Services,
};
use orch_ebpf::{
    ABI_VERSION, Address,
    config::{Config, FamilyConfig, NODE_LOCAL, NODE_REMOTE, Node},
    endpoint::Endpoint,
    event::METRICS_MAX,
    service::AFFINITY_MAP,
};

use crate::{
    case::{At, Case, Count},
    packet::{
        Packet,
        read::{Seen, read},
    },
    spec::{Spec, usual},
    world::{MTU, OTHER_LINK, OTHER_MACS, POD_LINK, POD_MACS, TUNNEL, TUNNEL_MTU, UPLINK, WORLDS, World},
};

pub struct Bench {
    programs: Programs,
    pub maps: Maps,
    services: Services,
    /// Where its maps are pinned.
    pub root: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = orch_dataplane::remove_pins(&self.root);
    }
}

/// Moves the calling thread into a namespace with the world's interfaces.
fn enter() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip(&format!(
        "link set lo up
         link add uplink index {UPLINK} type veth peer name far index 11
         link add pod index {POD_LINK} type veth peer name pod-inside index 23
         link add other index {OTHER_LINK} type veth peer name other-inside index 24
         link add tunnel index {TUNNEL} type vxlan external dstport 4789"
    ));
}

/// Runs `ip` with each of the lines.
pub fn ip(lines: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip refused one of: {lines}");
}

impl Bench {
    /// The world's nodes, pods and usual services, in both families.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        enter();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root = PathBuf::from(format!("/sys/fs/bpf/orch-run-{}-{number}", std::process::id()));
        let (programs, maps) = load::load(&root).unwrap();
        let services = Services::adopt(&maps).unwrap();
        let mut bench = Self {
            programs,
            maps,
            services,
            root,
        };
        bench.configure(|_| ());
        let [four, six] = &WORLDS;
        fill(&mut bench.maps.v4, four);
        fill(&mut bench.maps.v6, six);
        let specs = WORLDS.map(|world| usual(&world));
        for ((name, four), (_, six)) in specs[0].iter().zip(&specs[1]) {
            bench.put_both(name, Some(four), Some(six));
        }
        bench
    }

    /// Writes the node's settings, after `change`.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let [four, six] = &WORLDS;
        let mut config = Config {
            abi_version: ABI_VERSION,
            uplink_ifindex: UPLINK,
            uplink_mtu: MTU,
            tunnel_mtu: TUNNEL_MTU,
            v4: settings(four),
            v6: settings(six),
            ..Config::default()
        };
        change(&mut config);
        self.maps.config.set(0, config, 0).unwrap();
    }

    fn put_both(&mut self, name: &str, four: Option<&Spec>, six: Option<&Spec>) {
        let [v4, v6] = &WORLDS;
        let both = Both {
            v4: four.map(|spec| spec.desired(v4)).unwrap_or_default(),
            v6: six.map(|spec| spec.desired(v6)).unwrap_or_default(),
        };
        self.services.put(&mut self.maps, name, &both).unwrap();
        self.services.flush(&mut self.maps).unwrap();
    }

    /// Writes a service in one family.
    pub fn put(&mut self, world: &World, name: &str, spec: &Spec) {
        let name = format!("{}-{name}", world.name);
        if world.pod.is_ipv4() {
            self.put_both(&name, Some(spec), None);
        } else {
            self.put_both(&name, None, Some(spec));
        }
    }

    /// Gives one of the usual services other backends, in both families.
    pub fn refill(&mut self, protocol: u8, port: u16, backends: impl Fn(&World) -> Vec<(IpAddr, u16)>) {
        let [four, six] = WORLDS.map(|world| Spec::new(port, protocol, &backends(&world)));
        self.put_both(&format!("{protocol}-{port}"), Some(&four), Some(&six));
    }

    /// Runs the program over the bytes.
    pub fn run(&mut self, at: At, bytes: &[u8]) -> (u32, Vec<u8>) {
        self.run_segmented(at, bytes, 0)
    }

    /// Runs the program over each packet of both lists, one list on a thread of its own; what became of each.
    pub fn run_at_once(&mut self, at: At, lists: [Vec<Vec<u8>>; 2]) -> Vec<u32> {
        let (name, ifindex) = at.program();
        let Some(Program::SchedClassifier(program)) = self.programs.ebpf().program(name) else {
            panic!("there is no program {name}")
        };
        let run = |list: Vec<Vec<u8>>| -> Vec<u32> {
            let mut context = vec![0; 192];
            context[40..44].copy_from_slice(&u32::to_ne_bytes(ifindex));
            let one = |bytes: &Vec<u8>| {
                let options = TestRunOptions {
                    data_in: Some(bytes),
                    ctx_in: Some(&context),
                    ..TestRunOptions::new()
                };
                SchedClassifier::test_run(program, options).unwrap().return_value
            };
            list.iter().map(one).collect()
        };
        let [first, second] = lists;
        std::thread::scope(|scope| {
            let beside = scope.spawn(|| run(second));
            let mut all = run(first);
            all.extend(beside.join().unwrap());
            all
        })
    }

    /// Runs the program over bytes that stand for segments of this size.
    pub fn run_segmented(&mut self, at: At, bytes: &[u8], segment: u32) -> (u32, Vec<u8>) {
        let (name, ifindex) = at.program();
        let mut out = vec![0; bytes.len() + 256];
        let mut context;
        let options = TestRunOptions {
            data_in: Some(bytes),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        };
        let result = match self.programs.ebpf().program(name) {
            Some(Program::SchedClassifier(program)) => {
                // `struct __sk_buff`: the interface and the size of a segment.
                context = vec![0; 192];
                context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
                context[176..180].copy_from_slice(&segment.to_ne_bytes());
                let options = TestRunOptions {
                    ctx_in: Some(&context),
                    ..options
                };
                SchedClassifier::test_run(program, options)
            }
            Some(Program::Xdp(program)) => {
                // `struct xdp_md`: the frame's end and the interface.
                context = vec![0; 24];
                context[4..8].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
                context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
                let options = TestRunOptions {
                    ctx_in: Some(&context),
                    ..options
                };
                Xdp::test_run(program, options)
            }
            _ => panic!("there is no program {name}"),
        };
        let result = result.unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// Runs the program over a packet and reads what comes out.
    pub fn see(&mut self, at: At, packet: &Packet) -> (u32, Seen) {
        let (verdict, bytes) = self.run(at, &packet.bytes());
        (verdict, read(&bytes))
    }

    /// Every counter that is not zero.
    pub fn counters(&self) -> BTreeMap<u32, u64> {
        (0..METRICS_MAX as u32)
            .map(|index| {
                let all = self.maps.metrics.get(&index, 0).unwrap();
                (index, all.iter().map(|counter| counter.packets).sum())
            })
            .filter(|(_, packets)| *packets != 0)
            .collect()
    }

    /// What has been counted since, in words.
    pub fn counted(&self, before: &BTreeMap<u32, u64>) -> Vec<(Count, u64)> {
        self.counters()
            .into_iter()
            .filter_map(|(index, now)| {
                let more = now - before.get(&index).copied().unwrap_or(0);
                (more > 0).then(|| (Count::of_index(index).unwrap(), more))
            })
            .collect()
    }

    /// Runs a case and insists on each byte and counter.
    pub fn check(&mut self, world: &World, case: &Case) {
        let title = format!("{} {}", world.name, case.name);
        let before = self.counters();
        let (verdict, out) = self.run(case.at, &case.sent.bytes());
        let counted = self.counted(&before);
        assert_eq!(verdict, case.verdict, "{title}: verdict; {counted:?}");
        let seen = read(&out);
        let wanted = case.out.bytes();
        assert_eq!(seen, read(&wanted), "{title}; {counted:?}");
        assert_eq!(out, wanted, "{title}: bytes of {seen:?}");
        let mut counts: Vec<_> = case.counts.iter().map(|count| (*count, 1)).collect();
        counts.sort_by_key(|(count, _)| count.index());
        assert_eq!(counted, counts, "{title}: counters");
    }

    /// Runs the program over bytes that no [`Packet`] describes, and insists on each byte and counter.
    pub fn insist(
        &mut self,
        title: &str,
        at: At,
        (sent, verdict, out): (&[u8], u32, &[u8]),
        counts: &[Count],
    ) {
        let before = self.counters();
        let (found, bytes) = self.run(at, sent);
        let counted = self.counted(&before);
        assert_eq!(found, verdict, "{title}: verdict; {counted:?}");
        assert_eq!(bytes, out, "{title}: bytes; {counted:?}");
        let mut counts: Vec<_> = counts.iter().map(|count| (*count, 1)).collect();
        counts.sort_by_key(|(count, _)| count.index());
        assert_eq!(counted, counts, "{title}: counters");
    }

    /// Runs cases that have nothing to do with each other.
    pub fn check_each(&mut self, world: &World, cases: &[Case]) {
        for case in cases {
            self.forget();
            self.check(world, case);
        }
    }

    /// Forgets flows and clients.
    pub fn forget(&mut self) {
        self.maps.v4.forget_flows(|_, _| true).unwrap();
        self.maps.v6.forget_flows(|_, _| true).unwrap();
        for (key, _) in entries(AFFINITY_MAP, &self.maps.affinity).unwrap() {
            self.maps.affinity.remove(&key).unwrap();
        }
    }
}

fn settings<A: Address>(world: &World) -> FamilyConfig<A> {
    let family = |ip| A::from_ip(ip).unwrap();
    FamilyConfig {
        node_address: family(world.node),
        cluster_address: family(world.cluster.0),
        cluster_mask: family(world.cluster.1),
        service_address: family(world.services.0),
        service_mask: family(world.services.1),
        dns_address: family(world.dns),
    }
}

fn fill<A: MapAddress>(maps: &mut FamilyMaps<A>, world: &World) {
    let family = |ip| A::from_ip(ip).unwrap();
    for (ip, kind) in [(world.node, NODE_LOCAL), (world.neighbour, NODE_REMOTE)] {
        maps.nodes.insert(family(ip), Node { kind }, 0).unwrap();
    }
    for (ip, ifindex, macs) in [
        (world.pod, POD_LINK, POD_MACS),
        (world.other, OTHER_LINK, OTHER_MACS),
    ] {
        let (pod, node) = macs.split_at(6);
        let endpoint = Endpoint {
            ifindex,
            policy: 0,
            flags: 0,
            pod_mac: pod.try_into().unwrap(),
            node_mac: node.try_into().unwrap(),
            uid: [0; 40],
        };
        maps.endpoints.insert(family(ip), endpoint, 0).unwrap();
    }
}

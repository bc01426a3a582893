//! Nanoseconds that the balancer takes for a packet, as the kernel counts them, with up to 100,000 services.
//!
//! "Live frames" are pages that the kernel fills, hands to the program as a driver does, and sends out of the uplink. It
//! fills a page once and uses it again as the program left it, already translated; a socket at the far end that keeps
//! every page makes it fill a new one for each. All live frames of a call are the same: so those of many flows, known or
//! new, are written over by another program (`feed`) just before. Frames that come in by the uplink one at a time find
//! caches that whoever sent them has used meanwhile. What the kernel's clock and the way to the program add is in the
//! numbers, and measured beside them by frames that the program leaves at once. Run by `cargo xtask bench dataplane`.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "../tests/support/packet.rs"]
#[expect(dead_code, reason = "of the packets that tests write, a benchmark needs few")]
mod packet;
#[expect(dead_code, reason = "each benchmark uses a part of what they share")]
mod support;
#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "of what tests share, a benchmark needs namespaces only")]
mod tests;

use std::{sync::Arc, time::Duration};

use aya::{
    programs::{Program, TestRun as _, TestRunAttrs, TestRunOptions, Xdp},
    sys::{Stats, enable_stats},
};
use orch_cluster::Cluster;
use orch_dataplane::{Dataplane, DataplaneConfig, load};
use orch_ebpf::{config::CONFIG_MAP, conntrack::CONNTRACK_MAX, feed::Frame, service::SERVICES_MAX};
use packet::{ACK, TCP, packet};
use support::{
    CLIENT, NODE, OTHER, Place, Row,
    api::{self, Api},
    frames::{Count, Feed, Keeper, Sender},
    objects, row,
};

const PROGRAM: &str = "uplink_xdp";
const SIZES: [usize; 4] = [1, 1_000, 10_000, 100_000];
/// The same where packets go on as they are, in one of their own ("direct server return"), as Katran's do.
const DIRECT_SIZES: [usize; 2] = [1, 1_000];
/// Endpoints of each service, and at least so many in all: the balancer speaks to each from one address, and has but
/// as many ports there.
const ENDPOINTS: usize = 3;
const ENDPOINTS_IN_ALL: usize = 30;
/// Frames that the kernel runs in a row: as many as a driver handles at once (`NAPI_POLL_WEIGHT`).
const BATCH: u32 = 64;
/// Live frames of a call.
const FRAMES: u32 = 65_536;
/// Flows of which packets come in by turns, spread over the services.
const FLOWS: usize = 1_000;
/// Frames of a round that come in by the uplink: of known flows, and of new ones.
const SENT: usize = 20_000;
const NEW: usize = 2_000;
/// Rounds, of which the middle counts.
const ROUNDS: usize = 7;
/// The most that Katran takes for a packet of a known flow, in nanoseconds: 74 with the clock, which took 20 of them.
const GOAL: f64 = 54.0;
/// What Katran takes for one of a new flow with as many addresses, without the clock: as measured beside this program, fed
/// in the same way, on a virtual machine with 2 CPUs. It was built for 10,240 addresses for the last, whose tables take 5 GB,
/// and cannot have more on that machine: ours with 100,000 services is held to that as well.
const GOALS_NEW: [(usize, f64); 3] = [(1, 646.0), (1_000, 1020.0), (10_000, 5130.0)];

fn main() {
    let place = Place::enter();
    let _stats = enable_stats(Stats::RunTime).unwrap();
    let runtime = support::runtime();
    let mut rows = Vec::new();
    let modes = SIZES.map(|size| (size, false)).into_iter();
    for (size, direct_return) in modes.chain(DIRECT_SIZES.map(|size| (size, true))) {
        let mut settings = support::settings(&format!("xdp-{size}-{direct_return}"));
        settings.direct_return = direct_return;
        rows.extend(runtime.block_on(with(size, &settings, &place)));
    }
    drop(place);
    support::print(&rows);
}

async fn with(size: usize, config: &DataplaneConfig, place: &Place) -> Vec<Row> {
    let mut api = Api::default();
    api.list(
        api::NODES,
        [("n1", NODE, "10.128.1.0/24"), ("n2", OTHER, "10.192.0.0/10")]
            .into_iter()
            .map(|(name, address, cidr)| objects::node(name, address, cidr)),
    );
    // A balanced one is three entries: its ClusterIP, and the balancer's address from inside and from outside. As many
    // are balanced as fit.
    let balanced = size.min((SERVICES_MAX - size) / 2);
    api.list(
        api::SERVICES,
        (0..size).map(|number| objects::service(number, number < balanced)),
    );
    let each = ENDPOINTS.max(ENDPOINTS_IN_ALL / size);
    let addresses = |number| -> Vec<_> {
        (0..each)
            .map(|index| objects::endpoint_ip(number * each + index))
            .collect()
    };
    api.list(
        api::SLICES,
        (0..size).map(|number| objects::slice(number, &addresses(number))),
    );
    // What is measured goes to stdout; this is for whoever waits.
    let mode = if config.direct_return {
        ", direct server return"
    } else {
        ""
    };
    eprintln!("· {size} services{mode}");
    let dataplane = Dataplane::start(config.clone(), Cluster::start(Arc::new(api).client()))
        .await
        .unwrap();
    support::until_services(config, size + 2 * balanced).await;
    // A second set of programs on the same maps: that which is attached is not ours to run.
    let (mut programs, _maps) = load::load(&config.bpf_root).unwrap();
    let Some(Program::Xdp(program)) = programs.ebpf().program(PROGRAM) else {
        panic!("there is no program {PROGRAM}")
    };
    let bench = Bench {
        program,
        count: Count::new(PROGRAM, &config.bpf_root.join("maps").join(CONFIG_MAP)),
        place,
        sender: Sender::new(&place.outside),
        context: context(),
        services: size,
        balanced,
        direct_return: config.direct_return,
    };
    let rows = bench.measure(&mut Feed::new(program));
    drop(dataplane);
    rows
}

struct Bench<'a> {
    program: &'a Xdp,
    count: Count,
    place: &'a Place,
    sender: Sender,
    context: Vec<u8>,
    services: usize,
    balanced: usize,
    direct_return: bool,
}

/// [`GOALS_NEW`] for so many services.
fn goal_new(services: usize) -> f64 {
    let known = GOALS_NEW.iter().rev().find(|(size, _)| *size <= services);
    known.unwrap().1
}

/// `struct xdp_md` of a frame that came in by the uplink: data, its end, metadata, interface, queue, egress.
fn context() -> Vec<u8> {
    let index = nix::net::if_::if_nametoindex("eth0").unwrap();
    // The end is filled in for each packet.
    [0, 0, 0, index, 0, 0]
        .iter()
        .flat_map(|field: &u32| field.to_ne_bytes())
        .collect()
}

/// A segment of the n-th flow to the n-th service, in turns.
fn segment(number: usize, services: usize, flags: u8) -> Vec<u8> {
    let service = number % services.min(FLOWS);
    // Spread over all, and not over the first only.
    let service = service * (services / services.min(FLOWS));
    let port = 1024 + (number % 60_000) as u16;
    // As many clients as it takes, each with its ports.
    let client = std::net::Ipv4Addr::from_bits(CLIENT.to_bits() + ((number / 60_000) << 8) as u32);
    let mut packet = packet(TCP, (client, port), (objects::balancer_ip(service), 80));
    packet.flags = flags;
    packet.bytes()
}

impl Bench<'_> {
    /// Runs the program over so many frames with these bytes.
    fn run(&self, bytes: &[u8], frames: u32) {
        self.run_program(self.program, bytes, frames);
    }

    fn run_program(&self, program: &Xdp, bytes: &[u8], frames: u32) {
        let mut context = self.context.clone();
        context[4..8].copy_from_slice(&(bytes.len() as u32).to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(bytes),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(frames.min(BATCH)),
            ..TestRunOptions::new()
        };
        program.test_run(options).unwrap();
    }

    /// Nanoseconds a run while `work` makes the program run. Where it balances, insists that the
    /// frames came back out: else it was something else that was measured.
    fn cost(&self, count: &Count, balances: bool, work: impl FnOnce()) -> f64 {
        let (runs, time) = count.now();
        let before = self.arrived();
        work();
        std::thread::sleep(Duration::from_millis(20));
        let (more, later) = count.now();
        let (runs, arrived) = ((more - runs) as f64, (self.arrived() - before) as f64);
        assert!(
            // Announcements of addresses arrive as well.
            !balances || (runs * 0.99..=runs * 1.2).contains(&arrived),
            "of {runs} frames {arrived} were sent on"
        );
        (later - time) as f64 / runs
    }

    /// Frames that have arrived at the other end of the uplink.
    fn arrived(&self) -> u64 {
        let output = tests::run(
            "ip",
            &["-n", &self.place.outside.name, "-s", "-j", "link", "show", "eth0"],
        );
        let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    }

    fn live(&self, balances: bool, bytes: &[u8]) -> f64 {
        let keeper = Keeper::new(&self.place.outside);
        let cost = self.cost(&self.count, balances, || self.run(bytes, FRAMES));
        drop(keeper);
        cost
    }

    fn sent(&self, balances: bool, frames: usize, frame: impl Fn(usize) -> Vec<u8>) -> f64 {
        self.cost(&self.count, balances, || {
            (0..frames).for_each(|number| self.sender.send(&frame(number)))
        })
    }

    /// Live frames, each with the bytes of the next of these.
    fn fed(
        &self,
        feed: &mut Feed,
        balances: bool,
        frames: u32,
        prepared: impl ExactSizeIterator<Item = Vec<u8>>,
    ) -> f64 {
        feed.prepare(prepared);
        let blank = [0; size_of::<Frame>()];
        self.cost(&feed.count(), balances, || {
            self.run_program(feed.program(), &blank, frames);
        })
    }

    fn measure(&self, feed: &mut Feed) -> Vec<Row> {
        let middle = |measure: &mut dyn FnMut(usize) -> f64| {
            let mut costs: Vec<f64> = (0..ROUNDS).map(measure).collect();
            support::quantile(&mut costs, 0.5)
        };
        let of = |number, flags| segment(number, self.balanced, flags);
        // An EtherType of nobody's, which the program leaves at its first look.
        let mut foreign = of(0, ACK);
        foreign[12..14].copy_from_slice(&[0x88, 0xb5]);
        let nothing = middle(&mut |_| self.live(false, &foreign));
        let nothing_fed = middle(&mut |_| self.fed(feed, false, FRAMES, std::iter::once(foreign.clone())));
        let nothing_sent = middle(&mut |_| self.sent(false, SENT, |_| foreign.clone()));
        for flow in 0..FLOWS {
            self.run(&of(flow, packet::SYN), 1);
        }
        let established = middle(&mut |round| self.live(true, &of(round, ACK)));
        let turns = middle(&mut |_| self.fed(feed, true, FRAMES, (0..FLOWS).map(|flow| of(flow, ACK))));
        let turns_sent = middle(&mut |_| self.sent(true, SENT, |number| of(number % FLOWS, ACK)));
        // Each flow once: the first are those above, and each round has its own.
        let fresh = |round: usize, number: usize| of(FLOWS + round * NEW + number, packet::SYN);
        let mut open = |round: usize| {
            let flows = (0..NEW).map(|number| fresh(round, number));
            self.fed(feed, true, NEW as u32, flows)
        };
        let new = middle(&mut open);
        let new_sent = middle(&mut |round| self.sent(true, NEW, |number| fresh(ROUNDS + round, number)));
        // As a flood leaves the table: full of flows that nobody has answered.
        let flooded = (self.services == SIZES[0]).then(|| {
            let full = 2 * ROUNDS + CONNTRACK_MAX / NEW;
            for round in 2 * ROUNDS..full {
                open(round);
            }
            middle(&mut |round| open(full + round))
        });
        let mode = if self.direct_return {
            "direct server return, "
        } else {
            ""
        };
        let what = |what: &str| format!("{mode}{what}, {} services", self.services);
        // As much as that beside what this machine's clock takes.
        let bounded = |row, clock: f64, goal: f64| Row {
            goal: Some(format!("<= {:.0}", clock + goal)),
            ..row
        };
        let live = "live frames";
        let sent = "one frame at a time";
        let row = |subject: &str, how: &str, value| row(what(&format!("{subject}, {how}")), value, "ns");
        let mut rows = vec![
            bounded(row("one established flow", live, established), nothing, GOAL),
            row("no flow of ours", live, nothing),
            bounded(row("new flows", live, new), nothing_fed, goal_new(self.services)),
            row("1,000 flows by turns", live, turns),
            row("no flow of ours, fed", live, nothing_fed),
            row("new flows", sent, new_sent),
            row("1,000 flows by turns", sent, turns_sent),
            row("no flow of ours", sent, nothing_sent),
        ];
        rows.extend(flooded.map(|flooded| row("new flows in a full table", live, flooded)));
        rows
    }
}

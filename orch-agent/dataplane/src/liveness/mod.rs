//! Whether other nodes live: one task asks them, for services, which leave out the backends of nodes that are silent, and
//! for announcements.
//!
//! The control plane takes a node for lost after some forty seconds. Until then its backends would get their share of new
//! connections; so each agent judges by itself what it can reach.

mod lives;
mod ping;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

pub use self::lives::{Life, Seen};
use self::{lives::Lives, ping::Pinger};
use crate::shared::Shared;

/// How often nodes are asked whether they live; those that answer, and that only services are interested in, every other
/// time.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// By how much of it a round comes sooner or later, so that agents do not all ask at one instant.
const JITTER: f64 = 0.1;
/// After how many questions answers are read.
const TURN: usize = 64;
/// How long to wait before trying again what the kernel has refused.
const RETRY: Duration = Duration::from_secs(1);

/// Nodes, with their addresses.
pub type Nodes = BTreeMap<String, Vec<IpAddr>>;
/// What is known of each node that is asked.
pub type Heard = BTreeMap<String, Seen>;

/// Who is to be asked, and what they have answered.
#[derive(Debug, Default)]
pub struct Liveness {
    wanted: watch::Sender<Wanted>,
    heard: watch::Sender<Arc<Heard>>,
}

#[derive(Debug, Clone, Default)]
struct Wanted {
    services: Nodes,
    announcements: Nodes,
}

impl Liveness {
    /// Has the nodes asked that hold backends.
    pub fn ask_for_services(&self, nodes: Nodes) {
        self.wanted
            .send_if_modified(|wanted| replace(&mut wanted.services, nodes));
    }

    /// Has the nodes asked on whose lives announcements depend.
    pub fn ask_for_announcements(&self, nodes: Nodes) {
        self.wanted
            .send_if_modified(|wanted| replace(&mut wanted.announcements, nodes));
    }

    /// What is known, now and whenever it changes.
    pub fn heard(&self) -> watch::Receiver<Arc<Heard>> {
        self.heard.subscribe()
    }

    /// How many of the nodes that are asked answer, are silent but not left out, are left out, and never answered.
    pub fn counts(&self) -> [(&'static str, usize); 4] {
        let mut counts = [("answering", 0), ("silent", 0), ("left_out", 0), ("unknown", 0)];
        for seen in self.heard.borrow().values() {
            let [answering, silent, left_out, unknown] = &mut counts;
            let (_, count) = match seen {
                Seen { left_out: true, .. } => left_out,
                Seen { known: false, .. } => unknown,
                Seen { life: Life::Dead, .. } => silent,
                Seen { .. } => answering,
            };
            *count += 1;
        }
        counts
    }
}

/// The nodes whose backends get no new connections.
pub fn left_out(heard: &Heard) -> BTreeSet<String> {
    let left_out = heard.iter().filter(|(_, seen)| seen.left_out);
    left_out.map(|(name, _)| name.clone()).collect()
}

fn replace<T: PartialEq>(known: &mut T, new: T) -> bool {
    let differs = *known != new;
    *known = new;
    differs
}

/// Asks until the task is dropped; nobody is asked, and nothing wakes, while nobody is to be.
pub async fn run(shared: Arc<Shared>) {
    let pinger = loop {
        match Pinger::new() {
            Ok(pinger) => break pinger,
            Err(error) => {
                tracing::error!(
                    %error,
                    "other nodes cannot be asked whether they live: the control plane alone judges them"
                );
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        }
    };
    let mut wanted = shared.liveness.wanted.subscribe();
    wanted.mark_changed();
    let mut asker = Asker {
        shared: Arc::clone(&shared),
        pinger,
        lives: Lives::default(),
        nodes: BTreeMap::new(),
        names: HashMap::new(),
        found: Vec::new(),
        stale: false,
    };
    let mut next = Instant::now();
    loop {
        let busy = !asker.nodes.is_empty();
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = wanted.borrow_and_update().clone();
                asker.take(wanted);
                if !busy {
                    next = Instant::now();
                }
            }
            () = tokio::time::sleep_until(next), if busy => {
                next = Instant::now() + ASK_EVERY.mul_f64(rand::random_range(1.0 - JITTER..1.0 + JITTER));
                asker.round();
            }
            read = asker.pinger.answers(&mut asker.found), if busy => {
                if let Err(error) = read {
                    tracing::warn!(%error, "answers of other nodes cannot be read");
                    tokio::time::sleep(RETRY).await;
                }
                asker.note();
            }
        }
    }
}

/// A node that is asked.
struct Asked {
    addresses: Vec<IpAddr>,
    /// Whether every time.
    closely: bool,
}

struct Asker {
    shared: Arc<Shared>,
    pinger: Pinger,
    lives: Lives,
    nodes: BTreeMap<String, Asked>,
    /// Whose an address is; of several nodes where they claim the same.
    names: HashMap<IpAddr, Vec<String>>,
    /// Where answers came from, until they are noted.
    found: Vec<IpAddr>,
    /// Whether other nodes are asked than those of whom was last told.
    stale: bool,
}

impl Asker {
    fn take(&mut self, wanted: Wanted) {
        self.nodes.clear();
        for (nodes, closely) in [(wanted.services, false), (wanted.announcements, true)] {
            self.nodes.extend(
                nodes
                    .into_iter()
                    .map(|(name, addresses)| (name, Asked { addresses, closely })),
            );
        }
        self.names.clear();
        for (name, asked) in &self.nodes {
            for address in &asked.addresses {
                self.names.entry(*address).or_default().push(name.clone());
            }
        }
        self.stale = true;
        if self.nodes.is_empty() {
            self.lives = Lives::default();
            self.publish();
        }
    }

    fn note(&mut self) {
        for address in self.found.drain(..) {
            for name in self.names.get(&address).into_iter().flatten() {
                self.lives.answered(name);
            }
        }
    }

    /// Judges by what has come of the last round, and asks again.
    fn round(&mut self) {
        // What came while this process had no turn counts.
        self.pinger.answers_so_far(&mut self.found);
        self.note();
        let suspected = self.lives.suspects_itself();
        let changed = self.lives.judge();
        if !suspected && self.lives.suspects_itself() {
            tracing::warn!(
                "most nodes have stopped answering: this node's own network may be at fault, nobody is left out"
            );
        }
        let Self {
            nodes,
            lives,
            pinger,
            found,
            ..
        } = self;
        let mut asked = 0;
        let all = nodes.iter().map(|(name, asked)| (name, asked.closely));
        lives.round(all, |name| {
            for address in nodes.get(name).into_iter().flat_map(|node| &node.addresses) {
                if let Err(error) = pinger.ask(*address) {
                    tracing::debug!(%error, %address, "a node cannot be asked whether it lives");
                }
                asked += 1;
                if asked % TURN == 0 {
                    pinger.answers_so_far(found);
                }
            }
        });
        self.note();
        if changed || std::mem::take(&mut self.stale) {
            self.publish();
        }
    }

    fn publish(&self) {
        let seen = self.lives.seen();
        self.shared.liveness.heard.send_if_modified(|heard| {
            if **heard == seen {
                return false;
            }
            for name in left_out(&seen).difference(&left_out(heard)) {
                tracing::warn!(node = %name, "the node does not answer: new connections go to other nodes' backends");
            }
            for (name, now) in seen.iter().filter(|(_, now)| !now.left_out) {
                if heard.get(name).is_some_and(|before| before.left_out) {
                    tracing::info!(node = %name, life = ?now.life, "the node answers again: its backends get connections");
                }
            }
            *heard = Arc::new(seen);
            true
        });
    }
}

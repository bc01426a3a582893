//! [`schedule`]: which node a pod goes to, or why to none.

use std::collections::{BTreeMap, BTreeSet};

use crate::framework::{Cycle, Reason};
use crate::plugins::{FILTERS, SCORES};
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes to this node.
    Bind {
        /// The node's name.
        node: String,
    },
    /// No node can take it now.
    Unschedulable {
        /// Why, in Kubernetes' words.
        message: String,
        /// The plug-ins that ruled nodes out.
        plugins: BTreeSet<&'static str>,
    },
}

/// Decides where `pod` goes. No I/O, no clock, no randomness: of equally good nodes a hash of the pod's uid and the
/// node's name chooses one.
pub fn schedule(snapshot: &Snapshot, pod: &PodInfo) -> Decision {
    let cycle = Cycle { snapshot, pod };
    if let Some(reason) = &pod.wishes.unsupported {
        let message = message(snapshot.nodes().count(), [(reason.clone().into(), 0)]);
        return Decision::Unschedulable {
            message,
            plugins: BTreeSet::new(),
        };
    }
    let filters: Vec<_> = FILTERS
        .iter()
        .filter_map(|f| Some((f.name(), f.filter(cycle)?)))
        .collect();
    let (mut total, mut feasible, mut reasons) = (0, Vec::new(), BTreeMap::<Reason, usize>::new());
    let mut plugins = BTreeSet::new();
    for node in snapshot.nodes() {
        let Some(facts) = &node.facts else { continue };
        total += 1;
        match filters
            .iter()
            .map(|(name, f)| (name, f(node, facts)))
            .find(|(_, r)| !r.is_empty())
        {
            None => feasible.push(node),
            Some((name, rejected)) => {
                plugins.insert(*name);
                rejected
                    .into_iter()
                    .for_each(|r| *reasons.entry(r).or_default() += 1);
            }
        }
    }
    match feasible.as_slice() {
        [] => Decision::Unschedulable {
            message: message(total, reasons),
            plugins,
        },
        [only] => Decision::Bind {
            node: only.name.clone(),
        },
        _ => Decision::Bind {
            node: best(cycle, &feasible),
        },
    }
}

fn best<'a>(cycle: Cycle<'a>, feasible: &[&'a NodeInfo]) -> String {
    let mut totals = vec![0i64; feasible.len()];
    for plugin in SCORES {
        let Some(score) = plugin.score(cycle, feasible) else {
            continue;
        };
        let mut scores: Vec<i64> = feasible
            .iter()
            .map(|n| n.facts.as_ref().map_or(0, |facts| score(n, facts)))
            .collect();
        plugin.normalize(&mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += score * plugin.weight();
        }
    }
    let ranked = feasible
        .iter()
        .zip(totals)
        .max_by_key(|(node, total)| (*total, tie(&cycle.pod.uid, &node.name)));
    ranked.map(|(node, _)| node.name.clone()).unwrap_or_default()
}

/// FNV-1a with a final mix: the same on every machine and in every version.
fn tie(uid: &str, node: &str) -> u64 {
    let mut hash = uid
        .bytes()
        .chain([0])
        .chain(node.bytes())
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ hash >> 33
}

/// Kubernetes' message: how many nodes said what. A count of zero stands for a reason that is about no node.
fn message(total: usize, reasons: impl IntoIterator<Item = (Reason, usize)>) -> String {
    if total == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let said = |(reason, count): (Reason, usize)| match count {
        0 => reason.into_owned(),
        _ => format!("{count} {reason}"),
    };
    let mut said: Vec<String> = reasons.into_iter().map(said).collect();
    said.sort();
    format!("0/{total} nodes are available: {}.", said.join(", "))
}

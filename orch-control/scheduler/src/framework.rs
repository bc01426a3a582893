//! What a plug-in is: a filter that rules nodes out, a score that ranks them, or both.
//!
//! A plug-in looks at the pod and the snapshot once (Kubernetes' PreFilter and PreScore) and hands back a closure
//! that judges one node at a time, or nothing if it has no opinion on this pod.

use std::borrow::Cow;

use crate::pod::PodInfo;
use crate::snapshot::{NodeFacts, NodeInfo, Snapshot};

/// The highest score a plug-in gives a node after normalisation.
pub const MAX_SCORE: i64 = 100;

/// The pod at hand and the world it is to be placed in.
#[derive(Clone, Copy)]
pub struct Cycle<'a> {
    /// All nodes and pods.
    pub snapshot: &'a Snapshot,
    /// The pod to be placed.
    pub pod: &'a PodInfo,
}

/// A reason why a node cannot take the pod, as users read it after a number of nodes.
pub type Reason = Cow<'static, str>;

/// Judges one node: no reasons means that the node fits.
pub type NodeFilter<'a> = Box<dyn Fn(&NodeInfo, &NodeFacts) -> Vec<Reason> + 'a>;

/// Gives one node a raw score.
pub type NodeScore<'a> = Box<dyn Fn(&NodeInfo, &NodeFacts) -> i64 + 'a>;

/// What all plug-ins have.
pub trait Plugin: Sync {
    /// Kubernetes' name of the plug-in.
    fn name(&self) -> &'static str;
}

/// A plug-in that rules nodes out.
pub trait Filter: Plugin {
    /// The judgement for this pod, or `None` if every node is fine.
    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<NodeFilter<'a>>;
}

/// A plug-in that ranks the nodes that were not ruled out.
pub trait Score: Plugin {
    /// How much the plug-in's score counts (Kubernetes' default weights).
    fn weight(&self) -> i64;
    /// The ranking for this pod among `feasible`, or `None` if all nodes are equally good.
    fn score<'a>(&self, cycle: Cycle<'a>, feasible: &[&'a NodeInfo]) -> Option<NodeScore<'a>>;
    /// Brings raw scores to `0..=MAX_SCORE`; by default they are already.
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// Scales scores so that the highest becomes [`MAX_SCORE`]; `reverse` makes the highest the worst.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if max == 0 { 0 } else { *score * MAX_SCORE / max };
        *score = if reverse { MAX_SCORE - scaled } else { scaled };
    }
}

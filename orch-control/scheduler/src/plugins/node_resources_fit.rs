//! NodeResourcesFit: a node's pods never ask for more than it has; the emptier node is the better one.

use crate::framework::{Cycle, Filter, MAX_SCORE, NodeFilter, NodeScore, Plugin, Reason, Score};
use crate::resources::Resources;
use crate::snapshot::NodeInfo;

/// See the module; scoring is Kubernetes' LeastAllocated over CPU and memory.
pub struct NodeResourcesFit;

fn lacks(wanted: &Resources, used: &Resources, has: &Resources) -> Vec<Reason> {
    let full = |wanted: i64, used: i64, has: i64| wanted > 0 && wanted > has.saturating_sub(used);
    let mut out: Vec<Reason> = Vec::new();
    if used.pods.saturating_add(1) > has.pods {
        out.push("Too many pods".into());
    }
    if full(wanted.milli_cpu, used.milli_cpu, has.milli_cpu) {
        out.push("Insufficient cpu".into());
    }
    if full(wanted.memory, used.memory, has.memory) {
        out.push("Insufficient memory".into());
    }
    if full(
        wanted.ephemeral_storage,
        used.ephemeral_storage,
        has.ephemeral_storage,
    ) {
        out.push("Insufficient ephemeral-storage".into());
    }
    for (name, amount) in &wanted.extended {
        let of = |r: &Resources| r.extended.get(name).copied().unwrap_or(0);
        if full(*amount, of(used), of(has)) {
            out.push(format!("Insufficient {name}").into());
        }
    }
    out
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }
}

impl Filter for NodeResourcesFit {
    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<NodeFilter<'a>> {
        Some(Box::new(move |node, facts| {
            lacks(&cycle.pod.requests, &node.requested, &facts.allocatable)
        }))
    }
}

impl Score for NodeResourcesFit {
    fn weight(&self) -> i64 {
        1
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<NodeScore<'a>> {
        let free = |used: i64, wanted: i64, has: i64| {
            let left = has.saturating_sub(used).saturating_sub(wanted);
            if has <= 0 || left < 0 {
                0
            } else {
                (i128::from(left) * i128::from(MAX_SCORE) / i128::from(has)) as i64
            }
        };
        let (cpu, memory) = cycle.pod.scoring;
        Some(Box::new(move |node, facts| {
            (free(node.scoring.0, cpu, facts.allocatable.milli_cpu)
                + free(node.scoring.1, memory, facts.allocatable.memory))
                / 2
        }))
    }
}

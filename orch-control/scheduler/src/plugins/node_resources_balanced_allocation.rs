//! NodeResourcesBalancedAllocation: a node whose CPU and memory fill up alike can take more in the end.

use crate::framework::{Cycle, MAX_SCORE, NodeScore, Plugin, Score};
use crate::snapshot::NodeInfo;

/// See the module.
pub struct NodeResourcesBalancedAllocation;

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }
}

impl Score for NodeResourcesBalancedAllocation {
    fn weight(&self) -> i64 {
        1
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<NodeScore<'a>> {
        let wanted = &cycle.pod.requests;
        if wanted.milli_cpu == 0 && wanted.memory == 0 {
            return None;
        }
        let share = |used: i64, wanted: i64, has: i64| match has {
            ..=0 => None,
            _ => Some((used.saturating_add(wanted) as f64 / has as f64).min(1.0)),
        };
        Some(Box::new(move |node, facts| {
            let (used, has) = (&node.requested, &facts.allocatable);
            let cpu = share(used.milli_cpu, wanted.milli_cpu, has.milli_cpu);
            let memory = share(used.memory, wanted.memory, has.memory);
            // The standard deviation of two values is half their distance.
            let deviation = cpu.zip(memory).map_or(0.0, |(c, m)| (c - m).abs() / 2.0);
            ((1.0 - deviation) * MAX_SCORE as f64) as i64
        }))
    }
}

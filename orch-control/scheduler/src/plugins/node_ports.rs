//! NodePorts: two pods cannot have the same port of one node.

use crate::framework::{Cycle, Filter, NodeFilter, Plugin};

/// See the module.
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }
}

impl Filter for NodePorts {
    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<NodeFilter<'a>> {
        let wanted = &cycle.pod.host_ports;
        if wanted.is_empty() {
            return None;
        }
        Some(Box::new(move |node, _| {
            let mut used = node.pods.values().flat_map(|p| &p.host_ports);
            match used.any(|u| wanted.iter().any(|w| w.conflicts(u))) {
                true => vec!["node(s) didn't have free ports for the requested pod ports".into()],
                false => vec![],
            }
        }))
    }
}

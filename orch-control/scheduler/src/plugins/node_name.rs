//! NodeName: a pod that names its node goes nowhere else.

use crate::framework::{Cycle, Filter, NodeFilter, Plugin};

/// See the module.
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }
}

impl Filter for NodeName {
    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<NodeFilter<'a>> {
        let wanted = cycle.pod.node_name.as_deref()?;
        Some(Box::new(move |node, _| match node.name == wanted {
            true => vec![],
            false => vec!["node(s) didn't match the requested node name".into()],
        }))
    }
}

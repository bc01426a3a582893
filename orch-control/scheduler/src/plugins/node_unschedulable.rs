//! NodeUnschedulable: a cordoned node takes only pods that tolerate its being so.

use k8s_openapi::api::core::v1::Taint;
use orch_shared::taints::{NO_SCHEDULE, UNSCHEDULABLE, tolerates};

use crate::framework::{Cycle, Filter, NodeFilter, Plugin};

/// See the module.
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }
}

impl Filter for NodeUnschedulable {
    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<NodeFilter<'a>> {
        let taint = Taint {
            key: UNSCHEDULABLE.into(),
            effect: NO_SCHEDULE.into(),
            ..Taint::default()
        };
        if cycle.pod.wishes.tolerations.iter().any(|t| tolerates(t, &taint)) {
            return None;
        }
        Some(Box::new(|_, facts| match facts.unschedulable {
            true => vec!["node(s) were unschedulable".into()],
            false => vec![],
        }))
    }
}

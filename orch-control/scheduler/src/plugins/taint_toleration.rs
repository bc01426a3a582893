//! TaintToleration: taints keep pods away, or make a node less welcome.

use k8s_openapi::api::core::v1::Taint;
use orch_shared::taints::{NO_EXECUTE, NO_SCHEDULE, PREFER_NO_SCHEDULE, tolerates, untolerated};

use crate::framework::{Cycle, Filter, NodeFilter, NodeScore, Plugin, Score, normalize};
use crate::snapshot::NodeInfo;

/// See the module.
pub struct TaintToleration;

/// Whether the taint keeps new pods away.
pub fn keeps_away(taint: &Taint) -> bool {
    taint.effect == NO_SCHEDULE || taint.effect == NO_EXECUTE
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }
}

impl Filter for TaintToleration {
    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<NodeFilter<'a>> {
        Some(Box::new(move |_, facts| {
            match untolerated(&facts.taints, &cycle.pod.wishes.tolerations, keeps_away) {
                None => vec![],
                Some(taint) => {
                    let value = taint.value.as_deref().unwrap_or_default();
                    vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key).into()]
                }
            }
        }))
    }
}

impl Score for TaintToleration {
    fn weight(&self) -> i64 {
        3
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<NodeScore<'a>> {
        Some(Box::new(move |_, facts| {
            let tolerations = &cycle.pod.wishes.tolerations;
            let unwelcome = |t: &&Taint| {
                t.effect == PREFER_NO_SCHEDULE
                    && !tolerations.iter().any(|toleration| tolerates(toleration, t))
            };
            facts.taints.iter().filter(unwelcome).count() as i64
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, true);
    }
}

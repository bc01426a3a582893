//! NodeAffinity: nodeSelector, and required and preferred node terms.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::framework::{Cycle, Filter, NodeFilter, NodeScore, Plugin, Score, normalize};
use crate::pod::PodInfo;
use crate::snapshot::{NodeFacts, NodeInfo};

/// See the module.
pub struct NodeAffinity;

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: Option<&str>| text.and_then(|t| t.parse::<i64>().ok());
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|w| w != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        operator @ ("Gt" | "Lt") => match (number(value), number(values.first().map(String::as_str))) {
            (Some(has), Some(bound)) => (has > bound) == (operator == "Gt") && has != bound,
            _ => false,
        },
        _ => false,
    }
}

fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo, facts: &NodeFacts) -> bool {
    let (labels, fields) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
    let (labels, fields) = (labels.unwrap_or_default(), fields.unwrap_or_default());
    let field = |r: &NodeSelectorRequirement| (r.key == "metadata.name").then_some(node.name.as_str());
    // A term without requirements matches no node.
    !(labels.is_empty() && fields.is_empty())
        && labels
            .iter()
            .all(|r| holds(r, facts.labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| holds(r, field(r)))
}

/// Whether the pod's nodeSelector and required node terms (any one of them) allow the node.
pub fn allows(pod: &PodInfo, node: &NodeInfo, facts: &NodeFacts) -> bool {
    let wishes = &pod.wishes;
    let required = wishes.node_affinity.as_ref();
    let required = required.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    wishes
        .node_selector
        .iter()
        .all(|(key, value)| facts.labels.get(key) == Some(value))
        && required.is_none_or(|r| {
            r.node_selector_terms
                .iter()
                .any(|term| term_matches(term, node, facts))
        })
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }
}

impl Filter for NodeAffinity {
    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<NodeFilter<'a>> {
        if cycle.pod.wishes.node_selector.is_empty() && cycle.pod.wishes.node_affinity.is_none() {
            return None;
        }
        Some(Box::new(move |node, facts| {
            match allows(cycle.pod, node, facts) {
                true => vec![],
                false => vec!["node(s) didn't match Pod's node affinity/selector".into()],
            }
        }))
    }
}

impl Score for NodeAffinity {
    fn weight(&self) -> i64 {
        2
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<NodeScore<'a>> {
        let affinity = cycle.pod.wishes.node_affinity.as_ref()?;
        let terms = affinity
            .preferred_during_scheduling_ignored_during_execution
            .as_ref()?;
        Some(Box::new(move |node, facts| {
            let liked = terms.iter().filter(|t| term_matches(&t.preference, node, facts));
            liked.map(|t| i64::from(t.weight)).sum()
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, false);
    }
}

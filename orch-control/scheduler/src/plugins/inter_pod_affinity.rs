//! InterPodAffinity: pods that want to be near to, or far from, other pods.

use std::collections::HashMap;

use crate::framework::{Cycle, Filter, MAX_SCORE, NodeFilter, NodeScore, Plugin, Score};
use crate::pod::{PodInfo, Term};
use crate::snapshot::NodeInfo;

/// How much the required affinity of a pod that is already there counts as a preference for being joined.
const HARD_AFFINITY_WEIGHT: i64 = 1;

/// See the module.
pub struct InterPodAffinity;

/// How much there is of something in a domain: a node label's key and value.
type Domains<'a> = HashMap<(&'a str, &'a str), i64>;

fn add<'a>(domains: &mut Domains<'a>, term: &'a Term, node: &'a NodeInfo, amount: i64) {
    if let Some(value) = node.label(&term.topology_key) {
        *domains.entry((&term.topology_key, value)).or_default() += amount;
    }
}

fn matches(term: &Term, pod: &PodInfo, cycle: Cycle<'_>) -> bool {
    term.matches(pod, cycle.snapshot.namespace_labels(&pod.namespace))
}

fn occupied(domains: &Domains<'_>, term: &Term, node: &NodeInfo) -> bool {
    let value = node.label(&term.topology_key);
    value.is_some_and(|v| {
        domains
            .get(&(term.topology_key.as_str(), v))
            .is_some_and(|n| *n > 0)
    })
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }
}

impl Filter for InterPodAffinity {
    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<NodeFilter<'a>> {
        let pod = cycle.pod;
        let (mut near, mut far, mut resented) = (Domains::new(), Domains::new(), Domains::new());
        let mut anyone_resents = false;
        for node in cycle.snapshot.nodes() {
            for other in node.pods.values() {
                for term in &other.anti_affinity {
                    anyone_resents = true;
                    if matches(term, pod, cycle) {
                        add(&mut resented, term, node, 1);
                    }
                }
                if !pod.affinity.is_empty() && pod.affinity.iter().all(|t| matches(t, other, cycle)) {
                    pod.affinity.iter().for_each(|t| add(&mut near, t, node, 1));
                }
                for term in pod.anti_affinity.iter().filter(|t| matches(t, other, cycle)) {
                    add(&mut far, term, node, 1);
                }
            }
        }
        if pod.affinity.is_empty() && pod.anti_affinity.is_empty() && !anyone_resents {
            return None;
        }
        // The first pod of a group that wants to be near its own kind has nobody to join yet.
        let first = near.is_empty() && pod.affinity.iter().all(|t| matches(t, pod, cycle));
        Some(Box::new(move |node, facts| {
            let labelled = pod
                .affinity
                .iter()
                .all(|t| facts.labels.contains_key(&t.topology_key));
            let joined = pod.affinity.iter().all(|t| occupied(&near, t, node));
            if !(labelled && (joined || first)) {
                return vec!["node(s) didn't match pod affinity rules".into()];
            }
            if pod.anti_affinity.iter().any(|t| occupied(&far, t, node)) {
                return vec!["node(s) didn't match pod anti-affinity rules".into()];
            }
            if resented
                .keys()
                .any(|(key, value)| facts.labels.get(*key).is_some_and(|v| v == value))
            {
                return vec!["node(s) didn't satisfy existing pods anti-affinity rules".into()];
            }
            vec![]
        }))
    }
}

impl Score for InterPodAffinity {
    fn weight(&self) -> i64 {
        2
    }

    fn score<'a>(&self, cycle: Cycle<'a>, _: &[&'a NodeInfo]) -> Option<NodeScore<'a>> {
        let pod = cycle.pod;
        let mut liked = Domains::new();
        for node in cycle.snapshot.nodes() {
            for other in node.pods.values() {
                for (weight, term) in pod.preferred.iter().filter(|(_, t)| matches(t, other, cycle)) {
                    add(&mut liked, term, node, *weight);
                }
                for (weight, term) in other.preferred.iter().filter(|(_, t)| matches(t, pod, cycle)) {
                    add(&mut liked, term, node, *weight);
                }
                for term in other.affinity.iter().filter(|t| matches(t, pod, cycle)) {
                    add(&mut liked, term, node, HARD_AFFINITY_WEIGHT);
                }
            }
        }
        if liked.is_empty() {
            return None;
        }
        Some(Box::new(move |_, facts| {
            let here = |((key, value), _): &(&(&str, &str), &i64)| {
                facts.labels.get(*key).is_some_and(|v| v == value)
            };
            liked.iter().filter(here).map(|(_, weight)| *weight).sum()
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        let max = scores.iter().copied().max().unwrap_or(0);
        let min = scores.iter().copied().min().unwrap_or(0);
        for score in scores {
            *score = if max == min {
                0
            } else {
                MAX_SCORE * (*score - min) / (max - min)
            };
        }
    }
}

//! PodTopologySpread: pods that belong together are spread over nodes and zones.
//!
//! Pods without constraints are spread as Kubernetes' system defaults do, over nodes and then zones; which pods
//! belong together is then decided by their controller.

use std::collections::HashMap;

use kube::core::SelectorExt;
use orch_shared::taints::untolerated;

use crate::framework::{Cycle, Filter, MAX_SCORE, NodeFilter, NodeScore, Plugin, Score};
use crate::plugins::node_affinity::allows;
use crate::plugins::taint_toleration::keeps_away;
use crate::pod::Spread;
use crate::snapshot::{NodeFacts, NodeInfo};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// See the module.
pub struct PodTopologySpread;

fn counts_for(spread: &Spread, cycle: Cycle<'_>, node: &NodeInfo, facts: &NodeFacts) -> bool {
    (!spread.honor_affinity || allows(cycle.pod, node, facts))
        && (!spread.honor_taints
            || untolerated(&facts.taints, &cycle.pod.wishes.tolerations, keeps_away).is_none())
}

fn matching(spread: &Spread, cycle: Cycle<'_>, node: &NodeInfo) -> i64 {
    let alike = node
        .pods
        .values()
        .filter(|p| !p.deleting && p.namespace == cycle.pod.namespace && spread.selector.matches(&p.labels));
    alike.count() as i64
}

/// Matching pods by domain, over the nodes that count and have the labels of all `constraints`.
fn domains<'a>(spread: &Spread, constraints: &[&Spread], cycle: Cycle<'a>) -> HashMap<&'a str, i64> {
    let mut out = HashMap::new();
    for node in cycle.snapshot.nodes() {
        let Some(facts) = &node.facts else { continue };
        let labelled = constraints
            .iter()
            .all(|c| facts.labels.contains_key(&c.topology_key));
        let domain = node.label(&spread.topology_key).filter(|_| labelled);
        if let Some(domain) = domain.filter(|_| counts_for(spread, cycle, node, facts)) {
            *out.entry(domain).or_default() += matching(spread, cycle, node);
        }
    }
    out
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }
}

impl Filter for PodTopologySpread {
    fn filter<'a>(&self, cycle: Cycle<'a>) -> Option<NodeFilter<'a>> {
        let hard: Vec<&Spread> = cycle.pod.wishes.spread.iter().filter(|s| s.hard).collect();
        if hard.is_empty() {
            return None;
        }
        let counted: Vec<_> = hard
            .iter()
            .map(|spread| {
                let domains = domains(spread, &hard, cycle);
                let enough = domains.len() as i64 >= spread.min_domains;
                let least = if enough {
                    domains.values().copied().min().unwrap_or(0)
                } else {
                    0
                };
                let own = i64::from(spread.selector.matches(&cycle.pod.labels));
                (*spread, domains, least, own)
            })
            .collect();
        Some(Box::new(move |node, _| {
            for (spread, domains, least, own) in &counted {
                let Some(domain) = node.label(&spread.topology_key) else {
                    return vec![
                        "node(s) didn't match pod topology spread constraints (missing required label)"
                            .into(),
                    ];
                };
                if domains.get(domain).copied().unwrap_or(0) + own - least > spread.max_skew {
                    return vec!["node(s) didn't match pod topology spread constraints".into()];
                }
            }
            vec![]
        }))
    }
}

/// One soft constraint: its key, its weight by the number of domains, its skew, the pods in each domain.
struct Soft<'a> {
    key: &'a str,
    weight: f64,
    max_skew: i64,
    domains: HashMap<&'a str, i64>,
}

fn soft<'a>(
    key: &'a str,
    max_skew: i64,
    cycle: Cycle<'a>,
    feasible: &[&'a NodeInfo],
    count: impl Fn(&NodeInfo, &NodeFacts) -> i64,
) -> Soft<'a> {
    let mut domains: HashMap<&str, i64> = feasible.iter().filter_map(|n| Some((n.label(key)?, 0))).collect();
    for node in cycle.snapshot.nodes() {
        let (Some(domain), Some(facts)) = (node.label(key), &node.facts) else {
            continue;
        };
        if let Some(sum) = domains.get_mut(domain) {
            *sum += count(node, facts);
        }
    }
    Soft {
        key,
        weight: ((domains.len() + 2) as f64).ln(),
        max_skew,
        domains,
    }
}

impl Score for PodTopologySpread {
    fn weight(&self) -> i64 {
        2
    }

    fn score<'a>(&self, cycle: Cycle<'a>, feasible: &[&'a NodeInfo]) -> Option<NodeScore<'a>> {
        let wishes = &cycle.pod.wishes;
        let constraints: Vec<Soft<'a>> = if wishes.spread.is_empty() {
            let owner = cycle.pod.owner.as_ref()?;
            let count = |node: &NodeInfo, _: &NodeFacts| node.owners.get(owner).copied().unwrap_or(0);
            vec![
                soft(HOSTNAME, 3, cycle, feasible, count),
                soft(ZONE, 5, cycle, feasible, count),
            ]
        } else {
            let counted = |s: &'a Spread| {
                soft(&s.topology_key, s.max_skew, cycle, feasible, |node, facts| {
                    if counts_for(s, cycle, node, facts) {
                        matching(s, cycle, node)
                    } else {
                        0
                    }
                })
            };
            wishes.spread.iter().filter(|s| !s.hard).map(counted).collect()
        };
        if constraints.is_empty() {
            return None;
        }
        Some(Box::new(move |node, _| {
            let of = |c: &Soft<'_>| {
                let pods = node.label(c.key).and_then(|domain| c.domains.get(domain))?;
                Some(*pods as f64 * c.weight + (c.max_skew - 1) as f64)
            };
            constraints.iter().filter_map(of).sum::<f64>().round() as i64
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        let max = scores.iter().copied().max().unwrap_or(0);
        let min = scores.iter().copied().min().unwrap_or(0);
        for score in scores {
            *score = if max == 0 {
                MAX_SCORE
            } else {
                MAX_SCORE * (max + min - *score) / max
            };
        }
    }
}

//! ImageLocality: a node that has the pod's images already starts it sooner.

use std::collections::HashMap;

use crate::framework::{Cycle, MAX_SCORE, NodeScore, Plugin, Score};
use crate::snapshot::{NodeFacts, NodeInfo};

/// Images smaller than this are not worth a preference; Kubernetes' bounds, in bytes.
const SMALLEST: i64 = 23 << 20;
/// The size per container from which on a node gets the full score.
const LARGEST: i64 = 1000 << 20;

/// See the module.
pub struct ImageLocality;

/// The image as nodes list it: a name without a tag or digest means `latest`.
fn listed(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || image.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }
}

impl Score for ImageLocality {
    fn weight(&self) -> i64 {
        1
    }

    fn score<'a>(&self, cycle: Cycle<'a>, feasible: &[&'a NodeInfo]) -> Option<NodeScore<'a>> {
        let images: Vec<String> = cycle.pod.wishes.images.iter().map(|i| listed(i)).collect();
        let facts = || feasible.iter().filter_map(|n| n.facts.as_ref());
        let spread: HashMap<String, i64> = images
            .iter()
            .map(|i| {
                (
                    i.clone(),
                    facts().filter(|f| f.images.contains_key(i)).count() as i64,
                )
            })
            .collect();
        if spread.values().all(|n| *n == 0) {
            return None;
        }
        let (nodes, containers) = (feasible.len() as i64, images.len() as i64);
        Some(Box::new(move |_, facts: &NodeFacts| {
            // An image that few nodes have counts less, lest those nodes be overrun.
            let worth = |i: &String| facts.images.get(i).map_or(0, |size| size * spread[i] / nodes);
            let sum: i64 = images.iter().map(worth).sum();
            let (low, high) = (SMALLEST, LARGEST * containers);
            MAX_SCORE * (sum.clamp(low, high) - low) / (high - low)
        }))
    }
}

//! The arithmetic of rolling updates: surge, unavailability, how far to scale which set.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::revision::{DESIRED, MAXIMUM};

/// How many replicas a set is to have.
pub fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// How many of them are available.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|s| s.available_replicas)
        .unwrap_or(0)
}

/// How many pods the set has, going ones aside.
pub fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

/// How many replicas the deployment is to have.
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

/// A number, or a percentage of `of`.
fn resolve(value: Option<&IntOrString>, of: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|p| p.parse::<i64>().ok())
                .unwrap_or(0);
            let product = percent * i64::from(of);
            (if round_up {
                (product + 99).div_euclid(100)
            } else {
                product.div_euclid(100)
            }) as i32
        }
    }
}

/// `(maxSurge, maxUnavailable)` in pods. Both zero would never move, so then one pod may be unavailable.
pub fn limits(deployment: &Deployment) -> (i32, i32) {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        return (0, 0);
    }
    let quarter = IntOrString::String("25%".into());
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
    let unavailable = rolling
        .and_then(|r| r.max_unavailable.as_ref())
        .unwrap_or(&quarter);
    let of = replicas(deployment);
    match (
        resolve(Some(surge), of, true),
        resolve(Some(unavailable), of, false),
    ) {
        (0, 0) => (0, 1),
        (surge, unavailable) => (surge, unavailable.min(of)),
    }
}

/// How large the new set may be now, given `total` pods wanted by all sets.
pub fn new_size(deployment: &Deployment, new: i32, total: i32) -> i32 {
    let want = replicas(deployment);
    let room = want + limits(deployment).0 - total;
    if room <= 0 {
        new
    } else {
        new + room.min(want - new)
    }
}

/// The sizes that old sets are to be scaled down to: unhealthy pods go first, then as many healthy ones as
/// availability allows, from the oldest sets.
pub fn shrink_old(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    old: &[Arc<ReplicaSet>],
) -> Vec<(Arc<ReplicaSet>, i32)> {
    let (_, max_unavailable) = limits(deployment);
    let minimum = replicas(deployment) - max_unavailable;
    let new_wanted = new.map_or(0, wanted);
    let total: i32 = old.iter().map(|s| wanted(s)).sum::<i32>() + new_wanted;
    let new_unavailable = new_wanted - new.map_or(0, available);
    let mut spare = total - minimum - new_unavailable;
    if spare <= 0 {
        return Vec::new();
    }
    let mut sets: Vec<(Arc<ReplicaSet>, i32)> = old.iter().map(|s| (s.clone(), wanted(s))).collect();
    sets.sort_by_key(|(s, _)| (s.metadata.creation_timestamp.clone(), s.name_any()));
    for (set, size) in &mut sets {
        let unhealthy = (*size - available(set)).max(0).min(spare);
        *size -= unhealthy;
        spare -= unhealthy;
    }
    let healthy = old.iter().map(|s| available(s)).sum::<i32>() + new.map_or(0, available);
    let mut spare = (healthy - minimum).max(0);
    for (_, size) in &mut sets {
        let fewer = (*size).min(spare);
        *size -= fewer;
        spare -= fewer;
    }
    sets.retain(|(set, size)| *size != wanted(set));
    sets
}

/// Whether the deployment was scaled since its sets were: some active set remembers another number of replicas.
pub fn was_scaled(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
    sets.iter().filter(|s| wanted(s) > 0).any(|set| {
        let remembered = set.annotations().get(DESIRED).and_then(|d| d.parse::<i32>().ok());
        remembered.is_some_and(|d| d != replicas(deployment))
    })
}

/// The new sizes after the deployment was scaled: in the middle of a rollout every active set takes its share.
pub fn proportions(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
) -> Vec<(Arc<ReplicaSet>, i32)> {
    let want = replicas(deployment);
    let mut active: Vec<&Arc<ReplicaSet>> = old.iter().chain(new).filter(|s| wanted(s) > 0).collect();
    let newest = new.or_else(|| {
        old.iter()
            .max_by_key(|s| (s.metadata.creation_timestamp.clone(), s.name_any()))
    });
    if active.len() <= 1 {
        let only = active.first().copied().or(newest);
        return only.map(|s| (s.clone(), want)).into_iter().collect();
    }
    // Once the new set is complete the old ones are only in the way.
    if let Some(new) = new.filter(|n| is_saturated(deployment, n)) {
        let surplus = active.into_iter().filter(|s| s.metadata.uid != new.metadata.uid);
        return surplus.map(|s| (s.clone(), 0)).collect();
    }
    let total: i32 = active.iter().map(|s| wanted(s)).sum();
    let allowed = if want > 0 { want + limits(deployment).0 } else { 0 };
    let mut left = allowed - total;
    // Larger sets first; among equals the newer when growing, the older when shrinking.
    active.sort_by_key(|s| s.metadata.creation_timestamp.clone());
    if left > 0 {
        active.reverse();
    }
    active.sort_by_key(|s| Reverse(wanted(s)));
    let mut sizes: Vec<(Arc<ReplicaSet>, i32)> = Vec::new();
    for set in active {
        let share = fraction(deployment, set, allowed);
        let change = if left > 0 {
            share.clamp(0, left)
        } else {
            share.clamp(left, 0)
        };
        left -= change;
        sizes.push((set.clone(), wanted(set) + change));
    }
    // What rounding left over goes to the largest.
    if let Some((_, size)) = sizes.first_mut() {
        *size = (*size + left).max(0);
    }
    sizes
}

/// By how much a set changes if it keeps its share of all pods, rounded to the nearest.
fn fraction(deployment: &Deployment, set: &ReplicaSet, allowed: i32) -> i32 {
    let remembered = set.annotations().get(MAXIMUM).and_then(|m| m.parse::<i32>().ok());
    let before = remembered.filter(|m| *m > 0);
    let before = before.or_else(|| {
        deployment
            .status
            .as_ref()
            .and_then(|s| s.replicas)
            .filter(|r| *r > 0)
    });
    let size = f64::from(wanted(set));
    (size * f64::from(allowed) / f64::from(before.unwrap_or(allowed.max(1)))).round() as i32 - wanted(set)
}

fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let want = replicas(deployment);
    let remembered = set.annotations().get(DESIRED).and_then(|d| d.parse::<i32>().ok());
    wanted(set) == want && remembered == Some(want) && available(set) == want
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(replicas: i32, surge: serde_json::Value, unavailable: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "name": "web" },
            "spec": {
                "replicas": replicas, "selector": {}, "template": {},
                "strategy": { "type": "RollingUpdate", "rollingUpdate": {
                    "maxSurge": surge, "maxUnavailable": unavailable,
                }},
            },
        }))
        .unwrap()
    }

    fn set(name: &str, age: i64, wanted: i32, available: i32, maximum: i32) -> Arc<ReplicaSet> {
        let created = k8s_openapi::jiff::Timestamp::from_second(1_000_000 - age)
            .unwrap()
            .to_string();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": name, "uid": name, "creationTimestamp": created,
                    "annotations": { MAXIMUM: maximum.to_string() } },
                "spec": { "replicas": wanted, "selector": {} },
                "status": { "replicas": wanted, "availableReplicas": available },
            }))
            .unwrap(),
        )
    }

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailability() {
        let cases = [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (3, json!("25%"), json!("25%"), (1, 0)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (10, json!(0), json!("5%"), (0, 1)),
            (4, json!(2), json!(9), (2, 4)),
        ];
        for (replicas, surge, unavailable, expect) in cases {
            assert_eq!(
                limits(&deployment(replicas, surge, unavailable)),
                expect,
                "{replicas}"
            );
        }
    }

    #[test]
    fn the_new_set_grows_into_the_surge_only() {
        // (replicas, surge, size now, total now) → size.
        let cases = [
            ((10, 3, 0, 10), 3),
            ((10, 3, 3, 13), 3),
            ((10, 3, 3, 8), 8),
            ((10, 0, 0, 10), 0),
            ((2, 1, 1, 1), 2),
        ];
        for ((replicas, surge, now, total), expect) in cases {
            let deployment = deployment(replicas, json!(surge), json!(1));
            assert_eq!(
                new_size(&deployment, now, total),
                expect,
                "{replicas} {surge} {now} {total}"
            );
        }
    }

    #[test]
    fn old_sets_shrink_no_further_than_availability_allows() {
        let sizes = |replicas, unavailable: i32, new: (i32, i32), old: &[(i32, i32)]| {
            let old: Vec<_> = old
                .iter()
                .enumerate()
                .map(|(i, (w, a))| set(&format!("old{i}"), 100 - i as i64, *w, *a, 0))
                .collect();
            let new = set("new", 0, new.0, new.1, 0);
            let shrunk = shrink_old(
                &deployment(replicas, json!(3), json!(unavailable)),
                Some(&*new),
                &old,
            );
            shrunk
                .into_iter()
                .map(|(s, size)| (s.name_any(), size))
                .collect::<Vec<_>>()
        };
        // Nothing may go while the new pods are not there.
        assert_eq!(sizes(10, 0, (3, 0), &[(10, 10)]), []);
        assert_eq!(sizes(10, 2, (3, 0), &[(10, 10)]), [("old0".into(), 8)]);
        assert_eq!(sizes(10, 0, (3, 3), &[(10, 10)]), [("old0".into(), 7)]);
        // Unhealthy pods go first, from the oldest set on.
        assert_eq!(sizes(10, 0, (3, 3), &[(4, 4), (6, 3)]), [("old1".into(), 3)]);
        assert_eq!(
            sizes(10, 2, (0, 0), &[(5, 5), (8, 5)]),
            [("old0".into(), 3), ("old1".into(), 5)]
        );
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_keeps_the_proportions() {
        let deployment = deployment(20, json!(0), json!(1));
        let (new, old) = (set("new", 0, 4, 4, 10), set("old", 9, 6, 6, 10));
        let sizes = proportions(&deployment, Some(&new), &[old]);
        let sizes: Vec<_> = sizes.into_iter().map(|(s, size)| (s.name_any(), size)).collect();
        assert_eq!(sizes, [("old".into(), 12), ("new".into(), 8)]);
    }
}

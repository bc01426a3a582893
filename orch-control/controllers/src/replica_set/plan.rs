//! The decisions of the ReplicaSet controller: how many to create, which to delete, what the status says.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use orch_shared::pods::{condition, is_available, is_deleting, is_ready, is_terminal, node_name, phase};

use crate::core::ReconcileError;

/// The annotation by which a user says which pods to keep when scaling down; lower goes first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What is to be done about the number of pods.
#[derive(Debug, PartialEq)]
pub enum Steps {
    /// Nothing.
    None,
    /// This many are missing.
    Create(usize),
    /// These are too many.
    Delete(Vec<Arc<Pod>>),
}

/// Whether a pod counts as a replica.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(&pod.metadata)
}

/// Compares what is with what should be. `doubled` says how many related pods each node runs.
pub fn replicas(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    doubled: &BTreeMap<String, usize>,
    now: Timestamp,
) -> Steps {
    let wanted = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0) as usize;
    let mut active: Vec<Arc<Pod>> = pods.iter().filter(|p| is_active(p)).cloned().collect();
    match active.len().cmp(&wanted) {
        Ordering::Equal => Steps::None,
        Ordering::Less => Steps::Create(wanted - active.len()),
        Ordering::Greater => {
            let surplus = active.len() - wanted;
            active.sort_by_cached_key(|pod| rank(pod, doubled, now));
            active.truncate(surplus);
            Steps::Delete(active)
        }
    }
}

type Rank = (
    bool,
    u8,
    bool,
    i64,
    Reverse<usize>,
    u32,
    Reverse<i32>,
    u32,
    String,
);

/// Who is deleted first, in Kubernetes' order: without a node; pending, then unknown, then running; not ready;
/// cheaper; on fuller nodes; ready for a shorter time; more restarts; younger. Times count by their order of
/// magnitude, so that not always the very youngest goes.
fn rank(pod: &Pod, doubled: &BTreeMap<String, usize>, now: Timestamp) -> Rank {
    let magnitude = |since: Option<Timestamp>| {
        since.map_or(0, |t| {
            u64::ilog2((now.as_second() - t.as_second()).max(1) as u64) + 1
        })
    };
    let phase = match phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost = pod
        .annotations()
        .get(DELETION_COST)
        .and_then(|c| c.parse::<i32>().ok())
        .unwrap_or(0);
    let ready = is_ready(pod);
    let ready_since = condition(pod, "Ready")
        .and_then(|c| c.last_transition_time.as_ref())
        .filter(|_| ready);
    let statuses = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten());
    (
        node_name(pod).is_some(),
        phase,
        ready,
        cost.into(),
        Reverse(node_name(pod).and_then(|n| doubled.get(n)).copied().unwrap_or(0)),
        magnitude(ready_since.map(|t| t.0)),
        Reverse(statuses.map(|s| s.restart_count).max().unwrap_or(0)),
        magnitude(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)),
        pod.metadata.uid.clone().unwrap_or_default(),
    )
}

/// The status, and after how many seconds it will be another one without anything happening.
pub fn status(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    failure: Option<(&'static str, &ReconcileError)>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<i64>) {
    let spec = set.spec.clone().unwrap_or_default();
    let template_labels = spec
        .template
        .and_then(|t| t.metadata)
        .and_then(|m| m.labels)
        .unwrap_or_default();
    let (mut labelled, mut ready, mut available, mut terminating, mut comes_back) = (0, 0, 0, 0, None::<i64>);
    let mut replicas = 0;
    for pod in pods {
        if is_deleting(&pod.metadata) && !is_terminal(pod) {
            terminating += 1;
        }
        if !is_active(pod) {
            continue;
        }
        replicas += 1;
        labelled += i32::from(
            template_labels
                .iter()
                .all(|(k, v)| pod.labels().get(k) == Some(v)),
        );
        ready += i32::from(is_ready(pod));
        let (is_available, missing) = is_available(pod, spec.min_ready_seconds.unwrap_or(0), now);
        available += i32::from(is_available);
        comes_back = missing.into_iter().chain(comes_back).min();
    }
    let old = set.status.clone().unwrap_or_default();
    let mut conditions = old.conditions.unwrap_or_default();
    let before = conditions
        .iter()
        .position(|c| c.type_ == "ReplicaFailure")
        .map(|i| conditions.remove(i));
    if let Some((reason, error)) = failure {
        conditions.push(match before {
            Some(same) if same.reason.as_deref() == Some(reason) => same,
            _ => ReplicaSetCondition {
                type_: "ReplicaFailure".into(),
                status: "True".into(),
                reason: Some(reason.into()),
                message: Some(match error {
                    ReconcileError::Api { source, .. } => match &**source {
                        kube::Error::Api(status) => status.message.clone(),
                        other => other.to_string(),
                    },
                    other => other.to_string(),
                }),
                last_transition_time: Some(Time(now)),
            },
        });
    }
    let status = ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: Some(labelled),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty() || set.status.as_ref().is_some_and(|s| s.conditions.is_some()))
            .then_some(conditions),
    };
    (status, comes_back)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: Option<&str>, phase: &str, ready_since: Option<i64>) -> Arc<Pod> {
        let ready = ready_since.map(|s| {
            let at = Timestamp::from_second(s).unwrap().to_string();
            json!([{ "type": "Ready", "status": "True", "lastTransitionTime": at }])
        });
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": name, "uid": name, "creationTimestamp": "1970-01-01T00:00:00Z" },
                "spec": { "containers": [], "nodeName": node },
                "status": { "phase": phase, "conditions": ready },
            }))
            .unwrap(),
        )
    }

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": { "name": "rs", "generation": 3 },
            "spec": { "replicas": replicas, "minReadySeconds": 10, "selector": {} },
        }))
        .unwrap()
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let now = Timestamp::from_second(100_000).unwrap();
        let pods = [
            pod("ready-long", Some("a"), "Running", Some(10)),
            pod("ready-short", Some("a"), "Running", Some(99_000)),
            pod("not-ready", Some("a"), "Running", None),
            pod("pending", Some("a"), "Pending", None),
            pod("unbound", None, "Pending", None),
            pod("doubled", Some("b"), "Running", Some(10)),
        ];
        let doubled = [("a".to_owned(), 1), ("b".to_owned(), 2)].into();
        let Steps::Delete(order) = replicas(&set(0), &pods, &doubled, now) else {
            panic!("nothing to delete")
        };
        let names: Vec<_> = order.iter().map(|p| p.name_any()).collect();
        assert_eq!(
            names,
            [
                "unbound",
                "pending",
                "not-ready",
                "doubled",
                "ready-short",
                "ready-long"
            ]
        );
    }

    #[test]
    fn pods_that_are_over_or_going_are_replaced() {
        let now = Timestamp::from_second(0).unwrap();
        let pods = [
            pod("done", Some("a"), "Succeeded", None),
            pod("up", Some("a"), "Running", None),
        ];
        assert_eq!(replicas(&set(3), &pods, &BTreeMap::new(), now), Steps::Create(2));
        assert_eq!(replicas(&set(1), &pods, &BTreeMap::new(), now), Steps::None);
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let now = Timestamp::from_second(104).unwrap();
        let pods = [
            pod("a", Some("n"), "Running", Some(100)),
            pod("b", Some("n"), "Running", Some(94)),
        ];
        let (status, comes_back) = status(&set(2), &pods, None, now);
        let counts = (status.replicas, status.ready_replicas, status.available_replicas);
        assert_eq!(counts, (2, Some(2), Some(1)));
        assert_eq!((status.observed_generation, comes_back), (Some(3), Some(6)));
    }
}

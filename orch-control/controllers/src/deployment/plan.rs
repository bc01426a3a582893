//! [`plan`]: the next steps of a deployment, from the state of its replica sets alone.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use orch_shared::pods::is_deleting;
use serde_json::{Value, json};

use super::revision::{self, DESIRED, MAXIMUM, REVISION};
use super::rolling::{limits, new_size, proportions, replicas, shrink_old, wanted, was_scaled};
use super::status::{Observed, is_complete, status};

/// One write.
#[derive(Debug)]
pub enum Step {
    /// Create the replica set of the current template.
    Create(Box<ReplicaSet>),
    /// Bring a set's annotations (and minReadySeconds) up to date.
    Annotate {
        /// The set as it was looked at.
        set: Arc<ReplicaSet>,
        /// A merge patch.
        patch: Value,
    },
    /// Give a set another number of replicas, or only remember the deployment's.
    Scale {
        /// The set as it was looked at.
        set: Arc<ReplicaSet>,
        /// The new number.
        replicas: i32,
        /// A merge patch.
        patch: Value,
    },
    /// Delete a set that is too old to be kept.
    Delete(Arc<ReplicaSet>),
    /// Annotate the deployment itself.
    Annotation {
        /// The annotation's name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// Write the status.
    Status(Box<DeploymentStatus>),
}

/// What is to be done now, in this order, and when to look again if nothing happens.
#[derive(Debug, Default)]
pub struct Plan {
    /// The writes.
    pub steps: Vec<Step>,
    /// When a deadline ends.
    pub come_back: Option<Duration>,
}

/// Plans the next steps. `sets` are the deployment's own; `running` holds, for every pod of theirs that is not over,
/// the set's uid (Recreate waits for old ones).
pub fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], running: &[String], now: Timestamp) -> Plan {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut plan = Plan::default();
    let new = revision::current(deployment, sets);
    let old: Vec<Arc<ReplicaSet>> = sets
        .iter()
        .filter(|s| new.as_ref().is_none_or(|n| n.metadata.uid != s.metadata.uid))
        .cloned()
        .collect();
    let mut created = None;
    if !is_deleting(&deployment.metadata) {
        if spec.paused == Some(true) {
            scale_all(deployment, new.as_ref(), &old, &mut plan);
        } else {
            let highest = old.iter().map(|s| revision::of(s)).max().unwrap_or(0);
            let next = new.as_ref().map_or(0, |n| revision::of(n)).max(highest + 1);
            if let Some(new) = &new {
                annotate(deployment, new, next, &mut plan);
            }
            if deployment.annotations().get(REVISION) != Some(&next.to_string()) && new.is_some() {
                plan.steps.push(Step::Annotation {
                    name: REVISION,
                    value: next.to_string(),
                });
            }
            // A write that carries the old version would only meet a conflict with the one before it.
            if !plan.steps.is_empty() {
                return plan;
            }
            if was_scaled(deployment, sets) {
                scale_all(deployment, new.as_ref(), &old, &mut plan);
            } else {
                created = roll(deployment, new.as_ref(), &old, next, running, &mut plan);
            }
        }
    }
    let observed = Observed {
        new: new.as_deref(),
        created,
        sets,
    };
    let (status, come_back) = status(deployment, &observed, now);
    if plan.steps.is_empty() && is_complete(deployment, &status) {
        prune(&old, spec.revision_history_limit.unwrap_or(10), &mut plan);
    }
    if deployment.status.as_ref() != Some(&status) {
        plan.steps.push(Step::Status(Box::new(status)));
    }
    plan.come_back = come_back;
    plan
}

fn annotate(deployment: &Deployment, new: &Arc<ReplicaSet>, revision: i64, plan: &mut Plan) {
    let min_ready = deployment
        .spec
        .as_ref()
        .and_then(|s| s.min_ready_seconds)
        .unwrap_or(0);
    let annotations = revision::annotations(deployment, Some(new), revision);
    let stale = new.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0) != min_ready;
    if !annotations.is_empty() || stale {
        let patch =
            json!({ "metadata": { "annotations": annotations }, "spec": { "minReadySeconds": min_ready } });
        plan.steps.push(Step::Annotate {
            set: new.clone(),
            patch,
        });
    }
}

/// Adds a step that gives `set` this size, unless it has it and remembers the deployment's.
fn scale(deployment: &Deployment, set: &Arc<ReplicaSet>, size: i32, plan: &mut Plan) {
    let want = replicas(deployment);
    let (desired, maximum) = (want.to_string(), (want + limits(deployment).0).to_string());
    let remembers = |name: &str, value: &String| set.annotations().get(name) == Some(value);
    if wanted(set) == size && (size == 0 || remembers(DESIRED, &desired) && remembers(MAXIMUM, &maximum)) {
        return;
    }
    let annotations = json!({ DESIRED: desired, MAXIMUM: maximum });
    let patch = json!({ "metadata": { "annotations": annotations }, "spec": { "replicas": size } });
    plan.steps.push(Step::Scale {
        set: set.clone(),
        replicas: size,
        patch,
    });
}

fn scale_all(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    plan: &mut Plan,
) {
    for (set, size) in proportions(deployment, new, old) {
        scale(deployment, &set, size, plan);
    }
}

/// The steps of an update; returns the name of a set that is to be created.
fn roll(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    revision: i64,
    running: &[String],
    plan: &mut Plan,
) -> Option<String> {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    let recreate = strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate");
    let maximum = replicas(deployment) + limits(deployment).0;
    if recreate {
        old.iter().for_each(|set| scale(deployment, set, 0, plan));
        let lives =
            |set: &Arc<ReplicaSet>| set.metadata.uid.as_ref().is_some_and(|uid| running.contains(uid));
        if !plan.steps.is_empty() || old.iter().any(lives) {
            return None;
        }
    }
    let Some(new) = new else {
        let total: i32 = old.iter().map(|s| wanted(s)).sum();
        let size = if recreate {
            replicas(deployment)
        } else {
            new_size(deployment, 0, total)
        };
        let set = revision::new_set(deployment, size, maximum, revision);
        let name = set.name_any();
        plan.steps.push(Step::Create(Box::new(set)));
        return Some(name);
    };
    let total: i32 = old.iter().map(|s| wanted(s)).sum::<i32>() + wanted(new);
    let size = if recreate || wanted(new) > replicas(deployment) {
        replicas(deployment)
    } else {
        new_size(deployment, wanted(new), total)
    };
    scale(deployment, new, size, plan);
    if plan.steps.is_empty() {
        let active: Vec<_> = old.iter().filter(|s| wanted(s) > 0).cloned().collect();
        for (set, size) in shrink_old(deployment, Some(new), &active) {
            scale(deployment, &set, size, plan);
        }
    }
    None
}

/// Deletes the oldest sets beyond the history limit; only those that are empty and have no pods left.
fn prune(old: &[Arc<ReplicaSet>], limit: i32, plan: &mut Plan) {
    let empty = |s: &&Arc<ReplicaSet>| {
        let status = s.status.as_ref();
        wanted(s) == 0
            && status.is_none_or(|st| st.replicas == 0)
            && status.and_then(|st| st.observed_generation).unwrap_or(0) >= s.metadata.generation.unwrap_or(0)
            && !is_deleting(&s.metadata)
    };
    let mut kept: Vec<_> = old.iter().filter(|s| !is_deleting(&s.metadata)).collect();
    let surplus = kept.len().saturating_sub(limit.max(0) as usize);
    kept.sort_by_key(|s| (revision::of(s), s.metadata.creation_timestamp.clone()));
    for set in kept.into_iter().take(surplus).filter(empty) {
        plan.steps.push(Step::Delete(set.clone()));
    }
}

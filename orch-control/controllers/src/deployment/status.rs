//! A deployment's status and conditions, in the words that `kubectl rollout status` looks for.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::rolling::{actual, available, limits, replicas, wanted};

/// The progress deadline that means none.
const NO_DEADLINE: i32 = i32::MAX;

/// What the status is made from.
pub struct Observed<'a> {
    /// The set of the current template.
    pub new: Option<&'a ReplicaSet>,
    /// The name of the set that is about to be created.
    pub created: Option<String>,
    /// All sets.
    pub sets: &'a [Arc<ReplicaSet>],
}

/// Whether everything asked for is there and nothing else.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let want = Some(replicas(deployment));
    status.updated_replicas == want
        && status.replicas == want
        && status.available_replicas == want
        && status.observed_generation >= deployment.metadata.generation
}

fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts a condition in its place. One that says the same stays as it is, unless `touch` asks for its time to be
/// renewed; one of the same status keeps its transition time.
fn set(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition, touch: bool) {
    match conditions.iter_mut().find(|c| c.type_ == new.type_) {
        None => conditions.push(new),
        Some(old) if !touch && old.status == new.status && old.reason == new.reason => {}
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
    }
}

/// The status as of `now`, and when the progress deadline ends.
pub fn status(
    deployment: &Deployment,
    observed: &Observed<'_>,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let old = deployment.status.clone().unwrap_or_default();
    let (mut total, mut desired, mut ready, mut up, mut terminating) = (0, 0, 0, 0, 0);
    for set in observed.sets {
        total += actual(set);
        desired += wanted(set);
        up += available(set);
        ready += set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
        terminating += set
            .status
            .as_ref()
            .and_then(|s| s.terminating_replicas)
            .unwrap_or(0);
    }
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(total),
        updated_replicas: Some(observed.new.map_or(0, actual)),
        ready_replicas: Some(ready),
        available_replicas: Some(up),
        unavailable_replicas: Some((desired - up).max(0)),
        terminating_replicas: Some(terminating),
        collision_count: old.collision_count,
        conditions: None,
    };
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let enough = up >= replicas(deployment) - limits(deployment).1;
    set(
        &mut conditions,
        match enough {
            true => condition(
                "Available",
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.".into(),
                now,
            ),
            false => condition(
                "Available",
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.".into(),
                now,
            ),
        },
        false,
    );
    let come_back = progress(deployment, observed, &old, &status, &mut conditions, now);
    failure(observed, &mut conditions);
    status.conditions = Some(conditions);
    (status, come_back)
}

fn progress(
    deployment: &Deployment,
    observed: &Observed<'_>,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Option<Duration> {
    let spec = deployment.spec.as_ref()?;
    let deadline = spec.progress_deadline_seconds.filter(|d| *d != NO_DEADLINE);
    if deadline.is_none() {
        conditions.retain(|c| c.type_ != "Progressing");
        return None;
    }
    let before = conditions.iter().find(|c| c.type_ == "Progressing").cloned();
    let reason = before
        .as_ref()
        .and_then(|c| c.reason.as_deref())
        .unwrap_or_default();
    let say = |status, reason, message| condition("Progressing", status, reason, message, now);
    if spec.paused == Some(true) {
        set(
            conditions,
            say("Unknown", "DeploymentPaused", "Deployment is paused".into()),
            false,
        );
        return None;
    }
    if reason == "DeploymentPaused" {
        set(
            conditions,
            say("Unknown", "DeploymentResumed", "Deployment is resumed".into()),
            false,
        );
    }
    if let Some(name) = &observed.created {
        let message = format!("Created new replica set \"{name}\"");
        set(conditions, say("True", "NewReplicaSetCreated", message), false);
        return None;
    }
    let subject = match observed.new {
        Some(new) => format!("ReplicaSet \"{}\"", new.name_any()),
        None => format!("Deployment \"{}\"", deployment.name_any()),
    };
    if let Some(new) = observed.new.filter(|_| before.is_none()) {
        let message = format!("Found new replica set \"{}\"", new.name_any());
        set(conditions, say("True", "FoundNewReplicaSet", message), false);
    }
    // A rollout that has come to its end before stays successful while pods come and go.
    let ended = status.replicas == status.updated_replicas && reason == "NewReplicaSetAvailable";
    if ended {
        return None;
    }
    let less = |a: Option<i32>, b: Option<i32>| a.unwrap_or(0) < b.unwrap_or(0);
    let stale = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    let progressed = less(old.updated_replicas, status.updated_replicas)
        || stale(status) < stale(old)
        || less(old.ready_replicas, status.ready_replicas)
        || less(old.available_replicas, status.available_replicas);
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(conditions, say("True", "NewReplicaSetAvailable", message), false);
        return None;
    }
    if progressed {
        let message = format!("{subject} is progressing.");
        set(conditions, say("True", "ReplicaSetUpdated", message), true);
    } else if matches!(reason, "ProgressDeadlineExceeded" | "NewReplicaSetAvailable") {
        // The time of the last success says nothing about a rollout that only begins.
        return None;
    }
    let since = conditions
        .iter()
        .find(|c| c.type_ == "Progressing")
        .and_then(|c| c.last_update_time.as_ref())?;
    let left = i64::from(deadline?) - (now.as_second() - since.0.as_second());
    if left <= 0 {
        let message = format!("{subject} has timed out progressing.");
        set(
            conditions,
            say("False", "ProgressDeadlineExceeded", message),
            false,
        );
        return None;
    }
    Some(Duration::from_secs(left as u64 + 1))
}

/// A set's failure to create pods is the deployment's too.
fn failure(observed: &Observed<'_>, conditions: &mut Vec<DeploymentCondition>) {
    let of = |set: &ReplicaSet| {
        let failed = set
            .status
            .as_ref()?
            .conditions
            .as_ref()?
            .iter()
            .find(|c| c.type_ == "ReplicaFailure")?
            .clone();
        Some(DeploymentCondition {
            type_: failed.type_,
            status: failed.status,
            reason: failed.reason,
            message: failed.message,
            last_update_time: failed.last_transition_time.clone(),
            last_transition_time: failed.last_transition_time,
        })
    };
    match observed
        .new
        .and_then(of)
        .or_else(|| observed.sets.iter().find_map(|s| of(s)))
    {
        Some(failed) => set(conditions, failed, false),
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
}

/// The status after a replica set could not be created; none if that is what it says already.
pub fn create_failed(deployment: &Deployment, message: &str, now: Timestamp) -> Option<DeploymentStatus> {
    let mut status = deployment.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    let before = conditions.clone();
    set(
        conditions,
        condition(
            "Progressing",
            "False",
            "ReplicaSetCreateError",
            message.to_owned(),
            now,
        ),
        false,
    );
    (before != *conditions).then_some(status)
}

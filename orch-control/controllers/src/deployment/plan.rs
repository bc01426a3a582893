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

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSetStatus;

    /// A world in which replica sets follow at once, except that new pods become available one at a time.
    struct World {
        deployment: Deployment,
        sets: Vec<ReplicaSet>,
        version: u32,
    }

    impl World {
        fn new(replicas: i32, strategy: Value) -> Self {
            let deployment = serde_json::from_value(json!({
                "metadata": { "name": "web", "namespace": "ns", "uid": "d", "generation": 1 },
                "spec": {
                    "replicas": replicas, "selector": { "matchLabels": { "app": "web" } }, "strategy": strategy,
                    "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
                    "template": { "metadata": { "labels": { "app": "web" } },
                        "spec": { "containers": [{ "name": "c", "image": "v0" }] } },
                },
            }));
            Self {
                deployment: deployment.unwrap(),
                sets: Vec::new(),
                version: 0,
            }
        }

        fn image(&mut self, image: &str) {
            let spec = self.deployment.spec.as_mut().unwrap();
            spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
            *self.deployment.metadata.generation.as_mut().unwrap() += 1;
        }

        fn merge(set: &mut ReplicaSet, patch: Value) {
            let mut whole = serde_json::to_value(&*set).unwrap();
            fn put(into: &mut Value, from: Value) {
                match from {
                    Value::Object(fields) => fields
                        .into_iter()
                        .for_each(|(k, v)| put(&mut into[k.as_str()], v)),
                    other => *into = other,
                }
            }
            put(&mut whole, patch);
            *set = serde_json::from_value(whole).unwrap();
        }

        /// One pass of the controller, then one of the world. Tells whether anything moved.
        fn step(&mut self) -> bool {
            let arcs: Vec<_> = self.sets.iter().cloned().map(Arc::new).collect();
            let busy = |s: &&ReplicaSet| actual_of(s) > 0;
            let running: Vec<String> = self.sets.iter().filter(busy).filter_map(|s| s.uid()).collect();
            let plan = plan(&self.deployment, &arcs, &running, Timestamp::now());
            let moved = !plan.steps.is_empty();
            for step in plan.steps {
                match step {
                    Step::Create(mut set) => {
                        self.version += 1;
                        set.metadata.uid = Some(format!("rs{}", self.version));
                        set.metadata.creation_timestamp =
                            Some(Timestamp::from_second(self.version.into()).unwrap().into());
                        self.sets.push(*set);
                    }
                    Step::Annotate { set, patch } | Step::Scale { set, patch, .. } => {
                        let there = self.sets.iter_mut().find(|s| s.uid() == set.uid()).unwrap();
                        Self::merge(there, patch);
                    }
                    Step::Delete(set) => self.sets.retain(|s| s.uid() != set.uid()),
                    Step::Annotation { name, value } => {
                        self.deployment.annotations_mut().insert(name.into(), value);
                    }
                    Step::Status(status) => self.deployment.status = Some(*status),
                }
            }
            let mut grown = false;
            for set in &mut self.sets {
                let wanted = wanted(set);
                let mut up = set
                    .status
                    .as_ref()
                    .and_then(|s| s.available_replicas)
                    .unwrap_or(0)
                    .min(wanted);
                if up < wanted && !grown {
                    up += 1;
                    grown = true;
                }
                let next = Some(ReplicaSetStatus {
                    replicas: wanted,
                    ready_replicas: Some(up),
                    available_replicas: Some(up),
                    ..ReplicaSetStatus::default()
                });
                grown |= set.status != next;
                set.status = next;
            }
            moved || grown
        }

        fn settle(&mut self, mut check: impl FnMut(&Self)) {
            for _ in 0..500 {
                if !self.step() {
                    return;
                }
                check(self);
            }
            panic!("the deployment never settles: {:?}", self.deployment.status);
        }

        fn reason(&self) -> String {
            let conditions = self.deployment.status.clone().unwrap().conditions.unwrap();
            conditions
                .into_iter()
                .find(|c| c.type_ == "Progressing")
                .unwrap()
                .reason
                .unwrap()
        }
    }

    fn actual_of(set: &ReplicaSet) -> i32 {
        set.status.as_ref().map_or(0, |s| s.replicas)
    }

    fn up(world: &World) -> i32 {
        world
            .sets
            .iter()
            .map(|s| s.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0))
            .sum()
    }

    #[test]
    fn a_rolling_update_keeps_its_promises_at_every_step() {
        for (replicas, surge, unavailable) in [(1, 1, 0), (3, 1, 0), (10, 3, 2), (4, 0, 1), (5, 5, 5)] {
            let rolling = json!({ "maxSurge": surge, "maxUnavailable": unavailable });
            let mut world = World::new(
                replicas,
                json!({ "type": "RollingUpdate", "rollingUpdate": rolling }),
            );
            world.settle(|_| ());
            assert_eq!(
                (up(&world), world.reason().as_str()),
                (replicas, "NewReplicaSetAvailable")
            );
            world.image("v1");
            world.settle(|w| {
                let total: i32 = w.sets.iter().map(wanted).sum();
                assert!(total <= replicas + surge, "{total} pods with {replicas}+{surge}");
                assert!(
                    up(w) >= replicas - unavailable,
                    "{} up with {replicas}-{unavailable}",
                    up(w)
                );
            });
            assert_eq!(world.sets.iter().map(wanted).collect::<Vec<_>>(), [0, replicas]);
            assert_eq!(world.reason(), "NewReplicaSetAvailable");
            assert_eq!(world.deployment.annotations()[REVISION], "2");
        }
    }

    #[test]
    fn a_roll_back_takes_the_old_set_up_again_and_history_is_limited() {
        let mut world = World::new(2, json!({ "type": "RollingUpdate" }));
        for image in ["v0", "v1", "v0"] {
            world.image(image);
            world.settle(|_| ());
        }
        assert_eq!(world.sets.iter().map(wanted).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(world.deployment.annotations()[REVISION], "3");
        assert_eq!(world.sets[0].annotations()[revision::HISTORY], "1");
        for image in ["v2", "v3", "v4", "v5"] {
            world.image(image);
            world.settle(|_| ());
        }
        assert_eq!(world.sets.len(), 3);
    }

    #[test]
    fn recreate_starts_nothing_before_the_old_pods_are_gone() {
        let mut world = World::new(3, json!({ "type": "Recreate" }));
        world.settle(|_| ());
        world.image("v1");
        world.settle(|w| assert!(w.sets.iter().filter(|s| wanted(s) > 0).count() <= 1));
        assert_eq!(world.sets.iter().map(wanted).collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn a_paused_deployment_scales_and_does_not_roll() {
        let mut world = World::new(3, json!({ "type": "RollingUpdate" }));
        world.settle(|_| ());
        let spec = world.deployment.spec.as_mut().unwrap();
        (spec.paused, spec.replicas) = (Some(true), Some(5));
        world.image("v1");
        world.settle(|_| ());
        assert_eq!(world.sets.iter().map(wanted).collect::<Vec<_>>(), [5]);
        assert_eq!(world.reason(), "DeploymentPaused");
        world.deployment.spec.as_mut().unwrap().paused = None;
        world.settle(|_| ());
        assert_eq!(world.sets.iter().map(wanted).collect::<Vec<_>>(), [0, 5]);
    }
}

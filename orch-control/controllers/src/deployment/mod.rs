//! Deployment: replica sets, one for each version of the template, and the way from one to the next.
//!
//! # Flow
//! A deployment, or a replica set of its, changes (or, for Recreate, a pod goes) → [`plan::plan`] looks at the
//! deployment and its replica sets and says the next few writes; they come back through the watch and the next
//! step follows.
//! # Guarantees
//! A rolling update never has more than replicas + maxSurge pods, nor makes fewer than replicas − maxUnavailable
//! available. Every write carries the version it was decided on, so a stale cache only costs a repetition.
//! # Assumptions
//! The API server has filled in the defaults of the deployment.
//! # Errors
//! A conflict is tried again at once, everything else with back-off; a replica set that cannot be created is the
//! condition Progressing with reason ReplicaSetCreateError.

mod plan;
mod revision;
mod rolling;
mod status;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Client, Resource, ResourceExt};
use orch_shared::events::{Recorder, Severity, reference};
use orch_shared::pods::{controller_of, is_deleting, is_terminal};
use serde_json::json;

use self::plan::{Step, plan};
use crate::Context;
use crate::core::{Doing, Informers, Key, Next, Queue, ReconcileError, drive, is, namespace_is_terminating};

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
}

fn owner_key(set: &ReplicaSet) -> Option<Key> {
    let owner = controller_of(&set.metadata).filter(|o| o.kind == "Deployment")?;
    Some(Key::new(set.namespace()?, owner.name.clone()))
}

fn selector(deployment: &Deployment) -> Option<Selector> {
    let selector = Selector::try_from(deployment.spec.as_ref()?.selector.clone()).ok()?;
    (!selector.selects_all()).then_some(selector)
}

/// Starts the controller.
pub fn start(context: &Context) {
    let queue = Arc::new(Queue::<Key>::default());
    let informers = context.informers.clone();
    let wake = queue.clone();
    informers
        .deployments
        .subscribe(move |change| change.new.into_iter().for_each(|d| wake.add(Key::of(&**d))));
    let (wake, reader) = (queue.clone(), informers.clone());
    informers.replica_sets.subscribe(move |change| {
        for set in change.both() {
            if let Some(key) = owner_key(set) {
                wake.add(key);
            } else if controller_of(&set.metadata).is_none() {
                for deployment in reader
                    .deployments
                    .in_namespace(&set.namespace().unwrap_or_default())
                {
                    if selector(&deployment).is_some_and(|s| s.matches(set.labels())) {
                        wake.add(Key::of(&*deployment));
                    }
                }
            }
        }
    });
    let (wake, reader) = (queue.clone(), informers.clone());
    informers.pods.subscribe(move |change| {
        // Recreate waits for the last old pod to be gone.
        if let (Some(pod), gone) = (change.old, change.new.is_none_or(|p| is_terminal(p))) {
            let owner = controller_of(&pod.metadata).filter(|o| gone && o.kind == "ReplicaSet");
            let key = owner.map(|o| Key::new(pod.namespace().unwrap_or_default(), o.name.clone()));
            let set = key.and_then(|k| reader.replica_sets.get(&k));
            set.and_then(|s| owner_key(&s))
                .into_iter()
                .for_each(|k| wake.add(k));
        }
    });
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        informers,
        recorder: context.recorder("deployment-controller"),
    });
    drive("deployment", queue, 5, context.token.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Next, ReconcileError> {
        self.informers.replica_sets.synced().await;
        self.informers.pods.synced().await;
        let Some(deployment) = self.informers.deployments.get(key) else {
            return Ok(None);
        };
        let Some(selector) = selector(&deployment) else {
            return Ok(None);
        };
        let sets = self.claim(&deployment, &selector).await?;
        let uids: Vec<&str> = sets.iter().filter_map(|s| s.metadata.uid.as_deref()).collect();
        let pods = self.informers.pods.in_namespace(&key.namespace);
        let running: Vec<String> = pods
            .iter()
            .filter(|p| !is_terminal(p))
            .filter_map(|p| controller_of(&p.metadata))
            .filter(|o| uids.contains(&o.uid.as_str()))
            .map(|o| o.uid.clone())
            .collect();
        let plan = plan(&deployment, &sets, &running, Timestamp::now());
        for step in plan.steps {
            self.execute(key, &deployment, step).await?;
        }
        Ok(plan.come_back)
    }

    /// The deployment's replica sets; those that match and have no controller are adopted, those that no longer
    /// match are released.
    async fn claim(
        &self,
        deployment: &Deployment,
        selector: &Selector,
    ) -> Result<Vec<Arc<ReplicaSet>>, ReconcileError> {
        let namespace = deployment.namespace().unwrap_or_default();
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let mut ours = Vec::new();
        for set in self.informers.replica_sets.in_namespace(&namespace) {
            let matches = selector.matches(set.labels());
            match controller_of(&set.metadata) {
                Some(owner) if owner.uid == uid && (matches || is_deleting(&deployment.metadata)) => {
                    ours.push(set)
                }
                Some(owner) if owner.uid == uid => self.own(deployment, &set, false).await?,
                None if matches && !is_deleting(&set.metadata) && !is_deleting(&deployment.metadata) => {
                    self.own(deployment, &set, true).await?;
                    ours.push(set);
                }
                _ => {}
            }
        }
        Ok(ours)
    }

    async fn own(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        adopt: bool,
    ) -> Result<(), ReconcileError> {
        let mut owners = set.metadata.owner_references.clone().unwrap_or_default();
        owners.retain(|o| Some(&o.uid) != deployment.metadata.uid.as_ref());
        if adopt {
            owners.extend(revision::owner_reference(deployment));
        }
        self.patch_set(
            set,
            json!({ "metadata": { "ownerReferences": owners } }),
            "take over",
        )
        .await
    }

    /// Patches a replica set, provided that it still is the version that was looked at.
    async fn patch_set(
        &self,
        set: &ReplicaSet,
        mut patch: serde_json::Value,
        doing: &str,
    ) -> Result<(), ReconcileError> {
        patch["metadata"]["resourceVersion"] = json!(set.resource_version());
        let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .doing_if_there(|| format!("{doing} replica set {namespace}/{name}"))?;
        Ok(())
    }

    async fn execute(&self, key: &Key, deployment: &Deployment, step: Step) -> Result<(), ReconcileError> {
        match step {
            Step::Create(set) => self.create(key, deployment, *set).await,
            Step::Annotate { set, patch } => self.patch_set(&set, patch, "annotate").await,
            Step::Scale { set, replicas, patch } => {
                let before = set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                self.patch_set(&set, patch, "scale").await?;
                if before != replicas {
                    let verb = if replicas > before { "up" } else { "down" };
                    let message = format!(
                        "Scaled {verb} replica set {} from {before} to {replicas}",
                        set.name_any()
                    );
                    self.event(deployment, Severity::Normal, "ScalingReplicaSet", message);
                }
                Ok(())
            }
            Step::Delete(set) => {
                let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
                let uid = set.metadata.uid.clone();
                let same = Preconditions {
                    uid,
                    resource_version: set.resource_version(),
                };
                let params = DeleteParams {
                    preconditions: Some(same),
                    ..DeleteParams::background()
                };
                let name = set.name_any();
                api.delete(&name, &params)
                    .await
                    .doing_if_there(|| format!("delete replica set {}/{name}", key.namespace))?;
                Ok(())
            }
            Step::Annotation { name, value } => {
                let patch = json!({ "metadata": {
                    "resourceVersion": deployment.resource_version(), "annotations": { name: value },
                }});
                let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
                api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
                    .doing_if_there(|| format!("annotate deployment {key}"))?;
                Ok(())
            }
            Step::Status(status) => {
                let patch = json!({
                    "metadata": { "resourceVersion": deployment.resource_version() }, "status": status,
                });
                self.patch_status(key, patch).await
            }
        }
    }

    async fn patch_status(&self, key: &Key, patch: serde_json::Value) -> Result<(), ReconcileError> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
        api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .doing_if_there(|| format!("write the status of deployment {key}"))?;
        Ok(())
    }

    fn event(&self, deployment: &Deployment, severity: Severity, reason: &'static str, message: String) {
        self.recorder
            .event(reference(deployment), severity, reason, message);
    }

    async fn create(
        &self,
        key: &Key,
        deployment: &Deployment,
        set: ReplicaSet,
    ) -> Result<(), ReconcileError> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.namespace);
        let (name, replicas) = (
            set.name_any(),
            set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0),
        );
        let doing = || format!("create replica set {}/{name}", key.namespace);
        let error = match api.create(&PostParams::default(), &set).await {
            Ok(_) => {
                if replicas > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.event(deployment, Severity::Normal, "ScalingReplicaSet", message);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if is(&error, 409) {
            let there = api.get(&name).await.doing(doing)?;
            let owned = controller_of(&there.metadata).map(|o| &o.uid) == deployment.meta().uid.as_ref();
            if owned && revision::same_template(deployment, &there) {
                // The cache has yet to show what an earlier pass created.
                return Ok(());
            }
            let collisions = deployment
                .status
                .as_ref()
                .and_then(|s| s.collision_count)
                .unwrap_or(0);
            let patch = json!({
                "metadata": { "resourceVersion": deployment.resource_version() },
                "status": { "collisionCount": collisions + 1 },
            });
            return self.patch_status(key, patch).await;
        }
        if namespace_is_terminating(&error) {
            return Ok(());
        }
        let said = match &error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        let message = format!("Failed to create new replica set \"{name}\": {said}");
        if let Some(status) = status::create_failed(deployment, &message, Timestamp::now()) {
            self.patch_status(key, json!({ "status": status })).await?;
        }
        self.event(deployment, Severity::Warning, "ReplicaSetCreateError", message);
        Err(error).doing(doing)
    }
}

//! ReplicaSet and ReplicationController: as many pods of a template as asked for.
//!
//! # Flow
//! A replica set, or a pod that it owns or could own, changes → pods that match and have no controller are adopted,
//! pods that no longer match are released, missing pods are created in batches that double as long as they
//! succeed, surplus ones are deleted in Kubernetes' order, the status is written.
//! # Guarantees
//! Never more pods are created than are missing: while creations or deletions of ours have not come back through
//! the watch, no new ones are started.
//! # Assumptions
//! Selectors of replica sets do not overlap; if they do, the controller reference decides.
//! # Errors
//! A failed creation or deletion is an event and the condition ReplicaFailure, and is tried again with back-off.

mod expectations;
mod flavor;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Client, ResourceExt};
use orch_shared::events::{Recorder, Severity};
use orch_shared::pods::{controller_of, is_deleting, is_terminal};
use serde_json::json;

use self::expectations::Expectations;
use self::flavor::Flavor;
use crate::Context;
use crate::core::{
    Change, Doing, Informers, Key, Next, Queue, ReconcileError, drive, is, namespace_is_terminating,
};

/// At most this many pods are created or deleted at one go, as in Kubernetes.
const BURST: usize = 500;

struct Controller {
    flavor: Flavor,
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
    expectations: Expectations,
}

/// Starts both controllers.
pub fn start(context: &Context) {
    start_one(context, Flavor::ReplicaSet, 5);
    start_one(context, Flavor::ReplicationController, 2);
}

fn start_one(context: &Context, flavor: Flavor, workers: usize) {
    let queue = Arc::new(Queue::<Key>::default());
    let controller = Arc::new(Controller {
        flavor,
        client: context.client.clone(),
        informers: context.informers.clone(),
        recorder: context.recorder(flavor.component()),
        expectations: Expectations::default(),
    });
    let (wake, this) = (queue.clone(), controller.clone());
    flavor.subscribe(&context.informers, move |key, gone| {
        if gone {
            this.expectations.forget(&key);
        }
        wake.add(key);
    });
    let (wake, this) = (queue.clone(), controller.clone());
    context
        .informers
        .pods
        .subscribe(move |change| this.pod_changed(change, &wake));
    drive(flavor.name(), queue, workers, context.token.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    fn pod_changed(&self, change: &Change<'_, Pod>, queue: &Queue<Key>) {
        let added = change.new.filter(|_| change.old.is_none());
        if let Some(key) = added.and_then(|pod| self.flavor.owner_key(&pod.metadata)) {
            self.expectations.created(&key);
        }
        let leaving = change.new.is_none_or(|p| is_deleting(&p.metadata));
        for pod in change.both() {
            match self.flavor.owner_key(&pod.metadata) {
                Some(key) => {
                    if leaving {
                        self.expectations
                            .deleted(&key, pod.metadata.uid.as_deref().unwrap_or_default());
                    }
                    queue.add(key);
                }
                None if !leaving && controller_of(&pod.metadata).is_none() => {
                    let namespace = pod.namespace().unwrap_or_default();
                    for set in self.flavor.in_namespace(&self.informers, &namespace) {
                        if selector(&set).is_some_and(|s| s.matches(pod.labels())) {
                            queue.add(Key::of(&*set));
                        }
                    }
                }
                None => {}
            }
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, ReconcileError> {
        self.informers.pods.synced().await;
        let Some(set) = self.flavor.get(&self.informers, key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let Some(selector) = selector(&set) else {
            return Ok(None);
        };
        let settled = self.expectations.settled(key);
        let all = self.informers.pods.in_namespace(&key.namespace);
        let claimed = self.claim(&set, &selector, &all).await?;
        let now = Timestamp::now();
        let mut failure = None;
        if settled && !is_deleting(&set.metadata) {
            let namesakes = siblings(
                &set,
                &self.flavor.in_namespace(&self.informers, &key.namespace),
                &all,
            );
            let steps = plan::replicas(&set, &claimed, &namesakes, now);
            failure = self.manage(key, &set, steps).await;
        }
        let (status, comes_back) = plan::status(&set, &claimed, failure.as_ref().map(|(r, e)| (*r, e)), now);
        let status = self.flavor.sayable(status);
        if set.status.as_ref() != Some(&status) {
            let (client, version) = (self.client.clone(), set.resource_version());
            let written = self.flavor.write_status(client, key, version, &status).await;
            written.doing_if_there(|| format!("write the status of {} {key}", self.flavor.name()))?;
        }
        match failure {
            Some((_, error)) => Err(error),
            None => Ok(comes_back.map(|s| Duration::from_secs(s.max(1) as u64))),
        }
    }

    /// The pods that are this set's: its own, minus those released, plus those adopted.
    async fn claim(
        &self,
        set: &ReplicaSet,
        selector: &Selector,
        all: &[Arc<Pod>],
    ) -> Result<Vec<Arc<Pod>>, ReconcileError> {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let mut ours = Vec::new();
        for pod in all {
            let (deleting, matches) = (is_deleting(&pod.metadata), selector.matches(pod.labels()));
            match controller_of(&pod.metadata) {
                Some(owner) if owner.uid == uid && (matches || is_deleting(&set.metadata)) => {
                    ours.push(pod.clone())
                }
                Some(owner) if owner.uid == uid && !deleting => self.own(set, pod, false).await?,
                None if matches && !deleting && !is_terminal(pod) && !is_deleting(&set.metadata) => {
                    self.own(set, pod, true).await?;
                    ours.push(pod.clone());
                }
                _ => {}
            }
        }
        Ok(ours)
    }

    /// Adopts a pod, or lets it go.
    async fn own(&self, set: &ReplicaSet, pod: &Pod, adopt: bool) -> Result<(), ReconcileError> {
        let namespace = pod.namespace().unwrap_or_default();
        let uid = set.metadata.uid.clone().unwrap_or_default();
        if adopt {
            // The cache may not know yet that the set is going, or is another one of the same name.
            let key = Key::new(&namespace, set.name_any());
            let fresh = self.flavor.fresh(self.client.clone(), &key).await;
            let fresh = fresh.doing(|| format!("read {} {key}", self.flavor.name()))?;
            if fresh.uid != set.metadata.uid || is_deleting(&fresh) {
                return Err(ReconcileError::Stale("replica set"));
            }
        }
        let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
        owners.retain(|o| o.uid != uid);
        if adopt {
            owners.push(self.flavor.owner_reference(set));
        }
        let patch = json!({ "metadata": {
            "uid": pod.metadata.uid, "resourceVersion": pod.resource_version(), "ownerReferences": owners,
        }});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let verb = if adopt { "adopt" } else { "release" };
        api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .doing_if_there(|| format!("{verb} pod {namespace}/{}", pod.name_any()))?;
        Ok(())
    }

    async fn manage(
        &self,
        key: &Key,
        set: &ReplicaSet,
        steps: plan::Steps,
    ) -> Option<(&'static str, ReconcileError)> {
        match steps {
            plan::Steps::None => None,
            plan::Steps::Create(missing) => {
                let missing = missing.min(BURST);
                self.expectations.expect_creations(key, missing);
                let (mut started, mut batch) = (0, 1);
                while started < missing {
                    let size = batch.min(missing - started);
                    let results = join_all((0..size).map(|_| self.create(key, set))).await;
                    started += size;
                    batch *= 2;
                    let failed = results.iter().filter(|r| r.is_err()).count();
                    (0..failed).for_each(|_| self.expectations.created(key));
                    if let Some(error) = results.into_iter().find_map(Result::err) {
                        // What was not even tried will not come through the watch either.
                        (started..missing).for_each(|_| self.expectations.created(key));
                        return error.map(|e| ("FailedCreate", e));
                    }
                }
                None
            }
            plan::Steps::Delete(surplus) => {
                let surplus: Vec<_> = surplus.into_iter().take(BURST).collect();
                self.expectations
                    .expect_deletions(key, surplus.iter().filter_map(|p| p.metadata.uid.clone()));
                let results = join_all(surplus.iter().map(|pod| self.delete(key, set, pod))).await;
                results
                    .into_iter()
                    .find_map(Result::err)
                    .map(|e| ("FailedDelete", e))
            }
        }
    }

    /// `Err(None)` is a failure that nobody has to hear of: the namespace is going away.
    async fn create(&self, key: &Key, set: &ReplicaSet) -> Result<(), Option<ReconcileError>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        match api
            .create(
                &PostParams::default(),
                &new_pod(set, self.flavor.owner_reference(set)),
            )
            .await
        {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.name_any());
                self.recorder.event(
                    self.flavor.reference(set),
                    Severity::Normal,
                    "SuccessfulCreate",
                    message,
                );
                Ok(())
            }
            Err(error) if namespace_is_terminating(&error) => Err(None),
            Err(error) => {
                let said = match &error {
                    kube::Error::Api(status) => status.message.clone(),
                    other => other.to_string(),
                };
                let message = format!("Error creating: {said}");
                self.recorder.event(
                    self.flavor.reference(set),
                    Severity::Warning,
                    "FailedCreate",
                    message,
                );
                Err(Some(ReconcileError::Api {
                    doing: format!("create a pod of {key}"),
                    source: Box::new(error),
                }))
            }
        }
    }

    async fn delete(&self, key: &Key, set: &ReplicaSet, pod: &Pod) -> Result<(), ReconcileError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let uid = pod.metadata.uid.clone();
        let only_this = Preconditions {
            uid: uid.clone(),
            resource_version: None,
        };
        let params = DeleteParams {
            preconditions: Some(only_this),
            ..DeleteParams::default()
        };
        let name = pod.name_any();
        match api.delete(&name, &params).await {
            Ok(_) => {
                let message = format!("Deleted pod: {name}");
                self.recorder.event(
                    self.flavor.reference(set),
                    Severity::Normal,
                    "SuccessfulDelete",
                    message,
                );
                Ok(())
            }
            Err(error) => {
                self.expectations.deleted(key, uid.as_deref().unwrap_or_default());
                if is(&error, 404) || is(&error, 409) {
                    return Ok(());
                }
                let message = format!("Error deleting: {error}");
                self.recorder.event(
                    self.flavor.reference(set),
                    Severity::Warning,
                    "FailedDelete",
                    message,
                );
                Err(error).doing(|| format!("delete pod {}/{name}", key.namespace))
            }
        }
    }
}

fn selector(set: &ReplicaSet) -> Option<Selector> {
    let selector = Selector::try_from(set.spec.as_ref()?.selector.clone()).ok()?;
    // A selector of everything is refused by the API; were one to slip through, it would adopt the namespace.
    (!selector.selects_all()).then_some(selector)
}

/// How many active pods each node runs for this set and those with the same controller (a deployment's other
/// sets): scaling down takes from where there are most.
fn siblings(set: &ReplicaSet, sets: &[Arc<ReplicaSet>], pods: &[Arc<Pod>]) -> BTreeMap<String, usize> {
    let above = controller_of(&set.metadata).map(|o| &o.uid);
    let related = |s: &&Arc<ReplicaSet>| {
        s.metadata.uid == set.metadata.uid
            || above.is_some() && controller_of(&s.metadata).map(|o| &o.uid) == above
    };
    let uids: Vec<&str> = sets
        .iter()
        .filter(related)
        .filter_map(|s| s.metadata.uid.as_deref())
        .collect();
    let mut out = BTreeMap::new();
    let theirs = |p: &&Arc<Pod>| {
        plan::is_active(p) && controller_of(&p.metadata).is_some_and(|o| uids.contains(&o.uid.as_str()))
    };
    for node in pods
        .iter()
        .filter(theirs)
        .filter_map(|p| orch_shared::pods::node_name(p))
    {
        *out.entry(node.to_owned()).or_default() += 1;
    }
    out
}

fn new_pod(set: &ReplicaSet, owner: OwnerReference) -> Pod {
    let template = set
        .spec
        .as_ref()
        .and_then(|s| s.template.clone())
        .unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.name_any())),
            namespace: set.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

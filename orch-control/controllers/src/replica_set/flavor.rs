//! [`Flavor`]: ReplicaSets and the older ReplicationControllers. One controller serves both, and sees a
//! ReplicationController as the ReplicaSet that says the same.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{ObjectReference, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use orch_shared::events::reference;
use orch_shared::pods::controller_of;
use serde_json::json;

use crate::core::{Informers, Key};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// apps/v1 ReplicaSet.
    ReplicaSet,
    /// core/v1 ReplicationController.
    ReplicationController,
}

impl Flavor {
    /// The name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReplicaSet => "replicaset",
            Self::ReplicationController => "replicationcontroller",
        }
    }

    /// The component that events are from; Kubernetes' names.
    pub fn component(self) -> &'static str {
        match self {
            Self::ReplicaSet => "replicaset-controller",
            Self::ReplicationController => "replication-controller",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::ReplicaSet => "apps/v1",
            Self::ReplicationController => "v1",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::ReplicaSet => "ReplicaSet",
            Self::ReplicationController => "ReplicationController",
        }
    }

    /// The set that controls an object, if it is of this flavor.
    pub fn owner_key(self, meta: &ObjectMeta) -> Option<Key> {
        let owner = controller_of(meta).filter(|o| {
            let group = |version: &str| version.rsplit_once('/').map(|(group, _)| group.to_owned());
            o.kind == self.kind() && group(&o.api_version) == group(self.api_version())
        })?;
        Some(Key::new(meta.namespace.clone()?, owner.name.clone()))
    }

    /// Calls `handler` with the key of every set that changes, and whether it is gone.
    pub fn subscribe(self, informers: &Informers, handler: impl Fn(Key, bool) + Send + Sync + 'static) {
        match self {
            Self::ReplicaSet => informers.replica_sets.subscribe(move |change| {
                change
                    .both()
                    .for_each(|set| handler(Key::of(&**set), change.new.is_none()));
            }),
            Self::ReplicationController => informers.replication_controllers.subscribe(move |change| {
                change
                    .both()
                    .for_each(|set| handler(Key::of(&**set), change.new.is_none()));
            }),
        }
    }

    /// The set with this key.
    pub fn get(self, informers: &Informers, key: &Key) -> Option<Arc<ReplicaSet>> {
        match self {
            Self::ReplicaSet => informers.replica_sets.get(key),
            Self::ReplicationController => informers.replication_controllers.get(key).map(|rc| as_set(&rc)),
        }
    }

    /// All sets of a namespace.
    pub fn in_namespace(self, informers: &Informers, namespace: &str) -> Vec<Arc<ReplicaSet>> {
        match self {
            Self::ReplicaSet => informers.replica_sets.in_namespace(namespace),
            Self::ReplicationController => {
                let all = informers.replication_controllers.in_namespace(namespace);
                all.iter().map(|rc| as_set(rc)).collect()
            }
        }
    }

    /// The metadata of a set as the API server has it, not the cache.
    pub async fn fresh(self, client: Client, key: &Key) -> Result<ObjectMeta, kube::Error> {
        Ok(match self {
            Self::ReplicaSet => {
                let api: Api<ReplicaSet> = Api::namespaced(client, &key.namespace);
                api.get(&key.name).await?.metadata
            }
            Self::ReplicationController => {
                let api: Api<ReplicationController> = Api::namespaced(client, &key.namespace);
                api.get(&key.name).await?.metadata
            }
        })
    }

    /// The part of a status that this flavor can say.
    pub fn sayable(self, mut status: ReplicaSetStatus) -> ReplicaSetStatus {
        if self == Self::ReplicationController {
            status.terminating_replicas = None;
        }
        status
    }

    /// Writes the status of a set as it was when `version` was the newest.
    pub async fn write_status(
        self,
        client: Client,
        key: &Key,
        version: Option<String>,
        status: &ReplicaSetStatus,
    ) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({ "metadata": { "resourceVersion": version }, "status": status }));
        let params = PatchParams::default();
        match self {
            Self::ReplicaSet => {
                let api: Api<ReplicaSet> = Api::namespaced(client, &key.namespace);
                api.patch_status(&key.name, &params, &patch).await.map(drop)
            }
            Self::ReplicationController => {
                let api: Api<ReplicationController> = Api::namespaced(client, &key.namespace);
                api.patch_status(&key.name, &params, &patch).await.map(drop)
            }
        }
    }

    /// What an event about the set is about.
    pub fn reference(self, set: &ReplicaSet) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.api_version().into()),
            kind: Some(self.kind().into()),
            ..reference(set)
        }
    }

    /// How a pod says that it is the set's.
    pub fn owner_reference(self, set: &ReplicaSet) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version().into(),
            kind: self.kind().into(),
            name: set.name_any(),
            uid: set.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}

/// The ReplicaSet that says what a ReplicationController says.
fn as_set(controller: &ReplicationController) -> Arc<ReplicaSet> {
    let condition = |c: k8s_openapi::api::core::v1::ReplicationControllerCondition| ReplicaSetCondition {
        last_transition_time: c.last_transition_time,
        message: c.message,
        reason: c.reason,
        status: c.status,
        type_: c.type_,
    };
    let spec = controller.spec.clone().map(|spec| ReplicaSetSpec {
        min_ready_seconds: spec.min_ready_seconds,
        replicas: spec.replicas,
        selector: LabelSelector {
            match_labels: spec.selector,
            match_expressions: None,
        },
        template: spec.template,
    });
    let status = controller.status.clone().map(|status| ReplicaSetStatus {
        available_replicas: status.available_replicas,
        conditions: status
            .conditions
            .map(|all| all.into_iter().map(condition).collect()),
        fully_labeled_replicas: status.fully_labeled_replicas,
        observed_generation: status.observed_generation,
        ready_replicas: status.ready_replicas,
        replicas: status.replicas,
        terminating_replicas: None,
    });
    Arc::new(ReplicaSet {
        metadata: controller.metadata.clone(),
        spec,
        status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replication_controller_says_the_same_as_a_set() {
        let controller: ReplicationController = serde_json::from_value(json!({
            "metadata": { "name": "rc", "namespace": "n", "uid": "u" },
            "spec": { "replicas": 2, "minReadySeconds": 3, "selector": { "a": "b" },
                "template": { "metadata": { "labels": { "a": "b" } } } },
            "status": { "replicas": 1, "readyReplicas": 1,
                "conditions": [{ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate" }] },
        }))
        .unwrap();
        let set = as_set(&controller);
        let mut said = serde_json::to_value(&*set).unwrap();
        let selector = said["spec"]["selector"]["matchLabels"].take();
        said["spec"]["selector"] = selector;
        for part in ["metadata", "spec", "status"] {
            assert_eq!(
                said[part],
                serde_json::to_value(&controller).unwrap()[part],
                "{part}"
            );
        }
        let flavor = Flavor::ReplicationController;
        let owned = ObjectMeta {
            namespace: Some("n".into()),
            owner_references: Some(vec![flavor.owner_reference(&set)]),
            ..ObjectMeta::default()
        };
        assert_eq!(flavor.owner_key(&owned), Some(Key::new("n", "rc")));
        assert_eq!(Flavor::ReplicaSet.owner_key(&owned), None);
        assert_eq!(
            flavor.reference(&set).kind.as_deref(),
            Some("ReplicationController")
        );
    }
}

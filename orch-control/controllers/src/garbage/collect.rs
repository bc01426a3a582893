//! What is done about one object: delete it, let its dependents go, or take a finalizer off.

use futures::future::try_join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use serde_json::json;

use super::graph::{FOREGROUND, Node, ORPHAN};
use super::{Collector, Uid};
use crate::core::{Doing, Next, ReconcileError, is};

/// What an owner reference leads to.
enum Owner {
    /// It is there.
    Solid,
    /// It is there and waits for its dependents to go.
    Waiting,
    /// It is not there, or another object has its name.
    Absent,
}

impl Collector {
    /// See the module.
    pub(super) async fn reconcile(&self, uid: &str) -> Result<Next, ReconcileError> {
        let Some(node) = self.graph.lock().get(uid).cloned() else {
            return Ok(None);
        };
        if node.orphan {
            return self.orphan(&node).await;
        }
        if node.foreground {
            return self.foreground(&node).await;
        }
        if node.deleting || node.owners.is_empty() {
            return Ok(None);
        }
        self.owned(&node).await
    }

    fn api(&self, node: &Node) -> Option<Api<DynamicObject>> {
        self.named(&node.group, &node.kind, node.namespace.as_deref())
    }

    fn named(&self, group: &str, kind: &str, namespace: Option<&str>) -> Option<Api<DynamicObject>> {
        let kinds = self.kinds.read();
        let found = kinds.get(&(group.to_owned(), kind.to_owned()))?;
        Some(match namespace.filter(|_| found.namespaced) {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &found.resource),
            None if found.namespaced => return None,
            None => Api::all_with(self.client.clone(), &found.resource),
        })
    }

    async fn look_up(&self, node: &Node, owner: &OwnerReference) -> Result<Option<Owner>, ReconcileError> {
        if let Some(known) = self.graph.lock().get(&owner.uid) {
            return Ok(Some(if known.foreground {
                Owner::Waiting
            } else {
                Owner::Solid
            }));
        }
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let Some(api) = self.named(group, &owner.kind, node.namespace.as_deref()) else {
            return Ok(None);
        };
        let doing = || format!("look for {} {}", owner.kind, owner.name);
        let there = api.get_metadata_opt(&owner.name).await.doing(doing)?;
        Ok(Some(
            match there.filter(|o| o.metadata.uid.as_ref() == Some(&owner.uid)) {
                None => Owner::Absent,
                Some(object) => {
                    let finalizers = object.metadata.finalizers.unwrap_or_default();
                    let waits = object.metadata.deletion_timestamp.is_some();
                    if waits && finalizers.iter().any(|f| f == FOREGROUND) {
                        Owner::Waiting
                    } else {
                        Owner::Solid
                    }
                }
            },
        ))
    }

    /// An object with owners: it stays as long as one of them does.
    async fn owned(&self, node: &Node) -> Result<Next, ReconcileError> {
        let (mut solid, mut waiting, mut loose) = (false, false, Vec::new());
        for owner in &node.owners {
            match self.look_up(node, owner).await? {
                // A kind that is not served (yet): nothing can be said about it.
                None => return Ok(None),
                Some(Owner::Solid) => solid = true,
                Some(Owner::Waiting) => {
                    waiting = true;
                    loose.push(owner.uid.as_str());
                }
                Some(Owner::Absent) => loose.push(owner.uid.as_str()),
            }
        }
        if solid {
            return match loose.is_empty() {
                true => Ok(None),
                false => self.disown(node, &loose).await,
            };
        }
        let has_dependents = !self.graph.lock().dependents(&node.uid).is_empty();
        let params = if waiting && has_dependents {
            DeleteParams::foreground()
        } else {
            DeleteParams::background()
        };
        self.delete(node, params).await
    }

    async fn delete(&self, node: &Node, params: DeleteParams) -> Result<Next, ReconcileError> {
        let Some(api) = self.api(node) else {
            return Ok(None);
        };
        let same = Preconditions {
            uid: Some(node.uid.clone()),
            resource_version: None,
        };
        match api
            .delete(
                &node.name,
                &DeleteParams {
                    preconditions: Some(same),
                    ..params
                },
            )
            .await
        {
            // Gone already, or there is another one of its name by now.
            Err(error) if is(&error, 404) || is(&error, 409) => Ok(None),
            result => result
                .doing(|| format!("delete {} {}", node.kind, node.name))
                .map(|_| None),
        }
    }

    /// Takes references to owners out of an object.
    async fn disown(&self, node: &Node, owners: &[&str]) -> Result<Next, ReconcileError> {
        self.change(node, |object| {
            let references = object.metadata.owner_references.clone().unwrap_or_default();
            let kept: Vec<_> = references
                .iter()
                .filter(|o| !owners.contains(&o.uid.as_str()))
                .collect();
            let gone = kept.len() < references.len();
            gone.then(|| json!({ "ownerReferences": (!kept.is_empty()).then_some(kept) }))
        })
        .await
    }

    async fn remove_finalizer(&self, node: &Node, finalizer: &str) -> Result<Next, ReconcileError> {
        self.change(node, |object| {
            let all = object.metadata.finalizers.clone().unwrap_or_default();
            let kept: Vec<_> = all.iter().filter(|f| *f != finalizer).collect();
            let gone = kept.len() < all.len();
            gone.then(|| json!({ "finalizers": (!kept.is_empty()).then_some(kept) }))
        })
        .await
    }

    /// Reads an object's metadata and writes what `change` makes of it; a conflict is tried again.
    async fn change(
        &self,
        node: &Node,
        change: impl Fn(&kube::core::PartialObjectMeta<DynamicObject>) -> Option<serde_json::Value>,
    ) -> Result<Next, ReconcileError> {
        let Some(api) = self.api(node) else {
            return Ok(None);
        };
        let doing = || format!("change the metadata of {} {}", node.kind, node.name);
        let fresh = api.get_metadata_opt(&node.name).await.doing(doing)?;
        let Some(fresh) = fresh.filter(|o| o.metadata.uid.as_ref() == Some(&node.uid)) else {
            return Ok(None);
        };
        let Some(mut metadata) = change(&fresh) else {
            return Ok(None);
        };
        metadata["uid"] = json!(node.uid);
        metadata["resourceVersion"] = json!(fresh.metadata.resource_version);
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        api.patch(&node.name, &PatchParams::default(), &patch)
            .await
            .doing_if_there(doing)?;
        Ok(None)
    }

    async fn orphan(&self, node: &Node) -> Result<Next, ReconcileError> {
        let dependents = self.graph.lock().dependents(&node.uid);
        let owner = [node.uid.as_str()];
        try_join_all(dependents.iter().map(|d| self.disown(d, &owner))).await?;
        self.remove_finalizer(node, ORPHAN).await
    }

    /// An object that waits: its dependents are deleted, and when none that blocks is left it may go.
    async fn foreground(&self, node: &Node) -> Result<Next, ReconcileError> {
        let dependents = self.graph.lock().dependents(&node.uid);
        let blocks = |d: &&Node| {
            d.owner(&node.uid)
                .is_some_and(|o| o.block_owner_deletion == Some(true))
        };
        if !dependents.iter().any(|d| blocks(&d)) {
            return self.remove_finalizer(node, FOREGROUND).await;
        }
        for dependent in dependents.iter().filter(|d| !d.deleting) {
            self.queue.add(Uid(dependent.uid.clone()));
        }
        Ok(None)
    }
}

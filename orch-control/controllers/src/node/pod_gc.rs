//! Pod GC: pods of nodes that no longer exist are removed, for nobody is left who could end them.
//!
//! # Flow
//! A node goes, or a pod is bound to one that is not there → after a quarantine, and if the API server too says
//! that there is no such node, the pod is marked Failed and deleted without grace. A pod that is deleted before
//! it ever got a node is removed likewise.
//! # Guarantees
//! No pod of a node that exists is touched; the cache's word alone is not enough.
//! # Assumptions
//! A node that comes back under its name within the quarantine is the same node.
//! # Errors
//! Failed writes are tried again with back-off.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use orch_shared::pods;
use serde_json::json;

use crate::Context;
use crate::core::{Doing, Informers, Key, Next, Queue, ReconcileError, drive};

/// How long a node must be gone (Kubernetes' quarantine).
const QUARANTINE: Duration = Duration::from_secs(40);

/// Starts the controller.
pub fn start(context: &Context) {
    let queue = Arc::new(Queue::<Key>::default());
    let (wake, reader) = (queue.clone(), context.informers.clone());
    context.informers.pods.subscribe(move |change| {
        let Some(pod) = change.new else { return };
        match pods::node_name(pod) {
            Some(node) if reader.nodes.get(&Key::new("", node)).is_some() => {}
            Some(_) => wake.add_after(Key::of(&**pod), QUARANTINE),
            None if pods::is_deleting(&pod.metadata) => wake.add(Key::of(&**pod)),
            None => {}
        }
    });
    let (wake, reader) = (queue.clone(), context.informers.clone());
    context.informers.nodes.subscribe(move |change| {
        if let (Some(node), None) = (change.old, change.new) {
            let name = node.name_any();
            let pods = reader
                .pods
                .all()
                .into_iter()
                .filter(|p| pods::node_name(p) == Some(&name));
            pods.for_each(|pod| wake.add_after(Key::of(&*pod), QUARANTINE));
        }
    });
    let (client, informers) = (context.client.clone(), context.informers.clone());
    drive("podgc", queue, 2, context.token.clone(), move |key| {
        let (client, informers) = (client.clone(), informers.clone());
        async move { reconcile(&client, &informers, &key).await }
    });
}

async fn reconcile(client: &Client, informers: &Informers, key: &Key) -> Result<Next, ReconcileError> {
    informers.nodes.synced().await;
    let Some(pod) = informers.pods.get(key) else {
        return Ok(None);
    };
    match pods::node_name(&pod) {
        Some(node) => {
            let nodes: Api<Node> = Api::all(client.clone());
            let there = informers.nodes.get(&Key::new("", node)).is_some()
                || nodes
                    .get_opt(node)
                    .await
                    .doing(|| format!("look for node {node}"))?
                    .is_some();
            if there {
                return Ok(None);
            }
        }
        None if pods::is_deleting(&pod.metadata) => {}
        None => return Ok(None),
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    if !pods::is_terminal(&pod) {
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists", "lastTransitionTime": Time(Timestamp::now()),
        });
        let patch = json!({
            "metadata": { "uid": pod.uid() }, "status": { "phase": "Failed", "conditions": [condition] },
        });
        let failed = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        failed.doing_if_there(|| format!("mark pod {key} as failed"))?;
    }
    let same = Preconditions {
        uid: pod.uid(),
        resource_version: None,
    };
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(same),
        ..DeleteParams::default()
    };
    api.delete(&key.name, &params)
        .await
        .doing_if_there(|| format!("remove pod {key}"))?;
    Ok(None)
}

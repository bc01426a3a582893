//! Namespace: deleting one deletes everything in it.
//!
//! # Flow
//! A namespace with a deletion timestamp → every resource that discovery calls namespaced is listed and its objects
//! deleted; once nothing is left, the finalizer `kubernetes` is taken off, which lets the API server remove it.
//! # Guarantees
//! The finalizer goes only after a pass in which every resource was listed and found empty.
//! # Assumptions
//! The API server refuses to create anything in a namespace that is being deleted.
//! # Errors
//! What cannot be listed or deleted is said in the namespace's conditions and tried again with back-off.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::discovery::{Scope, verbs};
use kube::{Api, Client, Discovery, ResourceExt};
use serde_json::{Value, json};

use crate::Context;
use crate::core::{Doing, Key, Next, Queue, ReconcileError, drive, is};

/// How soon to look again at objects that take their time: pods have grace periods.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How many deletions are under way at once.
const PARALLEL: usize = 16;

/// Starts the controller.
pub fn start(context: &Context) {
    let queue = Arc::new(Queue::<Key>::default());
    let wake = queue.clone();
    context.informers.namespaces.subscribe(move |change| {
        let going = change.new.filter(|n| n.metadata.deletion_timestamp.is_some());
        going.into_iter().for_each(|n| wake.add(Key::of(&**n)));
    });
    let (client, informers) = (context.client.clone(), context.informers.clone());
    drive("namespace", queue, 4, context.token.clone(), move |key| {
        let (client, informers) = (client.clone(), informers.clone());
        async move {
            match informers
                .namespaces
                .get(&key)
                .filter(|n| n.metadata.deletion_timestamp.is_some())
            {
                Some(namespace) => empty(&client, &namespace).await,
                None => Ok(None),
            }
        }
    });
}

/// The resources that objects in namespaces are of. Each kind once, though several versions may serve it.
async fn resources(client: &Client) -> Result<Vec<ApiResource>, ReconcileError> {
    let discovery = Discovery::new(client.clone())
        .run()
        .await
        .doing(|| "discover the API's resources".into())?;
    let mut out: Vec<ApiResource> = Vec::new();
    for (resource, capabilities) in discovery.groups().flat_map(|g| g.recommended_resources()) {
        let usable =
            capabilities.supports_operation(verbs::LIST) && capabilities.supports_operation(verbs::DELETE);
        if capabilities.scope == Scope::Namespaced && usable {
            out.push(resource);
        }
    }
    Ok(out)
}

async fn empty(client: &Client, namespace: &Namespace) -> Result<Next, ReconcileError> {
    let name = namespace.name_any();
    let (mut left, mut failures) = (Vec::new(), Vec::new());
    for resource in resources(client).await? {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &name, &resource);
        let list = match api.list_metadata(&ListParams::default()).await {
            Ok(list) => list.items,
            // A definition that was just removed.
            Err(error) if is(&error, 404) || is(&error, 405) => continue,
            Err(error) => {
                failures.push(format!("{}: {error}", resource.plural));
                continue;
            }
        };
        if !list.is_empty() {
            left.push(format!(
                "{}.{} has {} resource instances",
                resource.plural,
                resource.group,
                list.len()
            ));
        }
        let going = list.iter().filter(|o| o.metadata.deletion_timestamp.is_none());
        let going: Vec<String> = going.map(|o| o.name_any()).collect();
        let results = futures::stream::iter(going)
            .map(|object| {
                let api = api.clone();
                async move { api.delete(&object, &DeleteParams::background()).await }
            })
            .buffer_unordered(PARALLEL)
            .collect::<Vec<_>>()
            .await;
        for error in results
            .into_iter()
            .filter_map(Result::err)
            .filter(|e| !is(e, 404))
        {
            failures.push(format!("{}: {error}", resource.plural));
        }
    }
    if left.is_empty() && failures.is_empty() {
        finalize(client, namespace).await?;
        return Ok(None);
    }
    tell(client, namespace, &left, &failures).await?;
    Ok(Some(LOOK_AGAIN))
}

async fn finalize(client: &Client, namespace: &Namespace) -> Result<(), ReconcileError> {
    let mut next = namespace.clone();
    if let Some(finalizers) = next.spec.get_or_insert_default().finalizers.as_mut() {
        finalizers.retain(|f| f != "kubernetes");
    }
    let body = serde_json::to_vec(&next).unwrap_or_default();
    let name = namespace.name_any();
    let request = kube::core::Request::new("/api/v1/namespaces")
        .replace_subresource("finalize", &name, &kube::api::PostParams::default(), body)
        .map_err(kube::Error::BuildRequest)
        .doing(|| format!("ask for the end of namespace {name}"))?;
    let answer = client.request::<Value>(request).await;
    answer.doing_if_there(|| format!("finalize namespace {name}"))?;
    Ok(())
}

/// Says in the namespace's conditions what is in the way, as Kubernetes does; written only if it is news.
async fn tell(
    client: &Client,
    namespace: &Namespace,
    left: &[String],
    failures: &[String],
) -> Result<(), ReconcileError> {
    let status = |yes: bool| if yes { "True" } else { "False" };
    let remaining = format!("Some resources are remaining: {}", left.join(", "));
    let failed = format!(
        "Failed to delete all resource types, {} remaining: {}",
        failures.len(),
        failures.join(", ")
    );
    let wanted = [
        (
            "NamespaceDeletionContentFailure",
            !failures.is_empty(),
            "ContentDeletionFailed",
            failed,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            !left.is_empty(),
            "SomeResourcesRemain",
            remaining,
            "ContentRemoved",
            "All content successfully removed",
        ),
    ];
    let mut conditions = namespace
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let before = conditions.clone();
    for (type_, yes, reason, message, good_reason, good_message) in wanted {
        let (reason, message) = if yes {
            (reason, message)
        } else {
            (good_reason, good_message.to_owned())
        };
        let same = |c: &k8s_openapi::api::core::v1::NamespaceCondition| {
            c.type_ == type_ && c.status == status(yes) && c.message.as_ref() == Some(&message)
        };
        if !conditions.iter().any(same) {
            conditions.retain(|c| c.type_ != type_);
            conditions.push(k8s_openapi::api::core::v1::NamespaceCondition {
                type_: type_.into(),
                status: status(yes).into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_transition_time: Some(Time(Timestamp::now())),
            });
        }
    }
    if conditions == before {
        return Ok(());
    }
    let api: Api<Namespace> = Api::all(client.clone());
    let patch = json!({ "status": { "phase": "Terminating", "conditions": conditions } });
    let name = namespace.name_any();
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .doing_if_there(|| format!("write the status of namespace {name}"))?;
    Ok(())
}

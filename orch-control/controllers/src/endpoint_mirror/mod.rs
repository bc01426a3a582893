//! EndpointSlice mirroring: Endpoints that somebody wrote for a service without selector, as EndpointSlices.
//!
//! # Flow
//! An Endpoints object, its service, or one of its slices changes → the slices are compared with what the object
//! says; only slices that differ are written.
//! # Guarantees
//! One slice for each family and set of ports. Endpoints that ask not to be mirrored, or whose service is gone or
//! has a selector, have no slices of ours.
//! # Assumptions
//! Slices that are not marked as this controller's belong to somebody else.
//! # Errors
//! A failed write is tried again with back-off. While a write of ours has not come back through the watch the
//! object waits for it, lest a slice be made twice.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use tracing::warn;

use crate::Context;
use crate::core::{Doing, Informers, Key, Next, Queue, ReconcileError, drive, namespace_is_terminating};
use crate::endpoints::tracker::Tracker;

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    tracker: Tracker,
}

/// Starts the controller.
pub fn start(context: &Context) {
    let queue = Arc::new(Queue::<Key>::default());
    let informers = &context.informers;
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        informers: informers.clone(),
        tracker: Tracker::default(),
    });
    let wake = queue.clone();
    informers
        .endpoints
        .subscribe(move |change| change.both().for_each(|e| wake.add(Key::of(&**e))));
    let wake = queue.clone();
    informers.services.subscribe(move |change| {
        let selector =
            |s: &Arc<k8s_openapi::api::core::v1::Service>| s.spec.as_ref().map(|s| s.selector.clone());
        if change.old.map(selector) != change.new.map(selector) {
            change.both().for_each(|s| wake.add(Key::of(&**s)));
        }
    });
    let (wake, this) = (queue.clone(), controller.clone());
    informers.slices.subscribe(move |change| {
        for slice in change.both() {
            if let Some(service) = plan::mirrors(slice) {
                let key = Key::new(slice.namespace().unwrap_or_default(), service);
                this.tracker.seen(&key, slice, change.new.is_none());
                wake.add(key);
            }
        }
    });
    drive(
        "endpointslicemirroring",
        queue,
        2,
        context.token.clone(),
        move |key| {
            let controller = controller.clone();
            async move { controller.mirror(&key).await }
        },
    );
}

impl Controller {
    async fn mirror(&self, key: &Key) -> Result<Next, ReconcileError> {
        self.informers.endpoints.synced().await;
        self.informers.services.synced().await;
        self.informers.slices.synced().await;
        if !self.tracker.is_fresh(key) {
            // The watch wakes us as soon as it has shown the rest; this is only for what never comes.
            return Ok(Some(Duration::from_secs(1)));
        }
        let mut existing = self.informers.slices.in_namespace(&key.namespace);
        existing.retain(|s| {
            plan::mirrors(s) == Some(key.name.as_str()) && s.metadata.deletion_timestamp.is_none()
        });
        let bare = self.informers.services.get(key).is_some_and(|service| {
            let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
            selector.is_none_or(|s| s.is_empty())
        });
        let endpoints = self.informers.endpoints.get(key);
        let steps = match endpoints.filter(|e| bare && plan::wants_mirror(e)) {
            Some(endpoints) => plan::plan(&endpoints, &existing),
            None => plan::Steps {
                delete: existing,
                ..plan::Steps::default()
            },
        };
        if steps.left_out > 0 {
            warn!(endpoints = %key, addresses = steps.left_out, "more addresses than are mirrored");
        }
        self.write(key, steps).await
    }

    async fn write(&self, key: &Key, steps: plan::Steps) -> Result<Next, ReconcileError> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &key.namespace);
        for slice in steps.update {
            let name = slice.name_any();
            let written = api.replace(&name, &PostParams::default(), &slice).await;
            let written =
                written.doing_if_there(|| format!("update endpoint slice {}/{name}", key.namespace))?;
            written.into_iter().for_each(|w| self.tracker.wrote(key, &w));
        }
        for slice in steps.create {
            match api.create(&PostParams::default(), &slice).await {
                Ok(written) => self.tracker.wrote(key, &written),
                Err(error) if namespace_is_terminating(&error) => return Ok(None),
                Err(error) => return Err(error).doing(|| format!("mirror endpoints {key}")),
            }
        }
        for slice in steps.delete {
            let name = slice.name_any();
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: slice.uid(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            let gone = api.delete(&name, &params).await;
            let gone = gone.doing_if_there(|| format!("delete endpoint slice {}/{name}", key.namespace))?;
            if gone.is_some() {
                self.tracker.deleted(key, &slice);
            }
        }
        Ok(None)
    }
}

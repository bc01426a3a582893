//! Endpoints: who answers for a service, as EndpointSlices and as the older Endpoints.
//!
//! # Flow
//! A service, a pod that it selects (or did), a node's zone, or one of its slices changes → the endpoints are
//! computed from the pods and compared with the slices; only slices that differ are written. Each of the service's
//! address families has its own slices; Endpoints know only the primary one.
//! # Guarantees
//! An endpoint stays in its slice while it exists, so that one pod's change is one slice's write. A pod whose
//! deletion has begun is at once neither ready nor anything but terminating.
//! # Assumptions
//! Slices that are not marked as this controller's belong to somebody else. Services without a selector have
//! endpoints that somebody else writes; those of type ExternalName have none.
//! # Errors
//! A failed write is tried again with back-off. While a write of ours has not come back through the watch the
//! service waits for it, lest a slice be made twice.

mod cause;
mod legacy;
mod plan;
mod slices;
mod topology;
pub mod tracker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;

use self::cause::Causes;
use self::plan::Place;
use self::tracker::Tracker;
use crate::Context;
use crate::core::{Doing, Informers, Key, Next, Queue, ReconcileError, drive, is, namespace_is_terminating};

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    tracker: Tracker,
    slice_causes: Causes,
    endpoint_causes: Causes,
    /// Services whose end has been seen, until their endpoints are gone too.
    departed: Mutex<HashSet<Key>>,
}

/// Whether the service's selector names pods with these labels.
fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service
        .spec
        .as_ref()
        .and_then(|s| s.selector.as_ref())
        .filter(|s| !s.is_empty());
    selector.is_some_and(|s| s.iter().all(|(key, value)| pod.labels().get(key) == Some(value)))
}

/// Starts both controllers.
pub fn start(context: &Context) {
    let informers = context.informers.clone();
    let (slices, endpoints) = (
        Arc::new(Queue::<Key>::default()),
        Arc::new(Queue::<Key>::default()),
    );
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        informers: informers.clone(),
        tracker: Tracker::default(),
        slice_causes: Causes::default(),
        endpoint_causes: Causes::default(),
        departed: Mutex::default(),
    });

    let (wake, this) = ([slices.clone(), endpoints.clone()], controller.clone());
    informers.services.subscribe(move |change| {
        if let (Some(old), None) = (change.old, change.new) {
            this.departed.lock().insert(Key::of(&**old));
        }
        change
            .both()
            .for_each(|s| wake.iter().for_each(|queue| queue.add(Key::of(&**s))));
    });
    let (wake, reader) = ([slices.clone(), endpoints.clone()], informers.clone());
    informers.pods.subscribe(move |change| {
        if change
            .old
            .zip(change.new)
            .is_some_and(|(old, new)| !plan::differs(old, new))
        {
            return;
        }
        let namespace = change
            .both()
            .next()
            .and_then(|p| p.namespace())
            .unwrap_or_default();
        for service in reader.services.in_namespace(&namespace) {
            if change.both().any(|pod| selects(&service, pod)) {
                wake.iter().for_each(|queue| queue.add(Key::of(&*service)));
            }
        }
    });
    let (wake, reader) = ([slices.clone(), endpoints.clone()], informers.clone());
    informers.nodes.subscribe(move |change| {
        let place = |n: Option<&Arc<Node>>| n.map(|n| topology::zone(n));
        let share = |n: Option<&Arc<Node>>| n.and_then(|n| topology::share(n));
        let moved = place(change.old) != place(change.new);
        if !moved && share(change.old) == share(change.new) {
            return;
        }
        for service in reader.services.all() {
            if moved || topology::is_auto(&service) {
                wake.iter().for_each(|queue| queue.add(Key::of(&*service)));
            }
        }
    });
    let (wake, this) = (slices.clone(), controller.clone());
    informers.slices.subscribe(move |change| {
        for slice in change.both() {
            if let Some(service) = slices::service_of(slice) {
                let key = Key::new(slice.namespace().unwrap_or_default(), service);
                this.tracker.seen(&key, slice, change.new.is_none());
                wake.add(key);
            }
        }
    });
    let wake = endpoints.clone();
    informers
        .endpoints
        .subscribe(move |change| change.both().for_each(|e| wake.add(Key::of(&**e))));

    let this = controller.clone();
    drive("endpointslice", slices, 4, context.token.clone(), move |key| {
        let controller = this.clone();
        async move { controller.slices(&key).await }
    });
    drive("endpoint", endpoints, 2, context.token.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.endpoints(&key).await }
    });
}

impl Controller {
    async fn synced(&self) {
        self.informers.services.synced().await;
        self.informers.pods.synced().await;
        self.informers.nodes.synced().await;
    }

    fn place(&self, node: &str) -> Place {
        match self.informers.nodes.get(&Key::new("", node)) {
            Some(node) => Place::In(topology::zone(&node)),
            None => Place::Nowhere,
        }
    }

    /// The service with the pods it selects; `None` if its endpoints are not ours to make.
    fn service(&self, key: &Key) -> Option<(Arc<Service>, Vec<Arc<Pod>>)> {
        let service = self.informers.services.get(key)?;
        let spec = service.spec.as_ref()?;
        if spec.selector.as_ref().is_none_or(|s| s.is_empty()) {
            return None;
        }
        let mut pods = self.informers.pods.in_namespace(&key.namespace);
        pods.retain(|pod| selects(&service, pod));
        Some((service, pods))
    }

    async fn slices(&self, key: &Key) -> Result<Next, ReconcileError> {
        self.synced().await;
        self.informers.slices.synced().await;
        let Some((service, pods)) = self.service(key) else {
            // Slices of a service that is gone are the garbage collector's.
            self.tracker.forget(key);
            self.slice_causes.forget(key);
            return Ok(None);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        if !self.tracker.is_fresh(key) {
            // The watch wakes us as soon as it has shown the rest; this is only for what never comes.
            return Ok(Some(Duration::from_secs(1)));
        }
        let mut existing = self.informers.slices.in_namespace(&key.namespace);
        existing.retain(|s| slices::is_ours(s) && slices::service_of(s) == Some(key.name.as_str()));
        let (cause, seen) = self.slice_causes.of(key, &service, &pods);
        let steps = if is_external(&service) {
            slices::Steps {
                delete: existing,
                ..slices::Steps::default()
            }
        } else {
            let mut wanted = plan::endpoints(&service, &pods, |node| self.place(node));
            let shares = || {
                self.informers
                    .nodes
                    .all()
                    .into_iter()
                    .filter_map(|n| topology::share(&n))
            };
            topology::hint(&service, &mut wanted, || topology::ratios(shares()));
            slices::plan(&service, wanted, &existing, cause)
        };
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
                Err(error) => {
                    return Err(error).doing(|| format!("create an endpoint slice of service {key}"));
                }
            }
        }
        for slice in steps.delete {
            let name = slice.name_any();
            let same = Preconditions {
                uid: slice.uid(),
                resource_version: None,
            };
            let params = DeleteParams {
                preconditions: Some(same),
                ..DeleteParams::default()
            };
            let gone = api.delete(&name, &params).await;
            if gone
                .doing_if_there(|| format!("delete endpoint slice {}/{name}", key.namespace))?
                .is_some()
            {
                self.tracker.deleted(key, &slice);
            }
        }
        self.slice_causes.written(key, seen);
        Ok(None)
    }

    async fn endpoints(&self, key: &Key) -> Result<Next, ReconcileError> {
        self.synced().await;
        self.informers.endpoints.synced().await;
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let existing = self.informers.endpoints.get(key);
        let found = self.service(key);
        let Some((service, pods)) = found.filter(|(service, _)| !is_external(service)) else {
            self.endpoint_causes.forget(key);
            // As in Kubernetes, a service takes its endpoints with it, whoever wrote them. Those that never had a
            // service are their owner's.
            let gone = self.informers.services.get(key).is_none();
            let leaves = |e: &Arc<Endpoints>| legacy::is_ours(e) || self.departed.lock().contains(key);
            if gone && existing.as_ref().is_some_and(leaves) {
                api.delete(&key.name, &DeleteParams::default())
                    .await
                    .doing_if_there(|| format!("delete endpoints {key}"))?;
            }
            self.departed.lock().remove(key);
            return Ok(None);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let (cause, seen) = self.endpoint_causes.of(key, &service, &pods);
        let wanted = plan::endpoints(&service, &pods, |node| self.place(node));
        let mut wanted = legacy::endpoints(&service, wanted);
        let Some(existing) = existing else {
            slices::set_cause(&mut wanted.metadata, cause);
            return match api.create(&PostParams::default(), &wanted).await {
                Err(error) if !is(&error, 409) && !namespace_is_terminating(&error) => {
                    Err(error).doing(|| format!("create endpoints {key}"))
                }
                _ => {
                    self.endpoint_causes.written(key, seen);
                    Ok(None)
                }
            };
        };
        if let Some(next) = legacy::update(&existing, wanted, cause) {
            let written = api.replace(&key.name, &PostParams::default(), &next).await;
            written.doing_if_there(|| format!("update endpoints {key}"))?;
        }
        self.endpoint_causes.written(key, seen);
        Ok(None)
    }
}

/// Whether the service is only another name for something: it has no endpoints.
fn is_external(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("ExternalName")
}

//! What every node knows of the cluster: one shared watch each of Services, EndpointSlices and Nodes, and of what
//! NetworkPolicies are about.
//!
//! The data plane and DNS both read these caches; neither opens a watch of its own.

use std::{hash::Hash, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store},
        utils::Backoff,
        watcher,
    },
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

mod changes;
pub mod policies;
mod trim;

use crate::changes::Feed;
use crate::policies::PolicyEvent;
pub use crate::{
    changes::{Change, Changes},
    trim::SERVICE_NAME_LABEL,
};

/// The caches, and word of their changes.
///
/// *Promises*: a change is visible in the store before `changed` moves; after [`Cluster::ready`] every cache has
/// held a full list. *Not promised*: one mark per change; marks coalesce.
pub struct Cluster {
    /// All Services.
    pub services: Store<Service>,
    /// All EndpointSlices.
    pub slices: Store<EndpointSlice>,
    /// All Nodes.
    pub nodes: Store<Node>,
    changed: watch::Receiver<u64>,
    feed: Option<Feed>,
    client: Option<Client>,
    policies: Mutex<Option<mpsc::Receiver<PolicyEvent>>>,
}

impl Cluster {
    /// Starts the watches; they retry with back-off for as long as the returned value's tasks live.
    #[must_use]
    pub fn start(client: Client) -> Arc<Self> {
        let (mark, changed) = watch::channel(0);
        let feed = Feed::new();
        let (services, slices) = (feed.clone(), feed.clone());
        Arc::new(Self {
            services: reflect(
                Api::all(client.clone()),
                mark.clone(),
                trim::service,
                move |event| services.tell(event, Change::Service),
            ),
            slices: reflect(
                Api::all(client.clone()),
                mark.clone(),
                trim::slice,
                move |event| slices.tell(event, Change::Slice),
            ),
            nodes: reflect(Api::all(client.clone()), mark, trim::node, |_| {}),
            changed,
            feed: Some(feed),
            client: Some(client.clone()),
            policies: Mutex::new(Some(policies::start(client))),
        })
    }

    /// A view over stores that somebody else fills and marks, for tests of what reads them.
    #[must_use]
    pub fn from_stores(
        services: Store<Service>,
        slices: Store<EndpointSlice>,
        nodes: Store<Node>,
        changed: watch::Receiver<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            services,
            slices,
            nodes,
            changed,
            feed: None,
            client: None,
            policies: Mutex::new(Some(policies::none())),
        })
    }

    /// What happens to policies and to what they are about, for the one who enforces them: the first caller gets it,
    /// the others nothing.
    #[must_use]
    pub fn take_policy_events(&self) -> Option<mpsc::Receiver<PolicyEvent>> {
        self.policies.lock().take()
    }

    /// Puts other events in the place of the cluster's, for tests of who enforces policies.
    pub fn set_policy_events(&self, events: mpsc::Receiver<PolicyEvent>) {
        *self.policies.lock() = Some(events);
    }

    /// Whether this pod has gone or ended, asked of the API server: no cache holds every pod. In a view over stores
    /// that somebody else fills there is no pod at all.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pod_is_gone(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
    ) -> Result<bool, kube::Error> {
        let Some(client) = &self.client else {
            return Ok(true);
        };
        let pod = Api::<Pod>::namespaced(client.clone(), namespace)
            .get_opt(name)
            .await?;
        Ok(pod.is_none_or(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            let another = uid.is_some_and(|uid| pod.metadata.uid.as_deref() != Some(uid));
            another || matches!(phase, Some("Succeeded" | "Failed"))
        }))
    }

    /// Waits until every cache has held a full list.
    ///
    /// # Errors
    /// When a watch task has ended, which happens only at shutdown.
    pub async fn ready(&self) -> Result<(), reflector::store::WriterDropped> {
        self.services.wait_until_ready().await?;
        self.slices.wait_until_ready().await?;
        self.nodes.wait_until_ready().await
    }

    /// A receiver that changes whenever any cache has changed.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// Which Services and EndpointSlices change from now on. The first is always [`Change::Everything`].
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::new(self.feed.as_ref(), self.changed.clone())
    }
}

/// How long a watch is asked to last, in seconds; the API server ends it then and it is resumed where it ended.
const WATCH_SECONDS: u32 = 290;
/// The first and the longest pause before a broken watch is tried again. A node whose API server restarts should know
/// of the first new endpoint within seconds, and there is one list per kind and node to pay for it.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Pauses that double from the first to the longest of [`RETRY`].
#[derive(Default)]
struct Retry(u32);

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = RETRY.0.saturating_mul(1 << self.0.min(16)).min(RETRY.1);
        self.0 += 1;
        Some(pause)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// Keeps a store true, of what `trim` leaves of each object. `tell` hears of each event once the store shows it.
fn reflect<K>(
    api: Api<K>,
    mark: watch::Sender<u64>,
    trim: fn(&mut K),
    tell: impl Fn(&watcher::Event<K>) + Send + 'static,
) -> Store<K>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
{
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    let source = watcher(api, config).modify(trim);
    let stream = reflector::reflector(writer, source).backoff(Retry::default());
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::InitApply(_) | watcher::Event::Init) => {}
                Ok(event) => {
                    tell(&event);
                    mark.send_modify(|n| *n += 1);
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&K::DynamicType::default()), %error, "watch failed, retrying");
                }
            }
        }
    });
    store
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_double_up_to_a_bound_and_start_again() {
        let mut retry = Retry::default();
        let pauses: Vec<u128> = retry.by_ref().take(7).map(|pause| pause.as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3000, 3000]);
        retry.reset();
        assert_eq!(retry.next(), Some(RETRY.0));
    }
}

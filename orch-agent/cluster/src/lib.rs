//! What every node knows of the cluster: one shared watch each of Services, EndpointSlices and Nodes.
//!
//! The data plane and DNS both read these caches; neither opens a watch of its own.

use std::{hash::Hash, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

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
}

impl Cluster {
    /// Starts the three watches; they retry with back-off for as long as the returned value's tasks live.
    #[must_use]
    pub fn start(client: Client) -> Arc<Self> {
        let (mark, changed) = watch::channel(0);
        Arc::new(Self {
            services: reflect(Api::all(client.clone()), mark.clone()),
            slices: reflect(Api::all(client.clone()), mark.clone()),
            nodes: reflect(Api::all(client), mark),
            changed,
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
        Arc::new(Self { services, slices, nodes, changed })
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
}

fn reflect<K>(api: Api<K>, mark: watch::Sender<u64>) -> Store<K>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
{
    let (store, writer) = reflector::store();
    let config = watcher::Config::default().timeout(290);
    let stream = reflector::reflector(writer, watcher(api, config)).default_backoff();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::InitApply(_) | watcher::Event::Init) => {}
                Ok(_) => mark.send_modify(|n| *n += 1),
                Err(error) => {
                    tracing::warn!(kind = std::any::type_name::<K>(), %error, "watch failed, retrying");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    store
}

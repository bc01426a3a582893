//! What the data plane's tasks and the caller's requests share.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};

use crate::{
    DataplaneConfig, liveness::Liveness, load::Programs, maps::Maps, metrics::Metrics, monitor::PodNames,
    netlink::Netlink, nodes::Remote, pods::Pods, policy::Policies, services::Services, uplinks::Uplinks,
};

/// The one shared state. Lock order, where two are held: services before maps.
pub struct Shared {
    /// What the caller asked for.
    pub config: DataplaneConfig,
    /// The agent's own network namespace.
    pub netlink: Netlink,
    /// The interfaces that lead out of the node, as they are now.
    pub uplinks: watch::Sender<Arc<Uplinks>>,
    /// The loaded programs.
    pub programs: Mutex<Programs>,
    /// The maps.
    pub maps: Arc<Mutex<Maps>>,
    /// Mirror of the service maps.
    pub services: Mutex<Services>,
    /// Moves after every change of the service maps.
    pub services_changed: watch::Sender<u64>,
    /// What policies say of pods.
    pub policies: Arc<Policies>,
    /// Connected pods.
    pub pods: Mutex<Pods>,
    /// Held while a pod is connected or disconnected: one at a time.
    pub pod_turn: AsyncMutex<()>,
    /// Addresses of pods that have gone and may still have flows.
    pub gone: Mutex<BTreeSet<IpAddr>>,
    /// Asks for the flows to be swept soon.
    pub sweep: Notify,
    /// The other nodes; held while the ways to them are changed.
    pub remote: AsyncMutex<Remote>,
    /// Which other nodes live.
    pub liveness: Liveness,
    /// What is measured.
    pub metrics: Metrics,
    /// Where the names of this node's pods come from.
    pub pod_names: OnceLock<PodNames>,
}

impl Shared {
    /// The interfaces that lead out of the node, as they are now.
    pub fn uplinks(&self) -> Arc<Uplinks> {
        Arc::clone(&self.uplinks.borrow())
    }
}

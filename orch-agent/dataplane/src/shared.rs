//! What the data plane's tasks and the caller's requests share.

use std::{collections::BTreeSet, net::Ipv4Addr};

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::{
    DataplaneConfig,
    load::Programs,
    maps::Maps,
    metrics::Metrics,
    monitor::SharedSources,
    netlink::{Interface, Netlink},
    pods::Pods,
    services::Services,
};

/// The one shared state. Lock order, where two are held: services before maps.
pub struct Shared {
    /// What the caller asked for.
    pub config: DataplaneConfig,
    /// The agent's own network namespace.
    pub netlink: Netlink,
    /// The uplink as it was at the start.
    pub uplink: Interface,
    /// The loaded programs.
    pub programs: Mutex<Programs>,
    /// The maps.
    pub maps: Mutex<Maps>,
    /// Mirror of the service maps.
    pub services: Mutex<Services>,
    /// Moves after every change of the service maps.
    pub services_changed: watch::Sender<u64>,
    /// Connected pods.
    pub pods: Mutex<Pods>,
    /// Held while a pod is connected or disconnected: one at a time.
    pub pod_turn: AsyncMutex<()>,
    /// Addresses of pods that have gone and may still have flows.
    pub gone: Mutex<BTreeSet<Ipv4Addr>>,
    /// What is measured.
    pub metrics: Metrics,
    /// Where the monitor's names come from.
    pub names: SharedSources,
}

//! The node's data plane: loads the eBPF programs, keeps their maps true, and connects pods.
//!
//! `model` says what the maps should hold, `plan` which changes lead there, `maps` carries them out; `load` and
//! `links` put the programs in place; `pods` and `nodes` are the veths and routes. What must outlive the process is
//! pinned: a new agent adopts it and changes only the differences.

mod addresses;
mod config;
mod error;
mod announce;
mod follow;
mod health;
pub mod inspect;
mod links;
pub mod load;
pub mod maps;
mod metrics;
pub mod model;
pub mod monitor;
mod netlink;
mod nodes;
pub mod plan;
mod pods;
pub mod policy;
mod reports;
pub mod services;
mod settings;
mod shared;
mod sockets;
mod sweep;
mod sys;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use orch_cluster::Cluster;
use orch_ebpf::{
    ABI_VERSION,
    config::{CONFIG_EVENTS, CONFIG_MAP, Config},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    task::JoinHandle,
};

pub use crate::{
    config::{DataplaneConfig, PodAttachment},
    error::DataplaneError,
};
use crate::{
    maps::failed,
    metrics::Metrics,
    netlink::{Interface, Netlink},
    services::Services,
    shared::Shared,
};

/// A node's running data plane; dropping it stops the tasks and leaves the kernel's part working.
pub struct Dataplane {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Dataplane {
    /// Loads or adopts pinned maps and links, attaches the hooks and starts following `cluster`. Must run in the
    /// node's network namespace.
    ///
    /// *On restart*: maps are adopted, links swapped; traffic does not notice.
    ///
    /// # Errors
    /// When the kernel refuses a program, map or link, or a netlink or file operation fails.
    pub async fn start(config: DataplaneConfig, cluster: Arc<Cluster>) -> Result<Arc<Self>, DataplaneError> {
        let netlink = Netlink::here()?;
        let uplink = netlink
            .interface(&config.uplink)
            .await?
            .ok_or_else(|| DataplaneError::NoInterface(config.uplink.clone()))?;
        prepare_node(&config, &netlink).await?;
        let (mut programs, mut maps) = load::load(&config.bpf_root)?;
        let events = reports::events(&mut programs)?;
        let mut tasks: Vec<JoinHandle<()>> = reports::log(&mut programs).into_iter().collect();
        maps.config
            .set(0, settings(&config, &uplink), 0)
            .map_err(failed(CONFIG_MAP))?;
        programs.attach_sockets(&config)?;
        programs.attach_uplink(&config.bpf_root, &uplink.name, uplink.index)?;
        let services = Services::adopt(&maps)?;
        let shared = Arc::new(Shared {
            config,
            netlink,
            uplink,
            programs: Mutex::new(programs),
            maps: Mutex::new(maps),
            services: Mutex::new(services),
            services_changed: watch::channel(0).0,
            pods: Mutex::default(),
            pod_turn: AsyncMutex::new(()),
            gone: Mutex::default(),
            metrics: Metrics::default(),
            names: monitor::SharedSources::default(),
        });
        tasks.extend(monitor::start(&shared, &cluster, events));
        pods::adopt(&shared).await?;
        nodes::own_addresses(&shared).await?;
        tasks.push(tokio::spawn(follow::run(Arc::clone(&shared), cluster)));
        tasks.push(tokio::spawn(sweep::run(Arc::clone(&shared))));
        Ok(Arc::new(Self { shared, tasks }))
    }

    /// Sets the range that pod addresses are taken from; needed before the first [`Self::attach_pod`].
    ///
    /// # Errors
    /// When the range is too small to hold a pod.
    pub async fn set_pod_cidr(&self, cidr: ipnet::Ipv4Net) -> Result<(), DataplaneError> {
        pods::set_cidr(&self.shared, cidr).await
    }

    /// Connects a pod's network namespace and returns the pod's address. Idempotent by uid.
    ///
    /// # Errors
    /// When no address is free, the namespace cannot be entered, or the kernel refuses a step.
    pub async fn attach_pod(&self, pod: &PodAttachment) -> Result<Ipv4Addr, DataplaneError> {
        pods::attach(&self.shared, pod).await
    }

    /// Removes what [`Self::attach_pod`] made. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses to remove the link or the map entry.
    pub async fn detach_pod(&self, uid: &str) -> Result<(), DataplaneError> {
        pods::detach(&self.shared, uid).await
    }

    /// Uid and address of every attached pod, those adopted from before a restart included.
    #[must_use]
    pub fn attached(&self) -> Vec<(String, Ipv4Addr)> {
        self.shared
            .pods
            .lock()
            .iter()
            .map(|(uid, attached)| (uid.clone(), attached.address))
            .collect()
    }

    /// Tells the monitor where names of pods and of identities come from, once somebody knows them.
    pub fn set_names(&self, names: monitor::Sources) {
        *self.shared.names.write() = names;
    }

    /// Puts the data plane's metrics, as they are now, into a registry that is to be read once.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        self.shared.metrics.register(&self.shared, registry);
    }

    /// Resolves when no service on this node offers `ip` to new connections although it could do without.
    ///
    /// *Holds then*: new connections and datagrams through a service go to other endpoints, on this node and from it.
    /// *Exception*: where `ip` is on its way out and no endpoint of a service is ready, it stays the one that answers,
    /// and does not keep this from resolving. *Not promised*: what other nodes do, which learn of it by themselves.
    pub async fn withdrawn(&self, ip: IpAddr) {
        let mut changed = self.shared.services_changed.subscribe();
        while self.shared.services.lock().offers(ip) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

fn settings(config: &DataplaneConfig, uplink: &Interface) -> Config {
    Config {
        abi_version: ABI_VERSION,
        uplink_ifindex: uplink.index,
        uplink_mtu: uplink.mtu,
        node_address: config.node_ip.octets(),
        cluster_address: config.cluster_cidr.network().octets(),
        cluster_mask: config.cluster_cidr.netmask().octets(),
        service_address: config.service_cidr.network().octets(),
        service_mask: config.service_cidr.netmask().octets(),
        dns_address: config.cluster_dns.octets(),
        flags: CONFIG_EVENTS,
    }
}

/// What the node's own stack needs: forwarding, and the DNS server's address.
async fn prepare_node(config: &DataplaneConfig, netlink: &Netlink) -> Result<(), DataplaneError> {
    pods::set_sysctl("net/ipv4/ip_forward", "1")?;
    pods::set_sysctl(&format!("net/ipv4/conf/{}/rp_filter", config.uplink), "0")?;
    let lo = netlink
        .interface("lo")
        .await?
        .ok_or_else(|| DataplaneError::NoInterface("lo".to_owned()))?;
    netlink.set_up(lo.index).await?;
    netlink.add_address(lo.index, config.cluster_dns).await
}

/// Removes every pin of a data plane that will not come back, and with them its attachments.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_pins(bpf_root: &Path) -> Result<(), DataplaneError> {
    match fs::remove_dir_all(bpf_root) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(DataplaneError::File {
            action: "remove",
            path: bpf_root.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

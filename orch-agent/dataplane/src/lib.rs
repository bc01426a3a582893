//! The node's data plane: loads the eBPF programs, keeps their maps true, and connects pods.
//!
//! `model` says what the maps should hold, `plan` which changes lead there, `maps` carries them out; `load` and
//! `links` put the programs in place; `pods`, `uplinks`, `tunnel` and `nodes` are the interfaces and routes; `liveness` asks other nodes whether they live. What must outlive the process is
//! pinned: a new agent adopts it and changes only the differences.

mod addresses;
mod announce;
mod bandwidth;
mod config;
mod error;
pub mod flow_table;
mod follow;
mod health;
pub mod inspect;
mod links;
mod liveness;
pub mod load;
pub mod maps;
mod metrics;
mod migrate;
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
mod sysctl;
mod tunnel;
mod uplinks;

use std::{
    fs,
    net::IpAddr,
    path::Path,
    sync::{Arc, OnceLock},
};

use ipnet::IpNet;
use orch_cluster::Cluster;
use orch_ebpf::{
    ABI_VERSION,
    config::{CONFIG_DSR, CONFIG_MOVING, CONFIG_UNPACK, Config},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify, watch},
    task::JoinHandle,
};

pub use crate::{
    config::{Bandwidth, DataplaneConfig, HostPort, PodAttachment, Tunnel, XdpMode},
    error::DataplaneError,
    sys::{namespace_cookie, socket_namespace},
};
use crate::{
    liveness::Liveness, metrics::Metrics, netlink::Netlink, services::Services, shared::Shared,
    uplinks::Uplinks,
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
    /// *On restart*: maps are adopted, or what they hold moves to maps of another layout, and links are swapped; traffic
    /// does not notice.
    ///
    /// # Errors
    /// When the kernel refuses a program, map or link, or a netlink or file operation fails.
    pub async fn start(config: DataplaneConfig, cluster: Arc<Cluster>) -> Result<Arc<Self>, DataplaneError> {
        let netlink = Netlink::here()?;
        let uplinks = Uplinks::find(&config, &netlink).await?;
        prepare_node(&config, &netlink).await?;
        let (mut programs, mut maps) = load::load(&config.bpf_root)?;
        let events = reports::events(&mut programs)?;
        let mut tasks: Vec<JoinHandle<()>> = reports::log(&mut programs).into_iter().collect();
        maps.configure(|settings| {
            configure(settings, &config);
            if programs.is_moving() {
                settings.flags |= CONFIG_MOVING;
            }
            settings.uplink_ifindex = uplinks.primary().index;
            settings.uplink_mtu = uplinks.primary().mtu;
        })?;
        let services = Services::adopt(&maps)?;
        let shared = Arc::new(Shared {
            config,
            netlink,
            uplinks: watch::channel(Arc::new(uplinks)).0,
            programs: Mutex::new(programs),
            maps: Arc::new(Mutex::new(maps)),
            services: Mutex::new(services),
            services_changed: watch::channel(0).0,
            policies: Arc::default(),
            pods: Mutex::default(),
            pod_turn: AsyncMutex::new(()),
            gone: Mutex::default(),
            sweep: Notify::new(),
            remote: AsyncMutex::default(),
            liveness: Liveness::default(),
            metrics: Metrics::default(),
            pod_names: OnceLock::new(),
        });
        tasks.extend(monitor::start(&shared, &cluster, events));
        pods::adopt(&shared).await?;
        shared
            .services
            .lock()
            .claim_host_ports(|ip| shared.pods.lock().owner(ip).cloned());
        tasks.extend(policy::start(
            &shared.policies,
            &shared.maps,
            &shared.config.cluster_dns,
            &cluster,
        )?);
        uplinks::apply(&shared, &shared.uplinks())?;
        tunnel::sync(&shared).await?;
        nodes::refresh(&shared).await?;
        {
            let mut programs = shared.programs.lock();
            programs.attach_sockets(&shared.config)?;
            if programs.is_moving() {
                programs.settle()?;
                let mut maps = shared.maps.lock();
                maps.configure(|settings| settings.flags &= !CONFIG_MOVING)?;
            }
        }
        tasks.push(tokio::spawn(uplinks::follow(Arc::clone(&shared))?));
        tasks.push(tokio::spawn(liveness::run(Arc::clone(&shared))));
        tasks.push(tokio::spawn(follow::run(Arc::clone(&shared), cluster)));
        tasks.push(tokio::spawn(sweep::run(Arc::clone(&shared))));
        Ok(Arc::new(Self { shared, tasks }))
    }

    /// Sets the ranges that pod addresses are taken from, at most one of each family, the primary one first; needed
    /// before the first [`Self::attach_pod`].
    ///
    /// # Errors
    /// When a range is too small to hold a pod.
    pub async fn set_pod_cidrs(&self, cidrs: &[IpNet]) -> Result<(), DataplaneError> {
        pods::set_cidrs(&self.shared, cidrs).await
    }

    /// Connects a pod's network namespace and returns the pod's addresses, the primary one first. Idempotent by uid: a
    /// pod that is connected gets host ports, bandwidth and policies as they are now. Returns only once it is known what
    /// network policies say of the pod.
    ///
    /// # Errors
    /// When no address is free, the namespace cannot be entered, or the kernel refuses a step.
    pub async fn attach_pod(&self, pod: &PodAttachment) -> Result<Vec<IpAddr>, DataplaneError> {
        pods::attach(&self.shared, pod).await
    }

    /// Removes what [`Self::attach_pod`] made. Idempotent.
    ///
    /// # Errors
    /// When the kernel refuses to remove the link or the map entry.
    pub async fn detach_pod(&self, uid: &str) -> Result<(), DataplaneError> {
        pods::detach(&self.shared, uid).await
    }

    /// Uid and addresses of every attached pod, those adopted from before a restart included.
    #[must_use]
    pub fn attached(&self) -> Vec<(String, Vec<IpAddr>)> {
        self.shared
            .pods
            .lock()
            .iter()
            .map(|(uid, attached)| (uid.clone(), attached.addresses.clone()))
            .collect()
    }

    /// Tells the monitor where the names of this node's pods come from; only the first call counts.
    pub fn name_pods(&self, names: monitor::PodNames) {
        let _ = self.shared.pod_names.set(names);
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

/// The settings that stay as long as the agent runs. What an agent before this one has begun goes on: its flag
/// [`CONFIG_UNPACK`] stays.
fn configure(settings: &mut Config, config: &DataplaneConfig) {
    settings.abi_version = ABI_VERSION;
    // An agent that did not know the flag yet had the other.
    if settings.flags & CONFIG_DSR != 0 {
        settings.flags |= CONFIG_UNPACK;
    }
    settings.flags &= !(CONFIG_DSR | CONFIG_MOVING);
    if config.direct_return {
        settings.flags |= CONFIG_DSR | CONFIG_UNPACK;
    }
    settings.v4 = config.family();
    settings.v6 = config.family();
}

/// What the node's own stack needs: forwarding, and the DNS server's addresses.
async fn prepare_node(config: &DataplaneConfig, netlink: &Netlink) -> Result<(), DataplaneError> {
    sysctl::make("net/ipv4/ip_forward", "1")?;
    if config.has_ipv6() {
        sysctl::make("net/ipv6/conf/all/forwarding", "1")?;
    }
    let lo = netlink
        .interface("lo")
        .await?
        .ok_or_else(|| DataplaneError::NoInterface("lo".to_owned()))?;
    netlink.set_up(lo.index).await?;
    for address in &config.cluster_dns {
        netlink.add_address(lo.index, *address).await?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_taken_what_others_send_on_goes_on_to() {
        let direct = |direct_return| DataplaneConfig {
            direct_return,
            ..config::tests::plain()
        };
        let then = |flags, direct_return| {
            let mut settings = Config {
                flags,
                ..Config::default()
            };
            configure(&mut settings, &direct(direct_return));
            settings.flags & (CONFIG_DSR | CONFIG_UNPACK)
        };
        assert_eq!(then(0, false), 0);
        assert_eq!(then(0, true), CONFIG_DSR | CONFIG_UNPACK);
        for before in [CONFIG_DSR, CONFIG_UNPACK, CONFIG_DSR | CONFIG_UNPACK] {
            assert_eq!(then(before, false), CONFIG_UNPACK);
            assert_eq!(then(before, true), CONFIG_DSR | CONFIG_UNPACK);
        }
    }
}

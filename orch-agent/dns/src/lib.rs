//! Cluster DNS on every node: the cluster zone from memory, everything else from the node's own resolvers.
//!
//! Handlers stand in one chain: cluster zone, then forwarders. The zone follows Kubernetes' "DNS-Based Service
//! Discovery" specification 1.1.0.

mod answer;
mod cache;
mod encode;
mod entry;
mod exchange;
mod follow;
mod forward;
mod handler;
mod index;
mod resolv;
mod reverse;
mod server;
mod zone;

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    sync::Arc,
};

use ipnet::IpNet;
use orch_cluster::Cluster;
use tokio_util::sync::CancellationToken;

pub use crate::resolv::upstreams;
use crate::{forward::Forwarder, handler::Handler, zone::Zone};

/// What the DNS server is told.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Addresses to answer on, each by UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, usually `cluster.local`.
    pub domain: String,
    /// Resolvers for every other name, tried in order.
    pub upstreams: Vec<SocketAddr>,
    /// The cluster's own networks, of Services and of pods: reverse questions about them are never forwarded.
    pub networks: Vec<IpNet>,
}

/// Why the DNS server cannot work.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The configured domain is not a domain name.
    #[error("the cluster domain {domain:?} is not a domain name: {reason}")]
    BadDomain {
        /// What was configured.
        domain: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An address cannot be bound for a reason that waiting does not cure.
    #[error("bind {address} for DNS: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Keeps the sockets of a server for the one that comes after it, so that what is asked between the two waits and is
/// not refused.
pub trait Keeper: Send + Sync + 'static {
    /// The sockets of an address that an earlier server has left.
    fn take(&self, address: SocketAddr) -> Option<(UdpSocket, TcpListener)>;

    /// Keeps copies of an address's sockets. It may block, and says itself what fails: the server needs it for nothing.
    fn keep(&self, sockets: [OwnedFd; 2]);
}

/// Answers on every configured address until `stop`. Waits for an address that does not exist yet or that a
/// predecessor still holds, and serves the others meanwhile. Until the caches have held full lists, questions wait for
/// some seconds, and those about the cluster's names are then answered SERVFAIL, as nobody can know yet what does not
/// exist.
///
/// # Errors
/// When the domain is not one, or an address may not be bound.
pub async fn serve(
    config: DnsConfig,
    cluster: Arc<Cluster>,
    keeper: Arc<dyn Keeper>,
    stop: CancellationToken,
) -> Result<(), DnsError> {
    let own = config
        .listen
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| !ip.is_unspecified());
    let zone = Zone::new(&config.domain, &config.networks, own.collect())?;
    // A resolv.conf that names the cluster's own DNS would make it ask itself.
    let others = config
        .upstreams
        .iter()
        .copied()
        .filter(|upstream| !config.listen.contains(upstream));
    let handler = Arc::new(Handler::new(zone, Forwarder::new(others.collect())));
    let servers = config
        .listen
        .iter()
        .map(|address| server::serve(*address, keeper.clone(), handler.clone(), stop.clone()));
    tokio::select! {
        result = futures::future::try_join_all(servers) => result.map(|_| ()),
        () = follow::follow(&cluster, &handler) => Ok(()),
        () = stop.cancelled() => Ok(()),
    }
}

//! Cluster DNS on every node: the cluster zone from memory, everything else from the node's own resolvers.
//!
//! Handlers stand in one chain: cluster zone, then forwarders. The zone follows Kubernetes' "DNS-Based Service
//! Discovery" specification 1.1.0.

mod answer;
mod forward;
mod handler;
mod index;
mod resolv;
mod zone;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_server::Server;
use orch_cluster::Cluster;
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

pub use crate::resolv::upstreams;
use crate::{forward::Forwarder, handler::Chain, index::Index, zone::Zone};

/// How long an idle TCP client is kept.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Changes that come within this time are taken into the index together.
const COALESCE: Duration = Duration::from_millis(10);
/// Pause between attempts to bind an address that is not there yet.
const BIND_RETRY: Duration = Duration::from_millis(250);

/// What the DNS server is told.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Addresses to answer on, each by UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// The cluster's domain, usually `cluster.local`.
    pub domain: String,
    /// Resolvers for every other name, tried in order.
    pub upstreams: Vec<SocketAddr>,
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
    /// The server's sockets failed.
    #[error("serve DNS: {0}")]
    Serve(String),
}

/// Answers on every configured address until `stop`. Waits for an address that does not exist yet or that a
/// predecessor still holds.
///
/// # Errors
/// When the domain is not one, an address may not be bound, or the sockets fail.
pub async fn serve(
    config: DnsConfig,
    cluster: Arc<Cluster>,
    stop: CancellationToken,
) -> Result<(), DnsError> {
    let zone = Zone::new(&config.domain)?;
    let (publish, index) = watch::channel(Arc::new(snapshot(&cluster)));
    let upstreams = config
        .upstreams
        .iter()
        .copied()
        .filter(|u| !config.listen.contains(u))
        .collect();
    let mut server = Server::new(Chain::new(zone, index, Forwarder::new(upstreams)));
    for address in &config.listen {
        let Some((udp, tcp)) = bind(*address, &stop).await? else {
            return Ok(());
        };
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, 16);
    }
    let follow = async {
        let mut changed = cluster.changed();
        loop {
            changed.mark_unchanged();
            publish.send_replace(Arc::new(snapshot(&cluster)));
            if changed.changed().await.is_err() {
                return std::future::pending::<()>().await;
            }
            tokio::time::sleep(COALESCE).await;
        }
    };
    let token = server.shutdown_token().clone();
    tokio::select! {
        result = server.block_until_done() => result.map_err(|e| DnsError::Serve(e.to_string())),
        () = follow => Ok(()),
        () = stop.cancelled() => { token.cancel(); Ok(()) }
    }
}

fn snapshot(cluster: &Cluster) -> Index {
    Index::build(cluster.services.state(), cluster.slices.state())
}

/// Both sockets of one address, `None` when stopped before it could be bound.
async fn bind(
    address: SocketAddr,
    stop: &CancellationToken,
) -> Result<Option<(UdpSocket, TcpListener)>, DnsError> {
    let mut said = false;
    loop {
        let both = match TcpListener::bind(address).await {
            Ok(tcp) => UdpSocket::bind(address).await.map(|udp| (udp, tcp)),
            Err(error) => Err(error),
        };
        match both {
            Ok(both) => return Ok(Some(both)),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::AddrNotAvailable | std::io::ErrorKind::AddrInUse
                ) =>
            {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%address, %error, "cannot bind the DNS address yet, retrying");
                }
            }
            Err(source) => return Err(DnsError::Bind { address, source }),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(BIND_RETRY) => {}
        }
    }
}

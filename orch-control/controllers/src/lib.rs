//! The controllers: one file each, over shared watches, each bringing one kind of object to its desired state.
//!
//! A controller is woken with a key and nothing else: it reads the shared caches, decides (a pure function where
//! the decision is more than a line) and writes. First run, retry and restart are the same path. Not there yet:
//! leader election (run one replica), and controllers for kinds the API server does not serve yet.

mod core;
mod deployment;
mod endpoint_mirror;
mod endpoints;
mod garbage;
mod ip_address;
mod load_balancer;
mod namespace;
mod node;
mod replica_set;
mod root_ca;
mod service_account;

use std::sync::Arc;

use ipnet::IpNet;
use kube::Client;
use orch_shared::events::Recorder;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::core::Informers;
pub use load_balancer::pool::{AddressPool, PoolError};

/// What the controllers have to be told.
#[derive(Clone, Debug)]
pub struct ControllersConfig {
    /// Where nodes' pod networks are cut from: at most one per family, the primary first.
    pub cluster_cidrs: Vec<IpNet>,
    /// The prefix length of one node's IPv4 pod network.
    pub node_cidr_mask_v4: u8,
    /// The prefix length of one node's IPv6 pod network.
    pub node_cidr_mask_v6: u8,
    /// Where Services of type LoadBalancer get their addresses from. Without it their status is left to others.
    pub load_balancer_pool: Option<AddressPool>,
    /// The certificate authority that clients in pods are to trust, in PEM; published in every namespace.
    pub root_ca_pem: String,
}

/// Why the controllers cannot run at all.
#[derive(Debug, thiserror::Error)]
pub enum ControllersError {
    /// The node mask leaves no network to give out.
    #[error(
        "failed to cut {cluster} into networks of /{mask}: the mask must be between the cluster's own and the address length"
    )]
    NodeMask {
        /// The cluster's network.
        cluster: IpNet,
        /// The mask asked for.
        mask: u8,
    },
}

/// What every controller is made from.
#[derive(Clone)]
struct Context {
    client: Client,
    informers: Arc<Informers>,
    recorder: fn(Client, &'static str) -> Recorder,
    token: CancellationToken,
    config: Arc<ControllersConfig>,
}

impl Context {
    fn recorder(&self, component: &'static str) -> Recorder {
        (self.recorder)(self.client.clone(), component)
    }
}

/// Runs all controllers until `token` is cancelled.
pub async fn run(
    client: Client,
    config: ControllersConfig,
    token: CancellationToken,
) -> Result<(), ControllersError> {
    let mask = |net: &IpNet| match net {
        IpNet::V4(_) => config.node_cidr_mask_v4,
        IpNet::V6(_) => config.node_cidr_mask_v6,
    };
    let pools = node::ipam::Pools::new(&config.cluster_cidrs, mask)?;
    let informers = Arc::new(Informers::new());
    let context = Context {
        client: client.clone(),
        informers: informers.clone(),
        recorder: Recorder::start,
        token: token.clone(),
        config: Arc::new(config),
    };
    // Subscriptions come first: a controller misses nothing that the informers will tell.
    replica_set::start(&context);
    deployment::start(&context);
    endpoints::start(&context);
    endpoint_mirror::start(&context);
    ip_address::start(&context);
    service_account::start(&context);
    root_ca::start(&context);
    namespace::start(&context);
    node::start(&context, pools);
    load_balancer::start(&context);
    garbage::start(&context);
    informers.start(&client, &token);
    info!("controllers started");
    token.cancelled().await;
    Ok(())
}

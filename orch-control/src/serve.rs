//! `serve`: the chosen roles, wired together.
//!
//! There is no leader election yet: run one `serve` per store.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use orch_controllers::ControllersConfig;
use orch_server::{
    Server, ServerConfig,
    auth::identity::Identity,
    pki::{self, kubeconfig},
};
use orch_store::{Store, embedded::Embedded, etcd::Etcd};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::networks::Networks;

/// Two cores are what a small control node has; more threads would only cost memory.
const WORKERS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Role {
    Apiserver,
    Scheduler,
    Controllers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    Embedded,
    Etcd,
}

/// What `serve` is told.
#[derive(Args)]
pub(crate) struct Serve {
    /// Where certificates and the embedded store are kept
    #[arg(long)]
    data_dir: PathBuf,
    /// What to run; all roles need the API server in the same process for now
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "apiserver,scheduler,controllers"
    )]
    roles: Vec<Role>,
    /// Where to listen, ADDR:PORT; may be given several times
    #[arg(long, required = true, num_args = 1.., value_delimiter = ',')]
    listen: Vec<SocketAddr>,
    /// The address that nodes and pods reach the server at
    #[arg(long)]
    advertise_address: IpAddr,
    /// Where objects are kept: a file in the data folder, or etcd
    #[arg(long, value_enum, default_value = "embedded")]
    store: Backend,
    /// etcd's URLs
    #[arg(long, value_delimiter = ',', required_if_eq("store", "etcd"))]
    etcd_endpoints: Vec<String>,
    #[command(flatten)]
    networks: Networks,
    /// The DNS domain of the cluster
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// Where Services get their node ports from
    #[arg(long, default_value = "30000-32767", value_parser = port_range)]
    node_port_range: RangeInclusive<u16>,
    /// Write the administrator's kubeconfig to this file
    #[arg(long)]
    admin_kubeconfig: Option<PathBuf>,
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (low, high) = text.split_once('-').ok_or("a range looks like 30000-32767")?;
    let port = |text: &str| {
        text.trim()
            .parse::<u16>()
            .map_err(|error| format!("{text:?}: {error}"))
    };
    let (low, high) = (port(low)?, port(high)?);
    if low == 0 || low > high {
        return Err("the first port must not be 0 or larger than the last".into());
    }
    Ok(low..=high)
}

impl Serve {
    /// Runs until a signal.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let roles: BTreeSet<Role> = self.roles.iter().copied().collect();
        ensure!(
            roles.contains(&Role::Apiserver),
            "run the roles {roles:?}: the scheduler and the controllers still need the apiserver role in the same process"
        );
        self.networks.check(self.advertise_address)?;
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .context("start the runtime")?
            .block_on(self.serve(&roles))
    }

    async fn serve(&self, roles: &BTreeSet<Role>) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;

        std::fs::create_dir_all(&self.data_dir)
            .with_context(|| format!("create the data folder {}", self.data_dir.display()))?;
        let store: Arc<dyn Store> = match self.store {
            Backend::Embedded => {
                let path = self.data_dir.join("store.redb");
                Embedded::open(&path).with_context(|| format!("open the store {}", path.display()))?
            }
            Backend::Etcd => Etcd::connect(&self.etcd_endpoints)
                .await
                .with_context(|| format!("connect to etcd at {}", self.etcd_endpoints.join(",")))?,
        };
        let config = ServerConfig {
            data_dir: self.data_dir.clone(),
            listen: self.listen.clone(),
            advertise_address: self.advertise_address,
            service_cidrs: self.networks.service_cidr.clone(),
            cluster_dns: self.networks.cluster_dns(),
            node_port_range: self.node_port_range.clone(),
            cluster_domain: self.cluster_domain.clone(),
        };
        let server = Server::start(config, store, stop.clone())
            .await
            .context("start the API server")?;
        self.write_kubeconfig(&server)?;

        let mut tasks = tokio::task::JoinSet::new();
        if roles.contains(&Role::Scheduler) {
            let (client, stop) = (server.client(Identity::scheduler()), stop.clone());
            tasks.spawn(async move {
                orch_scheduler::run(client, stop).await;
                "the scheduler"
            });
        }
        if roles.contains(&Role::Controllers) {
            let config = ControllersConfig {
                cluster_cidrs: self.networks.cluster_cidr.clone(),
                node_cidr_mask_v4: self.networks.node_cidr_mask_size_ipv4,
                node_cidr_mask_v6: self.networks.node_cidr_mask_size_ipv6,
                load_balancer_pool: self.networks.load_balancer_pool.clone(),
                root_ca_pem: server.pki().ca_pem().to_owned(),
            };
            let (client, stop) = (server.client(Identity::controller_manager()), stop.clone());
            tasks.spawn(async move {
                if let Err(error) = orch_controllers::run(client, config, stop).await {
                    tracing::error!(%error, "the controllers cannot run");
                }
                "the controllers"
            });
        }
        for address in server.addresses() {
            tracing::info!(%address, "serving");
        }
        tasks.spawn(async move {
            server.serve().await;
            "the API server"
        });

        let ended = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = tasks.join_next() => Some(ended),
        };
        stop.cancel();
        tracing::info!("stopping");
        while tasks.join_next().await.is_some() {}
        match ended {
            None => Ok(()),
            Some(Some(Ok(who))) => bail!("keep running: {who} ended by itself"),
            Some(Some(Err(error))) => bail!("keep running: {error}"),
            Some(None) => Ok(()),
        }
    }

    fn write_kubeconfig(&self, server: &Server) -> anyhow::Result<()> {
        let admin = server
            .pki()
            .admin()
            .context("issue the administrator's certificate")?;
        let Some(path) = &self.admin_kubeconfig else {
            return Ok(());
        };
        let Some(address) = server.addresses().first() else {
            return Ok(());
        };
        let host = if address.ip().is_unspecified() {
            self.advertise_address
        } else {
            address.ip()
        };
        let url = format!("https://{}", SocketAddr::from((host, address.port())));
        let config = kubeconfig::render(&url, server.pki().ca_pem(), "kubernetes-admin", &admin);
        pki::write_file(path, &config, 0o600).context("write the administrator's kubeconfig")
    }
}

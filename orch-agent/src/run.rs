//! `orch-agent run`: starts the parts in the order in which they need each other, and stops them.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::geteuid,
};
use orch_cluster::Cluster;
use orch_dataplane::{Dataplane, DataplaneConfig};
use orch_dns::DnsConfig;
use orch_runtime::{Runtime, RuntimeConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{ConfigError, LoadBalancerMode, RunArgs, cgroup2_path},
    keeper::Keeper,
    kubelet::{self, KubeletConfig, KubeletError, NodeBackend},
    metrics, names,
    network::Network,
    node::{NodeConfig, Registrar},
    pod::{Manager, ManagerConfig},
};

/// Where the BPF file system belongs.
const BPF_FS: &str = "/sys/fs/bpf";
/// The port on which kube-proxy answers whether it is well, by convention of load balancers outside.
const PROXY_HEALTH: u16 = 10256;
/// How long the parts may take to stop.
const STOP: Duration = Duration::from_secs(5);

/// Why the node cannot run; the texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Not root.
    #[error("the agent must run as root: start it with sudo or as a system service")]
    NotRoot,
    /// The command line does not fit the machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {path}: {reason}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A system call that the start needs failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// containerd cannot be used.
    #[error("{0}; is containerd running, and is --containerd its socket?")]
    Runtime(String),
    /// The data plane cannot start.
    #[error("cannot start the data plane: {0}")]
    Dataplane(#[from] orch_dataplane::DataplaneError),
    /// The API server does not take this node.
    #[error("the API server refuses node {name}: {reason}")]
    Refused {
        /// The node.
        name: String,
        /// Its answer.
        reason: String,
    },
    /// The kubelet API cannot start.
    #[error("cannot start the kubelet API: {0}")]
    Kubelet(#[from] KubeletError),
    /// DNS cannot be served.
    #[error("cannot serve DNS: {0}")]
    Dns(#[from] orch_dns::DnsError),
}

/// Runs the node until SIGTERM or SIGINT. Containers, maps and links are left as they are.
///
/// # Errors
/// When a part cannot start; nothing that runs on the node is touched then either.
pub async fn run(args: RunArgs) -> Result<(), RunError> {
    if !geteuid().is_root() {
        return Err(RunError::NotRoot);
    }
    init_logging();
    let stop = CancellationToken::new();
    let mut node = std::pin::pin!(start(&args, &stop));
    tokio::select! {
        result = &mut node => return result,
        result = terminated() => result?,
    }
    stop.cancel();
    // The start itself may be waiting for something that never comes.
    tokio::time::timeout(STOP + Duration::from_secs(1), node)
        .await
        .unwrap_or(Ok(()))
}

async fn start(args: &RunArgs, stop: &CancellationToken) -> Result<(), RunError> {
    let network = Network::find(args)?;
    let bpf_root = args.bpf_root()?;
    let cgroup_path = cgroup2_path(&args.cgroup_root)?;
    raise_file_limit()?;
    ensure_bpf_fs(Path::new(BPF_FS))?;
    for dir in [&args.root_dir, &args.run_dir] {
        let action = || format!("create {}", dir.display());
        std::fs::create_dir_all(dir).map_err(|source| RunError::System {
            action: action(),
            source,
        })?;
    }
    let executable = std::env::current_exe().map_err(|source| RunError::System {
        action: "find the agent's own executable".into(),
        source,
    })?;
    let client = client(&args.kubeconfig).await?;
    let cluster = Cluster::start(client.clone());
    let config = dns_config(args, &network);
    let sockets = Arc::new(Keeper::find(&args.run_dir, executable.clone(), &config.listen));
    // First of all: names are asked for while the rest starts.
    let dns = tokio::spawn(orch_dns::serve(config, cluster.clone(), sockets, stop.clone()));
    let runtime = Runtime::connect(RuntimeConfig {
        cgroup_root: args.cgroup_root.clone(),
        snapshotter: args.snapshotter.clone(),
        insecure_registries: args.insecure_registries.clone(),
        ..RuntimeConfig::new(&args.containerd, &args.run_dir, executable)
    })
    .await
    .map_err(|error| RunError::Runtime(crate::chain(&error)))?;
    let dataplane = Dataplane::start(
        DataplaneConfig {
            node_name: args.node_name.clone(),
            node_ips: network.node_ips.clone(),
            uplinks: args.uplink.clone(),
            bpf_root,
            cgroup_path,
            run_dir: args.run_dir.clone(),
            cluster_cidrs: args.cluster_cidr.clone(),
            service_cidrs: args.service_cidr.clone(),
            cluster_dns: network.cluster_dns.clone(),
            xdp: args.xdp,
            tunnel: args.tunnel,
            direct_return: args.load_balancer_mode == LoadBalancerMode::Dsr,
            proxy_health: Some(
                args.proxy_health_bind_address
                    .unwrap_or_else(|| network.everywhere(PROXY_HEALTH)),
            )
            .filter(|address| address.port() != 0),
        },
        cluster.clone(),
    )
    .await?;
    let registrar = Registrar::new(
        node_config(args, &network),
        client.clone(),
        cluster.clone(),
        runtime.clone(),
        dataplane.clone(),
    );
    let node = registrar.register().await.map_err(|error| RunError::Refused {
        name: args.node_name.clone(),
        reason: crate::chain(&error),
    })?;
    tracing::info!(node = %args.node_name, ips = ?network.node_ips, "registered");
    let networked = CancellationToken::new();
    let keeper = tokio::spawn(registrar.run(node, networked.clone(), stop.clone()));
    // Attaching a pod needs the pod CIDR; pods that run already wait with the others for that short while.
    networked.cancelled().await;
    let manager = Manager::start(
        manager_config(args, &network),
        client,
        runtime.clone(),
        dataplane.clone(),
        cluster,
        stop.clone(),
    );
    dataplane.name_pods(names::of_pods(&manager));
    let backend = Arc::new(NodeBackend::new(
        manager.clone(),
        runtime,
        dataplane,
        args.run_dir.clone(),
        args.node_name.clone(),
    ));
    let config = KubeletConfig {
        listen: network.at(args.kubelet_port),
        tls_cert: args.tls_cert.clone(),
        tls_key: args.tls_key.clone(),
        client_ca: args.client_ca.clone(),
    };
    if args.metrics_bind_address.port() != 0 {
        tokio::spawn(metrics::serve(
            args.metrics_bind_address,
            backend.clone(),
            stop.clone(),
        ));
    }
    let addresses = kubelet::serve(&config, backend, stop.clone()).await?;
    tracing::info!(?addresses, "kubelet API is up");
    let result = match dns.await {
        Ok(result) => result.map_err(RunError::from),
        Err(error) => Err(RunError::System {
            action: "serve DNS".into(),
            source: io::Error::other(error),
        }),
    };
    // Reached when stopped: what is being written to the API is finished first.
    stop.cancel();
    let parts = async { tokio::join!(manager.stopped(), keeper) };
    if tokio::time::timeout(STOP, parts).await.is_err() {
        tracing::warn!("some parts did not stop in time");
    }
    result
}

fn dns_config(args: &RunArgs, network: &Network) -> DnsConfig {
    let resolv_conf = std::fs::read_to_string(&args.resolv_conf).unwrap_or_default();
    DnsConfig {
        listen: network
            .cluster_dns
            .iter()
            .map(|ip| SocketAddr::new(*ip, 53))
            .collect(),
        domain: args.cluster_domain.clone(),
        upstreams: orch_dns::upstreams(&resolv_conf),
        networks: args
            .service_cidr
            .iter()
            .chain(&args.cluster_cidr)
            .copied()
            .collect(),
    }
}

fn node_config(args: &RunArgs, network: &Network) -> NodeConfig {
    NodeConfig {
        name: args.node_name.clone(),
        ips: network.node_ips.clone(),
        port: args.kubelet_port,
        labels: args.node_labels.clone(),
        max_pods: args.max_pods,
        reserved: args.system_reserved,
        root_dir: args.root_dir.clone(),
    }
}

fn manager_config(args: &RunArgs, network: &Network) -> ManagerConfig {
    ManagerConfig {
        root_dir: args.root_dir.clone(),
        run_dir: args.run_dir.clone(),
        cluster_dns: network.cluster_dns.clone(),
        cluster_domain: args.cluster_domain.clone(),
        resolv_conf: args.resolv_conf.clone(),
        ..ManagerConfig::new(args.node_name.clone(), network.node_ips.clone())
    }
}

/// Logs go to stderr; `RUST_LOG` says which.
fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,kube_client=off"));
    let ansi = io::IsTerminal::is_terminal(&io::stderr());
    // Fails only where a logger is set already, as in tests.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(ansi)
        .try_init();
}

async fn terminated() -> Result<(), RunError> {
    let failed = |source| RunError::System {
        action: "wait for signals".into(),
        source,
    };
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; containers and the data plane go on");
    Ok(())
}

async fn client(path: &Path) -> Result<Client, RunError> {
    let unusable = |error: &dyn std::error::Error| RunError::Kubeconfig {
        path: path.to_owned(),
        reason: crate::chain(error),
    };
    // Fails only when a provider is installed already, which is then the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| unusable(&error))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| unusable(&error))?;
    Client::try_from(config).map_err(|error| unusable(&error))
}

/// Each pod costs a handful of descriptors; the usual soft limit of 1024 is soon too low.
fn raise_file_limit() -> Result<(), RunError> {
    let failed = |error: nix::Error| RunError::System {
        action: "raise RLIMIT_NOFILE".into(),
        source: error.into(),
    };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(failed)
    } else {
        Ok(())
    }
}

/// Mounts the BPF file system where it is not mounted yet.
fn ensure_bpf_fs(path: &Path) -> Result<(), RunError> {
    if statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    let failed = |source| RunError::System {
        action: format!("mount the BPF file system at {}", path.display()),
        source,
    };
    std::fs::create_dir_all(path).map_err(failed)?;
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|error| failed(error.into()))
}

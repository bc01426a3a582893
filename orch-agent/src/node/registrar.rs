//! Creates the Node object and keeps it true.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{ContainerImage, Node},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use orch_cluster::Cluster;
use orch_dataplane::Dataplane;
use orch_runtime::Runtime;
use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use super::status::Reserved;
use super::{
    facts::{self, Machine},
    lease,
    status::{self, Described, Observed},
};

/// How often the parts of the node are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How often the status is written when nothing has changed.
const REFRESH: Duration = Duration::from_secs(60);
/// How long the runtime may take to answer before it counts as down.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(4);
/// Pause between attempts to register: the first and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What the node says of itself.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The Node object's name.
    pub name: String,
    /// Its InternalIPs, the primary one first.
    pub ips: Vec<IpAddr>,
    /// The port of the kubelet API.
    pub port: u16,
    /// Labels beside the well-known ones.
    pub labels: Vec<(String, String)>,
    /// Most pods at once.
    pub max_pods: u32,
    /// What is held back from pods.
    pub reserved: Reserved,
    /// Where pods' files are, for the node's ephemeral storage.
    pub root_dir: PathBuf,
}

/// Keeps one node's objects.
pub struct Registrar {
    config: NodeConfig,
    machine: Machine,
    client: Client,
    nodes: Api<Node>,
    cluster: Arc<Cluster>,
    runtime: Arc<Runtime>,
    dataplane: Arc<Dataplane>,
}

impl Registrar {
    /// A registrar over the node's parts. Nothing happens before [`Registrar::register`].
    #[must_use]
    pub fn new(
        config: NodeConfig,
        client: Client,
        cluster: Arc<Cluster>,
        runtime: Arc<Runtime>,
        dataplane: Arc<Dataplane>,
    ) -> Self {
        let nodes = Api::all(client.clone());
        Self {
            config,
            machine: Machine::read(),
            client,
            nodes,
            cluster,
            runtime,
            dataplane,
        }
    }

    /// Creates the node, or finds it and sets its labels; retries for as long as the API server cannot be reached.
    ///
    /// # Errors
    /// When the API server refuses this identity or this node, which retrying does not cure.
    pub async fn register(&self) -> Result<Node, kube::Error> {
        let mut pause = RETRY.0;
        loop {
            match self.create_or_label().await {
                Ok(node) => return Ok(node),
                Err(kube::Error::Api(status)) if matches!(status.code, 400 | 401 | 403 | 422) => {
                    return Err(kube::Error::Api(status));
                }
                Err(error) => {
                    tracing::warn!(error = %crate::chain(&error), "cannot register the node yet, retrying")
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    async fn create_or_label(&self) -> kube::Result<Node> {
        let labels = self.labels();
        let node = Node {
            metadata: ObjectMeta {
                name: Some(self.config.name.clone()),
                labels: Some(labels.iter().cloned().collect()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        match self.nodes.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let labels: serde_json::Map<_, _> = labels.into_iter().map(|(k, v)| (k, v.into())).collect();
                let patch = json!({"metadata": {"labels": labels}});
                self.nodes
                    .patch(&self.config.name, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
            }
            other => other,
        }
    }

    fn labels(&self) -> Vec<(String, String)> {
        let own = [
            ("kubernetes.io/hostname", self.config.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", self.machine.architecture),
        ];
        let own = own
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        own.chain(self.config.labels.iter().cloned()).collect()
    }

    /// Keeps lease and status true until `stop`; hands the pod CIDRs to the data plane as soon as the node has them.
    /// `ready` is cancelled at that moment: pods may start from then on.
    pub async fn run(self, node: Node, ready: CancellationToken, stop: CancellationToken) {
        let lease = lease::keep(self.client.clone(), node);
        tokio::select! {
            () = lease => {}
            () = self.keep_status(&ready) => {}
            () = stop.cancelled() => {}
        }
    }

    async fn keep_status(&self, ready: &CancellationToken) {
        let mut changed = self.cluster.changed();
        let mut written: Option<(tokio::time::Instant, Vec<String>, usize)> = None;
        let mut cidrs = Vec::new();
        loop {
            changed.mark_unchanged();
            let network = self.network(&mut cidrs, ready).await;
            let observed = self.observe(network).await;
            let due = written.as_ref().is_none_or(|(at, problems, images)| {
                at.elapsed() >= REFRESH || *problems != observed.problems || *images != observed.images.len()
            });
            if due {
                match self.write(&observed).await {
                    Ok(()) => {
                        let now = tokio::time::Instant::now();
                        written = Some((now, observed.problems.clone(), observed.images.len()));
                    }
                    Err(error) => {
                        tracing::warn!(error = %crate::chain(&error), "cannot write the node's status, retrying");
                        written = None;
                        sleep(RETRY.0).await;
                    }
                }
            }
            // Until there is a pod CIDR, the node's own object is what is waited for.
            let pause = sleep(if written.is_some() {
                LOOK
            } else {
                Duration::from_secs(1)
            });
            tokio::select! {
                () = pause => {}
                _ = changed.changed(), if cidrs.is_empty() => {}
            }
        }
    }

    /// Gives the data plane the node's pod CIDRs; what is wrong with the network, if anything is.
    async fn network(&self, cidrs: &mut Vec<IpNet>, ready: &CancellationToken) -> Option<String> {
        if !cidrs.is_empty() {
            return None;
        }
        let not_ready = |reason: String| Some(format!("container runtime network not ready: {reason}"));
        let spec = self
            .cluster
            .nodes
            .state()
            .into_iter()
            .find(|node| node.metadata.name.as_deref() == Some(&self.config.name))
            .and_then(|node| node.spec.clone())
            .unwrap_or_default();
        let texts = spec
            .pod_cidrs
            .unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        if texts.is_empty() {
            return not_ready("the node has no pod CIDR yet".into());
        }
        let mut found = Vec::new();
        for text in &texts {
            match text.parse::<IpNet>() {
                Ok(net) => found.push(net),
                Err(_) => return not_ready(format!("the pod CIDR {text:?} is no network")),
            }
        }
        let foreign = found.iter().find(|net| {
            !self
                .config
                .ips
                .iter()
                .any(|ip| ip.is_ipv4() == net.addr().is_ipv4())
        });
        if let Some(net) = foreign {
            return not_ready(format!(
                "the node has no address of the family of its pod CIDR {net}"
            ));
        }
        if let Err(error) = self.dataplane.set_pod_cidrs(&found).await {
            return not_ready(error.to_string());
        }
        tracing::info!(pod_cidrs = ?found, "the node can connect pods");
        *cidrs = found;
        ready.cancel();
        None
    }

    async fn observe(&self, network: Option<String>) -> Observed {
        let mut problems: Vec<String> = network.into_iter().collect();
        let runtime_version = match timeout(RUNTIME_PATIENCE, self.runtime.version()).await {
            Ok(Ok(version)) => version,
            Ok(Err(error)) => {
                problems.push(format!("container runtime is down: {error}"));
                String::new()
            }
            Err(_) => {
                problems.push("container runtime is down: containerd does not answer".into());
                String::new()
            }
        };
        let images = match timeout(RUNTIME_PATIENCE, self.runtime.list_images()).await {
            Ok(Ok(images)) => images,
            // Said above already when it is more than a passing failure.
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        let images = images.into_iter().map(|image| ContainerImage {
            size_bytes: i64::try_from(image.size).ok(),
            names: Some(image.repo_digests.into_iter().chain([image.name]).collect()),
        });
        Observed {
            problems,
            runtime_version,
            images: images.collect(),
            disk: facts::space(&self.config.root_dir),
            available_memory: facts::node_usage().available_bytes,
            pids: facts::pids(),
        }
    }

    async fn write(&self, observed: &Observed) -> kube::Result<()> {
        let name = &self.config.name;
        let before = match self.nodes.get_opt(name).await? {
            Some(node) => node,
            // Somebody has deleted it: a node that lives comes back.
            None => self.create_or_label().await?,
        };
        let before = before
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        let described = Described {
            name: name.clone(),
            ips: self.config.ips.clone(),
            port: self.config.port,
            max_pods: self.config.max_pods,
            reserved: self.config.reserved,
        };
        let mut status = status::build(&described, &self.machine, observed, &before, Timestamp::now());
        if observed.runtime_version.is_empty()
            && let Some(info) = &mut status.node_info
        {
            info.container_runtime_version = "containerd://unknown".into();
        }
        let patch = json!({"status": status});
        self.nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
    }
}

//! What every pod's tasks share: configuration, API client, host and recorder.

use std::{collections::HashMap, net::IpAddr, path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use kube::Client;
use orch_cluster::Cluster;
use parking_lot::Mutex;

use super::{
    event::Note, fields::NodeFacts, id::Paths, objects::Objects, ports::Host, recorder::Recorder, state,
};

/// How the node runs pods.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// The Node object's name.
    pub node_name: String,
    /// The node's addresses, the primary one first: `status.hostIPs`, and the addresses of host-network pods.
    pub node_ips: Vec<IpAddr>,
    /// Directory for pods and logs that survives a reboot, `/var/lib/orch`.
    pub root_dir: PathBuf,
    /// Directory for what does not survive a reboot, `/run/orch`.
    pub run_dir: PathBuf,
    /// The addresses of the cluster's DNS, for `dnsPolicy: ClusterFirst`; without one such pods get the host's.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, `cluster.local`.
    pub cluster_domain: String,
    /// The resolver configuration that pods inherit, `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The node's CPU in millicores.
    pub cpu_millis: i64,
    /// The node's memory in bytes.
    pub memory_bytes: i64,
}

impl ManagerConfig {
    /// A configuration with the documented defaults and this machine's CPUs and memory.
    #[must_use]
    pub fn new(node_name: impl Into<String>, node_ips: Vec<IpAddr>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            node_name: node_name.into(),
            node_ips,
            root_dir: "/var/lib/orch".into(),
            run_dir: "/run/orch".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: "/etc/resolv.conf".into(),
            cpu_millis: i64::try_from(cpus).unwrap_or(1) * 1000,
            memory_bytes: memory().unwrap_or(1 << 30),
        }
    }
}

/// The machine's memory in bytes, from `/proc/meminfo`.
fn memory() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<i64>()
        .ok()?
        .checked_mul(1024)
}

/// Shared by all pods.
pub struct Context {
    /// How the node runs pods.
    pub config: ManagerConfig,
    /// The API.
    pub client: Client,
    /// Reads of ConfigMaps, Secrets and tokens.
    pub objects: Objects,
    /// Runtime and data plane.
    pub host: Arc<dyn Host>,
    /// Services for environment variables and for draining.
    pub cluster: Arc<Cluster>,
    /// Events.
    pub recorder: Recorder,
    /// One pull of an image at a time.
    pub pulls: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Context {
    /// What the node adds to the downward API.
    #[must_use]
    pub fn facts(&self) -> NodeFacts {
        NodeFacts {
            host_ips: self.config.node_ips.clone(),
            cpu_millis: self.config.cpu_millis,
            memory_bytes: self.config.memory_bytes,
        }
    }

    /// The files of a pod.
    #[must_use]
    pub fn paths(&self, pod: &Pod) -> Paths {
        Paths::of(&self.config.root_dir, pod)
    }

    /// Records an event about `pod`.
    pub fn note(&self, pod: &Pod, note: Note) {
        let mut about = reference(pod);
        if let Some(slot) = note.slot {
            let inits = pod
                .spec
                .as_ref()
                .and_then(|s| s.init_containers.as_ref())
                .map_or(0, Vec::len);
            let list = if slot < inits {
                "initContainers"
            } else {
                "containers"
            };
            about.field_path = state::container(pod, slot).map(|c| format!("spec.{list}{{{}}}", c.name));
        }
        self.recorder
            .record(about, note.warning, note.reason, note.message);
    }

    /// Records a `Warning` about one container, or about the pod as a whole.
    pub fn warn(&self, pod: &Pod, slot: Option<usize>, reason: &'static str, message: impl Into<String>) {
        self.note(
            pod,
            Note {
                slot,
                warning: true,
                reason,
                message: message.into(),
            },
        );
    }

    /// Records a `Normal` event about one container.
    pub fn tell(&self, pod: &Pod, slot: usize, reason: &'static str, message: impl Into<String>) {
        self.note(
            pod,
            Note {
                slot: Some(slot),
                warning: false,
                reason,
                message: message.into(),
            },
        );
    }
}

/// A reference to a pod for events.
#[must_use]
pub fn reference(pod: &Pod) -> ObjectReference {
    let meta = &pod.metadata;
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// One container's run, as the tasks that work for it see it.
#[derive(Clone)]
pub struct Target {
    /// Shared by all pods.
    pub context: Arc<Context>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Index of the container's slot.
    pub slot: usize,
    /// The container's id.
    pub id: String,
    /// The pod's addresses, the primary one first.
    pub ips: Vec<IpAddr>,
}

impl Target {
    /// The pod's primary address.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.ips.first().copied()
    }

    /// The container's spec.
    #[must_use]
    pub fn container(&self) -> Option<&Container> {
        state::container(&self.pod, self.slot)
    }
}

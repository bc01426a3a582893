//! Names for addresses: pods, services and nodes, from what the agent keeps anyway. The index over it exists only while
//! somebody listens.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use orch_cluster::Cluster;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{SharedSources, record::Names};
use crate::shared::Shared;

/// How old the names of this node's pods may be.
const LOCAL_AGE: Duration = Duration::from_millis(200);
/// How old the others may be: a cluster may have a hundred thousand of them.
const CLUSTER_AGE: Duration = Duration::from_secs(1);

/// A pod of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodName {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its own addresses; none for a pod in the node's network namespace.
    pub addresses: Vec<IpAddr>,
}

/// What the watches say.
#[derive(Default)]
pub struct ClusterNames {
    services: HashMap<(IpAddr, u16), Arc<Service>>,
    node_ports: HashMap<u16, Arc<Service>>,
    /// The slice and the place in it.
    pods: HashMap<IpAddr, (Arc<EndpointSlice>, usize)>,
    nodes: HashMap<IpAddr, String>,
}

/// What the node itself says.
#[derive(Debug, Default)]
pub struct LocalNames {
    /// NAMESPACE/NAME by address.
    pub pods: HashMap<IpAddr, String>,
    /// NAMESPACE/NAME by interface.
    pub interfaces: HashMap<u32, String>,
    /// Index of the uplink.
    pub uplink: u32,
    /// Index of the tunnel's device, or zero.
    pub tunnel: u32,
}

impl ClusterNames {
    /// An index over the objects.
    pub fn build(
        services: impl IntoIterator<Item = Arc<Service>>,
        slices: impl IntoIterator<Item = Arc<EndpointSlice>>,
        nodes: impl IntoIterator<Item = Arc<Node>>,
    ) -> Self {
        let mut names = Self::default();
        for node in nodes {
            let addresses = node
                .status
                .iter()
                .flat_map(|status| status.addresses.iter().flatten());
            for ip in addresses.filter_map(|address| address.address.parse().ok()) {
                names
                    .nodes
                    .insert(ip, node.metadata.name.clone().unwrap_or_default());
            }
        }
        for service in services {
            let Some(spec) = &service.spec else { continue };
            let ingress = service
                .status
                .iter()
                .filter_map(|status| status.load_balancer.as_ref())
                .flat_map(|balancer| balancer.ingress.iter().flatten())
                .filter_map(|ingress| ingress.ip.as_ref());
            let addresses: Vec<IpAddr> = spec
                .cluster_ips
                .iter()
                .chain(&spec.external_ips)
                .flatten()
                .chain(ingress)
                .filter_map(|text| text.parse().ok())
                .collect();
            for port in spec.ports.iter().flatten() {
                let number = u16::try_from(port.port).unwrap_or_default();
                for ip in &addresses {
                    names.services.insert((*ip, number), Arc::clone(&service));
                    // For what has no ports.
                    names.services.insert((*ip, 0), Arc::clone(&service));
                }
                if let Some(port) = port.node_port.and_then(|port| u16::try_from(port).ok()) {
                    names.node_ports.insert(port, Arc::clone(&service));
                }
            }
        }
        for slice in slices {
            for (place, endpoint) in slice.endpoints.iter().flatten().enumerate() {
                if endpoint.target_ref.is_none() {
                    continue;
                }
                for ip in endpoint.addresses.iter().filter_map(|text| text.parse().ok()) {
                    // Several pods may share a node's address: then none of them is meant.
                    if !names.nodes.contains_key(&ip) {
                        names.pods.insert(ip, (Arc::clone(&slice), place));
                    }
                }
            }
        }
        names
    }

    /// The pod with this address, where it stands behind a service.
    pub fn pod(&self, ip: IpAddr) -> Option<String> {
        let (slice, place) = self.pods.get(&ip)?;
        let target = slice.endpoints.as_ref()?.get(*place)?.target_ref.as_ref()?;
        Some(format!(
            "{}/{}",
            target.namespace.as_deref()?,
            target.name.as_deref()?
        ))
    }

    /// The service with this address and port, or with this port of a node.
    pub fn service(&self, ip: IpAddr, port: u16) -> Option<String> {
        let by_address = self.services.get(&(ip, port));
        let by_node = || self.nodes.get(&ip).and_then(|_| self.node_ports.get(&port));
        let meta = &by_address.or_else(by_node)?.metadata;
        Some(format!(
            "{}/{}",
            meta.namespace.as_deref()?,
            meta.name.as_deref()?
        ))
    }

    /// The node with this address.
    pub fn node_at(&self, ip: IpAddr) -> Option<String> {
        self.nodes.get(&ip).cloned()
    }
}

/// Keeps the names.
pub struct Naming {
    shared: Arc<Shared>,
    cluster: Arc<Cluster>,
    state: Mutex<State>,
}

struct State {
    changed: watch::Receiver<u64>,
    indexed: Option<(Instant, Arc<ClusterNames>)>,
    local: Option<(Instant, Arc<LocalNames>)>,
}

/// The names at one moment.
pub struct Snapshot {
    node: String,
    cluster: Arc<ClusterNames>,
    local: Arc<LocalNames>,
    sources: SharedSources,
}

impl Naming {
    /// Nothing is indexed yet.
    pub fn new(shared: Arc<Shared>, cluster: Arc<Cluster>) -> Self {
        let changed = cluster.changed();
        Self {
            shared,
            cluster,
            state: Mutex::new(State {
                changed,
                indexed: None,
                local: None,
            }),
        }
    }

    /// Name of this node.
    pub fn node(&self) -> &str {
        &self.shared.config.node_name
    }

    /// Brings the index up to date where that is due; takes tens of milliseconds in a large cluster.
    pub fn refresh(&self) {
        let due = {
            let mut state = self.state.lock();
            let old = state
                .indexed
                .as_ref()
                .is_none_or(|(at, _)| at.elapsed() >= CLUSTER_AGE);
            let due = state.indexed.is_none() || (old && state.changed.has_changed().unwrap_or(false));
            if due {
                state.changed.mark_unchanged();
            }
            due
        };
        if due {
            let names = ClusterNames::build(
                self.cluster.services.state(),
                self.cluster.slices.state(),
                self.cluster.nodes.state(),
            );
            self.state.lock().indexed = Some((Instant::now(), Arc::new(names)));
        }
    }

    /// Forgets the index, when nobody listens.
    pub fn forget(&self) {
        let mut state = self.state.lock();
        state.indexed = None;
        state.local = None;
    }

    /// What is known now.
    pub fn current(&self) -> Snapshot {
        let mut state = self.state.lock();
        // Nobody has asked for names: only the log reads along.
        let cluster = state.indexed.as_ref().map(|(_, names)| Arc::clone(names));
        let local = match (&cluster, &state.local) {
            (None, _) => Arc::default(),
            (Some(_), Some((at, local))) if at.elapsed() < LOCAL_AGE => Arc::clone(local),
            _ => {
                let local = Arc::new(self.local());
                state.local = Some((Instant::now(), Arc::clone(&local)));
                local
            }
        };
        Snapshot {
            node: self.node().to_owned(),
            cluster: cluster.unwrap_or_default(),
            local,
            sources: Arc::clone(&self.shared.names),
        }
    }

    fn local(&self) -> LocalNames {
        let pods = self
            .shared
            .names
            .read()
            .pods
            .as_ref()
            .map(|pods| pods())
            .unwrap_or_default();
        let mut names = LocalNames {
            uplink: self.shared.uplinks().primary().index,
            tunnel: self
                .shared
                .maps
                .lock()
                .config
                .get(&0, 0)
                .map_or(0, |config| config.tunnel_ifindex),
            ..LocalNames::default()
        };
        let attached = self.shared.pods.lock();
        let by_uid: HashMap<&String, u32> = attached.iter().map(|(uid, pod)| (uid, pod.ifindex)).collect();
        for pod in pods {
            let name = format!("{}/{}", pod.namespace, pod.name);
            if let Some(ifindex) = by_uid.get(&pod.uid) {
                names.interfaces.insert(*ifindex, name.clone());
            }
            names
                .pods
                .extend(pod.addresses.into_iter().map(|ip| (ip, name.clone())));
        }
        names
    }
}

impl Names for Snapshot {
    fn node(&self) -> &str {
        &self.node
    }

    fn pod(&self, ip: IpAddr) -> Option<String> {
        self.local.pods.get(&ip).cloned().or_else(|| self.cluster.pod(ip))
    }

    fn service(&self, ip: IpAddr, port: u16) -> Option<String> {
        self.cluster.service(ip, port)
    }

    fn node_at(&self, ip: IpAddr) -> Option<String> {
        self.cluster.node_at(ip)
    }

    fn identity(&self, number: u32) -> Option<String> {
        self.sources
            .read()
            .identity
            .as_ref()
            .and_then(|identity| identity(number))
    }

    fn pod_at(&self, ifindex: u32) -> Option<String> {
        self.local.interfaces.get(&ifindex).cloned()
    }

    fn role(&self, ifindex: u32) -> Option<&'static str> {
        if ifindex == self.local.uplink {
            Some("uplink")
        } else if ifindex == self.local.tunnel {
            Some("tunnel")
        } else {
            None
        }
    }
}

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

use super::record::Names;
use crate::shared::Shared;

/// How old the names of this node's pods may be.
const LOCAL_AGE: Duration = Duration::from_millis(200);

/// A pod of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodName {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
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
    /// Indexes of the uplinks.
    pub uplinks: Vec<u32>,
    /// Index of the tunnel's device, or zero.
    pub tunnel: u32,
    /// What has been asked of identities already: finding out takes a lock that policies need.
    identities: Mutex<HashMap<u32, Option<String>>>,
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
    indexed: Option<Arc<ClusterNames>>,
    local: Option<(Instant, Arc<LocalNames>)>,
    /// NAMESPACE/NAME by address, of every pod that policies know.
    remote: Arc<HashMap<IpAddr, String>>,
}

/// The names at one moment.
pub struct Snapshot {
    node: String,
    cluster: Arc<ClusterNames>,
    local: Arc<LocalNames>,
    remote: Arc<HashMap<IpAddr, String>>,
    shared: Arc<Shared>,
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
                remote: Arc::default(),
            }),
        }
    }

    /// Name of this node.
    pub fn node(&self) -> &str {
        &self.shared.config.node_name
    }

    /// Brings the index up to date where that is due; takes tens of milliseconds in a large cluster.
    pub fn refresh(&self) {
        let remote = Arc::new(self.shared.policies.pods().into_iter().collect());
        let changed = {
            let mut state = self.state.lock();
            state.remote = remote;
            let changed = state.indexed.is_none() || state.changed.has_changed().unwrap_or(false);
            state.changed.mark_unchanged();
            changed
        };
        if changed {
            let names = ClusterNames::build(
                self.cluster.services.state(),
                self.cluster.slices.state(),
                self.cluster.nodes.state(),
            );
            self.state.lock().indexed = Some(Arc::new(names));
        }
    }

    /// Forgets the index, when nobody listens.
    pub fn forget(&self) {
        let mut state = self.state.lock();
        state.indexed = None;
        state.local = None;
        state.remote = Arc::default();
    }

    /// What is known now.
    pub fn current(&self) -> Snapshot {
        let mut state = self.state.lock();
        // Nobody has asked for names: only the log reads along.
        let cluster = state.indexed.clone();
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
            remote: Arc::clone(&state.remote),
            shared: Arc::clone(&self.shared),
        }
    }

    fn local(&self) -> LocalNames {
        let pods = self
            .shared
            .pod_names
            .get()
            .map(|names| names())
            .unwrap_or_default();
        let mut names = LocalNames {
            uplinks: self
                .shared
                .uplinks()
                .all()
                .map(|uplink| uplink.interface.index)
                .collect(),
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
        let by_uid: HashMap<_, _> = attached.iter().collect();
        for pod in pods {
            let name = format!("{}/{}", pod.namespace, pod.name);
            // A pod on the node's network is not connected.
            if let Some(connected) = by_uid.get(&pod.uid) {
                names.interfaces.insert(connected.ifindex, name.clone());
                names
                    .pods
                    .extend(connected.addresses.iter().map(|ip| (*ip, name.clone())));
            }
        }
        names
    }
}

impl Names for Snapshot {
    fn node(&self) -> &str {
        &self.node
    }

    fn pod(&self, ip: IpAddr) -> Option<String> {
        let local = || self.local.pods.get(&ip).cloned();
        // A pod on its node's network has the node's address, and is not the only one.
        let remote = || {
            self.remote
                .get(&ip)
                .filter(|_| self.cluster.node_at(ip).is_none())
                .cloned()
        };
        local().or_else(remote).or_else(|| self.cluster.pod(ip))
    }

    fn service(&self, ip: IpAddr, port: u16) -> Option<String> {
        self.cluster.service(ip, port)
    }

    fn node_at(&self, ip: IpAddr) -> Option<String> {
        self.cluster.node_at(ip)
    }

    fn identity(&self, number: u32) -> Option<String> {
        let mut known = self.local.identities.lock();
        let find = || self.shared.policies.describe(number);
        known.entry(number).or_insert_with(find).clone()
    }

    fn pod_at(&self, ifindex: u32) -> Option<String> {
        self.local.interfaces.get(&ifindex).cloned()
    }

    fn role(&self, ifindex: u32) -> Option<&'static str> {
        if self.local.uplinks.contains(&ifindex) {
            Some("uplink")
        } else if ifindex == self.local.tunnel {
            Some("tunnel")
        } else {
            None
        }
    }
}

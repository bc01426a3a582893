//! [`Informers`]: every watch that the controllers share.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Endpoints, Namespace, Node, Pod, ReplicationController, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use super::Informer;
use crate::{node, root_ca};

/// See the module.
pub struct Informers {
    /// Pods, without what only a kubelet needs.
    pub pods: Arc<Informer<Pod>>,
    /// Nodes, without their images.
    pub nodes: Arc<Informer<Node>>,
    /// The nodes' leases.
    pub leases: Arc<Informer<Lease>>,
    /// Replica sets.
    pub replica_sets: Arc<Informer<ReplicaSet>>,
    /// Replication controllers.
    pub replication_controllers: Arc<Informer<ReplicationController>>,
    /// Deployments.
    pub deployments: Arc<Informer<Deployment>>,
    /// Services.
    pub services: Arc<Informer<Service>>,
    /// Endpoint slices.
    pub slices: Arc<Informer<EndpointSlice>>,
    /// Endpoints.
    pub endpoints: Arc<Informer<Endpoints>>,
    /// Addresses that are taken.
    pub addresses: Arc<Informer<IPAddress>>,
    /// Ranges of cluster IPs.
    pub ranges: Arc<Informer<ServiceCIDR>>,
    /// Namespaces.
    pub namespaces: Arc<Informer<Namespace>>,
    /// Service accounts.
    pub accounts: Arc<Informer<ServiceAccount>>,
    /// The config maps that publish the root certificate, and no others.
    pub root_cas: Arc<Informer<ConfigMap>>,
}

impl Informers {
    /// All of them, not yet watching.
    pub fn new() -> Self {
        Self {
            pods: Arc::new(Informer::new()),
            nodes: Arc::new(Informer::new()),
            leases: Arc::new(Informer::new()),
            replica_sets: Arc::new(Informer::new()),
            replication_controllers: Arc::new(Informer::new()),
            deployments: Arc::new(Informer::new()),
            services: Arc::new(Informer::new()),
            slices: Arc::new(Informer::new()),
            endpoints: Arc::new(Informer::new()),
            addresses: Arc::new(Informer::new()),
            ranges: Arc::new(Informer::new()),
            namespaces: Arc::new(Informer::new()),
            accounts: Arc::new(Informer::new()),
            root_cas: Arc::new(Informer::new()),
        }
    }

    /// Begins all watches; each ends with `token`.
    pub fn start(&self, client: &Client, token: &CancellationToken) {
        self.pods.start_all(client, trim_pod, token);
        self.nodes.start_all(client, trim_node, token);
        self.replica_sets.start_all(client, |_| (), token);
        self.replication_controllers.start_all(client, |_| (), token);
        self.deployments.start_all(client, |_| (), token);
        self.services.start_all(client, |_| (), token);
        self.slices.start_all(client, |_| (), token);
        self.endpoints.start_all(client, |_| (), token);
        self.addresses.start_all(client, |_| (), token);
        self.ranges.start_all(client, |_| (), token);
        self.namespaces.start_all(client, |_| (), token);
        self.accounts.start_all(client, |_| (), token);
        let leases = Api::namespaced(client.clone(), node::LEASE_NAMESPACE);
        self.leases.start(leases, Config::default(), |_| (), token);
        let named = Config::default().fields(&format!("metadata.name={}", root_ca::NAME));
        self.root_cas
            .start(Api::all(client.clone()), named, |_| (), token);
    }
}

fn trim_container(container: &mut Container) {
    *container = Container {
        name: std::mem::take(&mut container.name),
        ports: container.ports.take(),
        restart_policy: container.restart_policy.take(),
        ..Container::default()
    };
}

/// Controllers only ever patch pods, so they need not keep them whole.
fn trim_pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        spec.containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
            .for_each(trim_container);
        spec.ephemeral_containers = None;
        spec.volumes = None;
        spec.affinity = None;
    }
    if let Some(status) = &mut pod.status {
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
    }
}

fn trim_node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.images = None;
        status.node_info = None;
    }
}

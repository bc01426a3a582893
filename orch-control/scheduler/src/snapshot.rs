//! [`Snapshot`]: the nodes, what they have and what runs on them, kept up to date one change at a time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod::{Labels, PodInfo};
use crate::resources::Resources;

/// What the scheduler keeps of a node object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: Labels,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// What pods may use.
    pub allocatable: Resources,
    /// The images it has, by every name, with their sizes in bytes.
    pub images: HashMap<String, i64>,
}

impl NodeFacts {
    fn new(node: &Node) -> Self {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.as_ref();
        let mut images = HashMap::new();
        for image in status.iter().flat_map(|s| s.images.iter().flatten()) {
            for name in image.names.iter().flatten() {
                images.insert(name.clone(), image.size_bytes.unwrap_or(0));
            }
        }
        let allocatable = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.taints.unwrap_or_default(),
            unschedulable: spec.unschedulable.unwrap_or(false),
            allocatable: Resources::from_list(allocatable, 0),
            images,
        }
    }
}

/// A node and the pods on it. Pods may be known before their node is; such a node takes no pods.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// What its object says; `None` while only pods speak of it.
    pub facts: Option<NodeFacts>,
    /// What its pods ask for.
    pub requested: Resources,
    /// The same with the defaults for scoring: CPU in thousandths, memory in bytes.
    pub scoring: (i64, i64),
    /// Its pods by uid.
    pub pods: HashMap<String, Arc<PodInfo>>,
    /// How many pods that are not being deleted each controller (by uid) has here.
    pub owners: HashMap<String, i64>,
}

impl NodeInfo {
    /// The value of a label of the node.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.facts.as_ref()?.labels.get(key).map(String::as_str)
    }

    fn insert(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.scoring.0 = self.scoring.0.saturating_add(pod.scoring.0);
        self.scoring.1 = self.scoring.1.saturating_add(pod.scoring.1);
        if let Some(owner) = pod.owner.as_ref().filter(|_| !pod.deleting) {
            *self.owners.entry(owner.clone()).or_default() += 1;
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    /// Taking a pod away sums up the rest again, so that no error can ever add up.
    fn remove(&mut self, uid: &str) {
        self.pods.remove(uid);
        let pods = std::mem::take(&mut self.pods);
        (self.requested, self.scoring) = Default::default();
        self.owners.clear();
        for pod in pods.into_values() {
            self.insert(pod);
        }
    }
}

/// Everything a decision is made from.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, NodeInfo>,
    placed: HashMap<String, String>,
    namespaces: HashMap<String, Labels>,
    none: Labels,
}

impl Snapshot {
    /// The nodes that exist, in the order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values().filter(|n| n.facts.is_some())
    }

    /// Takes in a node's new state. Tells whether anything changed that a decision depends on.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let name = node.metadata.name.clone().unwrap_or_default();
        let info = self.nodes.entry(name.clone()).or_default();
        info.name = name;
        let facts = Some(NodeFacts::new(node));
        let changed = info.facts != facts;
        info.facts = facts;
        changed
    }

    /// Forgets a node; pods that are still on it are kept, for it may come back.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.facts = None;
            if info.pods.is_empty() {
                self.nodes.remove(name);
            }
        }
    }

    /// The names of the nodes that exist.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes().map(|n| n.name.clone()).collect()
    }

    /// Puts `pod` on `node`: because it is bound there, or because its binding is under way.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove_pod(&pod.uid);
        self.placed.insert(pod.uid.clone(), node.to_owned());
        let info = self.nodes.entry(node.to_owned()).or_default();
        info.name = node.to_owned();
        info.insert(pod);
    }

    /// The placed pod with this uid.
    pub fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.nodes.get(self.placed.get(uid)?)?.pods.get(uid)
    }

    /// Takes a pod off its node. Tells whether it was on one.
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        let Some(node) = self.placed.remove(uid) else {
            return false;
        };
        if let Some(info) = self.nodes.get_mut(&node) {
            info.remove(uid);
            if info.pods.is_empty() && info.facts.is_none() {
                self.nodes.remove(&node);
            }
        }
        true
    }

    /// The uids of all placed pods.
    pub fn placed(&self) -> impl Iterator<Item = &String> {
        self.placed.keys()
    }

    /// Takes in a namespace's labels.
    pub fn set_namespace(&mut self, name: &str, labels: Labels) {
        self.namespaces.insert(name.to_owned(), labels);
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// A namespace's labels; none if it is not known.
    pub fn namespace_labels(&self, name: &str) -> &Labels {
        self.namespaces.get(name).unwrap_or(&self.none)
    }
}

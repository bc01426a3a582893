//! [`Graph`]: who owns whom, by uid.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The finalizer of an object whose dependents go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents are to stay.
pub const ORPHAN: &str = "orphan";

/// What the collector knows of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its uid.
    pub uid: String,
    /// Its API group.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// Whether it waits for its dependents to go.
    pub foreground: bool,
    /// Whether its dependents are to be let go.
    pub orphan: bool,
}

impl Node {
    /// Reads the metadata of an object of this group and kind.
    pub fn new(group: &str, kind: &str, meta: ObjectMeta) -> Self {
        let finalizers = meta.finalizers.unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        Self {
            uid: meta.uid.unwrap_or_default(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            namespace: meta.namespace,
            name: meta.name.unwrap_or_default(),
            owners: meta.owner_references.unwrap_or_default(),
            deleting,
            foreground: deleting && finalizers.iter().any(|f| f == FOREGROUND),
            orphan: deleting && finalizers.iter().any(|f| f == ORPHAN),
        }
    }

    /// The reference to this owner.
    pub fn owner(&self, uid: &str) -> Option<&OwnerReference> {
        self.owners.iter().find(|o| o.uid == uid)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// The object with this uid.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name `uid` as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<Node> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|u| self.nodes.get(u)).cloned().collect()
    }

    /// The uids of all objects of a kind.
    pub fn of_kind(&self, group: &str, kind: &str) -> Vec<String> {
        let same = self.nodes.values().filter(|n| n.group == group && n.kind == kind);
        same.map(|n| n.uid.clone()).collect()
    }

    /// Takes in an object's state; returns the uids that now want attention.
    pub fn set(&mut self, node: Node) -> Vec<String> {
        let old = self.unlink(&node.uid);
        let mut out = Vec::new();
        for owner in &node.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(node.uid.clone());
        }
        // Owners that wait for this object may have to look again: it may no longer name them.
        let both = old.iter().flat_map(|o| &o.owners).chain(&node.owners);
        let waits = |uid: &str| self.nodes.get(uid).is_some_and(|n| n.foreground || n.orphan);
        out.extend(both.filter(|o| waits(&o.uid)).map(|o| o.uid.clone()));
        let owned_anew = old.as_ref().is_none_or(|o| o.owners != node.owners) && !node.owners.is_empty();
        if owned_anew || node.foreground || node.orphan {
            out.push(node.uid.clone());
        }
        self.nodes.insert(node.uid.clone(), node);
        out
    }

    /// Takes out an object; returns the uids that now want attention: its dependents, and owners that wait.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(node) = self.unlink(uid) else {
            return Vec::new();
        };
        let waits = |uid: &str| self.nodes.get(uid).is_some_and(|n| n.foreground);
        let owners = node
            .owners
            .iter()
            .filter(|o| waits(&o.uid))
            .map(|o| o.uid.clone());
        owners
            .chain(self.dependents.get(uid).into_iter().flatten().cloned())
            .collect()
    }

    fn unlink(&mut self, uid: &str) -> Option<Node> {
        let node = self.nodes.remove(uid)?;
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(uid: &str, owners: &[&str]) -> Node {
        let owners = owners.iter().map(|o| OwnerReference {
            uid: (*o).to_owned(),
            ..OwnerReference::default()
        });
        let meta = ObjectMeta {
            uid: Some(uid.into()),
            name: Some(uid.into()),
            owner_references: Some(owners.collect()),
            ..ObjectMeta::default()
        };
        Node::new("", "Thing", meta)
    }

    #[test]
    fn an_owners_end_calls_its_dependents() {
        let mut graph = Graph::default();
        assert!(graph.set(node("owner", &[])).is_empty());
        assert_eq!(graph.set(node("child", &["owner"])), ["child"]);
        assert!(graph.set(node("child", &["owner"])).is_empty());
        assert_eq!(graph.remove("owner"), ["child"]);
        // The owner may be seen, or not, in any order.
        assert_eq!(graph.dependents("owner").len(), 1);
        graph.remove("child");
        assert!(graph.dependents("owner").is_empty() && graph.dependents.is_empty());
    }

    #[test]
    fn an_owner_that_waits_hears_of_every_dependent_that_goes_or_lets_go() {
        let mut graph = Graph::default();
        let waiting = Node {
            deleting: true,
            foreground: true,
            ..node("owner", &[])
        };
        assert_eq!(graph.set(waiting), ["owner"]);
        assert_eq!(graph.set(node("a", &["owner"])), ["owner", "a"]);
        assert_eq!(graph.set(node("b", &["owner"])), ["owner", "b"]);
        assert_eq!(graph.set(node("a", &[])), ["owner"]);
        assert_eq!(graph.remove("b"), ["owner"]);
    }
}

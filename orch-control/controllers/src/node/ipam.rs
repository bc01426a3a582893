//! Node IPAM: every node gets pod networks of its own, one of each of the cluster's families.
//!
//! # Flow
//! A node without `spec.podCIDRs` appears → the lowest free network of each family is written to it, in one write,
//! since they may not change afterwards.
//! # Guarantees
//! No two nodes ever have the same network: one worker gives them out, after all nodes have been seen, and one
//! that was given out stays taken until its node is gone.
//! # Assumptions
//! Nobody else writes pod networks. Those that a node has from elsewhere are respected.
//! # Errors
//! When nothing is left the node gets the event CIDRNotAvailable and is tried again with back-off. A node from before
//! the cluster had its second family keeps its one network and gets the event CIDRAssignmentFailed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use orch_shared::events::{Recorder, Severity, reference};
use parking_lot::Mutex;
use serde_json::json;

use crate::core::{Doing, Informers, Key, Next, Queue, ReconcileError, drive};
use crate::{Context, ControllersError};

/// The networks of one family and who has them.
#[derive(Debug)]
struct Pool {
    cluster: IpNet,
    mask: u8,
    taken: HashMap<String, IpNet>,
}

impl Pool {
    /// All networks of `/mask` in `cluster`.
    fn new(cluster: IpNet, mask: u8) -> Result<Self, ControllersError> {
        let too_many = u32::from(mask).saturating_sub(cluster.prefix_len().into()) > 32;
        if mask < cluster.prefix_len() || mask > cluster.max_prefix_len() || too_many {
            return Err(ControllersError::NodeMask { cluster, mask });
        }
        Ok(Self {
            cluster: cluster.trunc(),
            mask,
            taken: HashMap::new(),
        })
    }

    /// Notes that `node` has `network`.
    fn note(&mut self, node: &str, network: IpNet) {
        self.taken.insert(node.to_owned(), network);
    }

    fn free(&mut self, node: &str) {
        self.taken.remove(node);
    }

    /// The node's network, or the lowest that overlaps with nobody's.
    fn give(&mut self, node: &str) -> Option<IpNet> {
        if let Some(network) = self.taken.get(node) {
            return Some(*network);
        }
        let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        let count = 1u64 << (self.mask - self.cluster.prefix_len());
        let all = (0..count).filter_map(|i| self.nth(i));
        let network = all
            .into_iter()
            .find(|n| !self.taken.values().any(|t| overlaps(n, t)))?;
        self.note(node, network);
        Some(network)
    }

    fn nth(&self, i: u64) -> Option<IpNet> {
        let shift = u32::from(self.cluster.max_prefix_len() - self.mask);
        let address: IpAddr = match self.cluster.network() {
            IpAddr::V4(base) => {
                let offset = u32::try_from(u64::from(shift < 32) * (i << (shift % 32))).ok()?;
                u32::from(base)
                    .checked_add(offset)
                    .map(|a| IpAddr::V4(a.into()))?
            }
            IpAddr::V6(base) => {
                let offset = u128::from(i).checked_shl(shift)?;
                u128::from(base)
                    .checked_add(offset)
                    .map(|a| IpAddr::V6(a.into()))?
            }
        };
        IpNet::new(address, self.mask).ok()
    }
}

/// The networks of all families.
#[derive(Debug)]
pub struct Pools(Vec<Pool>);

impl Pools {
    /// All networks of `/mask` in each of `clusters`, of which there is at most one per family, the primary first.
    pub fn new(clusters: &[IpNet], mask: impl Fn(&IpNet) -> u8) -> Result<Self, ControllersError> {
        let pools = clusters.iter().map(|net| Pool::new(*net, mask(net)));
        pools.collect::<Result<_, _>>().map(Self)
    }

    /// Notes that `node` has `networks`.
    fn note(&mut self, node: &str, networks: &[IpNet]) {
        for network in networks {
            let family = |pool: &&mut Pool| pool.cluster.addr().is_ipv4() == network.addr().is_ipv4();
            if let Some(pool) = self.0.iter_mut().find(family) {
                pool.note(node, *network);
            }
        }
    }

    fn free(&mut self, node: &str) {
        self.0.iter_mut().for_each(|pool| pool.free(node));
    }

    /// One network of each family, or none at all.
    fn give(&mut self, node: &str) -> Option<Vec<IpNet>> {
        let given: Option<Vec<IpNet>> = self.0.iter_mut().map(|pool| pool.give(node)).collect();
        if given.is_none() {
            self.free(node);
        }
        given
    }
}

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
    pools: Mutex<Pools>,
}

fn networks(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.iter();
    let all = spec.flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr));
    let mut found: Vec<IpNet> = Vec::new();
    for network in all.filter_map(|text| text.parse().ok()) {
        if !found.contains(&network) {
            found.push(network);
        }
    }
    found
}

/// Starts the controller.
pub fn start(context: &Context, pools: Pools) {
    let queue = Arc::new(Queue::<Key>::default());
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        informers: context.informers.clone(),
        recorder: context.recorder("cidrAllocator"),
        pools: Mutex::new(pools),
    });
    let (wake, this) = (queue.clone(), controller.clone());
    context
        .informers
        .nodes
        .subscribe(move |change| match (change.old, change.new) {
            (old, Some(node)) => {
                let networks = networks(node);
                let mut pools = this.pools.lock();
                pools.note(&node.name_any(), &networks);
                if networks.is_empty() || old.is_none() && networks.len() < pools.0.len() {
                    wake.add(Key::of(&**node));
                }
            }
            (Some(node), None) => this.pools.lock().free(&node.name_any()),
            (None, None) => {}
        });
    drive("nodeipam", queue, 1, context.token.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Next, ReconcileError> {
        self.informers.nodes.synced().await;
        let Some(node) = self.informers.nodes.get(key) else {
            return Ok(None);
        };
        let has = networks(&node);
        if !has.is_empty() {
            if has.len() < self.pools.lock().0.len() {
                let message = format!(
                    "Node {key} has no pod network of the cluster's second family, and cannot get one: delete the Node and let it register again"
                );
                let severity = Severity::Warning;
                self.recorder
                    .event(reference(&*node), severity, "CIDRAssignmentFailed", message);
            }
            return Ok(None);
        }
        let Some(networks) = self.pools.lock().give(&key.name) else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.recorder
                .event(reference(&*node), Severity::Normal, "CIDRNotAvailable", message);
            return Err(ReconcileError::CidrExhausted(key.name.clone()));
        };
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({
            "metadata": { "uid": node.uid() }, "spec": { "podCIDR": networks.first(), "podCIDRs": networks },
        });
        api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .doing_if_there(|| format!("give node {key} the pod networks {networks:?}"))?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_network_is_given_and_never_twice() {
        let mut pool = Pool::new("10.244.0.0/16".parse().unwrap(), 24).unwrap();
        pool.note("other", "10.244.1.0/24".parse().unwrap());
        assert_eq!(pool.give("a").unwrap().to_string(), "10.244.0.0/24");
        assert_eq!(pool.give("b").unwrap().to_string(), "10.244.2.0/24");
        assert_eq!(pool.give("a").unwrap().to_string(), "10.244.0.0/24");
        pool.free("a");
        assert_eq!(pool.give("c").unwrap().to_string(), "10.244.0.0/24");
    }

    #[test]
    fn an_end_is_an_end_and_a_senseless_mask_is_refused() {
        let mut pool = Pool::new("10.0.0.0/23".parse().unwrap(), 24).unwrap();
        assert!(pool.give("a").is_some() && pool.give("b").is_some());
        assert_eq!(pool.give("c"), None);
        assert!(Pool::new("10.0.0.0/24".parse().unwrap(), 16).is_err());
        assert!(Pool::new("10.0.0.0/24".parse().unwrap(), 33).is_err());
        let mut six = Pool::new("fd00::/48".parse().unwrap(), 64).unwrap();
        six.give("a");
        assert_eq!(six.give("b").unwrap().to_string(), "fd00:0:0:1::/64");
    }

    #[test]
    fn a_node_gets_a_network_of_each_family_or_none() {
        let clusters = ["10.244.0.0/23", "fd00:10:244::/56"].map(|n| n.parse().unwrap());
        let mask = |net: &IpNet| if net.addr().is_ipv4() { 24 } else { 64 };
        let mut pools = Pools::new(&clusters, mask).unwrap();
        let text = |given: Option<Vec<IpNet>>| given.map(|all| all.iter().map(ToString::to_string).collect());
        pools.note("old", &["10.244.0.0/24".parse().unwrap()]);
        let first: Option<Vec<String>> = text(pools.give("a"));
        assert_eq!(
            first.unwrap(),
            ["10.244.1.0/24".to_owned(), "fd00:10:244::/64".to_owned()]
        );
        assert_eq!(pools.give("b"), None);
        pools.free("a");
        let third: Option<Vec<String>> = text(pools.give("c"));
        assert_eq!(
            third.unwrap(),
            ["10.244.1.0/24".to_owned(), "fd00:10:244::/64".to_owned()]
        );
    }
}

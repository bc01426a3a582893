//! Node IPAM: every node gets a pod network of its own, cut from the cluster's.
//!
//! # Flow
//! A node without `spec.podCIDR` appears → the lowest free network is written to it.
//! # Guarantees
//! No two nodes ever have the same network: one worker gives them out, after all nodes have been seen, and one
//! that was given out stays taken until its node is gone.
//! # Assumptions
//! One address family; nobody else writes pod networks. A network that a node has from elsewhere is respected.
//! # Errors
//! When nothing is left the node gets the event CIDRNotAvailable and is tried again with back-off.

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

/// The networks and who has them.
#[derive(Debug)]
pub struct Pool {
    cluster: IpNet,
    mask: u8,
    taken: HashMap<String, IpNet>,
}

impl Pool {
    /// All networks of `/mask` in `cluster`.
    pub fn new(cluster: IpNet, mask: u8) -> Result<Self, ControllersError> {
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

struct Controller {
    client: Client,
    informers: Arc<Informers>,
    recorder: Recorder,
    pool: Mutex<Pool>,
}

fn network(node: &Node) -> Option<IpNet> {
    node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()
}

/// Starts the controller.
pub fn start(context: &Context, pool: Pool) {
    let queue = Arc::new(Queue::<Key>::default());
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        informers: context.informers.clone(),
        recorder: context.recorder("cidrAllocator"),
        pool: Mutex::new(pool),
    });
    let (wake, this) = (queue.clone(), controller.clone());
    context
        .informers
        .nodes
        .subscribe(move |change| match (change.old, change.new) {
            (_, Some(node)) => match network(node) {
                Some(network) => this.pool.lock().note(&node.name_any(), network),
                None => wake.add(Key::of(&**node)),
            },
            (Some(node), None) => this.pool.lock().free(&node.name_any()),
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
        let Some(node) = self.informers.nodes.get(key).filter(|n| network(n).is_none()) else {
            return Ok(None);
        };
        let Some(network) = self.pool.lock().give(&key.name) else {
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.recorder
                .event(reference(&*node), Severity::Normal, "CIDRNotAvailable", message);
            return Err(ReconcileError::CidrExhausted(key.name.clone()));
        };
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = json!({
            "metadata": { "uid": node.uid() }, "spec": { "podCIDR": network, "podCIDRs": [network] },
        });
        api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .doing_if_there(|| format!("give node {key} the pod network {network}"))?;
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
}

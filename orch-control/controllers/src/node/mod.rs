//! Nodes: their pod networks, their health, and what becomes of pods whose node is unwell or gone.

mod eviction;
pub mod ipam;
mod lifecycle;
mod pod_gc;

use crate::Context;

/// Where kubelets renew their leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Starts the controllers of this folder.
pub fn start(context: &Context, pools: ipam::Pools) {
    ipam::start(context, pools);
    lifecycle::start(context);
    eviction::start(context);
    pod_gc::start(context);
}

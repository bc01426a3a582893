//! Endpoints: the pods of this node, by address.

use crate::abi;

/// Name of the hash from [`crate::Address`] to [`Endpoint`].
pub const ENDPOINTS_MAP: &str = "ORCH_ENDPOINTS";
/// Most pods of a node.
pub const ENDPOINTS_MAX: usize = 4_096;

/// How to reach a pod of this node.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Interface index of the node's side of the pod's veth pair.
    pub ifindex: u32,
    /// Hardware address of the pod's side.
    pub pod_mac: [u8; 6],
    /// Hardware address of the node's side.
    pub node_mac: [u8; 6],
    /// The pod's uid as text, filled up with zeros.
    pub uid: [u8; 40],
}

abi!(Endpoint, size 56, align 4, { ifindex @ 0, pod_mac @ 4, node_mac @ 10, uid @ 16 });

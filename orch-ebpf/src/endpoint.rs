//! Endpoints: the pods of this node, by address.

use crate::abi;

/// Start of the name of the hashes from [`crate::Address`] to [`Endpoint`].
pub const ENDPOINTS_MAP: &str = "ORCH_ENDPOINTS";
/// Most pods of a node.
pub const ENDPOINTS_MAX: usize = 4_096;

/// How to reach a pod of this node.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Interface index of the node's side of the pod's veth pair.
    pub ifindex: u32,
    /// Number of the set of policies that select the pod, see [`crate::policy`]; read only with an isolating flag.
    pub policy: u32,
    /// [`ISOLATED_INGRESS`] and its siblings.
    pub flags: u32,
    /// Hardware address of the pod's side.
    pub pod_mac: [u8; 6],
    /// Hardware address of the node's side.
    pub node_mac: [u8; 6],
    /// The pod's uid as text, filled up with zeros.
    pub uid: [u8; 40],
}

abi!(Endpoint, size 64, align 4, {
    ifindex @ 0, policy @ 4, flags @ 8, pod_mac @ 12, node_mac @ 18, uid @ 24,
});

/// Flag of [`Endpoint`]: a policy of type Ingress selects the pod, so only what a rule allows comes in.
pub const ISOLATED_INGRESS: u32 = 1;
/// Flag of [`Endpoint`]: a policy of type Egress selects the pod, so only what a rule allows goes out.
pub const ISOLATED_EGRESS: u32 = 2;
/// Flag of [`Endpoint`]: what the pod receives has a limit of bandwidth.
pub const LIMITED_INGRESS: u32 = 4;
/// Flag of [`Endpoint`]: what the pod sends has a limit of bandwidth.
pub const LIMITED_EGRESS: u32 = 8;

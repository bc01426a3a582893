//! What only the pod's node can answer: logs, exec, attach, port-forward, and the kubelet's own pages.

pub mod kubelet;
pub mod tunnel;

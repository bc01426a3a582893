//! What the node refuses or cannot do for a pod, said before anything is started.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Pod;

use super::Manager;
use crate::pod::state::Verdict;

impl Manager {
    /// A verdict on a new pod whose host ports are taken on this node.
    pub(super) fn refusal(&self, pod: &Pod, is_new: bool) -> Option<Verdict> {
        let wanted = host_ports(pod);
        if !is_new || wanted.is_empty() {
            return None;
        }
        let taken: HashSet<_> = self
            .pods()
            .iter()
            .filter(|s| !matches!(s.status.phase.as_deref(), Some("Succeeded" | "Failed")))
            .filter(|s| s.pod.metadata.uid != pod.metadata.uid)
            .flat_map(|s| host_ports(&s.pod))
            .collect();
        (!wanted.is_disjoint(&taken)).then(|| Verdict {
            reason: "NodePorts",
            message: "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested \
                      pod ports"
                .to_owned(),
        })
    }

    /// Tells of parts of the spec that have no effect on this node.
    pub(super) fn warn_unsupported(&self, pod: &Pod) {
        let Some(spec) = &pod.spec else { return };
        let warn = |text: &str| self.context.warn(pod, None, "Unsupported", text);
        if spec.share_process_namespace == Some(true) {
            warn("shareProcessNamespace is not supported by this node: each container has its own processes");
        }
        if spec.ephemeral_containers.as_ref().is_some_and(|e| !e.is_empty()) {
            warn("ephemeral containers are not supported by this node");
        }
        if spec.host_users == Some(false) {
            warn("hostUsers: false is not supported by this node: containers use the node's user ids");
        }
        if spec.host_network != Some(true) && !host_ports(pod).is_empty() {
            warn("hostPort is not supported by this node except with hostNetwork");
        }
    }
}

/// The ports of the node that a pod wants: protocol, address, number.
fn host_ports(pod: &Pod) -> HashSet<(String, i32)> {
    let Some(spec) = &pod.spec else {
        return HashSet::new();
    };
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|c| c.restart_policy.as_deref() == Some("Always"));
    (spec.containers.iter().chain(sidecars))
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            Some((
                p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                p.host_port.filter(|n| *n > 0)?,
            ))
        })
        .collect()
}

//! What the node refuses or cannot do for a pod, said before anything is started.

use k8s_openapi::api::core::v1::Pod;
use orch_dataplane::HostPort;

use super::Manager;
use crate::pod::{attachment, state::Verdict};

impl Manager {
    /// A verdict on a new pod whose host ports are taken on this node.
    pub(super) fn refusal(&self, pod: &Pod, is_new: bool) -> Option<Verdict> {
        let wanted = host_ports(pod);
        if !is_new || wanted.is_empty() {
            return None;
        }
        let taken: Vec<HostPort> = self
            .pods()
            .iter()
            .filter(|s| !matches!(s.status.phase.as_deref(), Some("Succeeded" | "Failed")))
            .filter(|s| s.pod.metadata.uid != pod.metadata.uid)
            .flat_map(|s| host_ports(&s.pod))
            .collect();
        let conflict = wanted
            .iter()
            .any(|port| taken.iter().any(|other| overlap(port, other)));
        conflict.then(|| Verdict {
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
    }
}

/// The ports of the node that a pod wants. What is wrong with one is said when the pod is connected.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    attachment::containers(pod)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| attachment::host_port(port).ok().flatten())
        .collect()
}

/// Whether two pods cannot both have their port.
fn overlap(one: &HostPort, other: &HostPort) -> bool {
    let same_address = match (one.host_ip, other.host_ip) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    same_address && (one.protocol, one.host_port) == (other.protocol, other.host_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_every_address_is_one_of_each() {
        let port = |ip: Option<&str>, host_port, protocol| HostPort {
            host_ip: ip.map(|ip| ip.parse().unwrap()),
            host_port,
            container_port: 80,
            protocol,
        };
        let any = port(None, 80, 6);
        let (one, other) = (port(Some("192.0.2.1"), 80, 6), port(Some("192.0.2.2"), 80, 6));
        assert!(overlap(&any, &one) && overlap(&one, &any) && overlap(&one, &one));
        assert!(!overlap(&one, &other));
        assert!(!overlap(&any, &port(None, 80, 17)) && !overlap(&any, &port(None, 81, 6)));
    }
}

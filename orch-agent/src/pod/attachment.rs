//! What the data plane is told of a pod: who it is, its ports and its limits.

use std::{net::IpAddr, path::PathBuf};

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use orch_cluster::policies::{named_ports, protocol_number};
use orch_dataplane::{Bandwidth, HostPort, PodAttachment};

use super::quantity;

/// Annotations that limit a pod's bandwidth, in bits a second.
const INGRESS_BANDWIDTH: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS_BANDWIDTH: &str = "kubernetes.io/egress-bandwidth";
/// Kubernetes' bounds of these: 1k and 1P.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Why a pod cannot be connected as it wants to be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AttachmentError {
    /// A limit of bandwidth is no quantity.
    #[error("annotation {annotation}: {value:?} is not a quantity")]
    NotAQuantity {
        /// Which limit.
        annotation: &'static str,
        /// What it says.
        value: String,
    },
    /// A limit of bandwidth that nothing could keep.
    #[error("annotation {annotation}: {value} is not between 1k and 1P bits a second")]
    Unreasonable {
        /// Which limit.
        annotation: &'static str,
        /// What it says.
        value: String,
    },
    /// A host port is bound to what is no address.
    #[error("hostIP {0:?} is no address")]
    HostIp(String),
}

/// What the data plane is told of a pod with this network namespace.
///
/// # Errors
/// When an annotation or an address says nothing sensible.
pub fn attachment(pod: &Pod, netns: PathBuf) -> Result<PodAttachment, AttachmentError> {
    let meta = &pod.metadata;
    Ok(PodAttachment {
        uid: meta.uid.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        netns,
        labels: meta.labels.clone().unwrap_or_default(),
        named_ports: named_ports(pod),
        host_ports: ports(pod)
            .filter_map(|port| host_port(port).transpose())
            .collect::<Result<_, _>>()?,
        bandwidth: Bandwidth {
            ingress: limit(pod, INGRESS_BANDWIDTH)?,
            egress: limit(pod, EGRESS_BANDWIDTH)?,
        },
    })
}

/// The containers that run beside each other: all but those that run to completion before the pod starts.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    })
}

fn ports(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    containers(pod).flat_map(|container| container.ports.iter().flatten())
}

/// The port's place on the node, if it has one there.
///
/// # Errors
/// When it is bound to what is no address.
pub fn host_port(port: &ContainerPort) -> Result<Option<HostPort>, AttachmentError> {
    let number = |number: i32| u16::try_from(number).ok().filter(|number| *number != 0);
    let places = port.host_port.and_then(number).zip(number(port.container_port));
    let Some(((host_port, container_port), protocol)) = places.zip(protocol_number(port.protocol.as_deref()))
    else {
        return Ok(None);
    };
    let host_ip = match port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
        Some(text) => {
            let ip: IpAddr = text
                .parse()
                .map_err(|_| AttachmentError::HostIp(text.to_owned()))?;
            Some(ip)
        }
        None => None,
    };
    Ok(Some(HostPort {
        host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
        host_port,
        container_port,
        protocol,
    }))
}

fn limit(pod: &Pod, annotation: &'static str) -> Result<Option<u64>, AttachmentError> {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(value) = annotations.and_then(|annotations| annotations.get(annotation)) else {
        return Ok(None);
    };
    let bits = quantity::whole(&Quantity(value.clone())).map_err(|_| AttachmentError::NotAQuantity {
        annotation,
        value: value.clone(),
    })?;
    let bits = u64::try_from(bits).ok().filter(|bits| BANDWIDTH.contains(bits));
    bits.map(Some).ok_or_else(|| AttachmentError::Unreasonable {
        annotation,
        value: value.clone(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(annotations: Value, ports: Value) -> Result<PodAttachment, AttachmentError> {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}, "annotations": annotations},
            "spec": {
                "containers": [{"name": "c", "ports": ports}],
                "initContainers": [
                    {"name": "side", "restartPolicy": "Always", "ports": [{"name": "s", "containerPort": 9}]},
                    {"name": "once", "ports": [{"name": "o", "containerPort": 10, "hostPort": 10}]},
                ],
            },
        });
        attachment(&serde_json::from_value(pod).unwrap(), "/ns".into())
    }

    #[test]
    fn ports_keep_their_names_protocols_and_places() {
        let ports = json!([
            {"name": "dns", "containerPort": 53, "protocol": "UDP", "hostPort": 5353, "hostIP": "127.0.0.1"},
            {"containerPort": 80, "hostPort": 8080, "hostIP": "0.0.0.0"},
            {"containerPort": 81},
        ]);
        let made = read(json!({}), ports).unwrap();
        let names: Vec<_> = made
            .named_ports
            .iter()
            .map(|port| (port.name.as_str(), port.protocol, port.port))
            .collect();
        assert_eq!(names, [("dns", 17, 53), ("s", 6, 9)]);
        let places: Vec<_> = made
            .host_ports
            .iter()
            .map(|port| (port.host_ip, port.host_port, port.container_port, port.protocol))
            .collect();
        let local = Some("127.0.0.1".parse().unwrap());
        assert_eq!(places, [(local, 5353, 53, 17), (None, 8080, 80, 6)]);
        assert_eq!(made.labels["a"], "b");
        let bad = read(
            json!({}),
            json!([{"containerPort": 80, "hostPort": 80, "hostIP": "here"}]),
        );
        assert_eq!(bad, Err(AttachmentError::HostIp("here".into())));
    }

    #[test]
    fn bandwidth_has_bounds() {
        let limits = |text: &str| read(json!({"kubernetes.io/ingress-bandwidth": text}), json!([]));
        assert_eq!(limits("10M").unwrap().bandwidth.ingress, Some(10_000_000));
        assert_eq!(limits("1Mi").unwrap().bandwidth.ingress, Some(1 << 20));
        assert_eq!(limits("1k").unwrap().bandwidth.egress, None);
        for wrong in ["999", "1001T", "-1M"] {
            assert!(
                matches!(limits(wrong), Err(AttachmentError::Unreasonable { .. })),
                "{wrong}"
            );
        }
        assert!(matches!(
            limits("fast"),
            Err(AttachmentError::NotAQuantity { .. })
        ));
    }
}

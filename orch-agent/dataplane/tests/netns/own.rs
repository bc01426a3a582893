//! The node as a client of what is its own.

use std::net::IpAddr;

use ipnet::IpNet;
use orch_dataplane::{Dataplane, HostPort};
use orch_ebpf::PROTOCOL_TCP;
use serde_json::json;

use super::{Place, Plan, at, attachment, slice, support::Fake, until_services};

/// A host port that a pod has on the node's loopback address: the other pods' are their own.
pub async fn port_on_loopback(place: &Place, dataplane: &Dataplane, loopback: IpAddr, node_ip: IpAddr) {
    let mut pod = attachment(place, 0);
    pod.host_ports = vec![HostPort {
        host_ip: Some(loopback),
        host_port: 18_101,
        container_port: 8080,
        protocol: PROTOCOL_TCP,
    }];
    dataplane.attach_pod(&pod).await.unwrap();
    let cgroup = Some(place.config.cgroup_path.as_path());
    let words = format!("tcp {} 1", at(loopback, 18_101));
    assert_eq!(
        place.node.ask(cgroup, &words),
        format!("A {node_ip} peer {}", at(loopback, 18_101))
    );
    assert_eq!(place.pods[1].ask(cgroup, &words), "error ConnectionRefused");
    dataplane.attach_pod(&attachment(place, 0)).await.unwrap();
}

/// A load balancer's address that few may use, of which the node may be one and a pod another.
pub async fn source_ranges(place: &Place, plan: &Plan, fake: &mut Fake, [a, b]: [IpAddr; 2]) {
    let Plan {
        node: node_ip,
        balancer,
        balanced,
        ..
    } = *plan;
    let cgroup = Some(place.config.cgroup_path.as_path());
    let object = |ranges: &[IpNet]| {
        json!({
            "metadata": {"name": "balanced"},
            "spec": {"type": "LoadBalancer", "clusterIP": balanced, "clusterIPs": [balanced],
                "ports": [{"name": "http", "port": 80}], "loadBalancerSourceRanges": ranges},
            "status": {"loadBalancer": {"ingress": [{"ip": balancer}]}},
        })
    };
    let mut slice = slice("http", "TCP", 8080, &[(b, "n1")]);
    slice["metadata"] =
        json!({"name": "balanced-http", "labels": {"kubernetes.io/service-name": "balanced"}});
    fake.slice(slice);
    let words = format!("tcp {} 1", at(balancer, 80));
    let root = &place.config.bpf_root;
    for (ranges, node, pod) in [
        ([IpNet::from(node_ip)], true, false),
        ([IpNet::from(a)], false, true),
    ] {
        fake.service(object(&ranges));
        until_services(root, 15).await;
        let reached = |who: IpAddr| format!("B {who} peer {}", at(balancer, 80));
        let from_node = place.node.ask(cgroup, &words);
        let from_pod = place.pods[0].ask(cgroup, &words);
        assert_eq!(from_node == reached(node_ip), node, "{ranges:?} {from_node}");
        assert_eq!(from_pod == reached(a), pod, "{ranges:?} {from_pod}");
        fake.remove_service(object(&ranges));
        until_services(root, 12).await;
    }
}

//! Services and slices as an API server sends them, with the metadata that a reader has to wade through.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// The n-th ClusterIP.
pub fn cluster_ip(number: usize) -> Ipv4Addr {
    nth(Ipv4Addr::new(10, 96, 1, 0), number)
}

/// The n-th load balancer's address: a network for benchmarks (RFC 2544).
pub fn balancer_ip(number: usize) -> Ipv4Addr {
    nth(Ipv4Addr::new(198, 18, 0, 0), number)
}

/// The n-th address of the other node's pods.
pub fn endpoint_ip(number: usize) -> Ipv4Addr {
    nth(Ipv4Addr::new(10, 192, 0, 0), number)
}

fn nth(first: Ipv4Addr, number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + u32::try_from(number).unwrap())
}

/// The n-th service, on port 80.
pub fn service(number: usize, balanced: bool) -> Value {
    let mut object = json!({
        "metadata": metadata(&format!("service-{number}"), number, &json!({"app": format!("app-{number}")})),
        "spec": {
            "type": if balanced { "LoadBalancer" } else { "ClusterIP" },
            "clusterIP": cluster_ip(number), "clusterIPs": [cluster_ip(number)],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app": format!("app-{number}")},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    });
    if balanced {
        object["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        object["spec"]["externalTrafficPolicy"] = json!("Cluster");
        object["status"]["loadBalancer"] = json!({"ingress": [{"ip": balancer_ip(number), "ipMode": "VIP"}]});
    }
    object
}

/// The slice of the n-th service with these endpoints, all on the other node.
pub fn slice(number: usize, addresses: &[Ipv4Addr]) -> Value {
    let name = format!("service-{number}");
    let labels = json!({
        "app": format!("app-{number}"),
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": name,
    });
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| {
            json!({
                "addresses": [address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "n2",
                "targetRef": {
                    "kind": "Pod", "namespace": "default", "name": format!("pod-{address}"), "uid": uid(number),
                },
            })
        })
        .collect();
    json!({
        "metadata": metadata(&format!("{name}-abcde"), number, &labels),
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints,
    })
}

/// A node.
pub fn node(name: &str, address: Ipv4Addr, cidr: &str) -> Value {
    json!({
        "metadata": metadata(name, 0, &json!({"kubernetes.io/hostname": name})),
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

fn metadata(name: &str, number: usize, labels: &Value) -> Value {
    json!({
        "name": name, "namespace": "default", "uid": uid(number), "resourceVersion": "1", "labels": labels,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{
            "manager": "controller", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:ports": {".": {}, "k:{\"port\":80}": {".": {}, "f:name": {}, "f:port": {}}}}},
        }],
    })
}

fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

//! Services and slices as the API serves them, and the frontends and pools that they become.

use std::collections::BTreeSet;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use orch_ebpf::{
    PROTOCOL_TCP, PROTOCOL_UDP,
    service::{ANY_ADDRESS, BACKEND_LOCAL, Backend, SCOPE_EXTERNAL, SCOPE_INTERNAL, ServiceKey},
};
use serde_json::{Value, json};

use super::service;
use crate::plan::Desired;

fn convert(spec: Value, slices: Value) -> (Desired, Vec<String>) {
    let object: Service = serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": spec})).unwrap();
    let slices: Vec<EndpointSlice> = serde_json::from_value(slices).unwrap();
    service(&object, &slices.iter().collect::<Vec<_>>(), "here")
}

fn slice(ports: Value, endpoints: Value) -> Value {
    json!({"metadata": {}, "addressType": "IPv4", "ports": ports, "endpoints": endpoints})
}

fn reached(desired: &Desired, address: [u8; 4], port: u16, protocol: u8, scope: u8) -> BTreeSet<Backend> {
    let key = ServiceKey {
        address,
        port,
        protocol,
        scope,
    };
    let frontend = desired
        .frontends
        .iter()
        .find(|frontend| frontend.key == key)
        .unwrap();
    desired.pools[frontend.pool].clone()
}

fn backend(last: u8, port: u16, protocol: u8, flags: u8) -> Backend {
    Backend {
        address: [10, 244, 0, last],
        port,
        protocol,
        flags,
    }
}

const CLUSTER_IP: [u8; 4] = [10, 96, 0, 1];

#[test]
fn ports_find_their_numbers_by_name_and_protocol() {
    let (desired, refused) = convert(
        json!({"clusterIP": "10.96.0.1", "ports": [
            {"name": "web", "port": 80, "targetPort": "http"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        json!([
            slice(
                json!([{"name": "web", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]),
                json!([{"addresses": ["10.244.0.1"], "nodeName": "here"}])
            ),
            slice(
                json!([{"name": "web", "port": 9090}]),
                json!([{"addresses": ["10.244.0.2"], "nodeName": "there"}])
            ),
        ]),
    );
    assert_eq!(refused, Vec::<String>::new());
    assert_eq!(desired.frontends.len(), 2);
    assert_eq!(
        reached(&desired, CLUSTER_IP, 80, PROTOCOL_TCP, SCOPE_INTERNAL),
        [
            backend(1, 8080, PROTOCOL_TCP, BACKEND_LOCAL),
            backend(2, 9090, PROTOCOL_TCP, 0)
        ]
        .into()
    );
    assert_eq!(
        reached(&desired, CLUSTER_IP, 53, PROTOCOL_UDP, SCOPE_INTERNAL),
        [backend(1, 53, PROTOCOL_UDP, BACKEND_LOCAL)].into()
    );
}

#[test]
fn terminating_endpoints_serve_only_when_none_is_ready() {
    let ports = json!([{"name": "", "port": 80}]);
    let leaving = json!({"addresses": ["10.244.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let broken = json!({"addresses": ["10.244.0.2"], "conditions": {"ready": false, "serving": false}});
    let ready = json!({"addresses": ["10.244.0.3"], "conditions": {"ready": true}});
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let pool = |endpoints: Value| {
        let (desired, _) = convert(spec.clone(), json!([slice(ports.clone(), endpoints)]));
        reached(&desired, CLUSTER_IP, 80, PROTOCOL_TCP, SCOPE_INTERNAL)
    };
    assert_eq!(
        pool(json!([leaving, broken, ready])),
        [backend(3, 80, PROTOCOL_TCP, 0)].into()
    );
    assert_eq!(
        pool(json!([leaving, broken])),
        [backend(1, 80, PROTOCOL_TCP, 0)].into()
    );
    assert_eq!(pool(json!([broken])), BTreeSet::new());
}

#[test]
fn a_local_policy_narrows_only_its_own_side() {
    let (desired, _) = convert(
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
            "externalIPs": ["192.0.2.1"], "sessionAffinity": "ClientIP", "ports": [{"port": 80, "nodePort": 30080}]}),
        json!([slice(
            json!([{"name": "", "port": 80}]),
            json!([
            {"addresses": ["10.244.0.1"], "nodeName": "here"}, {"addresses": ["10.244.0.2"], "nodeName": "there"}])
        )]),
    );
    let local: BTreeSet<Backend> = [backend(1, 80, PROTOCOL_TCP, BACKEND_LOCAL)].into();
    for (address, port) in [(ANY_ADDRESS, 30080), ([192, 0, 2, 1], 80)] {
        assert_eq!(
            reached(&desired, address, port, PROTOCOL_TCP, SCOPE_EXTERNAL),
            local
        );
        assert_eq!(
            reached(&desired, address, port, PROTOCOL_TCP, SCOPE_INTERNAL).len(),
            2
        );
    }
    assert_eq!(
        reached(&desired, CLUSTER_IP, 80, PROTOCOL_TCP, SCOPE_INTERNAL).len(),
        2
    );
    assert!(
        desired
            .frontends
            .iter()
            .all(|frontend| frontend.affinity_seconds == 10_800)
    );
}

#[test]
fn what_has_no_address_makes_nothing_and_what_cannot_be_done_is_said() {
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"type": "ExternalName"}),
        json!({}),
    ] {
        assert_eq!(convert(spec, json!([])), (Desired::default(), Vec::new()));
    }
    let (desired, refused) = convert(
        json!({"clusterIP": "10.96.0.1", "ports": [{"port": 9, "protocol": "SCTP"}]}),
        json!([]),
    );
    assert_eq!(desired, Desired::default());
    assert!(refused[0].contains("SCTP"), "{refused:?}");
}

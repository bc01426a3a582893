//! Services and slices as the API serves them, and the frontends and pools that they become.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use orch_ebpf::{
    Address, Address4, Address6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP,
    service::{
        BACKEND_LOCAL, Backend, SCOPE_EXTERNAL, SCOPE_INTERNAL, SERVICE_LOCAL, SERVICE_SOURCES, ServiceKey,
    },
};
use serde_json::{Value, json};

use super::{Both, NodeInfo, View, balancer, health_check, info, service};
use crate::plan::{Desired, Frontend, Pool, Spread};

fn nodes() -> HashMap<String, NodeInfo> {
    let node = |address: &str, six: &str, zone: &str| {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"addresses": [{"type": "Hostname", "address": "x"},
                {"type": "InternalIP", "address": address}, {"type": "InternalIP", "address": six}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        info(&node)
    };
    HashMap::from([
        ("here".to_owned(), node("172.30.0.11", "fd00:30::11", "a")),
        ("there".to_owned(), node("172.30.0.12", "fd00:30::12", "b")),
    ])
}

fn objects(object: Value, slices: Value) -> (Service, Vec<EndpointSlice>) {
    (
        serde_json::from_value(object).unwrap(),
        serde_json::from_value(slices).unwrap(),
    )
}

fn convert_object(object: Value, slices: Value) -> (Both, Vec<String>) {
    convert_without(&[], object, slices)
}

/// The same where these nodes do not answer.
fn convert_without(left_out: &[&str], object: Value, slices: Value) -> (Both, Vec<String>) {
    let (object, slices) = objects(object, slices);
    let nodes = nodes();
    let left_out = left_out.iter().map(|&name| name.to_owned()).collect();
    let view = View {
        node_name: "here",
        nodes: &nodes,
        left_out: &left_out,
    };
    service(&object, &slices, &view)
}

fn convert(spec: Value, slices: Value) -> (Both, Vec<String>) {
    convert_object(json!({"metadata": {"name": "s"}, "spec": spec}), slices)
}

fn slice(ports: Value, endpoints: Value) -> Value {
    json!({"metadata": {}, "addressType": "IPv4", "ports": ports, "endpoints": endpoints})
}

fn frontend<A: Address>(desired: &Desired<A>, address: A, port: u16, protocol: u8, scope: u8) -> Frontend<A> {
    let key = ServiceKey {
        address,
        port,
        protocol,
        scope,
    };
    let mut found = desired.frontends.iter().filter(|frontend| frontend.key == key);
    let frontend = *found.next().unwrap_or_else(|| panic!("no {key:?}"));
    assert!(found.next().is_none(), "{key:?} twice");
    frontend
}

fn pool<A: Address>(desired: &Desired<A>, address: A, port: u16, protocol: u8, scope: u8) -> &Pool<A> {
    &desired.pools[frontend(desired, address, port, protocol, scope).pool]
}

fn backend(last: u8, port: u16, protocol: u8, flags: u8) -> Backend<Address4> {
    Backend {
        address: [10, 244, 0, last],
        port,
        protocol,
        flags,
        node: [172, 30, 0, if flags & BACKEND_LOCAL != 0 { 11 } else { 12 }],
    }
}

const CLUSTER_IP: Address4 = [10, 96, 0, 1];

/// The last bytes of what the ClusterIP's first port leads to.
fn reached(slices: Value) -> Vec<u8> {
    let (both, _) = convert(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}), slices);
    let pool = pool(&both.v4, CLUSTER_IP, 80, PROTOCOL_TCP, SCOPE_INTERNAL);
    pool.backends.iter().map(|backend| backend.address[3]).collect()
}

#[test]
fn ports_find_their_numbers_by_name_and_protocol() {
    let (both, refused) = convert(
        json!({"clusterIP": "10.96.0.1", "ports": [
            {"name": "web", "port": 80, "targetPort": "http"}, {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "sig", "port": 7, "protocol": "SCTP"}]}),
        json!([
            slice(
                json!([{"name": "web", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "sig", "port": 8, "protocol": "SCTP"}, {"name": "sig", "port": 9}]),
                json!([{"addresses": ["10.244.0.1"], "nodeName": "here"}])
            ),
            slice(
                json!([{"name": "web", "port": 9090}]),
                json!([{"addresses": ["10.244.0.2"], "nodeName": "there"}])
            ),
        ]),
    );
    assert_eq!(refused, Vec::<String>::new());
    assert_eq!(both.v4.frontends.len(), 3);
    assert_eq!(both.v6, Desired::default());
    let reached = |port, protocol| {
        let pool = pool(&both.v4, CLUSTER_IP, port, protocol, SCOPE_INTERNAL);
        assert_eq!(pool.spread, Spread::Each);
        pool.backends.clone()
    };
    assert_eq!(
        reached(80, PROTOCOL_TCP),
        [
            backend(1, 8080, PROTOCOL_TCP, BACKEND_LOCAL),
            backend(2, 9090, PROTOCOL_TCP, 0)
        ]
    );
    assert_eq!(
        reached(53, PROTOCOL_UDP),
        [backend(1, 53, PROTOCOL_UDP, BACKEND_LOCAL)]
    );
    assert_eq!(
        reached(7, PROTOCOL_SCTP),
        [backend(1, 8, PROTOCOL_SCTP, BACKEND_LOCAL)]
    );
}

#[test]
fn terminating_endpoints_serve_only_when_none_is_ready() {
    let ports = json!([{"name": "", "port": 80}]);
    let leaving = json!({"addresses": ["10.244.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}});
    let broken = json!({"addresses": ["10.244.0.2"], "conditions": {"ready": false, "serving": false}});
    let ready = json!({"addresses": ["10.244.0.3"], "conditions": {"ready": true}});
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let of = |endpoints: Value| {
        let (both, _) = convert(spec.clone(), json!([slice(ports.clone(), endpoints)]));
        let pool = pool(&both.v4, CLUSTER_IP, 80, PROTOCOL_TCP, SCOPE_INTERNAL).clone();
        (
            pool.backends.iter().map(|b| b.address[3]).collect::<Vec<_>>(),
            pool.fallback,
        )
    };
    assert_eq!(of(json!([leaving, broken, ready])), (vec![3], false));
    assert_eq!(of(json!([leaving, broken])), (vec![1], true));
    assert_eq!(of(json!([broken])), (vec![], false));
}

#[test]
fn an_address_in_several_slices_counts_once_and_by_its_readiest() {
    let ports = json!([{"name": "", "port": 80}]);
    let unready = json!([{"addresses": ["10.244.0.1"], "conditions": {"ready": false}}]);
    let ready = json!([{"addresses": ["10.244.0.1", "10.244.0.9"]}]);
    let one = reached(json!([
        slice(ports.clone(), unready),
        slice(ports.clone(), ready.clone()),
        slice(ports, ready)
    ]));
    assert_eq!(one, [1]);
}

#[test]
fn a_local_policy_narrows_only_its_own_side() {
    let slices = json!([slice(
        json!([{"name": "", "port": 80}]),
        json!([{"addresses": ["10.244.0.1"], "nodeName": "here"}, {"addresses": ["10.244.0.2"], "nodeName": "there"}])
    )]);
    let (both, _) = convert(
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
            "externalIPs": ["192.0.2.1"], "sessionAffinity": "ClientIP", "ports": [{"port": 80, "nodePort": 30080}]}),
        slices.clone(),
    );
    for (address, port) in [(Address4::ANY, 30080), ([192, 0, 2, 1], 80)] {
        let outside = pool(&both.v4, address, port, PROTOCOL_TCP, SCOPE_EXTERNAL);
        assert_eq!(outside.backends, [backend(1, 80, PROTOCOL_TCP, BACKEND_LOCAL)]);
        assert_eq!(outside.spread, Spread::Table);
        let flags = frontend(&both.v4, address, port, PROTOCOL_TCP, SCOPE_EXTERNAL).flags;
        assert_eq!(flags, SERVICE_LOCAL);
        assert_eq!(
            pool(&both.v4, address, port, PROTOCOL_TCP, SCOPE_INTERNAL)
                .backends
                .len(),
            2
        );
    }
    let internal = pool(&both.v4, CLUSTER_IP, 80, PROTOCOL_TCP, SCOPE_INTERNAL);
    assert_eq!((internal.backends.len(), internal.spread), (2, Spread::Each));
    assert!(
        both.v4
            .frontends
            .iter()
            .all(|frontend| frontend.affinity_seconds == 10_800)
    );

    let (both, _) = convert(
        json!({"clusterIP": "10.96.0.1", "internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}, "ports": [{"port": 80}]}),
        slices,
    );
    let internal = frontend(&both.v4, CLUSTER_IP, 80, PROTOCOL_TCP, SCOPE_INTERNAL);
    assert_eq!((internal.flags, internal.affinity_seconds), (SERVICE_LOCAL, 5));
    assert_eq!(both.v4.pools[internal.pool].backends.len(), 1);
}

#[test]
fn a_service_of_both_families_has_each_with_its_own_endpoints() {
    let (both, _) = convert(
        json!({"type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:10:96::1"],
            "ipFamilies": ["IPv4", "IPv6"], "externalIPs": ["2001:db8::1"], "ports": [{"port": 80, "nodePort": 30080}]}),
        json!([
            slice(json!([{"name": "", "port": 80}]), json!([{"addresses": ["10.244.0.1"], "nodeName": "here"}])),
            {"metadata": {}, "addressType": "IPv6", "ports": [{"name": "", "port": 80}],
                "endpoints": [{"addresses": ["fd00:10:244::7"], "nodeName": "there"}]},
            {"metadata": {}, "addressType": "FQDN", "ports": [{"name": "", "port": 80}],
                "endpoints": [{"addresses": ["example.com"]}]},
        ]),
    );
    assert_eq!(both.v4.frontends.len(), 3);
    let six = |text: &str| Address6::from_ip(text.parse().unwrap()).unwrap();
    for address in [six("fd00:10:96::1"), six("2001:db8::1")] {
        let pool = pool(&both.v6, address, 80, PROTOCOL_TCP, SCOPE_INTERNAL);
        assert_eq!(pool.backends.len(), 1);
        assert_eq!(pool.backends[0].address, six("fd00:10:244::7"));
        assert_eq!(pool.backends[0].node, six("fd00:30::12"));
    }
    assert_eq!(both.v6.frontends.len(), 5);
    assert_eq!(
        pool(&both.v6, Address6::ANY, 30080, PROTOCOL_TCP, SCOPE_EXTERNAL)
            .backends
            .len(),
        1
    );
}

#[test]
fn hints_count_when_every_ready_endpoint_has_one_and_one_is_meant_for_here() {
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let node = |name: &str, zone: &str| json!({"forNodes": [{"name": name}], "forZones": [{"name": zone}]});
    let of = |hints: [Option<Value>; 3]| {
        let endpoints: Vec<Value> = (1..)
            .zip(hints)
            .map(|(last, hints)| json!({"addresses": [format!("10.244.0.{last}")], "hints": hints}))
            .collect();
        reached(json!([slice(
            json!([{"name": "", "port": 80}]),
            json!(endpoints)
        )]))
    };
    assert_eq!(of([Some(zone("a")), Some(zone("b")), Some(zone("a"))]), [1, 3]);
    assert_eq!(
        of([Some(zone("a")), Some(zone("b")), None]),
        [1, 2, 3],
        "one has none"
    );
    assert_eq!(
        of([Some(zone("b")), Some(zone("b")), Some(zone("c"))]),
        [1, 2, 3],
        "none is for here"
    );
    let by_node = [
        Some(node("here", "b")),
        Some(node("there", "a")),
        Some(node("there", "a")),
    ];
    assert_eq!(of(by_node), [1], "nodes go before zones");
    let by_zone = [
        Some(node("there", "b")),
        Some(node("there", "a")),
        Some(node("there", "b")),
    ];
    assert_eq!(of(by_zone), [2], "no node is this one");
}

#[test]
fn a_load_balancer_answers_on_its_addresses_for_those_who_may_come() {
    let (both, refused) = convert_object(
        json!({"metadata": {"name": "s"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}],
                "loadBalancerSourceRanges": ["192.0.2.0/24", " 198.51.100.7/24", "all"], "externalIPs": ["192.0.2.9"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "172.30.0.200"}, {"ip": "172.30.0.201", "ipMode": "Proxy"},
                {"ip": "172.30.0.202", "ipMode": "VIP"}, {"ip": "192.0.2.9"}, {"hostname": "example.com"}]}}}),
        json!([]),
    );
    assert_eq!(refused, ["the source range \"all\" is no network"]);
    let lasts: Vec<(u8, u32)> = both
        .v4
        .frontends
        .iter()
        .filter(|frontend| frontend.key.scope == SCOPE_EXTERNAL)
        .map(|frontend| (frontend.key.address[3], frontend.flags))
        .collect();
    assert_eq!(
        lasts,
        [(9, 0), (200, SERVICE_SOURCES), (202, SERVICE_SOURCES), (0, 0)]
    );
    let guarded = pool(&both.v4, [172, 30, 0, 200], 80, PROTOCOL_TCP, SCOPE_EXTERNAL);
    assert_eq!(guarded.sources, [(24, [192, 0, 2, 0]), (24, [198, 51, 100, 0])]);
}

#[test]
fn balancers_are_announced_by_who_may() {
    let of = |change: Value| {
        let mut object = json!({"metadata": {"name": "s"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "172.30.0.200", "ipMode": "VIP"}]}}});
        for (key, value) in change.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        let ready = json!([{"addresses": ["10.244.0.1"], "nodeName": "there"},
            {"addresses": ["10.244.0.2"], "nodeName": "here", "conditions": {"ready": false}}]);
        let (object, slices) = objects(object, json!([slice(json!([{"name": "", "port": 80}]), ready)]));
        balancer(&object, &slices).map(|balancer| balancer.addresses)
    };
    let ip = "172.30.0.200".parse().unwrap();
    assert_eq!(of(json!({})), Some(vec![(ip, None)]));
    assert_eq!(
        of(json!({"loadBalancerClass": "orch.dev/l2"})),
        Some(vec![(ip, None)])
    );
    assert_eq!(of(json!({"loadBalancerClass": "example.com/other"})), None);
    assert_eq!(of(json!({"type": "ClusterIP"})), None);
    let local = of(json!({"externalTrafficPolicy": "Local"}));
    assert_eq!(local, Some(vec![(ip, Some(vec!["there".to_owned()]))]));
}

#[test]
fn who_does_not_answer_is_left_out_where_others_are_left() {
    // Each is its node, whether it is ready, or terminating, and the zone it is for.
    let of =
        |left_out: &[&str], policy: &str, endpoints: &[(&str, Value, Option<&str>)]| -> (Vec<u8>, bool) {
            let endpoints: Vec<Value> = (1..)
            .zip(endpoints)
            .map(|(last, (node, conditions, zone))| {
                let hints = zone.map(|zone| json!({"forZones": [{"name": zone}]}));
                json!({"addresses": [format!("10.244.0.{last}")], "nodeName": node, "conditions": conditions,
                    "hints": hints})
            })
            .collect();
            let spec =
                json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "internalTrafficPolicy": policy});
            let object = json!({"metadata": {"name": "s"}, "spec": spec});
            let slices = json!([slice(json!([{"name": "", "port": 80}]), json!(endpoints))]);
            let (both, _) = convert_without(left_out, object, slices);
            let pool = pool(&both.v4, CLUSTER_IP, 80, PROTOCOL_TCP, SCOPE_INTERNAL);
            let lasts = pool.backends.iter().map(|backend| backend.address[3]);
            (lasts.collect(), pool.fallback)
        };
    let ready = || json!({"ready": true});
    let leaving = || json!({"ready": false, "serving": true, "terminating": true});
    let three = [
        ("here", ready(), None),
        ("there", ready(), None),
        ("beyond", ready(), None),
    ];
    assert_eq!(of(&[], "Cluster", &three), (vec![1, 2, 3], false));
    assert_eq!(of(&["there"], "Cluster", &three), (vec![1, 3], false));
    assert_eq!(of(&["there", "beyond"], "Cluster", &three), (vec![1], false));
    assert_eq!(of(&["there"], "Local", &three), (vec![1], false));
    let elsewhere = &three[1..];
    assert_eq!(of(&["there"], "Cluster", elsewhere), (vec![2], false));
    assert_eq!(
        of(&["there", "beyond"], "Cluster", elsewhere),
        (vec![1, 2], false),
        "nobody else is left"
    );
    let last = [("here", leaving(), None), ("there", ready(), None)];
    assert_eq!(of(&[], "Cluster", &last), (vec![2], false));
    assert_eq!(
        of(&["there"], "Cluster", &last),
        (vec![1], true),
        "as when the control plane says that it is not ready"
    );
    let zones = [("there", ready(), Some("a")), ("beyond", ready(), Some("b"))];
    assert_eq!(of(&[], "Cluster", &zones), (vec![1], false));
    assert_eq!(
        of(&["there"], "Cluster", &zones),
        (vec![2], false),
        "another zone is better than nobody"
    );
}

#[test]
fn a_health_check_counts_ready_endpoints_here() {
    let endpoints = json!([{"addresses": ["10.244.0.1"], "nodeName": "here"}, {"addresses": ["10.244.0.2"], "nodeName": "there"},
        {"addresses": ["10.244.0.3"], "nodeName": "here", "conditions": {"ready": false}}]);
    let slices = json!([slice(json!([{"name": "", "port": 80}]), endpoints)]);
    let nodes = nodes();
    let view = View {
        node_name: "here",
        nodes: &nodes,
        left_out: &BTreeSet::new(),
    };
    let of = |policy: &str| {
        let (object, slices) = objects(
            json!({"metadata": {}, "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1",
                "externalTrafficPolicy": policy, "healthCheckNodePort": 31000, "ports": [{"port": 80}]}}),
            slices.clone(),
        );
        health_check(&object, &slices, &view).map(|check| (check.port, check.local_endpoints))
    };
    assert_eq!(of("Local"), Some((31000, 1)));
    assert_eq!(of("Cluster"), None);
}

#[test]
fn what_has_no_address_makes_nothing_and_what_cannot_be_done_is_said() {
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}),
        json!({"type": "ExternalName"}),
        json!({}),
    ] {
        assert_eq!(convert(spec, json!([])), (Both::default(), Vec::new()));
    }
    let (both, refused) = convert(
        json!({"clusterIP": "10.96.0.1", "ports": [{"port": 9, "protocol": "DCCP"}]}),
        json!([]),
    );
    assert_eq!(both, Both::default());
    assert!(refused[0].contains("DCCP"), "{refused:?}");
    for (label, value) in [("service-proxy-name", "other"), ("headless", "")] {
        let mut labels = serde_json::Map::new();
        labels.insert(format!("service.kubernetes.io/{label}"), json!(value));
        let (both, _) = convert_object(
            json!({"metadata": {"labels": labels}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 9}]}}),
            json!([]),
        );
        assert_eq!(both, Both::default(), "{label}");
    }
}

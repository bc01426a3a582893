//! Decisions, told as scripts: a line places a node or a pod, or asks where a pod goes.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may panic like the tests themselves"
)]

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use orch_scheduler::{Decision, PodInfo, Snapshot, schedule};
use proptest::prelude::*;
use serde_json::{Value, json};

fn node(name: &str, allocatable: Value, extra: Value) -> Node {
    let mut labels = json!({ "kubernetes.io/hostname": name });
    if let Some(more) = extra.get("labels").and_then(Value::as_object) {
        more.iter().for_each(|(k, v)| labels[k] = v.clone());
    }
    let mut spec = extra.get("spec").cloned().unwrap_or(json!({}));
    spec["providerID"] = json!(name);
    serde_json::from_value(json!({
        "metadata": { "name": name, "labels": labels },
        "spec": spec,
        "status": { "allocatable": allocatable },
    }))
    .unwrap()
}

fn big(name: &str, extra: Value) -> Node {
    node(
        name,
        json!({ "cpu": "8", "memory": "16Gi", "pods": "110" }),
        extra,
    )
}

fn pod(name: &str, labels: Value, spec: Value) -> Arc<PodInfo> {
    let mut whole = json!({ "containers": [{ "name": "c" }] });
    spec.as_object()
        .unwrap()
        .iter()
        .for_each(|(k, v)| whole[k] = v.clone());
    let owner = labels.get("owner").cloned();
    let owners = owner.map(|uid| json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": uid, "controller": true }]));
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "ns", "uid": name, "labels": labels, "ownerReferences": owners },
        "spec": whole,
    }))
    .unwrap();
    Arc::new(PodInfo::new(&pod))
}

fn asking(cpu: &str) -> Value {
    json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] })
}

fn cluster(nodes: &[Node]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node);
    }
    snapshot
}

/// The node's name, or the message.
fn decide(snapshot: &Snapshot, pod: &PodInfo) -> String {
    match schedule(snapshot, pod) {
        Decision::Bind { node } => node,
        Decision::Unschedulable { message, .. } => message,
    }
}

#[test]
fn refusals_say_what_kubernetes_says() {
    let tainted = json!({ "spec": { "taints": [{ "key": "k", "value": "v", "effect": "NoSchedule" }] } });
    let cordoned = json!({ "spec": { "unschedulable": true } });
    let small = || {
        node(
            "small",
            json!({ "cpu": "1", "memory": "1Gi", "pods": "1" }),
            json!({}),
        )
    };
    let port =
        json!({ "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 8080 }] }] });
    let gpu =
        json!({ "containers": [{ "name": "c", "resources": { "requests": { "example.com/gpu": "1" } } }] });
    let claim = json!({ "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "x" } }] });
    let spread = json!({ "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {} }] });
    let near = json!({ "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
        { "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "db" } } }] } } });
    let cases: Vec<(Vec<Node>, Value, &str)> = vec![
        (vec![], json!({}), "no nodes available to schedule pods"),
        (
            vec![small(), big("t", tainted)],
            asking("2"),
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}.",
        ),
        (
            vec![big("a", cordoned)],
            json!({}),
            "0/1 nodes are available: 1 node(s) were unschedulable.",
        ),
        (
            vec![big("a", json!({}))],
            json!({ "nodeSelector": { "disk": "ssd" } }),
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        ),
        (
            vec![big("a", json!({}))],
            gpu,
            "0/1 nodes are available: 1 Insufficient example.com/gpu.",
        ),
        (
            vec![big("a", json!({}))],
            claim,
            "0/1 nodes are available: volume \"data\" needs a persistent volume, which orch does not bind yet.",
        ),
        (
            vec![big("a", json!({}))],
            spread,
            "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label).",
        ),
        (
            vec![big("a", json!({}))],
            near,
            "0/1 nodes are available: 1 node(s) didn't match pod affinity rules.",
        ),
    ];
    for (nodes, spec, expect) in cases {
        assert_eq!(decide(&cluster(&nodes), &pod("p", json!({}), spec)), expect);
    }
    let mut snapshot = cluster(&[big("a", json!({})), small()]);
    snapshot.place(pod("first", json!({}), port.clone()), "a");
    snapshot.place(pod("filler", json!({}), json!({})), "small");
    assert_eq!(
        decide(&snapshot, &pod("second", json!({}), port)),
        "0/2 nodes are available: 1 Too many pods, 1 node(s) didn't have free ports for the requested pod ports."
    );
}

#[test]
fn replicas_of_one_set_spread_over_nodes() {
    let mut snapshot = cluster(&[big("a", json!({})), big("b", json!({})), big("c", json!({}))]);
    for i in 0..9 {
        let replica = pod(&format!("web-{i}"), json!({ "owner": "rs" }), json!({}));
        let node = decide(&snapshot, &replica);
        snapshot.place(replica, &node);
    }
    let counts: Vec<usize> = snapshot.nodes().map(|n| n.pods.len()).collect();
    assert_eq!(counts, [3, 3, 3]);
}

#[test]
fn init_containers_count_at_their_peak_and_sidecars_beside_everything() {
    let request = |cpu: &str| json!({ "requests": { "cpu": cpu } });
    let spec = json!({
        "initContainers": [
            { "name": "side", "restartPolicy": "Always", "resources": request("100m") },
            { "name": "init", "resources": request("900m") },
        ],
        "containers": [{ "name": "c", "resources": request("500m") }],
    });
    assert_eq!(pod("p", json!({}), spec).requests.milli_cpu, 1000);
}

#[test]
fn anti_affinity_keeps_apart_and_affinity_brings_together() {
    let term = json!([{ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "db" } } }]);
    let far = json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": term } } });
    let near =
        json!({ "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": term } } });
    let db = || json!({ "app": "db" });
    let mut snapshot = cluster(&[big("a", json!({})), big("b", json!({}))]);
    // The first of its kind may go anywhere although it asks for company.
    assert!(["a", "b"].contains(&decide(&snapshot, &pod("self", db(), near.clone())).as_str()));
    snapshot.place(pod("db0", db(), far.clone()), "a");
    assert_eq!(decide(&snapshot, &pod("web", json!({}), near)), "a");
    assert_eq!(decide(&snapshot, &pod("db1", db(), far.clone())), "b");
    // The one that is there objects too.
    assert_eq!(decide(&snapshot, &pod("db2", db(), json!({}))), "b");
    snapshot.place(pod("db1", db(), far.clone()), "b");
    assert_eq!(
        decide(&snapshot, &pod("db3", db(), far)),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
    );
    assert_eq!(
        decide(&snapshot, &pod("db4", db(), json!({}))),
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."
    );
}

#[test]
fn hard_spreading_over_zones_is_kept_whatever_else_speaks_against_it() {
    let zone = |z: &str| json!({ "labels": { "zone": z } });
    let mut snapshot = cluster(&[
        big("a1", zone("a")),
        big("a2", zone("a")),
        node(
            "b1",
            json!({ "cpu": "2", "memory": "4Gi", "pods": "9" }),
            zone("b"),
        ),
    ]);
    let spec = json!({ "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "web" } } }] });
    for i in 0..8 {
        let replica = pod(&format!("web{i}"), json!({ "app": "web" }), spec.clone());
        let node = decide(&snapshot, &replica);
        snapshot.place(replica, &node);
        let zones: Vec<usize> = snapshot.nodes().map(|n| n.pods.len()).collect();
        assert!((zones[0] + zones[1]).abs_diff(zones[2]) <= 1, "{zones:?}");
    }
}

#[test]
fn a_preferred_node_wins_and_an_unwelcoming_one_loses() {
    let ssd = json!({ "labels": { "disk": "ssd" } });
    let affinity = json!({ "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [
        { "weight": 10, "preference": { "matchExpressions": [{ "key": "disk", "operator": "In", "values": ["ssd"] }] } }] } } });
    let soft = json!({ "spec": { "taints": [{ "key": "k", "effect": "PreferNoSchedule" }] } });
    for i in 0..8 {
        let name = format!("p{i}");
        let snapshot = cluster(&[big("a", json!({})), big("b", ssd.clone())]);
        assert_eq!(decide(&snapshot, &pod(&name, json!({}), affinity.clone())), "b");
        let snapshot = cluster(&[big("a", json!({})), big("b", soft.clone())]);
        assert_eq!(decide(&snapshot, &pod(&name, json!({}), json!({}))), "a");
    }
}

proptest! {
    /// Whatever is asked for in whatever order, no node is given more than it has, the sums stay true when pods
    /// go, and the same question gets the same answer.
    #[test]
    fn nodes_are_never_overcommitted(
        sizes in prop::collection::vec(1i64..4000, 1..5),
        asks in prop::collection::vec((1i64..1500, any::<bool>()), 1..40),
    ) {
        let nodes: Vec<Node> = sizes.iter().enumerate().map(|(i, m)| {
            node(&format!("n{i}"), json!({ "cpu": format!("{m}m"), "memory": "1Gi", "pods": "7" }), json!({}))
        }).collect();
        let mut snapshot = cluster(&nodes);
        for (i, (milli, goes)) in asks.iter().enumerate() {
            let pod = pod(&format!("p{i}"), json!({}), asking(&format!("{milli}m")));
            let fits = snapshot.nodes().any(|n| {
                let has = &n.facts.as_ref().unwrap().allocatable;
                n.requested.milli_cpu + milli <= has.milli_cpu && (n.pods.len() as i64) < has.pods
            });
            let decision = schedule(&snapshot, &pod);
            prop_assert_eq!(&decision, &schedule(&snapshot.clone(), &pod));
            match decision {
                Decision::Bind { node } => snapshot.place(pod.clone(), &node),
                Decision::Unschedulable { .. } => prop_assert!(!fits),
            }
            if *goes {
                snapshot.remove_pod(&pod.uid);
            }
            for n in snapshot.nodes() {
                let has = &n.facts.as_ref().unwrap().allocatable;
                let sum: i64 = n.pods.values().map(|p| p.requests.milli_cpu).sum();
                prop_assert_eq!(sum, n.requested.milli_cpu);
                prop_assert!(sum <= has.milli_cpu && n.pods.len() as i64 <= has.pods);
            }
        }
    }
}

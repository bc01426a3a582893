//! Random clusters through random changes: the tables must say what the objects say, at each moment between two
//! changes what both say, and to a new agent what they said to the old one.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use orch_cluster::policies::Pod;
use orch_ebpf::policy::{EGRESS, INGRESS};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    naive::Objects,
    world::{Op, SCTP, State, TCP, UDP, World, pod, policy},
};

#[derive(Debug, Clone)]
enum Change {
    Pod(Pod),
    RemovePod(String),
    Namespace(String, String),
    Policy(Arc<NetworkPolicy>),
    RemovePolicy(String),
}

const NAMESPACES: [&str; 2] = ["shop", "ops"];
const PORTS: [u16; 5] = [79, 80, 95, 96, 8080];

fn namespace() -> impl Strategy<Value = &'static str> {
    prop::sample::select(NAMESPACES.to_vec())
}

fn selector() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec!["a", "b"]);
    let value = prop::sample::select(vec!["0", "1"]);
    prop_oneof![
        Just(json!({})),
        (key.clone(), value.clone()).prop_map(|(key, value)| json!({"matchLabels": {key: value}})),
        (key.clone(), value, prop::bool::ANY).prop_map(|(key, value, within)| {
            let operator = if within { "In" } else { "NotIn" };
            json!({"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]})
        }),
        (key, prop::bool::ANY).prop_map(|(key, exists)| {
            let operator = if exists { "Exists" } else { "DoesNotExist" };
            json!({"matchExpressions": [{"key": key, "operator": operator}]})
        }),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), selector())
            .prop_map(|(namespaces, pods)| json!({"namespaceSelector": namespaces, "podSelector": pods})),
        prop::sample::select(vec![
            json!({"ipBlock": {"cidr": "10.0.0.0/30"}}),
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/30"]}}),
            json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.1/32", "192.0.2.0/24"]}}),
            json!({"ipBlock": {"cidr": "10.0.0.5/32"}}),
            json!({"ipBlock": {"cidr": "fd00::/64", "except": ["fd00::4/126"]}}),
        ]),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({"port": 80}),
        json!({"port": 80, "endPort": 95}),
        json!({"port": 79, "endPort": 80, "protocol": "UDP"}),
        json!({"protocol": "SCTP"}),
        json!({"port": "http"}),
        json!({"port": "dns", "protocol": "UDP"}),
    ])
}

fn rules(side: &'static str) -> impl Strategy<Value = Vec<Value>> {
    let rule = (
        prop::collection::vec(peer(), 0..3),
        prop::collection::vec(port(), 0..3),
    );
    prop::collection::vec(
        rule.prop_map(move |(peers, ports)| json!({side: peers, "ports": ports})),
        0..3,
    )
}

fn a_policy() -> impl Strategy<Value = Arc<NetworkPolicy>> {
    let types = prop::sample::select(vec![
        json!([]),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    (namespace(), 0..3, selector(), types, rules("from"), rules("to")).prop_map(
        |(namespace, name, pods, types, ingress, egress)| {
            let spec =
                json!({"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress});
            policy(namespace, &format!("p{name}"), spec)
        },
    )
}

fn a_pod() -> impl Strategy<Value = Pod> {
    let label = prop::sample::select(vec!["", "a=0", "a=1", "b=0", "a=0,b=1"]);
    (0..6_u8, label, 0..3_u16).prop_map(|(index, labels, shift)| {
        let namespace = NAMESPACES[usize::from(index) % 2];
        let addresses = [format!("10.0.0.{index}"), format!("fd00::{index}")];
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let mut pod = pod(namespace, &format!("p{index}"), labels, &addresses);
        for port in &mut pod.ports {
            port.port = PORTS[usize::from(shift)];
        }
        pod
    })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => a_policy().prop_map(Change::Policy),
        4 => a_pod().prop_map(Change::Pod),
        1 => a_pod().prop_map(|pod| Change::RemovePod(pod.uid)),
        1 => (namespace(), prop::sample::select(vec!["", "a=0", "a=1,b=0"]))
            .prop_map(|(name, labels)| Change::Namespace(name.into(), labels.into())),
        1 => (namespace(), 0..3).prop_map(|(namespace, name)| Change::RemovePolicy(format!("{namespace}/p{name}"))),
    ]
}

/// One side of a connection: the pod, the direction, its peer, protocol and port.
type Question = (String, u8, IpAddr, u8, u16);

/// Everything that may be asked.
fn questions(world: &World) -> Vec<Question> {
    let mut peers: Vec<IpAddr> = ["192.0.2.1", "10.0.0.9", "fd00::9"]
        .map(|address| address.parse().unwrap())
        .to_vec();
    peers.extend(world.pods.values().flat_map(|pod| pod.addresses.iter().copied()));
    let mut questions = Vec::new();
    for (uid, pod) in &world.pods {
        // A pod is never kept from itself, whatever the tables say.
        for peer in peers.iter().filter(|peer| !pod.addresses.contains(*peer)) {
            for protocol in [TCP, UDP, SCTP] {
                for port in PORTS {
                    questions.push((uid.clone(), INGRESS, *peer, protocol, port));
                    questions.push((uid.clone(), EGRESS, *peer, protocol, port));
                }
            }
        }
    }
    questions
}

fn answers(state: &State, questions: &[Question]) -> Vec<bool> {
    questions
        .iter()
        .map(|(uid, direction, peer, protocol, port)| state.side(uid, *direction, *peer, *protocol, *port))
        .collect()
}

/// The tables against the objects.
fn compare(world: &World) -> Result<(), TestCaseError> {
    let objects = Objects {
        policies: &world.policies,
        namespaces: &world.namespaces,
        pods: &world.pods,
    };
    for question in questions(world) {
        let (uid, direction, peer, protocol, port) = &question;
        let is = world.kernel.state.side(uid, *direction, *peer, *protocol, *port);
        let should = objects.side(&world.pods[uid], *direction == INGRESS, *peer, *protocol, *port);
        prop_assert_eq!(is, should, "{:?}", question);
    }
    Ok(())
}

/// Whether a change of pods themselves makes questions before and after it different ones.
fn same_pods(before: &World, change: &Change) -> bool {
    !matches!(change, Change::Pod(pod) if !before.pods.contains_key(&pod.uid))
        && !matches!(change, Change::RemovePod(_))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn tables_say_what_the_objects_say(changes in prop::collection::vec(change(), 1..24)) {
        let mut world = World::new();
        for change in changes {
            let questions = questions(&world);
            let mut state = world.kernel.state.clone();
            let before = answers(&state, &questions);
            let same = same_pods(&world, &change);
            world.kernel.ops.clear();
            match change {
                Change::Pod(pod) => world.pod(pod),
                Change::RemovePod(uid) => world.remove_pod(&uid),
                Change::Namespace(name, labels) => world.namespace(&name, &labels),
                Change::Policy(policy) => world.policy(policy),
                Change::RemovePolicy(key) => world.remove_policy(&key),
            }
            compare(&world)?;
            if !same {
                continue;
            }
            let after = answers(&world.kernel.state, &questions);
            let ops: Vec<Op> = std::mem::take(&mut world.kernel.ops);
            for op in &ops {
                state.run(op);
                let now = answers(&state, &questions);
                for (index, question) in questions.iter().enumerate() {
                    if before[index] == after[index] {
                        prop_assert_eq!(now[index], after[index], "{:?} at {:?} of {:?}", question, op, &ops);
                    }
                }
            }
        }
        let written = world.restart();
        prop_assert!(written.is_empty(), "a restart writes {:?}", written);
    }
}

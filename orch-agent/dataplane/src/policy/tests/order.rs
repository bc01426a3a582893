//! In which order the kernel is told, and what survives the agent.

use std::collections::HashMap;

use orch_cluster::policies::{PolicyEvent, Update};
use orch_ebpf::endpoint::ISOLATED_INGRESS;
use serde_json::json;

use super::world::{Op, Recorder, TCP, World, pod, policy};
use crate::policy::{compile::Subject, model::Model, tables::Tables};

fn subject(pod: &orch_cluster::policies::Pod) -> Subject {
    Subject {
        namespace: pod.namespace.clone(),
        labels: pod.labels.clone(),
        ports: pod.ports.clone(),
    }
}

fn position(ops: &[Op], which: impl Fn(&Op) -> bool) -> usize {
    ops.iter().position(which).unwrap()
}

#[test]
fn nothing_is_said_of_a_pod_before_the_cluster_is_known() {
    let mut model = Model::new(Tables::default(), HashMap::new());
    let mut kernel = Recorder::default();
    let web = pod("shop", "web", "app=web", &[]);
    model.add_local(&web.uid, subject(&web));
    model.sync(&mut kernel).unwrap();
    assert!(kernel.ops.is_empty());
    let deny = policy("shop", "deny", json!({"podSelector": {}}));
    model.apply(PolicyEvent::Policy(Update::All(vec![deny])));
    model.sync(&mut kernel).unwrap();
    assert!(kernel.ops.is_empty(), "who the peers are is not known yet");
    model.apply(PolicyEvent::Namespace(Update::All(Vec::new())));
    model.apply(PolicyEvent::Pod(Update::All(Vec::new())));
    model.sync(&mut kernel).unwrap();
    // The caller's own description is enough: the pod's first verdict isolates it.
    assert!(matches!(&kernel.ops[..], [Op::Enforce(uid, verdict)]
        if *uid == web.uid && verdict.flags == ISOLATED_INGRESS && verdict.policy != 0));
}

#[test]
fn without_policies_a_pod_need_not_wait_for_lists_of_pods() {
    let mut model = Model::new(Tables::default(), HashMap::new());
    let mut kernel = Recorder::default();
    let web = pod("shop", "web", "app=web", &[]);
    model.add_local(&web.uid, subject(&web));
    model.apply(PolicyEvent::Policy(Update::All(Vec::new())));
    model.sync(&mut kernel).unwrap();
    assert!(matches!(&kernel.ops[..], [Op::Enforce(_, verdict)] if verdict.flags == 0));
}

fn allow_clients() -> World {
    let mut world = World::new();
    world.pod(pod("shop", "web", "app=web", &["10.0.0.1"]));
    world.pod(pod("ops", "client", "app=client", &["10.0.1.1"]));
    world.kernel.ops.clear();
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 80}]}]});
    world.policy(policy("shop", "in", spec));
    world
}

#[test]
fn rules_then_identities_then_endpoints_and_the_other_way_round() {
    let mut world = allow_clients();
    let ops = std::mem::take(&mut world.kernel.ops);
    let allow = position(&ops, |op| matches!(op, Op::Allow(_)));
    let identify = position(&ops, |op| matches!(op, Op::Identify(..)));
    let enforce = position(&ops, |op| matches!(op, Op::Enforce(..)));
    assert!(allow < identify && identify < enforce, "{ops:?}");
    world.remove_policy("shop/in");
    let ops = std::mem::take(&mut world.kernel.ops);
    let enforce = position(&ops, |op| matches!(op, Op::Enforce(..)));
    let identify = position(&ops, |op| matches!(op, Op::Identify(..)));
    let disallow = position(&ops, |op| matches!(op, Op::Disallow(_)));
    assert!(enforce < identify && identify < disallow, "{ops:?}");
}

#[test]
fn a_change_touches_only_what_it_is_about() {
    let mut world = allow_clients();
    world.kernel.ops.clear();
    world.pod(pod("ops", "more", "app=client", &["10.0.1.2"]));
    let identities = |ops: &[Op]| ops.iter().filter(|op| matches!(op, Op::Identify(..))).count();
    assert_eq!(identities(&world.kernel.ops), 1);
    assert_eq!(
        world.kernel.ops.len(),
        2,
        "its entry and its own verdict: {:?}",
        world.kernel.ops
    );
    world.kernel.ops.clear();
    world.namespace("ops", "team=z");
    world.pod(pod("ops", "more", "app=changed", &["10.0.1.2"]));
    assert!(
        world.kernel.ops.is_empty(),
        "no rule can tell: {:?}",
        world.kernel.ops
    );
}

#[test]
fn a_restart_with_another_policy_writes_the_difference() {
    let mut world = allow_clients();
    let key = "shop/in".to_owned();
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 81}]}]});
    world.policies.insert(key, policy("shop", "in", spec));
    let ops = world.restart();
    assert!(
        !ops.iter().any(|op| matches!(op, Op::Identify(..))),
        "the identities are the same: {ops:?}"
    );
    assert!(world.connects("ops/client", "shop/web", TCP, 81));
    assert!(!world.connects("ops/client", "shop/web", TCP, 80));
    assert_eq!(world.kernel.state.rules.len(), 1);
}

#[test]
fn an_identity_that_goes_and_comes_back_in_one_change_keeps_its_number() {
    let mut world = World::new();
    let mut web = pod("shop", "web", "app=web", &["10.0.0.1"]);
    web.ports.retain(|port| port.name == "http");
    world.pod(web);
    world.pod(pod("shop", "dns", "app=dns", &["10.0.0.2"]));
    world.pod(pod("ops", "client", "app=client", &["10.0.1.1"]));
    let egress = |port| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [port]}]});
    world.policy(policy("ops", "http", egress(json!({"port": "http"}))));
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
        "egress": [{"ports": [{"port": "dns", "protocol": "UDP"}]}]});
    world.policy(policy("shop", "dns", spec));
    let number = world.kernel.state.networks[&"10.0.0.1/32".parse().unwrap()];
    // With the pod goes the only rule that tells its identity from the other's.
    world.remove_pod("shop/web");
    assert_eq!(
        world.kernel.state.networks[&"10.0.0.2/32".parse().unwrap()],
        number
    );
    assert!(world.restart().is_empty());
}

#[test]
fn a_pod_that_nobody_knows_keeps_what_it_has_until_it_goes() {
    let mut world = allow_clients();
    let state = world.kernel.state.clone();
    world.pods.remove("shop/web");
    let ops = world.restart();
    assert!(
        !ops.iter()
            .any(|op| matches!(op, Op::Disallow(_) | Op::Enforce(..))),
        "{ops:?}"
    );
    assert_eq!(world.kernel.state.endpoints, state.endpoints);
    world.remove_pod("shop/web");
    assert!(world.kernel.state.rules.is_empty());
}

#[test]
fn with_a_kernel_that_refuses_it_goes_on_where_it_ended() {
    let whole = {
        let mut world = allow_clients();
        world.remove_policy("shop/in");
        world.kernel.ops.len()
    };
    for room in 0..whole {
        let mut world = allow_clients();
        let wanted = world.kernel.state.clone();
        let undone = world.policies.remove("shop/in").unwrap();
        world.remove_policy("shop/in");
        world.kernel.room = Some(room);
        world.model.apply(PolicyEvent::Policy(Update::Put(undone)));
        let refused = world.model.sync(&mut world.kernel).is_err();
        world.kernel.room = None;
        world.model.sync(&mut world.kernel).unwrap();
        assert!(refused || room >= wanted.rules.len());
        assert_eq!(world.kernel.state.rules, wanted.rules);
        assert_eq!(world.kernel.state.networks, wanted.networks);
        assert_eq!(world.kernel.state.endpoints, wanted.endpoints);
    }
}

//! Each feature of NetworkPolicy: a policy, and who connects to whom then.

use serde_json::{Value, json};

use super::world::{ICMP, SCTP, TCP, UDP, World, pod, policy};

const OUTSIDE: &str = "192.0.2.9";
const OUTSIDE6: &str = "2001:db8::9";

/// A dual-stack cluster without policies: in `shop` a web server and a client, in `ops` a client.
fn cluster() -> World {
    let mut world = World::new();
    world.pod(pod("shop", "web", "app=web", &["10.0.0.1", "fd00::1"]));
    world.pod(pod(
        "shop",
        "client",
        "app=client,tier=front",
        &["10.0.0.2", "fd00::2"],
    ));
    world.pod(pod("ops", "client", "app=client", &["10.0.1.1", "fd00::1:1"]));
    world
}

/// From, to, protocol, port, and whether it may be.
type Case = (&'static str, &'static str, u8, u16, bool);

#[track_caller]
fn check(world: &World, cases: &[Case]) {
    for (from, to, protocol, port, allowed) in cases {
        assert_eq!(
            world.connects(from, to, *protocol, *port),
            *allowed,
            "{from} to {to}, protocol {protocol} port {port}"
        );
    }
}

/// Policies on `shop/web` only, and what they lead to.
#[track_caller]
fn on_web(specs: &[Value], cases: &[Case]) {
    let mut world = cluster();
    for (index, spec) in specs.iter().enumerate() {
        let mut spec = spec.clone();
        spec["podSelector"] = json!({"matchLabels": {"app": "web"}});
        world.policy(policy("shop", &format!("p{index}"), spec));
    }
    check(&world, cases);
    assert!(
        world.restart().is_empty(),
        "a restart finds everything as it should be"
    );
    check(&world, cases);
    for index in 0..specs.len() {
        world.remove_policy(&format!("shop/p{index}"));
    }
    let state = &world.kernel.state;
    assert!(
        state.rules.is_empty() && state.networks.is_empty(),
        "nothing is left: {state:?}"
    );
    assert!(state.endpoints.values().all(|verdict| verdict.flags == 0));
}

#[test]
fn without_a_policy_everything_goes_and_nothing_is_written() {
    let world = cluster();
    check(
        &world,
        &[
            ("ops/client", "shop/web", TCP, 1, true),
            (OUTSIDE, "shop/web", ICMP, 0, true),
        ],
    );
    assert!(world.kernel.state.rules.is_empty() && world.kernel.state.networks.is_empty());
}

#[test]
fn deny_all_in() {
    on_web(
        &[json!({})],
        &[
            ("shop/client", "shop/web", TCP, 80, false),
            ("shop/client", "shop/web", ICMP, 0, false),
            (OUTSIDE6, "shop/web", TCP, 80, false),
            // Missing policyTypes are Ingress alone, without egress rules.
            ("shop/web", "shop/client", TCP, 80, true),
            ("shop/web", "shop/web", TCP, 80, true),
            ("ops/client", "shop/client", TCP, 80, true),
        ],
    );
}

#[test]
fn deny_all_out() {
    on_web(
        &[json!({"policyTypes": ["Egress"]})],
        &[
            ("shop/web", "shop/client", TCP, 80, false),
            ("shop/web", OUTSIDE, UDP, 53, false),
            ("shop/client", "shop/web", TCP, 80, true),
        ],
    );
}

#[test]
fn rules_of_a_type_that_is_not_named_do_not_count() {
    on_web(
        &[json!({"policyTypes": ["Egress"], "ingress": [], "egress": [{}]})],
        &[
            ("shop/client", "shop/web", TCP, 80, true),
            ("shop/web", OUTSIDE, TCP, 80, true),
        ],
    );
    on_web(
        &[json!({"policyTypes": ["Ingress"], "egress": [{"ports": [{"port": 53}]}]})],
        &[
            ("shop/client", "shop/web", TCP, 80, false),
            ("shop/web", OUTSIDE, TCP, 80, true),
        ],
    );
}

#[test]
fn missing_types_are_both_where_there_are_egress_rules() {
    on_web(
        &[json!({"egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}]})],
        &[
            ("shop/client", "shop/web", TCP, 80, false),
            ("shop/web", OUTSIDE, UDP, 53, true),
            ("shop/web", OUTSIDE, TCP, 53, false),
        ],
    );
}

#[test]
fn an_empty_rule_allows_every_peer_and_protocol() {
    on_web(
        &[json!({"ingress": [{}]})],
        &[
            (OUTSIDE, "shop/web", TCP, 1, true),
            (OUTSIDE6, "shop/web", SCTP, 1, true),
            ("ops/client", "shop/web", ICMP, 0, true),
        ],
    );
    on_web(
        &[json!({"ingress": [{"from": [], "ports": []}]})],
        &[(OUTSIDE, "shop/web", TCP, 1, true)],
    );
}

#[test]
fn pods_of_the_own_namespace() {
    on_web(
        &[json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]})],
        &[
            ("shop/client", "shop/web", TCP, 80, true),
            ("ops/client", "shop/web", TCP, 80, false),
            (OUTSIDE, "shop/web", TCP, 80, false),
        ],
    );
    on_web(
        &[json!({"ingress": [{"from": [{"podSelector": {}}]}]})],
        &[
            ("shop/client", "shop/web", ICMP, 0, true),
            ("ops/client", "shop/web", TCP, 80, false),
        ],
    );
}

#[test]
fn whole_namespaces_and_pods_in_them() {
    let b = json!({"matchLabels": {"team": "b"}});
    on_web(
        &[json!({"ingress": [{"from": [{"namespaceSelector": b}]}]})],
        &[
            ("shop/client", "shop/web", TCP, 80, false),
            ("ops/client", "shop/web", TCP, 80, true),
        ],
    );
    on_web(
        &[json!({"ingress": [{"from": [{"namespaceSelector": {}}]}]})],
        &[
            ("shop/client", "shop/web", TCP, 80, true),
            (OUTSIDE, "shop/web", TCP, 80, false),
        ],
    );
    // Both selectors in one peer must match; in two peers one is enough.
    let front = json!({"matchLabels": {"tier": "front"}});
    on_web(
        &[json!({"ingress": [{"from": [{"namespaceSelector": b, "podSelector": front}]}]})],
        &[
            ("shop/client", "shop/web", TCP, 80, false),
            ("ops/client", "shop/web", TCP, 80, false),
        ],
    );
    on_web(
        &[json!({"ingress": [{"from": [{"namespaceSelector": b}, {"podSelector": front}]}]})],
        &[
            ("shop/client", "shop/web", TCP, 80, true),
            ("ops/client", "shop/web", TCP, 80, true),
        ],
    );
}

#[test]
fn expressions() {
    let from = |expression: Value| json!({"ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchExpressions": [expression]}}]}]});
    for (expression, shop, ops) in [
        (
            json!({"key": "tier", "operator": "In", "values": ["front", "back"]}),
            true,
            false,
        ),
        (
            json!({"key": "tier", "operator": "NotIn", "values": ["front"]}),
            false,
            true,
        ),
        (json!({"key": "tier", "operator": "Exists"}), true, false),
        (json!({"key": "tier", "operator": "DoesNotExist"}), false, true),
    ] {
        on_web(
            &[from(expression)],
            &[
                ("shop/client", "shop/web", TCP, 80, shop),
                ("ops/client", "shop/web", TCP, 80, ops),
            ],
        );
    }
}

#[test]
fn blocks_and_what_they_except() {
    on_web(
        &[json!({"ingress": [{"from": [
            {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.8/29"]}},
            {"ipBlock": {"cidr": "2001:db8::/32"}},
        ]}]})],
        &[
            ("192.0.2.1", "shop/web", TCP, 80, true),
            (OUTSIDE, "shop/web", TCP, 80, false),
            ("192.0.2.16", "shop/web", TCP, 80, true),
            ("198.51.100.1", "shop/web", TCP, 80, false),
            (OUTSIDE6, "shop/web", TCP, 80, true),
            ("shop/client", "shop/web", TCP, 80, false),
        ],
    );
    // What one block excepts, another may hold.
    on_web(
        &[json!({"egress": [{"to": [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["192.0.2.0/24"]}},
            {"ipBlock": {"cidr": "192.0.2.9/32"}},
        ]}]})],
        &[
            ("shop/web", "192.0.2.1", TCP, 80, false),
            ("shop/web", OUTSIDE, TCP, 80, true),
            ("shop/web", "8.8.8.8", TCP, 80, true),
            ("shop/web", OUTSIDE6, TCP, 80, false),
        ],
    );
}

#[test]
fn blocks_hold_pods_too() {
    on_web(
        &[json!({"policyTypes": ["Egress"], "egress": [{"to": [
            {"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.1/32"]}},
        ]}]})],
        &[
            ("shop/web", "shop/client", TCP, 80, true),
            ("shop/web", "ops/client", TCP, 80, false),
            ("shop/web", "10.0.1.2", TCP, 80, true),
        ],
    );
    // A pod that is excepted by its address and selected by its labels.
    on_web(
        &[json!({"egress": [
            {"to": [{"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.1/32"]}}], "ports": [{"port": 1}]},
            {"to": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}], "ports": [{"port": 2}]},
        ]})],
        &[
            ("shop/web", "ops/client", TCP, 1, false),
            ("shop/web", "ops/client", TCP, 2, true),
            ("shop/web", "shop/client", TCP, 1, true),
            ("shop/web", "shop/client", TCP, 2, false),
        ],
    );
}

#[test]
fn ports_and_ranges_of_each_protocol() {
    on_web(
        &[json!({"ingress": [{"ports": [
            {"port": 80},
            {"port": 32000, "endPort": 32768},
            {"port": 53, "protocol": "UDP"},
            {"protocol": "SCTP"},
        ]}]})],
        &[
            (OUTSIDE, "shop/web", TCP, 80, true),
            (OUTSIDE, "shop/web", TCP, 81, false),
            (OUTSIDE, "shop/web", UDP, 80, false),
            (OUTSIDE, "shop/web", UDP, 53, true),
            (OUTSIDE, "shop/web", TCP, 31999, false),
            (OUTSIDE, "shop/web", TCP, 32000, true),
            (OUTSIDE, "shop/web", TCP, 32768, true),
            (OUTSIDE, "shop/web", TCP, 32769, false),
            (OUTSIDE, "shop/web", SCTP, 7, true),
            (OUTSIDE, "shop/web", ICMP, 0, false),
        ],
    );
}

#[test]
fn named_ports_are_the_server_s_own() {
    on_web(
        &[json!({"ingress": [{"ports": [{"port": "http"}, {"port": "none"}, {"port": "dns"}]}]})],
        &[
            ("shop/client", "shop/web", TCP, 8080, true),
            // "dns" is a UDP port.
            ("shop/client", "shop/web", TCP, 5353, false),
        ],
    );
    let egress =
        |to: Value| json!({"policyTypes": ["Egress"], "egress": [{"to": to, "ports": [{"port": "http"}]}]});
    for to in [
        json!([]),
        json!([{"podSelector": {}}]),
        json!([{"ipBlock": {"cidr": "10.0.0.0/24"}}, {"ipBlock": {"cidr": "fd00::/112"}}]),
    ] {
        on_web(
            &[egress(to)],
            &[
                ("shop/web", "shop/client", TCP, 8080, true),
                ("shop/web", "shop/client", TCP, 80, false),
                ("shop/web", OUTSIDE, TCP, 8080, false),
            ],
        );
    }
    let mut world = cluster();
    let mut other = pod("shop", "other", "app=other", &["10.0.0.3"]);
    other.ports[0].port = 9090;
    world.pod(other);
    world.policy(policy(
        "shop",
        "out",
        json!({"podSelector": {}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": "http"}]}]}),
    ));
    check(
        &world,
        &[
            ("shop/web", "shop/client", TCP, 8080, true),
            ("shop/web", "shop/other", TCP, 8080, false),
            ("shop/web", "shop/other", TCP, 9090, true),
        ],
    );
    world.policy(policy(
        "shop",
        "in",
        json!({"podSelector": {}, "ingress": [{"ports": [{"port": "http"}]}]}),
    ));
    check(
        &world,
        &[
            ("ops/client", "shop/other", TCP, 9090, true),
            ("ops/client", "shop/other", TCP, 8080, false),
            ("ops/client", "shop/web", TCP, 8080, true),
        ],
    );
}

#[test]
fn policies_add_up() {
    on_web(
        &[
            json!({}),
            json!({"ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]}),
            json!({"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}],
                "ports": [{"port": 443}]}]}),
        ],
        &[
            ("shop/client", "shop/web", TCP, 80, true),
            ("shop/client", "shop/web", TCP, 443, false),
            ("ops/client", "shop/web", TCP, 80, false),
            ("ops/client", "shop/web", TCP, 443, true),
        ],
    );
}

#[test]
fn both_ends_must_agree() {
    let mut world = cluster();
    world.policy(policy(
        "shop",
        "in",
        json!({"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"namespaceSelector": {}}]}]}),
    ));
    world.policy(policy(
        "ops",
        "out",
        json!({"podSelector": {}, "policyTypes": ["Egress"],
        "egress": [{"ports": [{"port": 443}]}]}),
    ));
    check(
        &world,
        &[
            ("ops/client", "shop/web", TCP, 443, true),
            ("ops/client", "shop/web", TCP, 80, false),
            ("shop/client", "shop/web", TCP, 80, true),
        ],
    );
}

#[test]
fn labels_addresses_and_namespaces_change() {
    let mut world = cluster();
    world.policy(policy("shop", "in", json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [
        {"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": {"matchLabels": {"app": "client"}}},
    ]}]})));
    let may = |world: &World, is: bool| check(world, &[("ops/client", "shop/web", TCP, 80, is)]);
    may(&world, true);
    world.pod(pod("ops", "client", "app=other", &["10.0.1.1"]));
    may(&world, false);
    world.pod(pod("ops", "client", "app=client", &["10.0.1.7"]));
    may(&world, true);
    check(&world, &[("10.0.1.1", "shop/web", TCP, 80, false)]);
    world.namespace("ops", "team=c");
    may(&world, false);
    world.namespace("shop", "team=b");
    check(&world, &[("shop/client", "shop/web", TCP, 80, true)]);
    world.pod(pod("shop", "web", "app=old", &["10.0.0.1"]));
    may(&world, true);
    // An address that moves from one pod to another.
    world.pod(pod("shop", "web", "app=web", &["10.0.0.1"]));
    world.pod(pod("shop", "late", "app=other", &["10.0.0.2"]));
    check(&world, &[("10.0.0.2", "shop/web", TCP, 80, false)]);
    world.remove_pod("shop/late");
    check(&world, &[("shop/client", "shop/web", TCP, 80, true)]);
}

#[test]
fn what_no_rule_tells_apart_has_one_identity() {
    let mut world = cluster();
    for n in 0..100 {
        let address = format!("10.0.9.{n}");
        world.pod(pod(
            "ops",
            &format!("p{n}"),
            &format!("app=client,n={n}"),
            &[&address],
        ));
    }
    world.policy(policy("shop", "in", json!({"podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}], "ports": [{"port": 80}]}]})));
    let state = &world.kernel.state;
    assert_eq!(state.rules.len(), 1, "one rule for a hundred pods");
    assert_eq!(
        state.networks.len(),
        102,
        "an entry for each of their addresses, and none for others"
    );
    let identity = state.networks.values().next().unwrap();
    let words = world.model.describe(*identity).unwrap();
    assert_eq!(words, "pods [team=b]/[]");
}

/// The rule that most clusters have beside one that lets nothing out.
#[test]
fn dns_is_what_other_clusters_call_it() {
    const DNS: &str = "10.96.0.10";
    const DNS6: &str = "fd00:96::10";
    let asks = |allowed| {
        [
            ("shop/web", DNS, UDP, 53, allowed),
            ("shop/web", DNS6, TCP, 53, allowed),
            ("shop/web", DNS, TCP, 80, false),
            ("shop/web", OUTSIDE, UDP, 53, false),
            ("shop/web", "shop/client", UDP, 53, false),
        ]
    };
    let to = json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    });
    let ports = json!([{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": "dns-tcp"}]);
    let mut world = cluster();
    world.namespace("kube-system", "kubernetes.io/metadata.name=kube-system");
    let select = json!({"matchLabels": {"app": "web"}});
    world.policy(policy(
        "shop",
        "none",
        json!({"podSelector": select, "policyTypes": ["Egress"]}),
    ));
    check(&world, &asks(false));
    world.policy(policy(
        "shop",
        "names",
        json!({"podSelector": select, "policyTypes": ["Egress"], "egress": [{"to": [to], "ports": ports}]}),
    ));
    check(&world, &asks(true));
    world.list();
    check(&world, &asks(true));
    assert!(world.restart().is_empty());
    check(&world, &asks(true));
}

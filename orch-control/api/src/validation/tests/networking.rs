//! networking.k8s.io.

use serde_json::json;

use super::{check, check_update, good, kind};

#[test]
fn network_policies() {
    let rules = |peers| json!([{ "from": peers }]);
    check(
        "networkpolicies",
        &[("/spec/ingress", rules(json!([{}])))],
        &["spec.ingress[0].from[0]: Required value: must specify a peer"],
    );
    check(
        "networkpolicies",
        &[(
            "/spec/ingress",
            rules(
                json!([{"podSelector": {}, "namespaceSelector": {}}, {"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]),
            ),
        )],
        &["spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer"],
    );
    check(
        "networkpolicies",
        &[(
            "/spec/ingress",
            rules(
                json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8", "11.0.0.0/16", "10.1.0.0/16", "10.1.0.1/16"]}}, {"ipBlock": {}}]),
            ),
        )],
        &[
            r#"spec.ingress[0].from[0].ipBlock.except[3]: Invalid value: "10.1.0.1/16": must not have bits"#,
            r#"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "10.0.0.0/8": must be a strict subset of `cidr`"#,
            r#"spec.ingress[0].from[0].ipBlock.except[1]: Invalid value: "11.0.0.0/16": must be a strict subset"#,
            "spec.ingress[0].from[1].ipBlock.cidr: Required value",
        ],
    );
    check(
        "networkpolicies",
        &[(
            "/spec/egress",
            json!([{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/64"]}}]}]),
        )],
        &[r#"spec.egress[0].to[0].ipBlock.except[0]: Invalid value: "fd00::/64": must be a strict subset"#],
    );
    let ports = json!([{"ports": [{"port": 80, "endPort": 79}, {"port": "http", "endPort": 90}, {"endPort": 90},
        {"port": 0}, {"protocol": "ICMP"}, {"port": "A"}, {"port": 80, "endPort": 65536}, {"port": 80, "endPort": 80}, {}]}]);
    check(
        "networkpolicies",
        &[("/spec/egress", ports)],
        &[
            "spec.egress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`",
            "spec.egress[0].ports[1].endPort: Invalid value: 90: may not be specified when `port` is non-numeric",
            "spec.egress[0].ports[2].endPort: Invalid value: 90: may not be specified when `port` is not specified",
            "spec.egress[0].ports[3].port: Invalid value: 0: must be between 1 and 65535",
            r#"spec.egress[0].ports[4].protocol: Unsupported value: "ICMP""#,
            r#"spec.egress[0].ports[5].port: Invalid value: "A": must contain only"#,
            r#"spec.egress[0].ports[5].port: Invalid value: "A": must contain at least one letter"#,
            "spec.egress[0].ports[6].endPort: Invalid value: 65536: must be between",
        ],
    );
    check(
        "networkpolicies",
        &[
            ("/spec/policyTypes", json!(["Ingress", "ingress"])),
            (
                "/spec/podSelector",
                json!({"matchExpressions": [{"key": "a", "operator": "In"}], "matchLabels": {"a": "b c"}}),
            ),
        ],
        &[
            r#"spec.podSelector.matchLabels[a]: Invalid value: "b c""#,
            "spec.podSelector.matchExpressions[0].values: Required value",
            r#"spec.policyTypes[1]: Unsupported value: "ingress": supported values: "Ingress", "Egress""#,
        ],
    );
    // What was stored under older rules may stay.
    let odd = rules(json!([{"ipBlock": {"cidr": "10.0.0.1/8"}}]));
    check_update(
        "networkpolicies",
        &[("/spec/ingress", odd)],
        &[("/metadata/labels", json!({"a": "b"}))],
        &[],
    );
}

#[test]
fn a_network_policys_types_follow_from_its_rules() {
    for (given, want) in [
        (json!({}), json!(["Ingress"])),
        (json!({"ingress": [{}]}), json!(["Ingress"])),
        (json!({"egress": [{}]}), json!(["Ingress", "Egress"])),
        (json!({"egress": []}), json!(["Ingress"])),
        (
            json!({"egress": [{}], "policyTypes": ["Egress"]}),
            json!(["Egress"]),
        ),
    ] {
        let mut policy = json!({ "spec": given });
        kind("networkpolicies").strategy.default(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], want, "{policy}");
        assert_eq!(policy["spec"]["podSelector"], json!({}));
    }
    let mut policy =
        json!({"spec": {"egress": [{"ports": [{"port": 53}, {"port": 53, "protocol": "UDP"}]}]}});
    kind("networkpolicies").strategy.default(&mut policy);
    let ports = &policy["spec"]["egress"][0]["ports"];
    assert_eq!(
        (&ports[0]["protocol"], &ports[1]["protocol"]),
        (&json!("TCP"), &json!("UDP"))
    );
}

#[test]
fn a_network_policys_generation_counts_changes_of_its_spec() {
    let strategy = kind("networkpolicies").strategy;
    let mut old = good("networkpolicies");
    strategy.prepare_create(&mut old);
    assert_eq!(old["metadata"]["generation"], 1);
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({"a": "b"});
    strategy.prepare_update(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 1);
    new["spec"]["ingress"] = json!([{}]);
    strategy.prepare_update(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 2);
}

#[test]
fn ingresses() {
    let path = |path, kind| {
        json!([{"host": "*.a.io", "http": {"paths": [
            {"path": path, "pathType": kind, "backend": {"service": {"name": "s", "port": {"name": "http"}}}}]}}])
    };
    check(
        "ingresses",
        &[("/spec/rules", path(json!("/a"), json!("Prefix")))],
        &[],
    );
    check(
        "ingresses",
        &[("/spec/rules", path(json!(null), json!("ImplementationSpecific")))],
        &[],
    );
    for (given, kind, want) in [
        (
            "a",
            "Exact",
            "path: Invalid value: \"a\": must be an absolute path",
        ),
        (
            "/a//b",
            "Prefix",
            "path: Invalid value: \"/a//b\": must not contain '//'",
        ),
        (
            "/a/..",
            "Prefix",
            "path: Invalid value: \"/a/..\": cannot end with '/..'",
        ),
        (
            "a",
            "ImplementationSpecific",
            "path: Invalid value: \"a\": must be an absolute path",
        ),
        (
            "/a",
            "prefix",
            "pathType: Unsupported value: \"prefix\": supported values: \"Exact\", ",
        ),
    ] {
        let want = format!("spec.rules[0].http.paths[0].{want}");
        check(
            "ingresses",
            &[("/spec/rules", path(json!(given), json!(kind)))],
            &[&want],
        );
    }
    check(
        "ingresses",
        &[("/spec/rules", path(json!("/"), json!(null)))],
        &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
    );
    check(
        "ingresses",
        &[("/spec", json!({}))],
        &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"],
    );
    check(
        "ingresses",
        &[(
            "/spec/rules",
            json!([{"host": "1.2.3.4"}, {"host": "*"}, {"http": {}}]),
        )],
        &[
            r#"spec.rules[0].host: Invalid value: "1.2.3.4": must be a DNS name, not an IP address"#,
            r#"spec.rules[1].host: Invalid value: "*": a wildcard DNS-1123"#,
            "spec.rules[2].http.paths: Required value",
        ],
    );
    for (backend, want) in [
        (
            json!({}),
            "spec.defaultBackend: Invalid value: \"\": resource or service backend is required",
        ),
        (
            json!({"service": {"name": "s"}}),
            "spec.defaultBackend: Required value: port name or number is required",
        ),
        (
            json!({"service": {"name": "s", "port": {"name": "a", "number": 1}}}),
            "spec.defaultBackend: Invalid value: \"\": cannot set both port name & port number",
        ),
        (
            json!({"service": {"name": "s", "port": {"number": 1}}, "resource": {"kind": "a", "name": "b"}}),
            "spec.defaultBackend: Invalid value: \"\": cannot set both resource and service backends",
        ),
        (
            json!({"resource": {"kind": "a"}}),
            "spec.defaultBackend.resource.name: Required value",
        ),
        (
            json!({"service": {"name": "S", "port": {"number": 1}}}),
            "spec.defaultBackend.service.name: Invalid value: \"S\"",
        ),
    ] {
        check("ingresses", &[("/spec/defaultBackend", backend)], &[want]);
    }
    check(
        "ingresses",
        &[
            ("/spec/tls", json!([{"hosts": ["A"], "secretName": "B"}])),
            (
                "/status/loadBalancer/ingress",
                json!([{"ip": "x"}, {"hostname": "1.2.3.4"}]),
            ),
        ],
        &[
            "spec.tls[0].hosts[0]: Invalid value: \"A\"",
            "spec.tls[0].secretName: Invalid value: \"B\"",
            "status.loadBalancer.ingress[0].ip: Invalid value: \"x\"",
            "status.loadBalancer.ingress[1].hostname: Invalid value: \"1.2.3.4\": must be a DNS name",
        ],
    );
    let classes = [
        (
            "/metadata/annotations",
            json!({"kubernetes.io/ingress.class": "a"}),
        ),
        ("/spec/ingressClassName", json!("b")),
    ];
    check(
        "ingresses",
        &classes,
        &[r#"annotations.kubernetes.io/ingress.class: Invalid value: "a": must match `ingressClassName`"#],
    );
    check_update("ingresses", &classes, &[], &[]);
}

#[test]
fn ingress_classes() {
    check(
        "ingressclasses",
        &[("/spec/controller", json!("b"))],
        &[r#"spec.controller: Invalid value: "b": must be a domain-prefixed path"#],
    );
    check(
        "ingressclasses",
        &[("/spec/controller", json!(format!("a.io/{}", "b".repeat(250))))],
        &["spec.controller: Too long: may not be more than 250 bytes"],
    );
    for (parameters, want) in [
        (
            json!({"name": "a", "scope": "Cluster"}),
            "spec.parameters.kind: Required value",
        ),
        (
            json!({"kind": "k", "name": "a/b", "scope": "Cluster"}),
            "spec.parameters.name: Invalid value: \"a/b\"",
        ),
        (
            json!({"kind": "k", "name": "a", "scope": "x"}),
            "spec.parameters.scope: Unsupported value: \"x\"",
        ),
        (
            json!({"kind": "k", "name": "a", "scope": "Namespace"}),
            "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
        ),
        (
            json!({"kind": "k", "name": "a", "scope": "Cluster", "namespace": "n"}),
            "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'",
        ),
    ] {
        check("ingressclasses", &[("/spec/parameters", parameters)], &[want]);
    }
    check_update(
        "ingressclasses",
        &[],
        &[("/spec/controller", json!("c.io/d"))],
        &[r#"spec.controller: Invalid value: "c.io/d": field is immutable"#],
    );
    let mut class = json!({"spec": {"controller": "a.io/b", "parameters": {"kind": "k", "name": "n"}}});
    kind("ingressclasses").strategy.default(&mut class);
    assert_eq!(class["spec"]["parameters"]["scope"], "Cluster");
}

#[test]
fn addresses_and_their_ranges() {
    check(
        "ipaddresses",
        &[("/metadata/name", json!("FD00::1"))],
        &[r#"metadata.name: Invalid value: "FD00::1": must be in canonical form ("fd00::1")"#],
    );
    check(
        "ipaddresses",
        &[("/spec", json!({}))],
        &["spec.parentRef: Required value"],
    );
    check(
        "ipaddresses",
        &[("/spec/parentRef", json!({}))],
        &[
            "spec.parentRef.resource: Required value",
            "spec.parentRef.name: Required value",
        ],
    );
    check_update(
        "ipaddresses",
        &[],
        &[("/spec/parentRef/name", json!("t"))],
        &["spec.parentRef: Invalid value: "],
    );
    for (ranges, want) in [
        (
            json!([]),
            "spec.cidrs: Required value: at least one CIDR required",
        ),
        (
            json!(["10.0.0.0/24", "fd00::/64", "10.1.0.0/24"]),
            "spec.cidrs: Invalid value: {\"cidrs\":",
        ),
        (
            json!(["10.0.0.0/24", "10.1.0.0/24"]),
            "spec.cidrs: Invalid value: [\"10.0.0.0/24\",\"10.1.0.0/24\"]: may specify no more",
        ),
        (
            json!(["10.0.0.1/24"]),
            "spec.cidrs[0]: Invalid value: \"10.0.0.1/24\": must not have bits",
        ),
    ] {
        check("servicecidrs", &[("/spec/cidrs", ranges)], &[want]);
    }
    check_update(
        "servicecidrs",
        &[],
        &[("/spec/cidrs", json!(["10.0.0.0/24", "fd00::/112"]))],
        &[],
    );
    check_update(
        "servicecidrs",
        &[],
        &[("/spec/cidrs", json!(["10.1.0.0/24"]))],
        &[r#"spec.cidrs[0]: Invalid value: "10.1.0.0/24": field is immutable"#],
    );
    check_update(
        "servicecidrs",
        &[("/spec/cidrs", json!(["10.0.0.0/24", "fd00::/112"]))],
        &[("/spec/cidrs", json!(["10.0.0.0/24"]))],
        &[r#"spec.cidrs: Invalid value: ["10.0.0.0/24"]: field is immutable"#],
    );
}

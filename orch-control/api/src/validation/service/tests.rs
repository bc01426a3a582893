//! Services, case by case.

use serde_json::{Value, json};

use crate::validation::tests::{check, check_update};

#[test]
fn services() {
    check(
        "services",
        &[("/spec/ports", json!([]))],
        &["spec.ports: Required value"],
    );
    check(
        "services",
        &[("/spec/type", json!("X"))],
        &[
            r#"spec.type: Unsupported value: "X": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort""#,
        ],
    );
    check(
        "services",
        &[("/spec/ports/0/nodePort", json!(30000))],
        &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
    );
    let twin = json!({"port": 80, "targetPort": 80, "protocol": "TCP", "name": "b"});
    check(
        "services",
        &[("/spec/ports/1", twin)],
        &[
            "spec.ports[0].name: Required value",
            r#"spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}"#,
        ],
    );
}

#[test]
fn service_addresses() {
    let ips = |ips: Value| [("/spec/clusterIP", ips[0].clone()), ("/spec/clusterIPs", ips)];
    check_update(
        "services",
        &ips(json!(["10.0.0.1"])),
        &ips(json!(["10.0.0.2"])),
        &[r#"spec.clusterIPs[0]: Invalid value: ["10.0.0.2"]: may not change once set"#],
    );
    check_update(
        "services",
        &ips(json!(["None"])),
        &ips(json!(["10.0.0.2"])),
        &[r#"spec.clusterIPs[0]: Invalid value: ["10.0.0.2"]: may not change once set"#],
    );
    check_update(
        "services",
        &[("/spec/ipFamilies", json!(["IPv4", "IPv6"]))],
        &[("/spec/ipFamilies", json!(["IPv4"]))],
        &[
            "spec.ipFamilyPolicy: Invalid value: null: must be set to 'SingleStack' when releasing the secondary ipFamily",
        ],
    );
    for (value, want) in [
        (
            json!(["10.0.0.1", "10.0.0.2"]),
            r#"spec.clusterIPs: Invalid value: ["10.0.0.1","10.0.0.2"]: may specify no more than one IP for each IP family"#,
        ),
        (
            json!(["None", "10.0.0.2"]),
            "spec.clusterIPs: Invalid value: [\"None\",\"10.0.0.2\"]: 'None' must be the first and only value",
        ),
        (
            json!(["x"]),
            r#"spec.clusterIPs[0]: Invalid value: "x": must be a valid IP address"#,
        ),
    ] {
        check("services", &ips(value), &[want]);
    }
    check(
        "services",
        &[
            ("/spec/clusterIP", json!("fd00::1")),
            ("/spec/clusterIPs", json!(["fd00::1"])),
            ("/spec/ipFamilies", json!(["IPv4"])),
        ],
        &[
            r#"spec.clusterIPs[0]: Invalid value: "fd00::1": expected an IPv4 value as indicated by `ipFamilies[0]`"#,
        ],
    );
    check(
        "services",
        &[("/spec/clusterIPs", json!(["10.0.0.1"]))],
        &[r#"spec.clusterIPs: Invalid value: ["10.0.0.1"]: must be empty when `clusterIP` is not specified"#],
    );
    check(
        "services",
        &[("/spec/externalIPs", json!(["127.0.0.1", "169.254.1.1"]))],
        &[
            r#"spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range"#,
            r#"spec.externalIPs[1]: Invalid value: "169.254.1.1": may not be in the link-local range"#,
            "spec.externalTrafficPolicy: Required value",
        ],
    );
}

#[test]
fn service_traffic() {
    let cases: [(&str, Value, &str); 8] = [
        (
            "/spec/externalTrafficPolicy",
            json!("Local"),
            r#"spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services"#,
        ),
        (
            "/spec/healthCheckNodePort",
            json!(30000),
            "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            "/spec/internalTrafficPolicy",
            json!(""),
            "spec.internalTrafficPolicy: Required value",
        ),
        (
            "/spec/trafficDistribution",
            json!("Near"),
            r#"spec.trafficDistribution: Unsupported value: "Near": supported values: "PreferClose", "PreferSameNode", "PreferSameZone""#,
        ),
        (
            "/spec/loadBalancerClass",
            json!("a/b"),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            "/spec/loadBalancerSourceRanges",
            json!(["10.0.0.0/8"]),
            "spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            "/spec/sessionAffinityConfig",
            json!({"clientIP": {"timeoutSeconds": 5}}),
            "spec.sessionAffinityConfig: Forbidden: must not be set when session affinity is None",
        ),
        (
            "/status/loadBalancer",
            json!({"ingress": [{"ip": "10.0.0.1"}]}),
            "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'",
        ),
    ];
    for (pointer, value, want) in cases {
        check("services", &[(pointer, value)], &[want]);
    }
    let balancer = [
        ("/spec/type", json!("LoadBalancer")),
        ("/spec/externalTrafficPolicy", json!("Cluster")),
        ("/spec/allocateLoadBalancerNodePorts", json!(true)),
    ];
    let of_balancer = |more: &[(&'static str, Value)], want: &[&str]| {
        check("services", &[&balancer[..], more].concat(), want);
    };
    of_balancer(&[], &[]);
    of_balancer(
        &[
            ("/spec/loadBalancerClass", json!("-")),
            ("/spec/loadBalancerSourceRanges", json!([" 10.0.0.0/8", "x"])),
            ("/spec/ports/0/appProtocol", json!("a b")),
        ],
        &[
            r#"spec.ports[0].appProtocol: Invalid value: "a b": name part must consist"#,
            r#"spec.loadBalancerSourceRanges[1]: Invalid value: "x": must be a valid CIDR value"#,
            r#"spec.loadBalancerClass: Invalid value: "-": name part must consist"#,
        ],
    );
    of_balancer(
        &[(
            "/status/loadBalancer",
            json!({"ingress": [{"ip": "10.0.0.1", "ipMode": "X"}, {"ipMode": "VIP"}, {"hostname": "10.0.0.1"}]}),
        )],
        &[
            r#"status.loadBalancer.ingress[0].ipMode: Unsupported value: "X": supported values: "Proxy", "VIP""#,
            "status.loadBalancer.ingress[1].ipMode: Forbidden: may not be specified when `ip` is not set",
            r#"status.loadBalancer.ingress[2].hostname: Invalid value: "10.0.0.1": must be a DNS name, not an IP address"#,
        ],
    );
    let with = |field: &'static str, value: Value| [&balancer[..], &[(field, value)]].concat();
    check_update(
        "services",
        &with("/spec/loadBalancerClass", json!("a/b")),
        &with("/spec/loadBalancerClass", json!("a/c")),
        &[r#"spec.loadBalancerClass: Invalid value: "a/c": may not change once set"#],
    );
    let mut old = with("/spec/healthCheckNodePort", json!(30000));
    old[1].1 = json!("Local");
    let mut new = with("/spec/healthCheckNodePort", json!(30001));
    new[1].1 = json!("Local");
    check_update(
        "services",
        &old,
        &new,
        &["spec.healthCheckNodePort: Forbidden: field is immutable"],
    );
    check(
        "nodes",
        &[("/spec/podCIDRs", json!(["10.0.0.0/24", "10.0.1.0/24"]))],
        &[
            "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.1.0/24\"]: may specify no more than one CIDR",
        ],
    );
}

#[test]
fn what_was_allowed_once_may_stay() {
    let balancer = |ranges: Value| {
        [
            ("/spec/type", json!("LoadBalancer")),
            ("/spec/externalTrafficPolicy", json!("Cluster")),
            ("/spec/allocateLoadBalancerNodePorts", json!(true)),
            ("/spec/loadBalancerSourceRanges", ranges),
        ]
    };
    let label = [("/metadata/labels", json!({"a": "b"}))];
    check_update("services", &balancer(json!(["10.0.0.1/8"])), &label, &[]);
    check_update(
        "services",
        &balancer(json!(["10.0.0.1/8"])),
        &balancer(json!(["10.0.0.1/8", "10.0.0.2/8"])),
        &[
            r#"spec.loadBalancerSourceRanges[0]: Invalid value: "10.0.0.1/8": must not have bits set beyond the prefix length ("10.0.0.0/8")"#,
            r#"spec.loadBalancerSourceRanges[1]: Invalid value: "10.0.0.2/8": must not have bits set beyond the prefix length ("10.0.0.0/8")"#,
        ],
    );
}

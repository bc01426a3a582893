//! Services over the API: families, addresses, types, and what is said of each fault.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use common::{Answer, Cluster};
use serde_json::{Value, json};

const SERVICES: &str = "/api/v1/namespaces/default/services";
const FOUR: &str = "10.96.0.0/16";
const SIX: &str = "fd00:10:96::/112";

async fn cluster(networks: &[&str]) -> Cluster {
    Cluster::start_with(tempfile::tempdir().unwrap(), networks).await
}

fn service(name: &str, spec: Value) -> Value {
    let mut object = json!({ "metadata": { "name": name }, "spec": spec });
    if object["spec"]["ports"].is_null() && object["spec"]["type"] != "ExternalName" {
        object["spec"]["ports"] = json!([{ "port": 80 }]);
    }
    object
}

async fn create(cluster: &Cluster, name: &str, spec: Value) -> Value {
    cluster
        .ok("POST", SERVICES, &service(name, spec).to_string())
        .await
}

async fn patch(cluster: &Cluster, name: &str, spec: Value) -> Answer {
    let body = json!({ "spec": spec }).to_string();
    let kind = "application/merge-patch+json";
    cluster
        .request_as(
            common::admin(),
            "PATCH",
            &format!("{SERVICES}/{name}"),
            kind,
            &body,
        )
        .await
}

fn families(service: &Value) -> Vec<&str> {
    let all = service["spec"]["ipFamilies"].as_array().unwrap();
    all.iter().map(|f| f.as_str().unwrap()).collect()
}

fn ips(service: &Value) -> Vec<&str> {
    let all = service["spec"]["clusterIPs"].as_array().unwrap();
    all.iter().map(|f| f.as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_dual_stack_cluster_gives_what_is_asked_for() {
    let cluster = cluster(&[FOUR, SIX]).await;
    let plain = create(&cluster, "plain", json!({ "selector": { "a": "b" } })).await;
    assert_eq!((families(&plain), ips(&plain).len()), (vec!["IPv4"], 1));
    assert_eq!(plain["spec"]["ipFamilyPolicy"], "SingleStack");
    let six = create(&cluster, "six", json!({ "ipFamilies": ["IPv6"] })).await;
    assert!(
        six["spec"]["clusterIP"]
            .as_str()
            .unwrap()
            .starts_with("fd00:10:96::")
    );
    let both = create(&cluster, "both", json!({ "ipFamilyPolicy": "PreferDualStack" })).await;
    assert_eq!((families(&both), ips(&both).len()), (vec!["IPv4", "IPv6"], 2));
    assert_eq!(both["spec"]["clusterIP"], both["spec"]["clusterIPs"][0]);
    let order = json!({ "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"] });
    let order = create(&cluster, "order", order).await;
    assert!(ips(&order)[0].contains(':') && ips(&order)[1].contains('.'));
    let named = json!({ "ipFamilyPolicy": "RequireDualStack", "clusterIP": "10.96.0.10",
        "clusterIPs": ["10.96.0.10", "fd00:10:96::a"] });
    let named = create(&cluster, "named", named).await;
    assert_eq!(ips(&named), ["10.96.0.10", "fd00:10:96::a"]);
    let headless = create(
        &cluster,
        "headless",
        json!({ "clusterIP": "None", "selector": { "a": "b" } }),
    )
    .await;
    assert_eq!(
        (families(&headless), ips(&headless)),
        (vec!["IPv4"], vec!["None"])
    );
    let own = create(&cluster, "own", json!({ "clusterIP": "None" })).await;
    assert_eq!(own["spec"]["ipFamilyPolicy"], "RequireDualStack");
    assert_eq!(families(&own), ["IPv4", "IPv6"]);

    // Up, and down again; the second address is free then.
    let up = patch(&cluster, "plain", json!({ "ipFamilyPolicy": "PreferDualStack" }))
        .await
        .body;
    assert_eq!(ips(&up)[0], ips(&plain)[0]);
    let second = ips(&up)[1].to_owned();
    let down = patch(&cluster, "plain", json!({ "ipFamilyPolicy": "SingleStack" }))
        .await
        .body;
    assert_eq!((families(&down), ips(&down)), (vec!["IPv4"], ips(&plain)));
    let again = json!({ "clusterIP": second, "ipFamilies": ["IPv6"] });
    assert_eq!(
        create(&cluster, "again", again).await["spec"]["clusterIP"],
        *second
    );

    let kubernetes = cluster.ok("GET", &format!("{SERVICES}/kubernetes"), "").await;
    assert_eq!(
        (families(&kubernetes), ips(&kubernetes)),
        (vec!["IPv4"], vec!["10.96.0.1"])
    );
    // What a restart reads back is what is taken.
    let cluster = cluster.restart().await;
    let clash = service("clash", json!({ "clusterIP": "fd00:10:96::a" }));
    let clash = cluster.request("POST", SERVICES, &clash.to_string()).await;
    assert!(
        clash
            .text
            .contains("failed to allocate IP fd00:10:96::a: provided IP is already allocated"),
        "{}",
        clash.text
    );
}

#[tokio::test]
async fn a_cluster_of_ipv6_only_is_one() {
    let cluster = cluster(&[SIX]).await;
    let plain = create(&cluster, "plain", json!({})).await;
    assert_eq!(families(&plain), ["IPv6"]);
    let kubernetes = cluster.ok("GET", &format!("{SERVICES}/kubernetes"), "").await;
    assert_eq!(ips(&kubernetes), ["fd00:10:96::1"]);
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    let slice = cluster.ok("GET", slice, "").await;
    assert_eq!(slice["addressType"], "IPv6");
    assert_eq!(slice["endpoints"][0]["addresses"][0], "2001:db8::1");
    let preferred = create(
        &cluster,
        "preferred",
        json!({ "ipFamilyPolicy": "PreferDualStack" }),
    )
    .await;
    assert_eq!(families(&preferred), ["IPv6"]);
    for (spec, want) in [
        (
            json!({ "ipFamilyPolicy": "RequireDualStack" }),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            json!({ "ipFamilies": ["IPv4"] }),
            "spec.ipFamilies[0]: Invalid value: \"IPv4\": not configured on this cluster",
        ),
        (
            json!({ "clusterIP": "fd00:10:97::1" }),
            "the provided IP (fd00:10:97::1) is not in the valid range. The range of valid IPs is fd00:10:96::/112",
        ),
        (
            json!({ "clusterIPs": ["fd00:10:96::9"] }),
            "must be empty when `clusterIP` is not specified",
        ),
    ] {
        let answer = cluster
            .request("POST", SERVICES, &service("x", spec).to_string())
            .await;
        assert_eq!(answer.code, 422, "{}", answer.text);
        let message = answer.body["message"].as_str().unwrap();
        assert!(message.contains(want), "got  {message}\nwant {want}");
    }
}

#[tokio::test]
async fn a_service_may_change_its_type() {
    let cluster = cluster(&[FOUR, SIX]).await;
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": "orch.dev/l2",
        "ipFamilyPolicy": "PreferDualStack", "ports": [
            { "name": "t", "port": 53, "protocol": "TCP" }, { "name": "u", "port": 53, "protocol": "UDP" },
            { "name": "s", "port": 53, "protocol": "SCTP" }] });
    let balancer = create(&cluster, "s", spec).await;
    let ports: Vec<&Value> = balancer["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| &p["nodePort"])
        .collect();
    assert!(
        ports[0].is_u64() && ports[0] == ports[1] && ports[1] == ports[2],
        "{ports:?}"
    );
    let health = balancer["spec"]["healthCheckNodePort"].as_u64().unwrap();
    let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.9" }] } } });
    let kind = "application/merge-patch+json";
    let path = format!("{SERVICES}/s/status");
    let answer = cluster
        .request_as(common::admin(), "PATCH", &path, kind, &status.to_string())
        .await;
    assert_eq!(
        answer.body["status"]["loadBalancer"]["ingress"],
        json!([{ "ip": "192.0.2.9", "ipMode": "VIP" }])
    );
    let bad = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "x", "ipMode": "VIP" }] } } });
    let answer = cluster
        .request_as(common::admin(), "PATCH", &path, kind, &bad.to_string())
        .await;
    assert!(
        answer.text.contains("status.loadBalancer.ingress[0].ip") && answer.code == 422,
        "{}",
        answer.text
    );

    let refused = patch(&cluster, "s", json!({ "loadBalancerClass": "other.dev/x" })).await;
    assert!(
        refused.text.contains("may not change once set"),
        "{}",
        refused.text
    );
    let other = if balancer["spec"]["healthCheckNodePort"] == 31234 {
        31235
    } else {
        31234
    };
    let refused = patch(&cluster, "s", json!({ "healthCheckNodePort": other })).await;
    assert!(
        refused
            .text
            .contains("spec.healthCheckNodePort: Forbidden: field is immutable"),
        "{}",
        refused.text
    );

    let plain = patch(&cluster, "s", json!({ "type": "ClusterIP" })).await.body;
    assert_eq!(plain["status"]["loadBalancer"], json!({}));
    for field in [
        "healthCheckNodePort",
        "loadBalancerClass",
        "allocateLoadBalancerNodePorts",
        "externalTrafficPolicy",
    ] {
        assert!(plain["spec"].get(field).is_none(), "{field}: {plain}");
    }
    assert_eq!(ips(&plain), ips(&balancer));
    // The ports are free for others.
    let other = json!({ "type": "NodePort", "ports": [
        { "name": "a", "port": 1, "nodePort": ports[0] }, { "name": "b", "port": 2, "nodePort": health }] });
    create(&cluster, "other", other).await;

    let external = patch(
        &cluster,
        "s",
        json!({ "type": "ExternalName", "externalName": "example.org" }),
    )
    .await;
    assert_eq!(external.code, 200, "{}", external.text);
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        assert!(external.body["spec"].get(field).is_none(), "{field}");
    }
    create(&cluster, "heir", json!({ "clusterIP": ips(&balancer)[0] })).await;
    let back = patch(&cluster, "s", json!({ "type": "ClusterIP" })).await.body;
    assert_ne!(ips(&back)[0], ips(&balancer)[0]);
    let refused = patch(&cluster, "heir", json!({ "clusterIP": "10.96.0.77" })).await;
    assert!(
        refused.text.contains("may not change once set"),
        "{}",
        refused.text
    );
}

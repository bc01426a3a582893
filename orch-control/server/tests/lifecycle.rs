//! What clients do with networking's kinds from their first day to their last: every verb, with what watchers see.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::time::Duration;

use axum::body::Body;
use common::{Cluster, admin};
use futures::StreamExt as _;
use http::Request;
use orch_server::auth::authenticate::InProcess;
use serde_json::{Value, json};
use tower::ServiceExt as _;

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A kind with an object of it, and whether its names are given or generated.
struct Case {
    group: &'static str,
    plural: &'static str,
    namespaced: bool,
    names: [&'static str; 3],
    object: Value,
}

impl Case {
    fn root(&self) -> String {
        match self.group {
            "" => "/api/v1".into(),
            group => format!("/apis/{group}/v1"),
        }
    }

    /// Where its objects are; everywhere, or in the test's namespace.
    fn path(&self, everywhere: bool) -> String {
        let namespace = if self.namespaced && !everywhere {
            "/namespaces/default"
        } else {
            ""
        };
        format!("{}{namespace}/{}", self.root(), self.plural)
    }
}

/// The cases. Names that are empty are generated from a prefix without a dash at its end.
fn cases() -> Vec<Case> {
    let case = |group, plural, namespaced, names, object| Case {
        group,
        plural,
        namespaced,
        names,
        object,
    };
    let generated = ["", "", ""];
    let named = ["one", "two", "three"];
    vec![
        case(
            "",
            "endpoints",
            true,
            named,
            json!({ "subsets": [{ "addresses": [{ "ip": "10.0.0.24" }], "ports": [{ "name": "http", "port": 80 }] }] }),
        ),
        case(
            "",
            "services",
            true,
            named,
            json!({ "spec": { "ports": [{ "port": 80 }] } }),
        ),
        case(
            "discovery.k8s.io",
            "endpointslices",
            true,
            generated,
            json!({ "addressType": "IPv4", "endpoints": [{ "addresses": ["1.2.3.4", "5.6.7.8"] }, { "addresses": ["2.2.3.4"] }] }),
        ),
        case(
            "networking.k8s.io",
            "networkpolicies",
            true,
            generated,
            json!({ "spec": { "podSelector": { "matchLabels": { "pod-name": "a" } }, "ingress": [{ "from": [
                { "podSelector": {}, "namespaceSelector": { "matchLabels": { "ns-name": "b" } } }] }] } }),
        ),
        case(
            "networking.k8s.io",
            "ingresses",
            true,
            generated,
            json!({ "spec": { "defaultBackend": { "service": { "name": "default-backend", "port": { "number": 80 } } },
                "rules": [{ "host": "foo.bar.com" }] } }),
        ),
        case(
            "networking.k8s.io",
            "ingressclasses",
            false,
            named,
            json!({ "spec": { "controller": "example.com/controller" } }),
        ),
        case(
            "networking.k8s.io",
            "ipaddresses",
            false,
            ["255.255.255.255", "fe80::42:1dff:fe84:f9e2", "10.200.0.1"],
            json!({ "spec": { "parentRef": { "group": "mygroup", "resource": "myresources", "namespace": "foo", "name": "bar" } } }),
        ),
        case(
            "networking.k8s.io",
            "servicecidrs",
            false,
            named,
            json!({ "spec": { "cidrs": ["203.0.113.0/24"] } }),
        ),
    ]
}

/// Collects what a watch says until it has said `last` of the object called `name`.
async fn watch_until(cluster: &Cluster, path: String, last: &'static str, name: String) -> Vec<Value> {
    let request = Request::builder()
        .uri(path)
        .extension(InProcess(std::sync::Arc::new(admin())))
        .body(Body::empty())
        .unwrap();
    let response = cluster.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body().into_data_stream();
    let collect = async {
        let (mut events, mut text) = (Vec::new(), Vec::new());
        loop {
            text.extend(body.next().await.unwrap().unwrap());
            while let Some(end) = text.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line).unwrap();
                let done = event["type"] == last && event["object"]["metadata"]["name"] == name.as_str();
                events.push(event);
                if done {
                    return events;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), collect)
        .await
        .unwrap()
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn every_verb_of_every_kind() {
    let cluster = Cluster::start().await;
    for case in cases() {
        live(&cluster, &case).await;
    }
}

async fn live(cluster: &Cluster, case: &Case) {
    let what = case.plural;
    let found = cluster.ok("GET", &case.root(), "").await;
    let resources = found["resources"].as_array().unwrap();
    assert!(resources.iter().any(|r| r["name"] == what), "{what}");
    if !case.group.is_empty() {
        let group = cluster.ok("GET", &format!("/apis/{}", case.group), "").await;
        assert_eq!(group["versions"][0]["version"], "v1", "{what}");
    }

    let (path, everywhere) = (case.path(false), case.path(true));
    let selector = format!("labelSelector=special-label%3D{what}");
    let before = cluster.ok("GET", &format!("{path}?{selector}"), "").await;
    assert!(before["items"].as_array().unwrap().is_empty(), "{what}");
    let mut made = Vec::new();
    for name in case.names {
        let mut object = case.object.clone();
        object["metadata"] = json!({ "labels": { "special-label": what } });
        match name {
            "" => object["metadata"]["generateName"] = json!("e2e-example-ing"),
            name => object["metadata"]["name"] = json!(name),
        }
        made.push(cluster.ok("POST", &path, &object.to_string()).await);
    }
    let first = &made[0];
    let name = first["metadata"]["name"].as_str().unwrap().to_owned();
    let own = format!("{path}/{name}");
    let got = cluster.ok("GET", &own, "").await;
    assert_eq!(got["metadata"]["uid"], first["metadata"]["uid"], "{what}");
    for path in [&path, &everywhere] {
        let list = cluster.ok("GET", &format!("{path}?{selector}"), "").await;
        assert_eq!(list["items"].as_array().unwrap().len(), 3, "{what}");
    }

    let annotation = r#"{"metadata":{"annotations":{"patched":"true"}}}"#;
    let patched = cluster
        .request_as(admin(), "PATCH", &own, MERGE, annotation)
        .await;
    assert_eq!(patched.code, 200, "{what}: {}", patched.text);
    assert_eq!(patched.body["metadata"]["annotations"]["patched"], "true");
    assert!(revision(first) < revision(&patched.body), "{what}");
    let mut object = patched.body;
    object["metadata"]["annotations"]["updated"] = json!("true");
    let updated = cluster.request("PUT", &own, &object.to_string()).await;
    assert_eq!(updated.code, 200, "{what}: {}", updated.text);
    // The version is spent: whoever writes it again did not see the update.
    let again = cluster.request("PUT", &own, &object.to_string()).await;
    assert_eq!(
        (again.code, &again.body["reason"]),
        (409, &json!("Conflict")),
        "{what}"
    );
    object["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    let blind = cluster.request("PUT", &own, &object.to_string()).await;
    assert_eq!(blind.code, 200, "{what}: {}", blind.text);

    let deleted = cluster.request("DELETE", &own, "").await;
    assert_eq!(deleted.code, 200, "{what}: {}", deleted.text);
    assert_eq!(cluster.request("GET", &own, "").await.code, 404, "{what}");
    let list = cluster.ok("GET", &format!("{path}?{selector}"), "").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2, "{what}");
    let gone = cluster.request("DELETE", &format!("{path}?{selector}"), "").await;
    assert_eq!(gone.code, 200, "{what}: {}", gone.text);
    let list = cluster.ok("GET", &format!("{path}?{selector}"), "").await;
    assert!(list["items"].as_array().unwrap().is_empty(), "{what}");

    let from = before["metadata"]["resourceVersion"].as_str().unwrap();
    let last = made[2]["metadata"]["name"].as_str().unwrap().to_owned();
    for path in [&path, &everywhere] {
        let path = format!("{path}?watch=true&{selector}&resourceVersion={from}");
        let events = watch_until(cluster, path, "DELETED", last.clone()).await;
        let of_first = events
            .iter()
            .filter(|e| e["object"]["metadata"]["name"] == name.as_str());
        let types: Vec<&str> = of_first.clone().map(|e| e["type"].as_str().unwrap()).collect();
        // A write that changes nothing is none.
        assert_eq!(types, ["ADDED", "MODIFIED", "MODIFIED", "DELETED"], "{what}");
        let seen: Vec<bool> = of_first
            .map(|e| e["object"]["metadata"]["annotations"]["updated"] == "true")
            .collect();
        assert_eq!(seen, [false, false, true, true], "{what}");
    }
}

#[tokio::test]
async fn a_services_status_has_a_life_of_its_own() {
    let cluster = Cluster::start().await;
    let services = "/api/v1/namespaces/default/services";
    let service = json!({ "metadata": { "name": "s", "labels": { "static": "true" } }, "spec": {
        "type": "LoadBalancer", "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 80 }] } });
    let made = cluster.ok("POST", services, &service.to_string()).await;
    let status = format!("{services}/s/status");
    let got = cluster.ok("GET", &status, "").await;
    assert_eq!(
        (&got["kind"], &got["status"]),
        (&json!("Service"), &json!({ "loadBalancer": {} }))
    );

    let patch = r#"{"metadata":{"annotations":{"patchedstatus":"true"}},
        "status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"}]}}}"#;
    let patched = cluster.request_as(admin(), "PATCH", &status, MERGE, patch).await;
    assert_eq!(patched.code, 200, "{}", patched.text);
    assert_eq!(patched.body["metadata"]["annotations"]["patchedstatus"], "true");
    assert_eq!(
        patched.body["status"]["loadBalancer"]["ingress"][0]["ip"],
        "203.0.113.1"
    );

    let mut object = patched.body;
    // As Go writes a condition whose time nobody has set.
    object["status"]["conditions"] = json!([{ "type": "StatusUpdate", "status": "True", "lastTransitionTime": null,
        "reason": "E2E", "message": "Set from e2e test" }]);
    object["spec"]["ports"][0]["port"] = json!(81);
    let updated = cluster.ok("PUT", &status, &object.to_string()).await;
    assert_eq!(updated["status"]["conditions"][0]["reason"], "E2E");
    assert_eq!(
        updated["spec"]["ports"][0]["port"], 80,
        "the status subresource changed the spec"
    );

    // As Go writes a Service of which only a label is set.
    let patch = r#"{"metadata":{"creationTimestamp":null,"labels":{"test":"patched"}},"spec":{},"status":{"loadBalancer":{}}}"#;
    let own = format!("{services}/s");
    let patched = cluster.request_as(admin(), "PATCH", &own, STRATEGIC, patch).await;
    assert_eq!(patched.code, 200, "{}", patched.text);
    assert_eq!(
        patched.body["metadata"]["labels"],
        json!({ "static": "true", "test": "patched" })
    );
    assert_eq!(
        patched.body["metadata"]["creationTimestamp"],
        made["metadata"]["creationTimestamp"]
    );
    assert_eq!(patched.body["status"], updated["status"]);
    assert_eq!(cluster.request("DELETE", &own, "").await.code, 200);
}

#[tokio::test]
async fn endpoints_are_patched_strategically_as_a_whole() {
    let cluster = Cluster::start().await;
    let all = "/api/v1/namespaces/default/endpoints";
    let object = r#"{"metadata":{"name":"e","labels":{"a":"b"}},
        "subsets":[{"addresses":[{"ip":"10.0.0.24"}],"ports":[{"name":"http","port":80,"protocol":"TCP"}]}]}"#;
    cluster.ok("POST", all, object).await;
    let patch = r#"{"metadata":{"labels":{"test-service":"patched"}},
        "subsets":[{"addresses":[{"ip":"10.0.0.25"}],"ports":[{"name":"http-test","port":8080}]}]}"#;
    let patched = cluster
        .request_as(admin(), "PATCH", &format!("{all}/e"), STRATEGIC, patch)
        .await;
    assert_eq!(patched.code, 200, "{}", patched.text);
    let want = json!([{ "addresses": [{ "ip": "10.0.0.25" }],
        "ports": [{ "name": "http-test", "port": 8080, "protocol": "TCP" }] }]);
    assert_eq!(patched.body["subsets"], want);
}

#[tokio::test]
async fn an_ingresss_status_is_written_apart() {
    let cluster = Cluster::start().await;
    let all = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let object = r#"{"metadata":{"name":"i"},"spec":{"rules":[{"host":"a.b"}]},"status":{"loadBalancer":{"ingress":[{"ip":"1.2.3.4"}]}}}"#;
    let made = cluster.ok("POST", all, object).await;
    assert_eq!(made["status"], json!({ "loadBalancer": {} }));
    assert_eq!(made["metadata"]["generation"], 1);
    let status = format!("{all}/i/status");
    let patch = r#"{"metadata":{"annotations":{"patchedstatus":"true"}},"status":{"loadBalancer":{"ingress":[{"ip":"169.1.1.1"}]}}}"#;
    let patched = cluster.request_as(admin(), "PATCH", &status, MERGE, patch).await;
    assert_eq!(patched.code, 200, "{}", patched.text);
    assert_eq!(patched.body["metadata"]["annotations"]["patchedstatus"], "true");
    let mut object = patched.body;
    object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "169.1.1.2" }] } });
    object["spec"]["rules"][0]["host"] = json!("c.d");
    let updated = cluster.ok("PUT", &status, &object.to_string()).await;
    assert_eq!(updated["status"]["loadBalancer"]["ingress"][0]["ip"], "169.1.1.2");
    assert_eq!(
        (
            &updated["spec"]["rules"][0]["host"],
            &updated["metadata"]["generation"]
        ),
        (&json!("a.b"), &json!(1))
    );
    let got = cluster.ok("GET", &status, "").await;
    assert_eq!(got["kind"], "Ingress");
    object["status"]["loadBalancer"]["ingress"][0]["ip"] = json!("x");
    object["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("resourceVersion");
    assert_eq!(
        cluster.request("PUT", &status, &object.to_string()).await.code,
        422
    );
}

#[tokio::test]
async fn an_ingress_gets_the_default_class() {
    let cluster = Cluster::start().await;
    let classes = "/apis/networking.k8s.io/v1/ingressclasses";
    let ingresses = "/apis/networking.k8s.io/v1/namespaces/default/ingresses";
    let ingress = |name: &str, class: Value, annotations: Value| {
        json!({ "metadata": { "name": name, "annotations": annotations },
            "spec": { "ingressClassName": class, "rules": [{ "host": "a.b" }] } })
        .to_string()
    };
    let plain = json!({ "metadata": { "name": "plain" }, "spec": { "controller": "a.io/b" } });
    cluster.ok("POST", classes, &plain.to_string()).await;
    let none = cluster
        .ok("POST", ingresses, &ingress("none", Value::Null, Value::Null))
        .await;
    assert!(none["spec"].get("ingressClassName").is_none(), "{none}");
    for name in ["second", "first"] {
        let class = json!({ "metadata": { "name": name, "annotations": { "ingressclass.kubernetes.io/is-default-class": "true" } },
            "spec": { "controller": "a.io/b" } });
        cluster.ok("POST", classes, &class.to_string()).await;
    }
    let given = cluster
        .ok("POST", ingresses, &ingress("given", json!("plain"), Value::Null))
        .await;
    assert_eq!(given["spec"]["ingressClassName"], "plain");
    let old = cluster
        .ok(
            "POST",
            ingresses,
            &ingress("old", Value::Null, json!({ "kubernetes.io/ingress.class": "x" })),
        )
        .await;
    assert!(old["spec"].get("ingressClassName").is_none(), "{old}");
    let chosen = cluster
        .ok("POST", ingresses, &ingress("chosen", Value::Null, Value::Null))
        .await;
    assert_eq!(chosen["spec"]["ingressClassName"], "first");
}

#[tokio::test]
async fn the_service_range_is_published() {
    let cluster = Cluster::start().await;
    let path = "/apis/networking.k8s.io/v1/servicecidrs/kubernetes";
    let range = cluster.ok("GET", path, "").await;
    assert_eq!(range["spec"]["cidrs"], json!(["10.96.0.0/16"]));
    let status = cluster.ok("GET", &format!("{path}/status"), "").await;
    assert_eq!(
        (&status["kind"], &status["metadata"]["uid"]),
        (&json!("ServiceCIDR"), &range["metadata"]["uid"])
    );
    let patch = r#"{"status":{"conditions":[{"type":"Ready","status":"True","reason":"a","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}"#;
    for _ in 0..2 {
        let patched = cluster
            .request_as(admin(), "PATCH", &format!("{path}/status"), STRATEGIC, patch)
            .await;
        assert_eq!(
            patched.body["status"]["conditions"].as_array().unwrap().len(),
            1,
            "{}",
            patched.text
        );
    }
    let other = r#"{"spec":{"cidrs":["10.97.0.0/16"]}}"#;
    let refused = cluster.request_as(admin(), "PATCH", path, MERGE, other).await;
    assert_eq!(refused.code, 422, "{}", refused.text);
}

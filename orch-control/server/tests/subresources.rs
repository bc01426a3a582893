//! Parts of objects and other views of them: ephemeral containers, scale, events in both groups, forced deletes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use common::{Cluster, admin, pod};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A pod as `ephemeralcontainers` takes it, with these.
fn with_ephemeral(containers: &Value) -> String {
    let mut body: Value = serde_json::from_str(&pod("p", None)).unwrap();
    if !containers.is_null() {
        body["spec"]["ephemeralContainers"] = containers.clone();
    }
    body.to_string()
}

#[tokio::test]
async fn ephemeral_containers_are_added_and_stay_as_they_are() {
    let cluster = Cluster::start().await;
    cluster.ok("POST", PODS, &pod("p", None)).await;
    let path = format!("{PODS}/p/ephemeralcontainers");
    // A body without any leaves none behind, null neither.
    let none = cluster.ok("PUT", &path, &with_ephemeral(&Value::Null)).await;
    assert!(none["spec"].get("ephemeralContainers").is_none(), "{none}");

    let debug = json!([{ "name": "debug", "image": "busybox" }]);
    let added = cluster.ok("PUT", &path, &with_ephemeral(&debug)).await;
    assert_eq!(added["spec"]["ephemeralContainers"][0]["name"], "debug");
    let same = cluster.request("PUT", &path, &with_ephemeral(&debug)).await;
    assert_eq!(same.code, 200, "{}", same.text);
    for (containers, why) in [
        (Value::Null, "existing ephemeral containers may not be removed"),
        (
            json!([{ "name": "debug", "image": "other" }]),
            "existing ephemeral containers may not be changed",
        ),
    ] {
        let refused = cluster.request("PUT", &path, &with_ephemeral(&containers)).await;
        assert_eq!(
            (refused.code, refused.body["message"].as_str().unwrap()),
            (
                422,
                format!(r#"Pod "p" is invalid: spec.ephemeralContainers: Forbidden: {why}"#).as_str()
            )
        );
    }
    let patch = r#"{"spec":{"ephemeralContainers":[{"name":"second","image":"busybox"}]}}"#;
    let strategic = "application/strategic-merge-patch+json";
    let both = cluster
        .request_as(admin(), "PATCH", &path, strategic, patch)
        .await;
    assert_eq!(both.code, 200, "{}", both.text);
    assert_eq!(
        both.body["spec"]["ephemeralContainers"].as_array().unwrap().len(),
        2
    );
}

#[tokio::test]
async fn strict_decoding_sees_duplicates_everywhere() {
    let cluster = Cluster::start().await;
    cluster.ok("POST", PODS, &pod("p", None)).await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = r#"{"metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},
        "template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}"#;
    cluster.ok("POST", deployments, deployment).await;
    let twice =
        with_ephemeral(&Value::Null).replacen(r#""spec":{"#, r#""spec":{"nodeName":"a","nodeName":"b","#, 1);
    let (json, merge) = ("application/json", "application/merge-patch+json");
    for (method, path, content_type, body, field) in [
        (
            "PUT",
            format!("{PODS}/p/ephemeralcontainers"),
            json,
            twice.as_str(),
            "spec.nodeName",
        ),
        (
            "PUT",
            format!("{deployments}/d/scale"),
            json,
            r#"{"spec":{"replicas":1,"replicas":2}}"#,
            "spec.replicas",
        ),
        (
            "PATCH",
            format!("{deployments}/d"),
            merge,
            r#"{"spec":{"replicas":1,"replicas":2}}"#,
            "spec.replicas",
        ),
    ] {
        let path = format!("{path}?fieldValidation=Strict");
        let refused = cluster
            .request_as(admin(), method, &path, content_type, body)
            .await;
        assert_eq!(refused.code, 400, "{path}: {}", refused.text);
        let message = refused.body["message"].as_str().unwrap();
        assert!(
            message.contains(&format!("duplicate field {field:?}")),
            "{path}: {message}"
        );
    }
    let scale = cluster.ok("GET", &format!("{deployments}/d/scale"), "").await;
    assert_eq!(scale["status"]["selector"], "a=b");
}

#[tokio::test]
async fn events_are_selected_by_the_names_of_the_group_they_are_read_from() {
    let cluster = Cluster::start().await;
    for name in ["a", "b"] {
        let event = json!({
            "metadata": { "name": name }, "reason": "Tested", "type": "Normal",
            "involvedObject": { "kind": "Pod", "namespace": "default", "name": name },
        });
        cluster
            .ok("POST", "/api/v1/namespaces/default/events", &event.to_string())
            .await;
    }
    for (group, field) in [
        ("/api/v1", "involvedObject.name"),
        ("/apis/events.k8s.io/v1", "regarding.name"),
    ] {
        for (selector, names) in [
            (format!("{field}=a"), vec!["a"]),
            (format!("{field}!=c"), vec!["a", "b"]),
        ] {
            let path = format!("{group}/namespaces/default/events?fieldSelector={selector}");
            let list = cluster.ok("GET", &path, "").await;
            let found: Vec<&str> = list["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|event| event["metadata"]["name"].as_str().unwrap())
                .collect();
            assert_eq!(found, names, "{path}");
        }
    }
    let path = "/apis/events.k8s.io/v1/namespaces/default/events?fieldSelector=involvedObject.name=a";
    assert_eq!(cluster.request("GET", path, "").await.code, 400);
}

/// Whether its node is there or not: nobody will answer for this one.
#[tokio::test]
async fn a_forced_delete_takes_a_bound_pod_at_once() {
    let cluster = Cluster::start().await;
    cluster.ok("POST", PODS, &pod("p", Some("gone"))).await;
    cluster.ok("POST", PODS, &pod("marked", Some("gone"))).await;
    cluster.ok("DELETE", &format!("{PODS}/marked"), "").await;
    cluster.ok("GET", &format!("{PODS}/marked"), "").await;
    for name in ["p", "marked"] {
        let (good, said) = cluster
            .kubectl(
                &[
                    "delete",
                    "pod",
                    name,
                    "--force",
                    "--grace-period=0",
                    "--timeout=20s",
                ],
                "",
            )
            .await;
        assert!(good, "{said}");
        assert_eq!(
            cluster.request("GET", &format!("{PODS}/{name}"), "").await.code,
            404
        );
    }
}

//! The object path, over the router and over an in-process kube client.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::time::Duration;

use axum::body::Body;
use common::{Cluster, admin, pod};
use futures::{StreamExt as _, TryStreamExt as _};
use http::Request;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
    runtime::watcher,
};
use orch_server::auth::{authenticate::InProcess, identity::Identity};
use serde_json::{Value, json};
use tower::ServiceExt as _;

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Refusals, in the words that clients match on.
#[tokio::test]
async fn refusals_are_worded_as_in_kubernetes() {
    let cluster = Cluster::start().await;
    cluster.ok("POST", MAPS, r#"{"metadata":{"name":"a"}}"#).await;
    let service =
        r#"{"metadata":{"name":"s"},"spec":{"type":"NodePort","ports":[{"port":80,"nodePort":30080}]}}"#;
    cluster.ok("POST", SERVICES, service).await;
    let big =
        json!({ "metadata": { "name": "big" }, "data": { "x": "a".repeat(3 * 1024 * 1024) } }).to_string();
    let clash = service.replace("\"s\"", "\"t\"");
    let low = clash.replace("30080", "80");
    let same_ip = r#"{"metadata":{"name":"u"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}"#;
    for (method, path, body, code, message) in [
        (
            "GET",
            "/api/v1/namespaces/default/pods/x",
            "",
            404,
            r#"pods "x" not found"#,
        ),
        (
            "GET",
            "/apis/apps/v1/namespaces/default/deployments/x",
            "",
            404,
            r#"deployments.apps "x" not found"#,
        ),
        (
            "POST",
            MAPS,
            r#"{"metadata":{"name":"a"}}"#,
            409,
            r#"configmaps "a" already exists"#,
        ),
        (
            "POST",
            "/api/v1/namespaces/no/configmaps",
            r#"{"metadata":{"name":"a"}}"#,
            404,
            r#"namespaces "no" not found"#,
        ),
        (
            "POST",
            MAPS,
            &big,
            413,
            "Request entity too large: limit is 3145728",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/default",
            "",
            403,
            r#"namespaces "default" is forbidden: this namespace may not be deleted"#,
        ),
        (
            "POST",
            SERVICES,
            &clash,
            422,
            r#"Service "t" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"#,
        ),
        (
            "POST",
            SERVICES,
            &low,
            422,
            r#"Service "t" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"#,
        ),
        (
            "POST",
            SERVICES,
            same_ip,
            422,
            r#"Service "u" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.1"]: failed to allocate IP 10.96.0.1: provided IP is already allocated"#,
        ),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/a",
            r#"{"metadata":{"name":"a","resourceVersion":"1"}}"#,
            409,
            r#"Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again"#,
        ),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/z",
            r#"{"metadata":{"name":"z"}}"#,
            404,
            r#"configmaps "z" not found"#,
        ),
        (
            "POST",
            PODS,
            r#"{"metadata":{"name":"p"},"spec":{"serviceAccountName":"ghost","containers":[{"name":"c","image":"i"}]}}"#,
            403,
            r#"pods "p" is forbidden: error looking up service account default/ghost: serviceaccount "ghost" not found"#,
        ),
        (
            "GET",
            "/api/v1/nonsense",
            "",
            404,
            "the server could not find the requested resource",
        ),
        (
            "POST",
            "/api/v1/pods",
            "{}",
            405,
            "the server does not allow this method on the requested resource",
        ),
    ] {
        let answer = cluster.request(method, path, body).await;
        assert_eq!(
            (answer.code, answer.body["message"].as_str()),
            (code, Some(message)),
            "{method} {path}"
        );
        assert_eq!(answer.body["kind"], "Status");
    }
}

#[tokio::test]
async fn who_may_not_is_told_what_and_where() {
    let cluster = Cluster::start().await;
    let someone = || Identity::authenticated("bob", []);
    for (identity, path, message) in [
        (
            someone(),
            "/api/v1/namespaces/default/pods/p",
            r#"pods "p" is forbidden: User "bob" cannot get resource "pods" in API group "" in the namespace "default""#,
        ),
        (
            Identity::anonymous(),
            "/apis/apps/v1/deployments",
            r#"deployments.apps is forbidden: User "system:anonymous" cannot list resource "deployments" in API group "apps" at the cluster scope"#,
        ),
        (
            Identity::anonymous(),
            "/api",
            r#"forbidden: User "system:anonymous" cannot get path "/api""#,
        ),
    ] {
        let answer = cluster.request_as(identity, "GET", path, "", "").await;
        assert_eq!(
            (answer.code, answer.body["message"].as_str()),
            (403, Some(message))
        );
    }
    for path in ["/healthz", "/version"] {
        assert_eq!(
            cluster
                .request_as(Identity::anonymous(), "GET", path, "", "")
                .await
                .code,
            200,
            "{path}"
        );
    }
    assert_eq!(
        cluster
            .request_as(someone(), "GET", "/apis/apps/v1", "", "")
            .await
            .code,
        200
    );
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_about_or_dropped() {
    let cluster = Cluster::start().await;
    let body = r#"{"metadata":{"name":"w"},"dta":{"a":"b"}}"#;
    let strict = cluster
        .request("POST", &format!("{MAPS}?fieldValidation=Strict"), body)
        .await;
    assert_eq!(strict.code, 400);
    assert!(
        strict.text.contains(r#"unknown field \"dta\""#),
        "{}",
        strict.text
    );
    let warned = cluster.request("POST", MAPS, body).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.headers["warning"], r#"299 - "unknown field \"dta\"""#);
    assert!(warned.body.get("dta").is_none());
}

#[tokio::test]
async fn a_dry_run_leaves_nothing() {
    let cluster = Cluster::start().await;
    let answer = cluster
        .request(
            "POST",
            &format!("{MAPS}?dryRun=All"),
            r#"{"metadata":{"generateName":"a-"}}"#,
        )
        .await;
    assert_eq!(answer.code, 201);
    assert_eq!(answer.body["metadata"]["name"].as_str().unwrap().len(), 7);
    assert_eq!(cluster.ok("GET", MAPS, "").await["items"], json!([]));
    let service =
        r#"{"metadata":{"name":"s"},"spec":{"type":"NodePort","ports":[{"port":80,"nodePort":30080}]}}"#;
    for _ in 0..2 {
        assert_eq!(
            cluster
                .request("POST", &format!("{SERVICES}?dryRun=All"), service)
                .await
                .code,
            201
        );
    }
}

#[tokio::test]
async fn a_pod_goes_in_two_steps() {
    let cluster = Cluster::start().await;
    cluster.ok("POST", PODS, &pod("p", None)).await;
    let path = format!("{PODS}/p");
    let binding = r#"{"target":{"kind":"Node","name":"n1"}}"#;
    cluster.ok("POST", &format!("{path}/binding"), binding).await;
    let again = cluster.request("POST", &format!("{path}/binding"), binding).await;
    assert_eq!(again.code, 409);
    let bound = cluster.ok("GET", &path, "").await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");

    let marked = cluster.ok("DELETE", &path, "").await;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let status = json!({ "status": { "phase": "Running", "podIP": "10.244.0.5" } }).to_string();
    let node = Identity::authenticated("system:node:n1", ["system:nodes".to_owned()]);
    let merge = "application/merge-patch+json";
    let patched = cluster
        .request_as(node.clone(), "PATCH", &format!("{path}/status"), merge, &status)
        .await;
    assert_eq!(patched.code, 200, "{}", patched.text);
    assert!(patched.body["metadata"]["deletionTimestamp"].is_string());
    let other = Identity::authenticated("system:node:n2", ["system:nodes".to_owned()]);
    assert_eq!(
        cluster
            .request_as(other.clone(), "DELETE", &path, "", "")
            .await
            .code,
        403
    );
    let foreign = cluster
        .request_as(other, "PATCH", &format!("{path}/status"), merge, &status)
        .await;
    assert_eq!(foreign.code, 403, "{}", foreign.text);
    let gone = cluster
        .request_as(
            node.clone(),
            "DELETE",
            &path,
            "application/json",
            r#"{"gracePeriodSeconds":0}"#,
        )
        .await;
    assert_eq!(gone.body["status"], "Success", "{}", gone.text);
    assert_eq!(cluster.request("GET", &path, "").await.code, 404);
    // The agent learns that there is nobody to tell any more.
    let late = cluster
        .request_as(node, "PATCH", &format!("{path}/status"), merge, &status)
        .await;
    assert_eq!(late.code, 404, "{}", late.text);
}

#[tokio::test]
async fn finalizers_and_namespaces_hold_what_goes() {
    let cluster = Cluster::start().await;
    cluster
        .ok(
            "POST",
            MAPS,
            r#"{"metadata":{"name":"f","finalizers":["x.io/y"]}}"#,
        )
        .await;
    let path = format!("{MAPS}/f");
    let marked = cluster
        .ok("DELETE", &format!("{path}?propagationPolicy=Foreground"), "")
        .await;
    assert_eq!(
        marked["metadata"]["finalizers"],
        json!(["x.io/y", "foregroundDeletion"])
    );
    let merge = "application/merge-patch+json";
    cluster
        .request_as(
            admin(),
            "PATCH",
            &path,
            merge,
            r#"{"metadata":{"finalizers":null}}"#,
        )
        .await;
    assert_eq!(cluster.request("GET", &path, "").await.code, 404);

    let created = cluster
        .ok("POST", "/api/v1/namespaces", r#"{"metadata":{"name":"n"}}"#)
        .await;
    assert_eq!(created["spec"]["finalizers"], json!(["kubernetes"]));
    let marked = cluster.ok("DELETE", "/api/v1/namespaces/n", "").await;
    assert_eq!(marked["status"]["phase"], "Terminating");
    let refused = cluster
        .request(
            "POST",
            "/api/v1/namespaces/n/configmaps",
            r#"{"metadata":{"name":"late"}}"#,
        )
        .await;
    assert_eq!(
        refused.body["message"],
        r#"configmaps "late" is forbidden: unable to create new content in namespace n because it is being terminated"#
    );
    cluster
        .ok(
            "PUT",
            "/api/v1/namespaces/n/finalize",
            r#"{"metadata":{"name":"n"},"spec":{"finalizers":[]}}"#,
        )
        .await;
    assert_eq!(cluster.request("GET", "/api/v1/namespaces/n", "").await.code, 404);
}

#[tokio::test]
async fn pages_show_one_state() {
    let cluster = Cluster::start().await;
    for i in 0..5 {
        cluster
            .ok(
                "POST",
                MAPS,
                &format!(
                    r#"{{"metadata":{{"name":"m{i}","labels":{{"odd":"{}"}}}}}}"#,
                    i % 2
                ),
            )
            .await;
    }
    let first = cluster.ok("GET", &format!("{MAPS}?limit=2"), "").await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    cluster.ok("DELETE", &format!("{MAPS}/m4"), "").await;
    let mut names = vec!["m0".to_owned(), "m1".to_owned()];
    let mut next = first["metadata"]["continue"].as_str().map(str::to_owned);
    while let Some(token) = next {
        let page = cluster
            .ok("GET", &format!("{MAPS}?limit=2&continue={token}"), "")
            .await;
        assert_eq!(
            page["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        next = page["metadata"]["continue"].as_str().map(str::to_owned);
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4"]);
    let odd = cluster
        .ok("GET", &format!("{MAPS}?labelSelector=odd%3D1"), "")
        .await;
    assert_eq!(odd["items"].as_array().unwrap().len(), 2);
    let future = cluster
        .request("GET", &format!("{MAPS}?resourceVersion=99999999"), "")
        .await;
    assert_eq!(
        (
            future.code,
            future.body["details"]["causes"][0]["reason"].as_str()
        ),
        (504, Some("ResourceVersionTooLarge"))
    );
}

/// The lines of a watch, until `count` have come.
async fn watch(cluster: &Cluster, path: &str, count: usize) -> Vec<Value> {
    let request = Request::get(path)
        .extension(InProcess(std::sync::Arc::new(admin())))
        .body(Body::empty())
        .unwrap();
    let response = cluster.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = response.into_body().into_data_stream();
    let (mut lines, mut rest) = (Vec::new(), Vec::new());
    while lines.len() < count {
        let chunk = tokio::time::timeout(Duration::from_secs(10), stream.next())
            .await
            .expect("an event");
        let Some(chunk) = chunk else { break };
        rest.extend_from_slice(&chunk.unwrap());
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            lines.push(serde_json::from_slice(&line).unwrap());
        }
    }
    lines
}

#[tokio::test]
async fn a_selecting_watch_sees_objects_come_and_go() {
    let cluster = Cluster::start().await;
    let list = cluster.ok("GET", MAPS, "").await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    cluster
        .ok("POST", MAPS, r#"{"metadata":{"name":"a","labels":{"on":"1"}}}"#)
        .await;
    cluster
        .ok(
            "PUT",
            &format!("{MAPS}/a"),
            r#"{"metadata":{"name":"a"},"data":{"x":"y"}}"#,
        )
        .await;
    cluster
        .ok(
            "PUT",
            &format!("{MAPS}/a"),
            r#"{"metadata":{"name":"a","labels":{"on":"1"}}}"#,
        )
        .await;
    cluster.ok("DELETE", &format!("{MAPS}/a"), "").await;
    let events = watch(
        &cluster,
        &format!("{MAPS}?watch=1&labelSelector=on%3D1&resourceVersion={from}"),
        4,
    )
    .await;
    let shown: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(shown, ["ADDED", "DELETED", "ADDED", "DELETED"]);
    let revisions: Vec<u64> = events
        .iter()
        .map(|event| {
            event["object"]["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    assert!(revisions.is_sorted(), "{revisions:?}");

    let initial = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let events = watch(&cluster, &format!("{SERVICES}?{initial}"), 2).await;
    assert_eq!(events[0]["object"]["metadata"]["name"], "kubernetes");
    assert_eq!(events[1]["type"], "BOOKMARK");
    assert_eq!(
        events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

#[tokio::test]
async fn a_kube_client_in_process_creates_lists_and_watches() {
    let cluster = Cluster::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    let stream = watcher(maps.clone(), watcher::Config::default());
    tokio::pin!(stream);
    let map: ConfigMap = serde_json::from_value(json!({ "metadata": { "name": "k" } })).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    assert_eq!(
        maps.list(&ListParams::default().limit(1))
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    let seen = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some(event) = stream.try_next().await.unwrap() {
            if let watcher::Event::Apply(map) | watcher::Event::InitApply(map) = event {
                return map.metadata.name;
            }
        }
        None
    });
    assert_eq!(seen.await.unwrap().as_deref(), Some("k"));

    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let mut watch = pods
        .watch(&WatchParams::default().fields("spec.nodeName=n1"), "0")
        .await
        .unwrap()
        .boxed();
    cluster.ok("POST", PODS, &pod("bound", Some("n1"))).await;
    let event = tokio::time::timeout(Duration::from_secs(10), watch.try_next())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(event, Some(WatchEvent::Added(pod)) if pod.metadata.name.as_deref() == Some("bound")));
}

#[tokio::test]
async fn concurrent_services_never_share_an_address() {
    let cluster = Cluster::start().await;
    let bodies: Vec<String> = (0..40)
        .map(|i| {
            format!(
                r#"{{"metadata":{{"name":"s{i}"}},"spec":{{"type":"NodePort","ports":[{{"port":80}}]}}}}"#
            )
        })
        .collect();
    let answers =
        futures::future::join_all(bodies.iter().map(|body| cluster.ok("POST", SERVICES, body))).await;
    let unique = |pointer: &str| {
        let all: std::collections::BTreeSet<String> = answers
            .iter()
            .map(|a| a.pointer(pointer).unwrap().to_string())
            .collect();
        all.len()
    };
    assert_eq!(
        (unique("/spec/clusterIP"), unique("/spec/ports/0/nodePort")),
        (40, 40)
    );
}

#[tokio::test]
async fn a_restart_remembers_objects_and_addresses() {
    let cluster = Cluster::start().await;
    let service =
        r#"{"metadata":{"name":"s"},"spec":{"type":"NodePort","ports":[{"port":80,"nodePort":30080}]}}"#;
    let before = cluster.ok("POST", SERVICES, service).await;
    let cluster = cluster.restart().await;
    assert_eq!(cluster.ok("GET", &format!("{SERVICES}/s"), "").await, before);
    let clash = cluster
        .request("POST", SERVICES, &service.replace("\"s\"", "\"t\""))
        .await;
    assert_eq!(clash.code, 422, "{}", clash.text);
}

#[tokio::test]
async fn a_token_lives_as_long_as_its_pod() {
    let cluster = Cluster::start().await;
    let created = cluster.ok("POST", PODS, &pod("p", Some("n1"))).await;
    let volume = &created["spec"]["volumes"][0]["projected"]["sources"];
    assert_eq!(volume[0]["serviceAccountToken"]["expirationSeconds"], 3607);
    let node =
        |name: &str| Identity::authenticated(&format!("system:node:{name}"), ["system:nodes".to_owned()]);
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let uid = &created["metadata"]["uid"];
    let request = json!({ "spec": { "expirationSeconds": 3607, "boundObjectRef": { "kind": "Pod", "name": "p", "uid": uid } } });
    let other = cluster
        .request_as(node("n2"), "POST", path, "application/json", &request.to_string())
        .await;
    assert_eq!(other.code, 403);
    let answer = cluster
        .request_as(node("n1"), "POST", path, "application/json", &request.to_string())
        .await;
    assert_eq!(answer.code, 201, "{}", answer.text);
    let token = answer.body["status"]["token"].as_str().unwrap().to_owned();
    let with_token = async |path: &str, method: &str, body: &str| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {token}"))
            .body(Body::from(body.to_owned()))
            .unwrap();
        common::answer(cluster.router.clone().oneshot(request).await.unwrap()).await
    };
    let review = with_token("/apis/authentication.k8s.io/v1/selfsubjectreviews", "POST", "{}").await;
    assert_eq!(
        review.body["status"]["userInfo"]["username"],
        "system:serviceaccount:default:default"
    );
    assert_eq!(with_token("/api/v1/pods", "GET", "").await.code, 403);
    let reviewed = cluster
        .ok(
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            &json!({ "spec": { "token": token } }).to_string(),
        )
        .await;
    assert_eq!(reviewed["status"]["authenticated"], true);
    cluster
        .ok("DELETE", &format!("{PODS}/p?gracePeriodSeconds=0"), "")
        .await;
    cluster.ok("GET", PODS, "").await;
    assert_eq!(with_token("/version", "GET", "").await.code, 401);
}

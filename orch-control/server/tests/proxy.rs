//! HTTP to servers in pods, through pods and services: every method, redirects, links, upgrades, refusals.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::net::SocketAddr;

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse as _, Response},
};
use common::{Cluster, admin, own_address, running_pod};
use serde_json::{Value, json};

const NAMESPACE: &str = "/api/v1/namespaces/default";

/// Says what was asked of it.
async fn echo(request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let header = |name: &str| parts.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    let html = |text: &str| ([("content-type", "text/html; charset=utf-8")], text.to_owned()).into_response();
    match parts.uri.path() {
        "/page" => html(r#"<a href="/rewriteme">test</a>"#),
        "/away" => (
            http::StatusCode::FOUND,
            [
                ("location", "/elsewhere?a=b"),
                ("access-control-allow-origin", "*"),
            ],
        )
            .into_response(),
        path => axum::Json(json!({
            "method": parts.method.as_str(),
            "path": path,
            "query": parts.uri.query(),
            "body": String::from_utf8_lossy(&body),
            "authorization": header("authorization"),
            "accept": header("accept"),
            "forwarded": header("x-forwarded-uri"),
            "host": header("host"),
        }))
        .into_response(),
    }
}

/// Serves [`echo`] at a free port of the machine's own address.
async fn server() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind((own_address(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(echo)).await.unwrap() });
    address
}

/// A slice of service `name` with one endpoint of pod `pod`.
async fn slice(cluster: &Cluster, name: &str, pod: Option<&str>, ip: &str, port: (&str, u16), ready: bool) {
    let target = pod.map(|pod| json!({ "kind": "Pod", "namespace": "default", "name": pod }));
    let slice = json!({
        "metadata": { "generateName": format!("{name}-"), "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [ip], "conditions": { "ready": ready }, "targetRef": target }],
        "ports": [{ "name": port.0, "port": port.1 }],
    });
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    cluster.ok("POST", path, &slice.to_string()).await;
}

#[tokio::test]
async fn every_method_reaches_the_pod() {
    let (cluster, address) = (Cluster::start().await, server().await);
    running_pod(&cluster, "p", &address.ip().to_string(), address.port()).await;
    for method in ["DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT"] {
        let path = format!("{NAMESPACE}/pods/p/proxy/some/path/?dryRun=nonsense&pretty=true");
        let headers = [
            ("accept", "text/html"),
            ("authorization", "Bearer x"),
            ("content-type", "text/x"),
        ];
        let answer = cluster
            .request_with(admin(), method, &path, &headers, "body")
            .await;
        assert_eq!(answer.code, 200, "{method}: {}", answer.text);
        let want = json!({
            "method": method, "path": "/some/path/", "query": "dryRun=nonsense&pretty=true", "body": "body",
            "authorization": null, "accept": "text/html", "host": address.to_string(),
            "forwarded": format!("{NAMESPACE}/pods/p/proxy/some/path/"),
        });
        assert_eq!(answer.body, want, "{method}");
    }
    let head = cluster
        .request("HEAD", &format!("{NAMESPACE}/pods/p/proxy/x"), "")
        .await;
    assert_eq!((head.code, head.text.as_str()), (200, ""));
    // Without a path there is a redirect, for those who would follow it.
    for method in ["GET", "HEAD"] {
        let path = format!("{NAMESPACE}/pods/p:{}/proxy?method={method}", address.port());
        let answer = cluster.request(method, &path, "").await;
        assert_eq!(answer.code, 301, "{}", answer.text);
        let port = address.port();
        let want = format!("{NAMESPACE}/pods/p:{port}/proxy/?method={method}");
        assert_eq!(answer.headers["location"], want.as_str());
    }
    for method in ["DELETE", "OPTIONS", "PATCH", "POST", "PUT"] {
        let answer = cluster
            .request(method, &format!("{NAMESPACE}/pods/p/proxy?method={method}"), "")
            .await;
        assert_eq!(
            (answer.code, &answer.body["path"]),
            (200, &json!("/")),
            "{}",
            answer.text
        );
        assert_eq!(answer.body["method"], method);
    }
}

#[tokio::test]
async fn links_lead_back_through_the_proxy() {
    let (cluster, address) = (Cluster::start().await, server().await);
    running_pod(&cluster, "p", &address.ip().to_string(), 1).await;
    let proxy = format!("{NAMESPACE}/pods/http:p:{}/proxy", address.port());
    let page = cluster.request("GET", &format!("{proxy}/page"), "").await;
    assert_eq!(page.text, format!(r#"<a href="{proxy}/rewriteme">test</a>"#));
    let away = cluster.request("GET", &format!("{proxy}/away"), "").await;
    assert_eq!(away.code, 302);
    assert_eq!(
        away.headers["location"],
        format!("{proxy}/elsewhere?a=b").as_str()
    );
    assert!(!away.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_service_is_asked_at_a_ready_endpoint_of_its_own_pods() {
    let (cluster, address) = (Cluster::start().await, server().await);
    let ip = address.ip().to_string();
    running_pod(&cluster, "p", &ip, address.port()).await;
    let service = |name: &str| {
        json!({ "metadata": { "name": name }, "spec": { "ports": [
            { "name": "web", "port": 80 }, { "name": "other", "port": 81 }] } })
    };
    for name in ["s", "bare", "foreign", "down"] {
        cluster
            .ok(
                "POST",
                &format!("{NAMESPACE}/services"),
                &service(name).to_string(),
            )
            .await;
    }
    let web = ("web", address.port());
    slice(&cluster, "s", Some("p"), &ip, web, true).await;
    slice(&cluster, "bare", None, &ip, web, true).await;
    slice(&cluster, "foreign", Some("p"), "10.99.0.1", web, true).await;
    slice(&cluster, "down", Some("p"), &ip, web, false).await;
    for (name, code, text) in [
        ("s:web", 200, ""),
        ("s:80", 200, ""),
        ("http:s:web", 200, ""),
        ("s:81", 503, "no endpoints available for service \"s\""),
        ("s:82", 503, "no service port 82 found for service \"s\""),
        ("s", 503, "no endpoints available for service \"s\""),
        ("bare:web", 503, "no endpoints available for service \"bare\""),
        (
            "foreign:web",
            503,
            "no endpoints available for service \"foreign\"",
        ),
        ("down:web", 503, "no endpoints available for service \"down\""),
        ("none:web", 404, "services \"none\" not found"),
        ("ftp:s:web", 400, "invalid service request \"ftp:s:web\""),
    ] {
        let answer = cluster
            .request("GET", &format!("{NAMESPACE}/services/{name}/proxy/x"), "")
            .await;
        assert_eq!(answer.code, code, "{name}: {}", answer.text);
        if code == 200 {
            assert_eq!(answer.body["path"], "/x");
        } else {
            assert_eq!(answer.body["message"], text, "{name}");
        }
    }
}

#[tokio::test]
async fn pods_that_nobody_may_ask_or_that_do_not_answer() {
    let cluster = Cluster::start().await;
    running_pod(&cluster, "local", "127.0.0.1", 80).await;
    let answer = cluster
        .request("GET", &format!("{NAMESPACE}/pods/local/proxy/"), "")
        .await;
    assert_eq!(
        (answer.code, &answer.body["message"]),
        (400, &json!("address not allowed"))
    );
    let free = std::net::TcpListener::bind((own_address(), 0))
        .unwrap()
        .local_addr()
        .unwrap();
    running_pod(&cluster, "closed", &free.ip().to_string(), free.port()).await;
    let answer = cluster
        .request("GET", &format!("{NAMESPACE}/pods/closed/proxy/"), "")
        .await;
    let message = answer.body["message"].as_str().unwrap();
    assert_eq!(answer.code, 503);
    assert!(
        message.starts_with(&format!("error trying to reach service: dial tcp {free}: ")),
        "{message}"
    );
    // Who may not, may not.
    let nobody = orch_server::auth::identity::Identity::authenticated("nobody", []);
    let path = format!("{NAMESPACE}/pods/closed/proxy/");
    let answer = cluster.request_as(nobody, "OPTIONS", &path, "text/x", "").await;
    assert_eq!(answer.code, 403, "{}", answer.text);
}

#[tokio::test]
async fn tls_is_spoken_to_pods_whoever_signed_their_certificate() {
    let cluster = Cluster::start().await;
    let signed = rcgen::generate_simple_self_signed(["porter".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind((own_address(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let stream = hyper_util::rt::TokioIo::new(acceptor.accept(stream).await.unwrap());
        let service = hyper::service::service_fn(|_| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(Bytes::from_static(b"tls baz"))))
        });
        hyper::server::conn::http1::Builder::new()
            .serve_connection(stream, service)
            .await
    });
    running_pod(&cluster, "p", &address.ip().to_string(), 1).await;
    let path = format!("{NAMESPACE}/pods/https:p:{}/proxy/", address.port());
    let answer = cluster.request("GET", &path, "").await;
    assert_eq!((answer.code, answer.text.as_str()), (200, "tls baz"));
}

#[tokio::test]
async fn kubectl_asks_through_the_proxy() {
    let (cluster, address) = (Cluster::start().await, server().await);
    running_pod(&cluster, "p", &address.ip().to_string(), address.port()).await;
    let path = format!("{NAMESPACE}/pods/p/proxy/from/kubectl");
    let (ok, text) = cluster.kubectl(&["get", "--raw", &path], "").await;
    let said: Value = serde_json::from_str(&text).unwrap_or_default();
    assert!(ok && said["path"] == "/from/kubectl", "{text}");
}

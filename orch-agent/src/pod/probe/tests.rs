//! Probes against servers on the loopback.

use k8s_openapi::api::core::v1::Probe;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    super::{
        context::{Context, Target},
        objects::Objects,
        recorder::Recorder,
        testing::{Node, pod, typed},
    },
    Outcome, check,
};

/// A server that gives every connection the same answer, and its port.
async fn server(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port
}

async fn outcome(probe: Value, ports: Value) -> Outcome {
    let node = Node::new();
    let client = node.api.client();
    let context = Context {
        config: node.config(),
        objects: Objects::new(client.clone()),
        host: node.host.clone(),
        cluster: orch_cluster::Cluster::start(client.clone()),
        recorder: Recorder::start(client.clone(), "n1"),
        client,
        pulls: Default::default(),
    };
    let pod = typed(pod(
        json!({"containers": [{"name": "c", "image": "i", "ports": ports}]}),
    ));
    let ips = vec!["127.0.0.1".parse().unwrap()];
    let target = Target {
        context: context.into(),
        pod,
        slot: 0,
        id: "x".into(),
        ips,
    };
    let probe: Probe = serde_json::from_value(probe).unwrap();
    check(&target, &probe).await
}

#[tokio::test]
async fn http_status_decides() {
    for (answer, healthy) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", true),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false),
        ("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", false),
    ] {
        let port = server(answer).await;
        let got = outcome(json!({"httpGet": {"path": "/x", "port": port}}), json!([])).await;
        assert_eq!(got == Outcome::Pass, healthy, "{answer}: {got:?}");
    }
}

#[tokio::test]
async fn ports_may_be_named() {
    let port = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    let ports = json!([{"name": "web", "containerPort": port}]);
    assert_eq!(
        outcome(json!({"httpGet": {"port": "web"}}), ports.clone()).await,
        Outcome::Pass
    );
    assert_eq!(
        outcome(json!({"tcpSocket": {"port": "web"}}), ports.clone()).await,
        Outcome::Pass
    );
    let got = outcome(json!({"tcpSocket": {"port": "nope"}}), ports).await;
    assert_eq!(got, Outcome::Fail("couldn't find port: nope".into()));
}

#[tokio::test]
async fn failures_read_as_in_kubernetes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let text = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(
        outcome(json!({"tcpSocket": {"port": port}}), json!([])).await,
        Outcome::Fail(text.clone())
    );
    let got = outcome(json!({"httpGet": {"path": "/h", "port": port}}), json!([])).await;
    assert_eq!(
        got,
        Outcome::Fail(format!("Get \"http://127.0.0.1:{port}/h\": {text}"))
    );
    let silent = server("").await;
    let got = outcome(
        json!({"httpGet": {"port": silent}, "timeoutSeconds": 1}),
        json!([]),
    )
    .await;
    assert!(
        matches!(&got, Outcome::Fail(t) if t.contains("context deadline exceeded")),
        "{got:?}"
    );
    let got = outcome(json!({"exec": {"command": ["false"]}}), json!([])).await;
    assert_eq!(got, Outcome::Fail("said no".into()));
}

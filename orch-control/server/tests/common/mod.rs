//! A real server on a free port, with the embedded store in a folder of its own.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::{path::PathBuf, process::Command, sync::Arc};

use axum::body::Body;
use http::Request;
use orch_server::{
    Server, ServerConfig,
    auth::{authenticate::InProcess, identity::Identity},
    pki::{self, Pki, kubeconfig},
};
use orch_store::embedded::Embedded;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// A running server; stops when dropped.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub router: axum::Router,
    pub client: kube::Client,
    pub pki: Pki,
    pub port: u16,
    networks: Vec<String>,
    stop: CancellationToken,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// An answer: code, headers, JSON body (null when it is none).
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub async fn start_in(dir: tempfile::TempDir) -> Self {
        Self::start_with(dir, &["10.96.0.0/16"]).await
    }

    /// With other networks for services, the primary first.
    pub async fn start_with(dir: tempfile::TempDir, networks: &[&str]) -> Self {
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let stop = CancellationToken::new();
        let config = ServerConfig {
            data_dir: dir.path().to_owned(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            advertise_address: match networks[0].contains(':') {
                true => "2001:db8::1".parse().unwrap(),
                false => "192.0.2.1".parse().unwrap(),
            },
            service_cidrs: networks.iter().map(|n| n.parse().unwrap()).collect(),
            cluster_dns: Vec::new(),
            node_port_range: 30000..=32767,
            cluster_domain: "cluster.local".into(),
        };
        let server = Server::start(config, store, stop.clone()).await.unwrap();
        let (router, client) = (server.router(), server.client(Identity::controller_manager()));
        let port = server.addresses()[0].port();
        let served = Some(tokio::spawn(server.serve()));
        let pki = Pki::open(dir.path()).unwrap();
        let cluster = Self {
            dir,
            router,
            client,
            pki,
            port,
            networks: networks.iter().map(|n| (*n).to_owned()).collect(),
            stop,
            served,
        };
        cluster
            .ok(
                "POST",
                "/api/v1/namespaces/default/serviceaccounts",
                r#"{"metadata":{"name":"default"}}"#,
            )
            .await;
        cluster
    }

    /// Stops the server and starts another on the same data.
    pub async fn restart(mut self) -> Self {
        self.stop.cancel();
        if let Some(served) = self.served.take() {
            served.await.unwrap();
        }
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        let networks = std::mem::take(&mut self.networks);
        drop(self);
        // The caches let go of the store a moment after their last watch.
        for _ in 0..100 {
            if Embedded::open(&dir.path().join("store.redb")).is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
        Self::start_with(dir, &networks).await
    }

    /// A request in the name of `identity`.
    pub async fn request_as(
        &self,
        identity: Identity,
        method: &str,
        path: &str,
        content_type: &str,
        body: &str,
    ) -> Answer {
        self.request_with(identity, method, path, &[("content-type", content_type)], body)
            .await
    }

    /// The same with any headers.
    pub async fn request_with(
        &self,
        identity: Identity,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .extension(InProcess(Arc::new(identity)));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        answer(self.router.clone().oneshot(request).await.unwrap()).await
    }

    /// A request of an administrator, with a JSON body.
    pub async fn request(&self, method: &str, path: &str, body: &str) -> Answer {
        self.request_as(admin(), method, path, "application/json", body)
            .await
    }

    /// The same, and it must succeed.
    pub async fn ok(&self, method: &str, path: &str, body: &str) -> Value {
        let answer = self.request(method, path, body).await;
        assert!(
            answer.code < 300 || answer.body["reason"] == "AlreadyExists",
            "{method} {path}: {}",
            answer.text
        );
        answer.body
    }

    /// The administrator's kubeconfig, on disk.
    pub fn kubeconfig(&self) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        let url = format!("https://127.0.0.1:{}", self.port);
        let text = kubeconfig::render(
            &url,
            self.pki.ca_pem(),
            "kubernetes-admin",
            &self.pki.admin().unwrap(),
        );
        pki::write_file(&path, &text, 0o600).unwrap();
        path
    }

    /// Runs kubectl; answers whether it succeeded, and both its outputs.
    pub async fn kubectl(&self, args: &[&str], input: &str) -> (bool, String) {
        let (config, cache) = (self.kubeconfig(), self.dir.path().join("cache"));
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let input = input.to_owned();
        tokio::task::spawn_blocking(move || {
            use std::io::Write as _;
            let mut child = Command::new("/usr/bin/kubectl")
                .args(&args)
                .env("KUBECONFIG", config)
                .arg("--cache-dir")
                .arg(cache)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let text = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            (output.status.success(), text)
        })
        .await
        .unwrap()
    }
}

pub fn admin() -> Identity {
    Identity::authenticated("admin", [pki::SYSTEM_MASTERS.to_owned()])
}

pub async fn answer(response: axum::response::Response) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    Answer {
        code: parts.status.as_u16(),
        headers: parts.headers,
        body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        text: String::from_utf8_lossy(&bytes).into_owned(),
    }
}

/// A pod's JSON.
pub fn pod(name: &str, node: Option<&str>) -> String {
    let node = node
        .map(|node| format!(r#""nodeName":"{node}","#))
        .unwrap_or_default();
    format!(
        r#"{{"metadata":{{"name":"{name}","labels":{{"app":"{name}"}}}},"spec":{{{node}"containers":[{{"name":"c","image":"i"}}]}}}}"#
    )
}

/// An address of this machine that is no loopback address: those are refused. Nothing is sent to find it.
pub fn own_address() -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").unwrap();
    socket.local_addr().unwrap().ip()
}

/// A pod that runs at `ip` and names `port`.
pub async fn running_pod(cluster: &Cluster, name: &str, ip: &str, port: u16) {
    let pod = serde_json::json!({ "metadata": { "name": name }, "spec": { "nodeName": "n", "containers": [
        { "name": "c", "image": "i", "ports": [{ "containerPort": port }] }] } });
    cluster
        .ok("POST", "/api/v1/namespaces/default/pods", &pod.to_string())
        .await;
    let status =
        serde_json::json!({ "status": { "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }] } });
    let path = format!("/api/v1/namespaces/default/pods/{name}/status");
    let patched = cluster
        .request_as(
            admin(),
            "PATCH",
            &path,
            "application/merge-patch+json",
            &status.to_string(),
        )
        .await;
    assert_eq!(patched.code, 200, "{}", patched.text);
}

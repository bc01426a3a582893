//! Over TLS: kubectl as people use it, and what passes through to a kubelet.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod common;

use std::sync::Arc;

use common::{Cluster, own_address, pod, running_pod};
use orch_server::pki::Issued;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: nginx, ports: [{containerPort: 80}]}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_is_happy() {
    let cluster = Cluster::start().await;
    for (args, input, expect) in [
        ("version", "", "Server Version: v1.36.0+orch"),
        ("auth whoami", "", "kubernetes-admin"),
        ("auth can-i create pods", "", "yes"),
        ("api-resources", "", "deployments"),
        ("explain pod.spec.containers.image", "", "FIELD: image <string>"),
        ("create namespace shop", "", "namespace/shop created"),
        ("create configmap c --from-literal=a=b", "", "configmap/c created"),
        (
            "create secret generic s --from-literal=a=b",
            "",
            "secret/s created",
        ),
        (
            "create deployment d --image=i --replicas=2",
            "",
            "deployment.apps/d created",
        ),
        (
            "create service clusterip cs --tcp=80:80",
            "",
            "service/cs created",
        ),
        ("create token default", "", "eyJ"),
        ("apply -f -", DEPLOYMENT, "deployment.apps/web created"),
        ("apply -f -", DEPLOYMENT, "deployment.apps/web unchanged"),
        (
            "apply -f -",
            &DEPLOYMENT.replace("nginx", "nginx:2"),
            "deployment.apps/web configured",
        ),
        ("get deployment web -o wide", "", "nginx:2"),
        ("get deployment web -o yaml", "", "progressDeadlineSeconds: 600"),
        ("describe deployment web", "", "RollingUpdateStrategy:"),
        (
            "patch deployment web -p {\"spec\":{\"paused\":true}}",
            "",
            "deployment.apps/web patched",
        ),
        (
            "scale deployment web --replicas=5",
            "",
            "deployment.apps/web scaled",
        ),
        ("get deployment web -o jsonpath={.spec.replicas}", "", "5"),
        (
            "label deployment web tier=front",
            "",
            "deployment.apps/web labeled",
        ),
        ("get deployments -l tier=front -o name", "", "deployment.apps/web"),
        (
            "expose deployment web --port=80 --type=NodePort",
            "",
            "service/web exposed",
        ),
        ("get services,endpoints,endpointslices -A", "", "192.0.2.1"),
        ("run p --image=i", "", "pod/p created"),
        ("delete pod p --now", "", "pod \"p\" deleted"),
        ("delete deployment web", "", "deployment.apps \"web\" deleted"),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let (ok, output) = cluster.kubectl(&args, input).await;
        assert!(
            ok && output.contains(expect),
            "kubectl {}: {output}",
            args.join(" ")
        );
    }
    for (input, expect) in [
        (
            DEPLOYMENT.replace("replicas", "replicaz"),
            "unknown field \"spec.replicaz\"",
        ),
        (
            DEPLOYMENT.replace("replicas: 3", "replicas: three"),
            "cannot unmarshal string into Go struct field",
        ),
        (
            DEPLOYMENT.replace("matchLabels: {app: web}", "matchLabels: {app: other}"),
            "`selector` does not match template `labels`",
        ),
        ("{a: [".to_owned(), "error parsing STDIN"),
    ] {
        let (ok, output) = cluster.kubectl(&["apply", "-f", "-"], &input).await;
        assert!(!ok && output.contains(expect), "{output}");
    }
}

type Tls<S> = tokio_rustls::TlsStream<S>;

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    (
        CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap(),
        PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
    )
}

/// A TLS connection to the API server, as its administrator.
async fn connect(cluster: &Cluster) -> Tls<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(cluster.pki.ca_pem().as_bytes()).unwrap())
        .unwrap();
    let (certs, key) = chain(&cluster.pki.admin().unwrap());
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certs, key)
        .unwrap();
    let stream = TcpStream::connect(("127.0.0.1", cluster.port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
        .into()
}

/// The bytes up to and with the empty line.
async fn read_head(stream: &mut Tls<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// What a node's kubelet speaks TLS with.
fn node_acceptor(cluster: &Cluster) -> tokio_rustls::TlsAcceptor {
    let serving = cluster
        .pki
        .issue_node("n1", &["127.0.0.1".parse().unwrap()])
        .unwrap()
        .serving;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(cluster.pki.ca_pem().as_bytes()).unwrap())
        .unwrap();
    // Only who shows a certificate of our authority is let in.
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .unwrap();
    let (certs, key) = chain(&serving);
    let config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certs, key)
        .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

/// A kubelet that answers `count` connections: logs with text, upgrades with an echo. Answers its port and, later,
/// the requests it saw.
async fn kubelet(cluster: &Cluster, count: usize) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let acceptor = node_acceptor(cluster);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut seen = Vec::new();
        for _ in 0..count {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream: Tls<TcpStream> = acceptor.accept(stream).await.unwrap().into();
            let head = read_head(&mut stream).await;
            if head.contains("/containerLogs/") && head.contains("tailLines") {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
                    .await
                    .unwrap();
            } else if head.contains("/containerLogs/") {
                let text = "container \"c\" in pod \"p\" is waiting to start: ContainerCreating";
                let answer = format!(
                    "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{text}",
                    text.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            } else {
                let answer =
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
                let mut buffer = [0; 4];
                stream.read_exact(&mut buffer).await.unwrap();
                buffer.reverse();
                stream.write_all(&buffer).await.unwrap();
            }
            let _ = stream.shutdown().await;
            seen.push(head);
        }
        seen
    });
    (port, task)
}

/// A Node whose kubelet listens at `port` of this machine.
async fn register(cluster: &Cluster, name: &str, port: u16) {
    cluster
        .ok(
            "POST",
            "/api/v1/nodes",
            &json!({ "metadata": { "name": name } }).to_string(),
        )
        .await;
    let status = json!({
        "metadata": { "name": name },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        },
    });
    cluster
        .ok(
            "PUT",
            &format!("/api/v1/nodes/{name}/status"),
            &status.to_string(),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_upgrades_pass_through_to_the_kubelet() {
    let cluster = Cluster::start().await;
    let (port, task) = kubelet(&cluster, 3).await;
    register(&cluster, "n1", port).await;
    cluster
        .ok("POST", "/api/v1/namespaces/default/pods", &pod("p", Some("n1")))
        .await;

    let (ok, output) = cluster.kubectl(&["logs", "p", "--tail=5"], "").await;
    assert!(ok && output == "hello\n", "{output}");
    let (ok, output) = cluster.kubectl(&["logs", "p"], "").await;
    let expect =
        "Error from server (BadRequest): container \"c\" in pod \"p\" is waiting to start: ContainerCreating";
    assert!(!ok && output.trim() == expect, "{output}");

    let mut stream = connect(&cluster).await;
    let request = "POST /api/v1/namespaces/default/pods/p/exec?command=ls&command=-l&stdin=true&stdout=true HTTP/1.1\r\n\
         Host: localhost\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"gnip");

    let seen = task.await.unwrap();
    assert!(
        seen[0].starts_with("GET /containerLogs/default/p/c?tailLines=5 "),
        "{}",
        seen[0]
    );
    let exec = seen[2].to_ascii_lowercase();
    assert!(
        exec.starts_with("post /exec/default/p/c?command=ls&command=-l&input=1&output=1 "),
        "{exec}"
    );
    assert!(
        exec.contains("upgrade: spdy/3.1") && exec.contains("x-stream-protocol-version: v4.channel.k8s.io"),
        "{exec}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_pass_through_to_pods() {
    let cluster = Cluster::start().await;
    let listener = TcpListener::bind((own_address(), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    running_pod(&cluster, "p", &address.ip().to_string(), address.port()).await;
    let pod = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        buffer.reverse();
        stream.write_all(&buffer).await.unwrap();
        String::from_utf8(head).unwrap()
    });
    let mut stream = connect(&cluster).await;
    // Without a path, which would be a redirect were it no upgrade.
    let request = "GET /api/v1/namespaces/default/pods/p/proxy?a=b HTTP/1.1\r\nHost: localhost\r\n\
         Connection: Upgrade\r\nUpgrade: chat\r\nAuthorization: Basic eDp5\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"gnip");
    let seen = pod.await.unwrap().to_ascii_lowercase();
    assert!(seen.starts_with("get /?a=b http/1.1\r\n"), "{seen}");
    assert!(
        seen.contains("upgrade: chat") && !seen.contains("authorization"),
        "{seen}"
    );
}

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  egress:
  - to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]
    ports: [{port: 53, protocol: UDP}, {port: 8000, endPort: 9000, protocol: TCP}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_knows_networking() {
    let cluster = Cluster::start().await;
    for (args, input, expect) in [
        // kubectl sends these in protobuf.
        (
            "create ingress i --class=c --rule=foo.com/bar=svc1:8080,tls=my-cert --default-backend=d:http",
            "",
            "ingress.networking.k8s.io/i created",
        ),
        ("get ing i -o jsonpath={.spec}", "", r#""pathType":"Exact""#),
        (
            "get ing i -o jsonpath={.spec}",
            "",
            r#""defaultBackend":{"service":{"name":"d","port":{"name":"http"}}}"#,
        ),
        ("get ing", "", "foo.com"),
        (
            "apply -f -",
            POLICY,
            "networkpolicy.networking.k8s.io/deny created",
        ),
        (
            "apply -f -",
            POLICY,
            "networkpolicy.networking.k8s.io/deny unchanged",
        ),
        ("get netpol", "", "app=web"),
        ("describe netpol deny", "", "Except: 10.1.0.0/16"),
        ("get servicecidrs", "", "10.96.0.0/16"),
        ("get ip", "", "No resources found"),
        (
            "explain networkpolicy.spec.egress.ports.endPort",
            "",
            "FIELD: endPort <integer>",
        ),
        ("api-resources --api-group=networking.k8s.io", "", "ServiceCIDR"),
        ("get rc,all", "", "service/kubernetes"),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let (ok, output) = cluster.kubectl(&args, input).await;
        assert!(
            ok && output.contains(expect),
            "kubectl {}: {output}",
            args.join(" ")
        );
    }
}

/// An agent that connects to `server` whatever address of pod `p` is asked for, and to nothing else.
async fn agent(cluster: &Cluster, server: std::net::SocketAddr) -> u16 {
    let acceptor = node_acceptor(cluster);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream: Tls<TcpStream> = acceptor.accept(stream).await.unwrap().into();
            let head = read_head(&mut stream).await;
            let asked = head.split(' ').nth(1).unwrap();
            let refusal = r#"{"kind":"Status","message":"dial tcp 10.1.2.4:80: connection refused"}"#;
            let answer = match asked {
                "/dial/default/p?ip=10.1.2.3&port=80" => {
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
                        .to_owned()
                }
                "/dial/default/closed?ip=10.1.2.4&port=80" => format!(
                    "HTTP/1.1 500 Internal Server Error\r\nContent-Length: {}\r\n\r\n{refusal}",
                    refusal.len()
                ),
                _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.contains(" 101 ") {
                let mut inside = TcpStream::connect(server).await.unwrap();
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut inside).await });
            } else {
                let _ = stream.shutdown().await;
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_asked_through_the_agent_of_their_node() {
    let cluster = Cluster::start().await;
    let listener = TcpListener::bind((own_address(), 0)).await.unwrap();
    let server = listener.local_addr().unwrap();
    let routes = axum::Router::new().fallback(|uri: http::Uri| async move { format!("you asked for {uri}") });
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    register(&cluster, "n", agent(&cluster, server).await).await;
    // An address that nobody here can reach.
    running_pod(&cluster, "p", "10.1.2.3", 80).await;
    running_pod(&cluster, "closed", "10.1.2.4", 80).await;
    running_pod(&cluster, "direct", &server.ip().to_string(), server.port()).await;
    for (pod, code, expect) in [
        ("p", 200, "you asked for /x?y=z"),
        (
            "closed",
            503,
            "error trying to reach service: node at 127.0.0.1:AGENT: dial tcp 10.1.2.4:80: connection refused",
        ),
        // The kubelet of its node is not ours.
        ("direct", 200, "you asked for /x?y=z"),
    ] {
        let path = format!("/api/v1/namespaces/default/pods/{pod}/proxy/x?y=z");
        let answer = cluster.request("GET", &path, "").await;
        assert_eq!(answer.code, code, "{pod}: {}", answer.text);
        let said = answer.body["message"].as_str().unwrap_or(&answer.text);
        let (before, after) = expect.split_once("AGENT").unwrap_or((expect, ""));
        assert!(said.starts_with(before) && said.ends_with(after), "{pod}: {said}");
    }
}

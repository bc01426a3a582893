//! The API over real TLS sockets, against a backend whose processes are made of pipes.

mod dial;
mod plain;

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _, stream::BoxStream};
use k8s_openapi::api::core::v1::Pod;
use orch_runtime::{ExecSpec, logs::LogOptions};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tokio_util::sync::CancellationToken;

use super::{
    Backend, Control, Failure, KubeletConfig, Process, Target,
    backend::Usage,
    serve,
    spdy::{Frame, Headers, Inflater, parse},
};

/// A process that echoes stdin to stdout, tells its first size on stderr, and exits with the number that is its command's
/// last word once its input has ended. `sleep` ends only when it is killed.
struct Fake {
    resized: Arc<Mutex<Vec<(u16, u16)>>>,
    killed: watch::Sender<bool>,
    forward_to: u16,
}

struct FakeControl {
    exit: watch::Receiver<Option<i32>>,
    resized: Arc<Mutex<Vec<(u16, u16)>>>,
    killed: watch::Sender<bool>,
}

#[async_trait]
impl Control for FakeControl {
    async fn resize(&self, columns: u16, rows: u16) -> Result<(), Failure> {
        self.resized.lock().push((columns, rows));
        Ok(())
    }
    async fn wait(&self) -> Result<i32, Failure> {
        let mut exit = self.exit.clone();
        let code = exit
            .wait_for(Option::is_some)
            .await
            .map_err(|e| Failure::Internal(e.to_string()))?;
        Ok(code.unwrap_or_default())
    }
    async fn kill(&self) -> Result<(), Failure> {
        self.killed.send_replace(true);
        Ok(())
    }
}

#[async_trait]
impl Backend for Fake {
    fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        let other: prometheus_client::metrics::gauge::Gauge = Default::default();
        other.set(7);
        registry.register("orch_dataplane_pods", "of another part", other);
    }

    fn node_name(&self) -> &str {
        "node-1"
    }

    fn pods(&self) -> Vec<Pod> {
        let pod = serde_json::json!({ "metadata": { "namespace": "ns", "name": "web" },
            "status": { "podIPs": [{ "ip": "127.0.0.1" }] } });
        vec![serde_json::from_value(pod).unwrap()]
    }
    async fn logs(
        &self,
        target: &Target,
        previous: bool,
        options: LogOptions,
    ) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
        if target.container != "main" {
            return Err(Failure::BadRequest(format!(
                "container {} is not valid",
                target.container
            )));
        }
        let text = format!(
            "{} {:?} {:?} {previous}\n",
            options.follow, options.tail_lines, options.since_seconds
        );
        Ok(futures::stream::iter([Ok(Bytes::from(text))]).boxed())
    }
    fn find(&self, target: &Target) -> Result<(), Failure> {
        if target.pod == "web" {
            Ok(())
        } else {
            Err(Failure::NotFound(format!("pod \"{}\" not found", target.pod)))
        }
    }
    async fn exec(&self, _: &Target, spec: ExecSpec) -> Result<Process, Failure> {
        let last = spec.command.last().cloned().unwrap_or_default();
        if last == "missing" {
            return Err(Failure::Internal("no such file".into()));
        }
        let (stdin, mut from_client) = tokio::io::duplex(1 << 16);
        let (mut to_client, stdout) = tokio::io::duplex(1 << 16);
        let (mut to_stderr, stderr) = tokio::io::duplex(1 << 16);
        let (finish, exit) = watch::channel(None);
        tokio::spawn(async move {
            if last == "sleep" {
                finish.closed().await;
                return;
            }
            to_stderr.write_all(b"hello").await.unwrap();
            drop(to_stderr);
            if spec.stdin {
                tokio::io::copy(&mut from_client, &mut to_client).await.unwrap();
            }
            drop(to_client);
            finish.send_replace(last.parse().ok());
        });
        let control = FakeControl {
            exit,
            resized: self.resized.clone(),
            killed: self.killed.clone(),
        };
        Ok(Process {
            stdin: spec.stdin.then(|| Box::pin(stdin) as _),
            stdout: Some(Box::pin(stdout)),
            stderr: (!spec.tty).then(|| Box::pin(stderr) as _),
            control: Arc::new(control),
        })
    }
    async fn attach(&self, target: &Target, stdin: bool) -> Result<Process, Failure> {
        let command = vec!["0".to_owned()];
        self.exec(
            target,
            ExecSpec {
                command,
                stdin,
                ..ExecSpec::default()
            },
        )
        .await
    }
    fn find_pod(&self, _: &str, _: &str) -> Result<(), Failure> {
        Ok(())
    }
    async fn dial(&self, _: &str, _: &str, port: u16) -> Result<TcpStream, Failure> {
        if port != 80 {
            return Err(Failure::Internal(format!("connection to {port} refused")));
        }
        TcpStream::connect(("127.0.0.1", self.forward_to))
            .await
            .map_err(|e| Failure::Internal(e.to_string()))
    }
    async fn usage(&self) -> Vec<Usage> {
        Vec::new()
    }
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "ca");
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    Ca {
        der: cert.der().clone(),
        pem: cert.pem(),
        issuer: Issuer::new(params, key),
    }
}

fn client_cert(ca: &Ca, name: &str, group: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, group);
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &ca.issuer).unwrap();
    (
        cert.der().clone(),
        PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    )
}

/// A running API with its CA.
struct Api {
    address: SocketAddr,
    ca: Ca,
    fake: Arc<Fake>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn fake(forward_to: u16) -> Fake {
    Fake {
        resized: Arc::default(),
        killed: watch::channel(false).0,
        forward_to,
    }
}

async fn api() -> Api {
    let ca = ca();
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["node".to_owned()])
        .unwrap()
        .signed_by(&key, &ca.issuer)
        .unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let config = KubeletConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        tls_cert: write("tls.crt", cert.pem()),
        tls_key: write("tls.key", key.serialize_pem()),
        client_ca: write("ca.crt", ca.pem.clone()),
    };
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let forward_to = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let fake = Arc::new(fake(forward_to));
    let stop = CancellationToken::new();
    let address = serve(&config, fake.clone(), stop.clone()).await.unwrap()[0];
    Api {
        address,
        ca,
        fake,
        stop,
        _dir: dir,
    }
}

impl Api {
    async fn connect(&self, identity: Option<(&str, &str)>) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            Some((name, group)) => {
                let (cert, key) = client_cert(&self.ca, name, group);
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("node").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap()
    }

    /// A whole request and its whole answer.
    async fn get(&self, identity: Option<(&str, &str)>, path: &str) -> (u16, String) {
        let mut stream = self.connect(identity).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The server may close without a TLS goodbye once the answer is complete.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let code = answer.split_whitespace().nth(1).unwrap().parse().unwrap();
        (code, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn upgrade(&self, path: &str, headers: &str) -> (String, TlsStream<TcpStream>) {
        let mut stream = self.connect(Some(ADMIN)).await;
        let request = format!("POST {path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (String::from_utf8(head).unwrap(), stream)
    }

    async fn websocket(&self, path: &str, protocol: &str) -> WebSocketStream<TlsStream<TcpStream>> {
        let key = BASE64_STANDARD.encode([7; 16]);
        let headers = format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\
             Sec-WebSocket-Protocol: other.protocol, {protocol}\r\n"
        );
        let (head, stream) = self.upgrade(path, &headers).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(
            head.contains(&format!("sec-websocket-protocol: {protocol}\r\n")),
            "{head}"
        );
        WebSocketStream::from_raw_socket(stream, Role::Client, None).await
    }

    async fn spdy(&self, path: &str, protocol: &str) -> SpdyClient<TlsStream<TcpStream>> {
        let headers = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n");
        let (head, stream) = self.upgrade(path, &headers).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert!(
            head.contains(&format!("x-stream-protocol-version: {protocol}\r\n")),
            "{head}"
        );
        SpdyClient::new(stream)
    }
}

const ADMIN: (&str, &str) = ("admin", "system:masters");

#[tokio::test]
async fn only_admins_and_the_api_server_get_in() {
    let api = api().await;
    let (code, body) = api.get(None, "/pods").await;
    assert_eq!(code, 401);
    assert!(body.contains("\"reason\":\"Unauthorized\""), "{body}");
    let (code, body) = api.get(Some(("system:node:n2", "system:nodes")), "/pods").await;
    assert_eq!(code, 403);
    assert!(body.contains("system:node:n2"), "{body}");
    assert_eq!(api.get(None, "/healthz").await.0, 401);
    assert_eq!(api.get(Some(ADMIN), "/healthz").await, (200, "ok".to_owned()));
    let server = ("kube-apiserver-kubelet-client", "anything");
    let (code, body) = api.get(Some(server), "/pods").await;
    assert_eq!(code, 200);
    assert!(body.contains("\"kind\":\"PodList\""), "{body}");
    assert_eq!(api.get(Some(server), "/nothing").await.0, 404);
}

#[tokio::test]
async fn a_certificate_of_another_ca_ends_the_handshake() {
    let api = api().await;
    let other = Api {
        ca: ca(),
        address: api.address,
        fake: api.fake.clone(),
        stop: CancellationToken::new(),
        _dir: tempfile::tempdir().unwrap(),
    };
    let (cert, key) = client_cert(&other.ca, "admin", "system:masters");
    let mut roots = RootCertStore::empty();
    roots.add(api.ca.der.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert], key)
        .unwrap();
    let stream = TcpStream::connect(api.address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let result = async {
        let mut stream = connector
            .connect(ServerName::try_from("node").unwrap(), stream)
            .await?;
        stream
            .write_all(b"GET /pods HTTP/1.1\r\nHost: node\r\n\r\n")
            .await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await
    };
    assert!(result.await.is_err());
}

#[tokio::test]
async fn logs_take_the_api_servers_options() {
    let api = api().await;
    let (code, body) = api
        .get(
            Some(ADMIN),
            "/containerLogs/ns/web/main?follow=true&tailLines=3&sinceSeconds=60",
        )
        .await;
    assert_eq!(code, 200);
    assert!(body.contains("true Some(3) Some(60) false"), "{body}");
    let (code, body) = api
        .get(Some(ADMIN), "/containerLogs/ns/web/main?tailLines=many")
        .await;
    assert_eq!(code, 400);
    assert!(body.contains("tailLines"), "{body}");
    assert_eq!(api.get(Some(ADMIN), "/containerLogs/ns/web/other").await.0, 400);
    for path in ["/metrics", "/metrics/resource", "/stats/summary"] {
        assert_eq!(api.get(Some(ADMIN), path).await.0, 200, "{path}");
    }
    let (_, metrics) = api.get(Some(ADMIN), "/metrics").await;
    assert!(metrics.contains("\norch_dataplane_pods 7\n"), "{metrics}");
}

/// Reads until the status channel, which is returned last.
async fn read_all<T>(socket: &mut WebSocketStream<T>) -> (Vec<u8>, Vec<u8>, serde_json::Value)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let message = socket
            .next()
            .await
            .expect("a status comes before the end")
            .unwrap();
        let Message::Binary(bytes) = message else { continue };
        match bytes[0] {
            1 => out.extend_from_slice(&bytes[1..]),
            2 => err.extend_from_slice(&bytes[1..]),
            3 => return (out, err, serde_json::from_slice(&bytes[1..]).unwrap()),
            other => panic!("channel {other}"),
        }
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    Message::binary([&[channel], bytes].concat())
}

#[tokio::test]
async fn exec_over_websocket_v5_half_closes_and_tells_the_exit_code() {
    let api = api().await;
    let path = "/exec/ns/web/main?command=sh&command=3&input=1&output=1&error=1";
    let mut socket = api.websocket(path, "v5.channel.k8s.io").await;
    socket.send(message(0, b"some ")).await.unwrap();
    socket
        .send(message(4, br#"{"Width":80,"Height":24}"#))
        .await
        .unwrap();
    socket.send(message(0, b"text")).await.unwrap();
    socket.send(message(255, &[0])).await.unwrap();
    let (out, err, status) = read_all(&mut socket).await;
    assert_eq!(
        (out.as_slice(), err.as_slice()),
        (&b"some text"[..], &b"hello"[..])
    );
    assert_eq!(status["status"], "Failure");
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(
        status["details"]["causes"][0],
        serde_json::json!({"reason": "ExitCode", "message": "3"})
    );
    assert_eq!(*api.fake.resized.lock(), [(80, 24)]);
    let rest: Vec<_> = socket.collect().await;
    assert!(
        rest.iter()
            .all(|m| m.as_ref().is_ok_and(|m| m.is_close()) || m.is_err()),
        "{rest:?}"
    );
}

#[tokio::test]
async fn exec_over_websocket_v4_tells_success_and_failures_to_start() {
    let api = api().await;
    let mut socket = api
        .websocket("/exec/ns/web/main?command=0&stdout=true", "v4.channel.k8s.io")
        .await;
    let (out, err, status) = read_all(&mut socket).await;
    assert!(out.is_empty() && err.is_empty());
    assert_eq!(status, serde_json::json!({"metadata": {}, "status": "Success"}));
    let mut socket = api
        .websocket(
            "/exec/ns/web/main?command=missing&stdout=true",
            "v4.channel.k8s.io",
        )
        .await;
    let (_, _, status) = read_all(&mut socket).await;
    assert_eq!(status["reason"], "InternalError");
    assert!(status["message"].as_str().unwrap().contains("no such file"));
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_process_with_it() {
    let api = api().await;
    let mut killed = api.fake.killed.subscribe();
    let socket = api
        .websocket(
            "/exec/ns/web/main?command=sleep&stdin=true&stdout=true",
            "v5.channel.k8s.io",
        )
        .await;
    drop(socket);
    killed.wait_for(|killed| *killed).await.unwrap();
}

#[tokio::test]
async fn bad_upgrades_get_an_answer_instead_of_a_connection() {
    let api = api().await;
    let (code, body) = api.get(Some(ADMIN), "/exec/ns/web/main?command=0&stdout=1").await;
    assert_eq!(
        (code, body.contains("Upgrade request required")),
        (400, true),
        "{body}"
    );
    let (code, _) = api
        .get(Some(ADMIN), "/exec/ns/nope/main?command=0&stdout=1")
        .await;
    assert_eq!(code, 404);
    let (code, _) = api.get(Some(ADMIN), "/exec/ns/web/main?command=0").await;
    assert_eq!(code, 400);
    let headers = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v1.old\r\n";
    let (head, _) = api.upgrade("/exec/ns/web/main?command=0&stdout=1", headers).await;
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
}

/// The client's side of SPDY, made of the same frames.
struct SpdyClient<T> {
    io: T,
    buffer: BytesMut,
    compress: flate2::Compress,
    inflater: Inflater,
}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> SpdyClient<T> {
    fn new(io: T) -> Self {
        // Without a preset dictionary at all: a decoder has to take that as well.
        let compress = flate2::Compress::new(flate2::Compression::none(), true);
        Self {
            io,
            buffer: BytesMut::new(),
            compress,
            inflater: Inflater::default(),
        }
    }

    async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(1024);
        self.compress
            .compress_vec(&plain, &mut block, flate2::FlushCompress::Sync)
            .unwrap();
        self.send(Frame::SynStream {
            stream,
            fin: false,
            block: block.into(),
        })
        .await;
    }

    async fn send(&mut self, frame: Frame) {
        self.io.write_all(&frame.to_bytes()).await.unwrap();
    }

    async fn data(&mut self, stream: u32, bytes: &'static [u8], fin: bool) {
        self.send(Frame::Data {
            stream,
            fin,
            payload: Bytes::from_static(bytes),
        })
        .await;
    }

    /// What came on each stream until the last of `ends` was half-closed.
    async fn read_until(&mut self, ends: &[u32]) -> std::collections::BTreeMap<u32, Vec<u8>> {
        let mut seen = std::collections::BTreeMap::<u32, Vec<u8>>::new();
        let mut open = ends.to_vec();
        while !open.is_empty() {
            let Some(frame) = parse(&mut self.buffer).unwrap() else {
                assert_ne!(
                    self.io.read_buf(&mut self.buffer).await.unwrap(),
                    0,
                    "the streams end first"
                );
                continue;
            };
            match frame {
                Frame::SynReply { block, .. } => {
                    assert_eq!(self.inflater.read(&block).unwrap(), Headers::new())
                }
                Frame::Data { stream, fin, payload } => {
                    seen.entry(stream).or_default().extend_from_slice(&payload);
                    if fin {
                        open.retain(|id| *id != stream);
                    }
                }
                Frame::Reset { stream, .. } => open.retain(|id| *id != stream),
                other => panic!("{other:?}"),
            }
        }
        seen
    }
}

#[tokio::test]
async fn exec_over_spdy() {
    let api = api().await;
    let path = "/exec/ns/web/main?command=sh&command=7&input=1&output=1&error=1";
    let mut client = api.spdy(path, "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(id, &[("streamtype", kind)]).await;
    }
    client.data(3, b"to and fro", false).await;
    client.data(3, b"", true).await;
    let seen = client.read_until(&[1, 5, 7]).await;
    assert_eq!(seen[&5], b"to and fro");
    assert_eq!(seen[&7], b"hello");
    let status: serde_json::Value = serde_json::from_slice(&seen[&1]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "7");
}

async fn forward_twice<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut client: SpdyClient<T>) {
    for (id, request) in [(1, "0"), (5, "1")] {
        client
            .open(
                id,
                &[("streamtype", "error"), ("port", "80"), ("requestid", request)],
            )
            .await;
        client
            .open(
                id + 2,
                &[("streamtype", "data"), ("port", "80"), ("requestid", request)],
            )
            .await;
    }
    client.data(7, b"second", false).await;
    client.data(3, b"first", false).await;
    client.data(7, b"", true).await;
    client.data(3, b"", true).await;
    let seen = client.read_until(&[1, 3, 5, 7]).await;
    assert_eq!(
        (seen[&3].as_slice(), seen[&7].as_slice()),
        (&b"first"[..], &b"second"[..])
    );
    assert!(seen[&1].is_empty() && seen[&5].is_empty());
    client
        .open(9, &[("streamtype", "error"), ("port", "81"), ("requestid", "2")])
        .await;
    client
        .open(11, &[("streamtype", "data"), ("port", "81"), ("requestid", "2")])
        .await;
    let seen = client.read_until(&[9, 11]).await;
    let error = String::from_utf8(seen[&9].clone()).unwrap();
    assert!(error.contains("connection to 81 refused"), "{error}");
}

#[tokio::test]
async fn port_forward_over_spdy() {
    let api = api().await;
    forward_twice(api.spdy("/portForward/ns/web", "portforward.k8s.io").await).await;
}

#[tokio::test]
async fn port_forward_over_spdy_in_a_websocket() {
    let api = api().await;
    let socket = api
        .websocket("/portForward/ns/web", "SPDY/3.1+portforward.k8s.io")
        .await;
    let stream: DuplexStream = super::websocket::tunnel(socket);
    forward_twice(SpdyClient::new(stream)).await;
}

#[tokio::test]
async fn attach_joins_the_containers_streams() {
    let api = api().await;
    let mut socket = api
        .websocket("/attach/ns/web/main?stdout=true&stderr=true", "v5.channel.k8s.io")
        .await;
    let (out, err, status) = read_all(&mut socket).await;
    assert_eq!((out.as_slice(), err.as_slice()), (&b""[..], &b"hello"[..]));
    assert_eq!(status["status"], "Success");
}

//! Connections to ports of the node's own pods, for the API server's `proxy`: it need not reach the pod network.
//!
//! `GET /dial/NAMESPACE/POD?ip=ADDRESS&port=PORT` with `Upgrade: tcp` becomes the connection. It is made from the
//! node itself, as the kubelet's probes are, so policies that let the node in let it in.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Path, Query, Request, State},
    http::{HeaderValue, header},
    response::Response,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::serde::Deserialize;
use tokio::net::TcpStream;

use super::{Backend, Failure, upgrade};

/// How long a connection to a pod of this node may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Where in the pod.
#[derive(Deserialize)]
#[serde(crate = "k8s_openapi::serde")]
pub(super) struct Target {
    ip: IpAddr,
    port: u16,
}

/// Whether the address is the pod's.
fn has(pod: &Pod, namespace: &str, name: &str, ip: IpAddr) -> bool {
    let named = pod.metadata.name.as_deref() == Some(name);
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|s| s.pod_ips.iter().flatten());
    let mut all = all
        .map(|one| &one.ip)
        .chain(status.and_then(|s| s.pod_ip.as_ref()));
    named && pod.metadata.namespace.as_deref() == Some(namespace) && all.any(|own| own.parse() == Ok(ip))
}

/// Connects, then joins both connections.
pub(super) async fn serve(
    State(backend): State<Arc<dyn Backend>>,
    Path((namespace, pod)): Path<(String, String)>,
    Query(Target { ip, port }): Query<Target>,
    request: Request,
) -> Result<Response, Failure> {
    let wants = request.headers().get(header::UPGRADE);
    if wants.is_none_or(|v| !v.as_bytes().eq_ignore_ascii_case(b"tcp")) {
        return Err(Failure::BadRequest("Upgrade request required".into()));
    }
    // Not 404, which would say that the path means nothing here.
    if !backend.pods().iter().any(|own| has(own, &namespace, &pod, ip)) {
        return Err(Failure::BadRequest(format!(
            "pod {namespace}/{pod} does not have the address {ip} on node {}",
            backend.node_name()
        )));
    }
    let address = SocketAddr::new(ip, port);
    let failed = |error: std::io::Error| Failure::Internal(format!("dial tcp {address}: {error}"));
    let mut stream = tokio::time::timeout(CONNECT, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(failed)?;
    // Requests and answers are often small, and somebody waits for each.
    stream.set_nodelay(true).map_err(failed)?;
    let headers = vec![(header::UPGRADE, HeaderValue::from_static("tcp"))];
    upgrade::switch(request, headers, move |mut client| async move {
        // Either side may simply go away; that is how connections end.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut stream).await;
    })
}

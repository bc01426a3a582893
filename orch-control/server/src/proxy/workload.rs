//! HTTP to what runs in pods: the `proxy` subresource of pods, services and nodes.
//!
//! The agent of the pod's node makes the connection, so the API server needs no way into the pod network. Where the
//! node runs some other kubelet the API server connects to the pod's address itself, as Kubernetes' does.

use std::{net::SocketAddr, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use orch_api::ApiError;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{
    any_certificate,
    exchange::exchange,
    html::{Base, Rewriter},
    kubelet,
    location::{self, Pod, Server, Target},
    tunnel::TunnelError,
};
use crate::{http::target::Resource, object::Call};

/// A server that does not answer by then is taken to be down; as long as Kubernetes waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Passes the request on.
///
/// # Errors
/// 404 without the object, 400 for addresses that must not be asked, 503 when nobody answers.
pub async fn pass(
    call: &Call,
    resource: &Resource,
    mut parts: Parts,
    body: Body,
) -> Result<Response, ApiError> {
    let named = location::split(call, &call.name)?;
    let target = location::find(call, &named).await?;
    let Target::Server(server) = target else {
        return kubelet::node(call, named.name, resource, parts, body).await;
    };
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let upgrades = parts.headers.contains_key(header::UPGRADE);
    let own_path = parts.uri.path();
    let query = parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    if resource.rest.is_empty() && !upgrades && matches!(parts.method, Method::GET | Method::HEAD) {
        // Links that are relative to the root would else lead beside the proxy.
        return moved(&format!("{own_path}/{query}"));
    }
    let prefix = own_path
        .strip_suffix(&resource.rest)
        .unwrap_or(own_path)
        .to_owned();
    let host = parts
        .headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok().map(str::to_owned))
        .or_else(|| parts.uri.authority().map(ToString::to_string));
    let path = if resource.rest.is_empty() {
        "/"
    } else {
        &resource.rest
    };
    let base = Base {
        prefix,
        hosts: host.iter().cloned().chain([server.address.to_string()]).collect(),
    };

    let mut request = Request::builder()
        .method(parts.method.clone())
        .uri(format!("{path}{query}"));
    if let Some(headers) = request.headers_mut() {
        headers.clone_from(&parts.headers);
        forwarded(headers, &format!("{}{path}", base.prefix), host.as_deref());
        if !upgrades {
            // What is compressed could not be rewritten.
            headers.remove(header::ACCEPT_ENCODING);
        }
    }
    let request = request
        .body(body)
        .map_err(|error| ApiError::bad_request(format!("the request cannot be passed on: {error}")))?;
    let response = send(call, named.secure, &server, request, upgrade.filter(|_| upgrades))
        .await
        .map_err(|error| ApiError::service_unavailable(format!("error trying to reach service: {error}")))?;
    Ok(rewrite(response, base))
}

fn moved(to: &str) -> Result<Response, ApiError> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let to = HeaderValue::from_str(to).map_err(ApiError::internal)?;
    response.headers_mut().insert(header::LOCATION, to);
    Ok(response)
}

/// Tells the server how it was reached.
fn forwarded(headers: &mut http::HeaderMap, uri: &str, host: Option<&str>) {
    for (name, value) in [
        ("x-forwarded-uri", uri),
        ("x-forwarded-host", host.unwrap_or_default()),
        ("x-forwarded-proto", "https"),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// A connection, however it was made.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error("dial tcp {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("tls: {0}")]
    Tls(String),
    #[error("{address}: {source}")]
    Http {
        address: SocketAddr,
        source: hyper::Error,
    },
}

/// Connects to the server, through the agent of its node if there is one.
async fn connect(call: &Call, server: &Server) -> Result<Box<dyn Stream>, SendError> {
    let Server { address, pod } = server;
    let node = |pod: &Pod| call.state.core("nodes").ok()?.get_value("", &pod.node);
    if let Some(pod) = pod
        && let Some((host, port)) = node(pod).as_ref().and_then(kubelet::address)
    {
        let (ip, target) = (address.ip(), address.port());
        let path = format!("/dial/{}/{}?ip={ip}&port={target}", pod.namespace, pod.name);
        if let Some(tunnel) = call.state.kubelets.dial(&host, port, &path).await? {
            return Ok(Box::new(tunnel));
        }
    }
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(|source| SendError::Connect {
            address: *address,
            source,
        })?;
    let _ = stream.set_nodelay(true);
    Ok(Box::new(stream))
}

async fn send(
    call: &Call,
    secure: bool,
    server: &Server,
    request: Request<Body>,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, SendError> {
    let address = server.address;
    let stream = connect(call, server).await?;
    let failed = |source| SendError::Http { address, source };
    if !secure {
        return exchange(stream, &address.to_string(), request, upgrade)
            .await
            .map_err(failed);
    }
    let connector = any_certificate::connector().map_err(|error| SendError::Tls(error.to_string()))?;
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(address.ip().into(), stream))
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        .map_err(|error| SendError::Tls(error.to_string()))?;
    exchange(stream, &address.to_string(), request, upgrade)
        .await
        .map_err(failed)
}

/// Makes the links of an answer lead back through the proxy.
fn rewrite(mut response: Response, base: Base) -> Response {
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    // Whether other sites may read answers of the API server is not a pod's to say.
    let cors: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("access-control-"))
        .cloned()
        .collect();
    for name in cors {
        headers.remove(name);
    }
    if upgraded {
        return response;
    }
    if let Some(to) = headers.get(header::LOCATION).and_then(|to| to.to_str().ok()) {
        if let Some(to) = base.rewrite(to).and_then(|to| HeaderValue::from_str(&to).ok()) {
            headers.insert(header::LOCATION, to);
        }
        return response;
    }
    let is_html = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/html"));
    if !is_html || headers.contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    headers.remove(header::CONTENT_LENGTH);
    let (parts, body) = response.into_parts();
    let stream = futures::stream::unfold(
        (body.into_data_stream(), Some(Rewriter::new(base))),
        |(mut pieces, rewriter)| async move {
            let mut rewriter = rewriter?;
            Some(match pieces.next().await {
                Some(Ok(piece)) => {
                    let out = Bytes::from(rewriter.push(&piece));
                    (Ok(out), (pieces, Some(rewriter)))
                }
                Some(Err(error)) => (Err(error), (pieces, None)),
                None => (Ok(Bytes::from(rewriter.finish())), (pieces, None)),
            })
        },
    );
    Response::from_parts(parts, Body::from_stream(stream))
}

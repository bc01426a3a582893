//! Health checks for load balancers outside: each service's health-check node port, and the proxy's own health.
//!
//! Paths, statuses and bodies are those that kube-proxy's users know (Kubernetes, "Virtual IPs and Service Proxies":
//! "If a Service has `externalTrafficPolicy: Local`, `healthCheckNodePort` …", and KEP-3836 for `/livez`).

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::model::HealthCheck;

/// How long to wait before a port that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long a client may take to ask.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the answers are made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The health-check node ports by `namespace/name` of their service.
    pub checks: BTreeMap<Arc<str>, HealthCheck>,
    /// Whether the node is meant to stay.
    pub node_stays: bool,
    /// Whether the maps hold what the cluster says.
    pub programmed: bool,
}

/// Serves until the task is dropped; `proxy` is where the proxy's own health is asked for, if anywhere.
pub async fn run(proxy: Option<SocketAddr>, mut state: watch::Receiver<State>) {
    let mut own = JoinSet::new();
    if let Some(address) = proxy {
        let state = state.clone();
        own.spawn(async move {
            loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => serve(listener, state.clone(), Arc::new(proxy_answer)).await,
                    Err(error) => tracing::warn!(%error, %address, "the proxy's health cannot be served"),
                }
                tokio::time::sleep(RETRY).await;
            }
        });
    }
    let mut open: BTreeMap<(Arc<str>, u16), JoinSet<()>> = BTreeMap::new();
    loop {
        let wanted: Vec<(Arc<str>, u16)> = state
            .borrow_and_update()
            .checks
            .iter()
            .map(|(name, check)| (Arc::clone(name), check.port))
            .collect();
        open.retain(|key, _| wanted.contains(key));
        let mut failed = false;
        for key in wanted {
            if open.contains_key(&key) {
                continue;
            }
            match listen(key.1).await {
                Ok(listener) => {
                    let name = Arc::clone(&key.0);
                    let answer = move |_: &str, state: &State| check_answer(&name, state);
                    let mut task = JoinSet::new();
                    task.spawn(serve(listener, state.clone(), Arc::new(answer)));
                    open.insert(key, task);
                }
                Err(error) => {
                    tracing::warn!(%error, service = %key.0, port = key.1, "a health-check node port cannot be served");
                    failed = true;
                }
            }
        }
        let retry = async {
            if failed {
                tokio::time::sleep(RETRY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = retry => {}
        }
    }
}

/// Listens on all addresses of both families, or of IPv4 where the node has nothing else.
async fn listen(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
            ) =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        other => other,
    }
}

/// Makes the answer to a path.
type Answer = dyn Fn(&str, &State) -> Response<Full<Bytes>> + Send + Sync;

async fn serve(listener: TcpListener, state: watch::Receiver<State>, answer: Arc<Answer>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or a client that left: neither lasts.
                tracing::debug!(%error, "a health check could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (state, answer) = (state.clone(), Arc::clone(&answer));
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = answer(request.uri().path(), &state.borrow());
                async move { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a health check broke off");
            }
        });
    }
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Check<'a> {
    service: Named<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Proxy {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
}

fn response(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn good(is_good: bool) -> StatusCode {
    if is_good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// A service's answer, on any path: whether this node has an endpoint of it, and how many.
fn check_answer(service: &str, state: &State) -> Response<Full<Bytes>> {
    let (namespace, name) = service.split_once('/').unwrap_or_default();
    let local_endpoints = state.checks.get(service).map_or(0, |check| check.local_endpoints);
    let body = Check {
        service: Named { namespace, name },
        local_endpoints,
        service_proxy_healthy: state.programmed,
    };
    let mut response = response(good(local_endpoints != 0 && state.programmed), &body);
    response.headers_mut().insert(
        HeaderName::from_static("x-load-balancing-endpoint-weight"),
        HeaderValue::from(local_endpoints),
    );
    response
}

/// The proxy's answer: `/healthz` fails on a node that is going, `/livez` does not.
fn proxy_answer(path: &str, state: &State) -> Response<Full<Bytes>> {
    let now = Timestamp::now().to_string();
    let body = |node_eligible| Proxy {
        last_updated: now.clone(),
        current_time: now.clone(),
        node_eligible,
    };
    match path {
        "/healthz" => response(
            good(state.programmed && state.node_stays),
            &body(Some(state.node_stays)),
        ),
        "/livez" => response(good(state.programmed), &body(None)),
        _ => response(
            StatusCode::NOT_FOUND,
            &serde_json::json!({"message": "no such path"}),
        ),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;

    fn state(port: u16, local_endpoints: usize) -> State {
        let check = HealthCheck {
            port,
            local_endpoints,
        };
        State {
            checks: [(Arc::from("shop/web"), check)].into(),
            node_stays: true,
            programmed: true,
        }
    }

    async fn body(response: Response<Full<Bytes>>) -> Value {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[tokio::test]
    async fn a_service_is_healthy_where_it_has_endpoints() {
        let answer = check_answer("shop/web", &state(1, 2));
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["x-load-balancing-endpoint-weight"], "2");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        let wanted = json!({"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2,
            "serviceProxyHealthy": true});
        assert_eq!(body(answer).await, wanted);
        assert_eq!(
            check_answer("shop/web", &state(1, 0)).status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        let unprogrammed = State {
            programmed: false,
            ..state(1, 2)
        };
        assert_eq!(
            check_answer("shop/web", &unprogrammed).status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
    }

    #[tokio::test]
    async fn a_node_that_goes_is_alive_and_not_eligible() {
        let going = State {
            node_stays: false,
            ..state(1, 2)
        };
        assert_eq!(proxy_answer("/livez", &going).status(), StatusCode::OK);
        let answer = proxy_answer("/healthz", &going);
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body(answer).await["nodeEligible"], json!(false));
        assert_eq!(proxy_answer("/healthz", &state(1, 1)).status(), StatusCode::OK);
        assert_eq!(proxy_answer("/", &state(1, 1)).status(), StatusCode::NOT_FOUND);
    }

    async fn ask(port: u16) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    #[tokio::test]
    async fn ports_open_and_close_as_services_come_and_go() {
        // A port that was free a moment ago.
        let port = listen(0).await.unwrap().local_addr().unwrap().port();
        let (sender, receiver) = watch::channel(State::default());
        let mut task = JoinSet::new();
        task.spawn(run(None, receiver));
        sender.send_replace(state(port, 1));
        let answer = loop {
            match ask(port).await {
                Ok(answer) => break answer,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        sender.send_replace(state(port, 0));
        assert!(ask(port).await.unwrap().starts_with("HTTP/1.1 503 "));
        sender.send_replace(State::default());
        while ask(port).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

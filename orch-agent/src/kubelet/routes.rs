//! The routes and what each asks of the node.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::header,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use orch_runtime::{ExecSpec, OutputStream};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Backend, Failure, Process, Target,
    auth::Identity,
    dial, logs, metrics, portforward, session, spdy_streams,
    spdy_streams::Wanted,
    stats,
    upgrade::{self, Kind},
    websocket,
};

/// Messages between a transport and its session that wait for their reader.
const BACKLOG: usize = 16;

type Shared = State<Arc<dyn Backend>>;
type Pairs = Query<Vec<(String, String)>>;

/// All routes over a backend. Requests carry their [`Identity`] as an extension when TLS has verified one.
pub fn router(backend: Arc<dyn Backend>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::serve))
        .route("/exec/{namespace}/{pod}/{container}", any(exec))
        .route("/attach/{namespace}/{pod}/{container}", any(attach))
        .route("/portForward/{namespace}/{pod}", any(port_forward))
        .route("/dial/{namespace}/{pod}", any(dial::serve))
        .route("/metrics", get(metrics::agent))
        .route("/metrics/resource", get(metrics::resource))
        .route("/stats/summary", get(stats::summary))
        .fallback(|| async { Failure::NotFound("404 page not found".into()) })
        .layer(middleware::from_fn(guard))
        .with_state(backend)
}

/// The agent's own metrics, for a listener of their own that asks nobody who they are.
pub fn metrics_router(backend: Arc<dyn Backend>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/metrics", get(metrics::agent))
        .with_state(backend)
}

/// Authentication, then authorisation.
async fn guard(request: Request, next: Next) -> Result<Response, Failure> {
    let identity = request
        .extensions()
        .get::<Identity>()
        .ok_or(Failure::Unauthorized)?;
    identity.authorize(request.method().as_str(), request.uri().path())?;
    Ok(next.run(request).await)
}

async fn pods(State(backend): Shared) -> impl IntoResponse {
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": backend.pods()}))
}

/// The stream options of exec and attach; clients say `true` or, in the kubelet's own form, `1`.
struct Streams {
    wanted: Wanted,
    command: Vec<String>,
}

impl Streams {
    fn of(pairs: Vec<(String, String)>) -> Result<Self, Failure> {
        let mut streams = Self {
            wanted: Wanted {
                stdin: false,
                stdout: false,
                stderr: false,
                tty: false,
            },
            command: Vec::new(),
        };
        for (name, value) in pairs {
            let yes = matches!(value.as_str(), "1" | "true");
            match name.as_str() {
                "command" => streams.command.push(value),
                "stdin" | "input" => streams.wanted.stdin = yes,
                "stdout" | "output" => streams.wanted.stdout = yes,
                "stderr" | "error" => streams.wanted.stderr = yes,
                "tty" => streams.wanted.tty = yes,
                _ => {}
            }
        }
        // A terminal has one output.
        let wanted = &mut streams.wanted;
        wanted.stderr &= !wanted.tty;
        if !(wanted.stdin || wanted.stdout || wanted.stderr) {
            return Err(Failure::BadRequest(
                "you must specify at least 1 of stdin, stdout, stderr".into(),
            ));
        }
        Ok(streams)
    }
}

async fn exec(
    State(backend): Shared,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(pairs): Pairs,
    request: Request,
) -> Result<Response, Failure> {
    let Streams { wanted, command } = Streams::of(pairs)?;
    if command.is_empty() {
        return Err(Failure::BadRequest("you must specify a command".into()));
    }
    let target = Target {
        namespace,
        pod,
        container,
    };
    backend.find(&target)?;
    let spec = ExecSpec {
        command,
        tty: wanted.tty,
        stdin: wanted.stdin,
        ..ExecSpec::default()
    };
    stream(request, wanted, async move { backend.exec(&target, spec).await })
}

async fn attach(
    State(backend): Shared,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(pairs): Pairs,
    request: Request,
) -> Result<Response, Failure> {
    let Streams { wanted, .. } = Streams::of(pairs)?;
    let target = Target {
        namespace,
        pod,
        container,
    };
    backend.find(&target)?;
    stream(request, wanted, async move {
        backend.attach(&target, wanted.stdin).await
    })
}

/// Upgrades, starts the process and connects the two.
fn stream(
    request: Request,
    wanted: Wanted,
    start: impl Future<Output = Result<Process, Failure>> + Send + 'static,
) -> Result<Response, Failure> {
    let kind = upgrade::negotiate(
        request.headers(),
        &[websocket::V5, websocket::V4],
        &[spdy_streams::V4],
    )?;
    upgrade::accept(request, kind, move |io| async move {
        let (inputs, receive) = mpsc::channel(BACKLOG);
        let (send, outputs) = mpsc::channel(BACKLOG);
        let process = async move {
            let process = start.await.map(|mut process| {
                if !wanted.stdout {
                    discard(process.stdout.take());
                }
                if !wanted.stderr {
                    discard(process.stderr.take());
                }
                process
            });
            session::run(process, receive, send).await;
        };
        let transport = async move {
            match kind {
                Kind::WebSocket(protocol) => {
                    let socket = websocket::open(io).await;
                    let hello = Some(websocket::hello(wanted.stdout, wanted.stderr));
                    websocket::carry(socket, protocol == websocket::V5, hello, inputs, outputs).await;
                }
                Kind::Spdy(_) => spdy_streams::carry(io, wanted, inputs, outputs).await,
            }
        };
        tokio::join!(process, transport);
    })
}

/// Reads what nobody wants: a process must not fail or wait because of it.
fn discard(stream: Option<OutputStream>) {
    if let Some(mut stream) = stream {
        tokio::spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
    }
}

async fn port_forward(
    State(backend): Shared,
    Path((namespace, pod)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Failure> {
    backend.find_pod(&namespace, &pod)?;
    let kind = upgrade::negotiate(
        request.headers(),
        &[portforward::TUNNEL],
        &[portforward::PROTOCOL],
    )?;
    upgrade::accept(request, kind, move |io| async move {
        match kind {
            Kind::WebSocket(_) => {
                let socket = websocket::open(io).await;
                portforward::serve(websocket::tunnel(socket), backend, namespace, pod).await;
            }
            Kind::Spdy(_) => portforward::serve(io, backend, namespace, pod).await,
        }
    })
}

/// A plain-text body.
pub(super) fn text(body: String, content_type: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

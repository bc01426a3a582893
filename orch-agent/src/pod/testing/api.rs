//! An API server in memory: just enough of paths, watches and patches for a node.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

pub(crate) struct FakeApi {
    pods: Mutex<BTreeMap<String, Value>>,
    /// Other objects by path.
    pub(crate) objects: Mutex<BTreeMap<String, Value>>,
    events: Mutex<Vec<Value>>,
    changes: broadcast::Sender<Value>,
    version: Mutex<u64>,
}

impl FakeApi {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            pods: Mutex::default(),
            objects: Mutex::default(),
            events: Mutex::default(),
            changes: broadcast::channel(256).0,
            version: Mutex::new(1),
        })
    }

    pub(crate) fn client(self: &Arc<Self>) -> kube::Client {
        kube::Client::new(Router::new().fallback(answer).with_state(self.clone()), "default")
    }

    pub(crate) fn pod(&self, name: &str) -> Option<Value> {
        self.pods.lock().get(name).cloned()
    }

    /// Creates or replaces a pod.
    pub(crate) fn put(&self, mut pod: Value) {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let mut version = self.version.lock();
        *version += 1;
        pod["metadata"]["resourceVersion"] = version.to_string().into();
        let kind = if self.pods.lock().insert(name, pod.clone()).is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        let _ = self.changes.send(json!({"type": kind, "object": pod}));
    }

    /// Asks for a pod's deletion with this grace period, or removes it at once with none.
    pub(crate) fn delete(&self, name: &str, grace: u64) {
        let mut pod = self.pod(name).unwrap();
        pod["metadata"]["deletionTimestamp"] = jiff::Timestamp::now().to_string().into();
        pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        if grace > 0 {
            self.put(pod);
        } else {
            self.pods.lock().remove(name);
            let _ = self.changes.send(json!({"type": "DELETED", "object": pod}));
        }
    }

    /// `TYPE REASON message` of every event written.
    pub(crate) fn events(&self) -> Vec<String> {
        let text = |e: &Value| {
            let field = |f: &str| e[f].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", field("type"), field("reason"), field("message"))
        };
        self.events.lock().iter().map(text).collect()
    }
}

async fn answer(State(api): State<Arc<FakeApi>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path().trim_end_matches('/').to_owned();
    let query = uri.query().unwrap_or_default();
    let parts: Vec<&str> = path
        .trim_start_matches("/api/v1/namespaces/")
        .split('/')
        .collect();
    let missing = || {
        let status = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": path});
        (StatusCode::NOT_FOUND, Json(status)).into_response()
    };
    let value = || serde_json::from_slice::<Value>(&body).unwrap_or_default();
    match (method.as_str(), parts.as_slice()) {
        ("GET", _) if query.contains("watch=true") => watch(&api, path.ends_with("/pods")),
        ("GET", _) if !path.starts_with("/api/v1/namespaces/") => {
            let pods = path == "/api/v1/pods";
            let items: Vec<Value> = if pods {
                api.pods.lock().values().cloned().collect()
            } else {
                vec![]
            };
            let version = api.version.lock().to_string();
            Json(json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": items}))
                .into_response()
        }
        ("GET", _) => api
            .objects
            .lock()
            .get(&path)
            .map_or_else(missing, |o| Json(o.clone()).into_response()),
        ("PATCH", [_, "pods", name, "status"]) => {
            let Some(mut pod) = api.pod(name) else {
                return missing();
            };
            for (key, value) in value()["status"].as_object().cloned().unwrap_or_default() {
                pod["status"][key] = value;
            }
            api.put(pod.clone());
            Json(pod).into_response()
        }
        ("DELETE", [_, "pods", name]) => {
            let Some(pod) = api.pod(name) else {
                return missing();
            };
            api.delete(name, 0);
            Json(pod).into_response()
        }
        ("POST", [_, "serviceaccounts", _, "token"]) => {
            let mut request = value();
            let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600);
            request["status"] = json!({"token": "a.b.c", "expirationTimestamp": expires.to_string()});
            Json(request).into_response()
        }
        ("POST", [_, "events"]) => {
            api.events.lock().push(value());
            Json(value()).into_response()
        }
        ("PATCH", [_, "events", name]) => {
            let mut events = api.events.lock();
            let Some(event) = events.iter_mut().find(|e| e["metadata"]["name"] == *name) else {
                return missing();
            };
            event["count"] = value()["count"].clone();
            Json(event.clone()).into_response()
        }
        _ => missing(),
    }
}

fn watch(api: &FakeApi, pods: bool) -> Response {
    let changes = BroadcastStream::new(api.changes.subscribe());
    let lines = changes.filter_map(async |c| Some(Ok::<_, std::io::Error>(format!("{}\n", c.ok()?))));
    // Other kinds never change.
    let body = if pods {
        Body::from_stream(lines)
    } else {
        Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>())
    };
    Response::new(body)
}

//! The API server that the agent's watches talk to: prepared pages of lists, and watches that the benchmark writes.
//! What the agent does to understand them is measured as well.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{StreamExt as _, channel::mpsc, stream};
use http::{Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};

/// Objects in a page of a list: what `limit` asks for.
const PAGE: usize = 500;
/// Paths of the kinds that a benchmark fills.
pub const SERVICES: &str = "/api/v1/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub const NODES: &str = "/api/v1/nodes";

type Chunks = stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>;

/// The server.
#[derive(Default)]
pub struct Api {
    pages: HashMap<&'static str, Vec<Bytes>>,
    watches: Mutex<HashMap<String, mpsc::UnboundedSender<Bytes>>>,
}

impl Api {
    /// Prepares the list of a kind. Lists that are not prepared are empty.
    pub fn list(&mut self, path: &'static str, objects: impl Iterator<Item = Value>) {
        let objects: Vec<String> = objects.map(|object| object.to_string()).collect();
        let count = objects.len().div_ceil(PAGE);
        let pages = objects.chunks(PAGE).enumerate().map(|(index, chunk)| {
            let next = if index + 1 < count {
                (index + 1).to_string()
            } else {
                String::new()
            };
            page(&next, &chunk.join(","))
        });
        self.pages.insert(path, pages.collect());
    }

    /// A client of it.
    pub fn client(self: &Arc<Self>) -> kube::Client {
        let api = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = api.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        kube::Client::new(service, "default")
    }

    /// Sends an event to whoever watches the kind; says whether somebody does.
    pub fn send(&self, path: &str, event: Bytes) -> bool {
        let watches = self.watches.lock().unwrap();
        watches
            .get(path)
            .is_some_and(|watch| watch.unbounded_send(event).is_ok())
    }

    fn answer(&self, request: &Request<Body>) -> Response<StreamBody<Chunks>> {
        let path = request.uri().path();
        let query = request.uri().query().unwrap_or_default();
        let parameter = |name: &str| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        assert!(
            parameter("sendInitialEvents").is_none(),
            "this server lists, and does not stream lists"
        );
        let chunks = if parameter("watch").is_some() {
            let (sender, receiver) = mpsc::unbounded();
            self.watches.lock().unwrap().insert(path.to_owned(), sender);
            receiver.map(|chunk| Ok(Frame::data(chunk))).boxed()
        } else {
            let index = parameter("continue").map_or(0, |text| text.parse().unwrap());
            let whole = self
                .pages
                .get(path)
                .and_then(|pages: &Vec<Bytes>| pages.get(index))
                .cloned();
            stream::iter([Ok(Frame::data(whole.unwrap_or_else(|| page("", ""))))]).boxed()
        };
        let mut response = Response::new(StreamBody::new(chunks));
        let kind = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        response
    }
}

fn page(next: &str, items: &str) -> Bytes {
    Bytes::from(format!(
        r#"{{"metadata":{{"resourceVersion":"1","continue":"{next}"}},"items":[{items}]}}"#
    ))
}

/// The line of a watch that says that an object is different now.
pub fn modified(mut object: Value, version: usize) -> Bytes {
    object["metadata"]["resourceVersion"] = Value::String(version.to_string());
    Bytes::from(format!("{}\n", json!({"type": "MODIFIED", "object": object})))
}

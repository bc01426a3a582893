//! Watch: changes as lines of JSON, for as long as both sides like.

use std::time::Duration;

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderValue, StatusCode, header};
use orch_api::ApiError;
use orch_store::{
    Revision,
    cache::{CacheError, CacheEvent, Events, From, Object},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Call, meta,
    read::{Selection, encode_one, prefix},
};
use crate::{http::negotiate::Form, state::cache_error};

/// How often a client that allows bookmarks gets one; as often as in Kubernetes.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// How long a watch lasts that names no time, at least; up to twice as long, so that not all end at once.
const MIN_TIMEOUT_SECONDS: u64 = 1800;
/// As many bytes are sent in one piece when events come faster than they are read.
const MAX_CHUNK: usize = 64 * 1024;
/// Marks the bookmark after the initial events (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Answers with a stream of watch events.
///
/// # Errors
/// 400 for parameters that make no sense, 504 for a revision from the future.
pub async fn watch(call: Call) -> Result<Response, ApiError> {
    let selection = Selection::read(&call)?;
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let send_initial = call
        .query
        .get("sendInitialEvents")
        .map(|_| call.query.flag("sendInitialEvents"));
    let revision = call.query.get("resourceVersion").unwrap_or_default().to_owned();
    if send_initial.is_some() && call.query.get("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(ApiError::unprocessable(
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    let after = match revision.as_str() {
        "" | "0" => None,
        text => Some(meta::parse_revision(text)?),
    };
    match after {
        Some(revision) => call.collection.reach(revision).await?,
        None if revision == "0" => call.collection.cache.ready().await,
        None => call.collection.fresh().await?,
    }
    let from = match (send_initial, after) {
        (Some(true), _) | (None, None) => From::State,
        (Some(false), None) => From::Now,
        (_, Some(revision)) => From::After(revision),
    };
    let timeout = match call.query.get("timeoutSeconds") {
        None | Some("0") => {
            Duration::from_secs(MIN_TIMEOUT_SECONDS + rand::random_range(0..MIN_TIMEOUT_SECONDS))
        }
        Some(text) => Duration::from_secs(text.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "timeoutSeconds: Invalid value: {text:?}: must be an integer"
            ))
        })?),
    };
    let events = match call.collection.cache.watch(from, &prefix(&call)) {
        Ok(events) => events,
        // Watch clients expect this in the stream.
        Err(error) => return Ok(streaming(Body::from(error_line(&cache_error(error))))),
    };
    call.state.metrics.watches.inc();
    let now = Instant::now();
    let watch = Watch {
        initial_left: events.initial(),
        events,
        selection,
        bookmarks,
        mark_initial: send_initial == Some(true) && bookmarks,
        ends: now + timeout,
        next_bookmark: now + BOOKMARK_INTERVAL,
        columns_sent: false,
        over: false,
        call,
    };
    let stream = futures::stream::unfold(watch, |mut watch| async move {
        let chunk = watch.chunk().await?;
        Some((Ok::<_, std::convert::Infallible>(chunk), watch))
    });
    Ok(streaming(Body::from_stream(stream)))
}

fn streaming(body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn error_line(error: &ApiError) -> String {
    line("ERROR", &error.to_status().to_string())
}

fn line(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

struct Watch {
    call: Call,
    events: Events,
    selection: Selection,
    bookmarks: bool,
    /// Events of the initial state that are still to come.
    initial_left: usize,
    /// Whether a bookmark is owed after them.
    mark_initial: bool,
    ends: Instant,
    next_bookmark: Instant,
    /// Tables carry their column definitions in the first event only.
    columns_sent: bool,
    over: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.call.state.metrics.watches.dec();
    }
}

/// What happened while waiting.
enum Step {
    Event(Result<CacheEvent, CacheError>),
    Bookmark,
    End,
}

impl Watch {
    /// The next bytes to send; `None` at the end.
    async fn chunk(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() && !self.over {
            if self.initial_left == 0 && std::mem::take(&mut self.mark_initial) {
                let annotation = json!({ INITIAL_EVENTS_END: "true" });
                self.write_bookmark(self.events.begins(), Some(annotation), &mut out);
                continue;
            }
            match self.step().await {
                Step::Event(event) => self.write(event, &mut out),
                Step::Bookmark => self.periodic_bookmark(&mut out),
                Step::End => self.over = true,
            }
            self.drain(&mut out);
        }
        (!out.is_empty()).then(|| out.into())
    }

    async fn step(&mut self) -> Step {
        tokio::select! {
            biased;
            () = self.call.state.stop.cancelled() => Step::End,
            () = tokio::time::sleep_until(self.ends) => Step::End,
            event = self.events.next() => Step::Event(event),
            () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => Step::Bookmark,
        }
    }

    /// Writes what is there already, so that it goes out in one piece.
    fn drain(&mut self, out: &mut Vec<u8>) {
        while out.len() < MAX_CHUNK && !self.over && !(self.initial_left == 0 && self.mark_initial) {
            let Some(event) = self.events.next().now_or_never() else {
                return;
            };
            self.write(event, out);
        }
    }

    /// The revision is read before what is there is written: the bookmark promises nothing that was not sent.
    fn periodic_bookmark(&mut self, out: &mut Vec<u8>) {
        self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
        let revision = self.call.collection.cache.revision();
        while let Some(event) = self.events.next().now_or_never() {
            self.write(event, out);
            if self.over {
                return;
            }
        }
        self.write_bookmark(revision, None, out);
    }

    fn write_bookmark(&self, revision: Revision, annotations: Option<Value>, out: &mut Vec<u8>) {
        let mut metadata = json!({ "resourceVersion": revision.0.to_string(), "creationTimestamp": null });
        if let Some(annotations) = annotations {
            metadata["annotations"] = annotations;
        }
        let kind = self.call.kind;
        let bookmark = json!({ "kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata });
        let object = match self.call.form {
            Form::Object => bookmark,
            Form::Partial => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": bookmark["metadata"],
            }),
            Form::Table(_) => {
                let row = json!({
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": bookmark["metadata"],
                });
                json!({
                    "kind": "Table",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": { "resourceVersion": revision.0.to_string() },
                    "columnDefinitions": null,
                    "rows": [{ "cells": [], "object": row }],
                })
            }
        };
        out.extend_from_slice(line("BOOKMARK", &object.to_string()).as_bytes());
    }

    fn write(&mut self, event: Result<CacheEvent, CacheError>, out: &mut Vec<u8>) {
        self.initial_left = self.initial_left.saturating_sub(1);
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(%error, resource = self.call.kind.plural, "a watch ended early");
                // The client resumes from what it has seen; it is told nothing wrong.
                self.over = true;
                return;
            }
        };
        let kind = self.call.kind;
        let matches = |object: &Object| self.selection.matches(kind, object);
        let chosen = match &event {
            CacheEvent::Added { object } => matches(object).then(|| ("ADDED", object.json.clone())),
            CacheEvent::Modified { object, previous } => match (matches(previous), matches(object)) {
                (true, true) => Some(("MODIFIED", object.json.clone())),
                (false, true) => Some(("ADDED", object.json.clone())),
                (true, false) => at_revision(&previous.json, object.revision).map(|json| ("DELETED", json)),
                (false, false) => None,
            },
            CacheEvent::Deleted { object, previous } => {
                matches(previous).then(|| ("DELETED", object.json.clone()))
            }
        };
        let Some((word, json)) = chosen else { return };
        match self.encode(&json) {
            Ok(bytes) => {
                out.extend_from_slice(format!("{{\"type\":\"{word}\",\"object\":").as_bytes());
                out.extend_from_slice(&bytes);
                out.extend_from_slice(b"}\n");
            }
            Err(error) => {
                out.extend_from_slice(error_line(&error).as_bytes());
                self.over = true;
            }
        }
    }

    fn encode(&mut self, json: &Bytes) -> Result<Bytes, ApiError> {
        let bytes = encode_one(&self.call, json)?;
        if !matches!(self.call.form, Form::Table(_)) || !std::mem::replace(&mut self.columns_sent, true) {
            return Ok(bytes);
        }
        let mut table: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
        table["columnDefinitions"] = Value::Null;
        Ok(table.to_string().into())
    }
}

/// The object's last matching state as of the change that took it out of the selection.
fn at_revision(json: &Bytes, revision: Revision) -> Option<Bytes> {
    let mut object: Value = serde_json::from_slice(json).ok()?;
    meta::set_revision(&mut object, revision);
    Some(object.to_string().into())
}

//! Kubernetes events: written by one task, equal ones counted up instead of repeated.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;

/// Events that wait to be written; more are dropped, as events are advice and not state.
const QUEUE: usize = 512;
/// Equal events this close together are one with a count.
const WINDOW: Duration = Duration::from_secs(600);
/// How many distinct events are remembered for counting.
const REMEMBERED: usize = 1024;

/// Records events; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Entry>,
}

struct Entry {
    about: ObjectReference,
    warning: bool,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// What makes two events equal: object uid, field path, reason, message.
type Key = (String, String, &'static str, String);

struct Seen {
    name: String,
    count: i32,
    last: Timestamp,
}

impl Recorder {
    /// Starts the task that writes; it ends when the last recorder is gone.
    #[must_use]
    pub fn start(client: Client, node_name: impl Into<Arc<str>>) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(client, node_name.into(), entries));
        Self { queue }
    }

    /// Records an event; never waits.
    pub fn record(&self, about: ObjectReference, warning: bool, reason: &'static str, message: String) {
        tracing::debug!(object = about.name, reason, message, "event");
        let entry = Entry {
            about,
            warning,
            reason,
            message,
            at: Timestamp::now(),
        };
        if self.queue.try_send(entry).is_err() {
            tracing::warn!(reason, "event dropped: too many are waiting to be written");
        }
    }
}

async fn write_all(client: Client, node: Arc<str>, mut entries: mpsc::Receiver<Entry>) {
    let mut seen: HashMap<Key, Seen> = HashMap::new();
    while let Some(entry) = entries.recv().await {
        if seen.len() > REMEMBERED {
            seen.retain(|_, s| super::backoff::elapsed(s.last, entry.at) < WINDOW / 2);
        }
        if let Err(error) = write(&client, &node, &entry, &mut seen).await {
            tracing::debug!(%error, reason = entry.reason, "event not written");
        }
    }
}

async fn write(
    client: &Client,
    node: &str,
    entry: &Entry,
    seen: &mut HashMap<Key, Seen>,
) -> Result<(), kube::Error> {
    let about = &entry.about;
    let namespace = about
        .namespace
        .as_deref()
        .filter(|n| !n.is_empty())
        .unwrap_or("default");
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let key = (
        text(&about.uid),
        text(&about.field_path),
        entry.reason,
        entry.message.clone(),
    );
    if let Some(earlier) = seen.get_mut(&key)
        && super::backoff::elapsed(earlier.last, entry.at) < WINDOW
    {
        earlier.count += 1;
        earlier.last = entry.at;
        let patch = json!({"count": earlier.count, "lastTimestamp": Time(entry.at)});
        match api
            .patch(&earlier.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => return Ok(()),
            // It has expired or was deleted: a new one is written.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let name = format!("{}.{:x}", text(&about.name), entry.at.as_nanosecond());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        involved_object: about.clone(),
        type_: Some(if entry.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(entry.reason.to_owned()),
        message: Some(entry.message.clone()),
        count: Some(1),
        first_timestamp: Some(Time(entry.at)),
        last_timestamp: Some(Time(entry.at)),
        source: Some(EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Default::default()
    };
    api.create(&PostParams::default(), &event).await?;
    seen.insert(
        key,
        Seen {
            name,
            count: 1,
            last: entry.at,
        },
    );
    Ok(())
}

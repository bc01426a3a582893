//! Events that `kubectl describe` and `kubectl get events` show, recorded without making the caller wait.
//!
//! They are written as core/v1 Events, which every client reads. The same event on the same object again is a
//! patch of its count, as client-go's recorder does it.

use std::collections::{HashMap, VecDeque};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// How many events may wait for the API server; more are dropped, since events are a courtesy.
const BACKLOG: usize = 1024;
/// How many events are remembered so that a repetition becomes a count.
const REMEMBERED: usize = 2048;

/// What an event says about its object: all is well, or somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing to do.
    Normal,
    /// Something failed.
    Warning,
}

struct Record {
    object: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// A handle that records events in a task of its own; the task ends with the last handle.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Record>,
}

impl Recorder {
    /// Starts a recorder whose events are said to come from `component`.
    pub fn start(client: Client, component: &'static str) -> Self {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(write(client, component, receiver));
        Self { sender }
    }

    /// Records one event on `object`: `reason` in CamelCase, `message` for people.
    pub fn event(
        &self,
        object: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let record = Record {
            object,
            severity,
            reason,
            message: message.into(),
            at: Timestamp::now(),
        };
        if self.sender.try_send(record).is_err() {
            warn!(reason, "dropped an event: the API server takes them too slowly");
        }
    }
}

/// The reference that events carry to an object of a known type.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    object.object_ref(&())
}

/// What makes two events the same: all they say, and about whom.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Sameness {
    object: String,
    field_path: Option<String>,
    reason: &'static str,
    message: String,
}

#[derive(Default)]
struct Memory {
    seen: HashMap<Sameness, (String, i32)>,
    order: VecDeque<Sameness>,
}

impl Memory {
    fn remember(&mut self, key: Sameness, name: String, count: i32) {
        if self.seen.insert(key.clone(), (name, count)).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
    }
}

async fn write(client: Client, component: &'static str, mut records: mpsc::Receiver<Record>) {
    let mut memory = Memory::default();
    while let Some(record) = records.recv().await {
        let reason = record.reason;
        if let Err(error) = write_one(&client, component, &mut memory, record).await {
            // A namespace that is being deleted refuses new events; that is nobody's fault.
            debug!(%error, reason, "could not record an event");
        }
    }
}

async fn write_one(
    client: &Client,
    component: &'static str,
    memory: &mut Memory,
    record: Record,
) -> Result<(), kube::Error> {
    // Events on objects without a namespace live in `default`.
    let namespace = record
        .object
        .namespace
        .clone()
        .unwrap_or_else(|| "default".to_owned());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let key = Sameness {
        object: record.object.uid.clone().unwrap_or_default(),
        field_path: record.object.field_path.clone(),
        reason: record.reason,
        message: record.message.clone(),
    };
    let at = Time(record.at);
    if let Some((name, count)) = memory.seen.get(&key).cloned() {
        let patch = serde_json::json!({ "count": count + 1, "lastTimestamp": at });
        match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => {
                memory.remember(key, name, count + 1);
                return Ok(());
            }
            // The event has expired: it starts again with a count of one.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let name = format!(
        "{}.{:x}",
        record.object.name.as_deref().unwrap_or("unknown"),
        record.at.as_nanosecond()
    );
    let severity = match record.severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    };
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: record.object,
        reason: Some(record.reason.to_owned()),
        message: Some(record.message),
        type_: Some(severity.to_owned()),
        source: Some(EventSource {
            component: Some(component.to_owned()),
            host: None,
        }),
        reporting_component: Some(component.to_owned()),
        reporting_instance: Some(String::new()),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at),
        count: Some(1),
        ..Event::default()
    };
    api.create(&PostParams::default(), &event).await?;
    memory.remember(key, name, 1);
    Ok(())
}

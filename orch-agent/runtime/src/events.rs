//! Container events from containerd, for one namespace, over any number of reconnects.

use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom, TaskStart};
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use prost::Message;
use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::transport::Channel;

use crate::container::status::to_jiff;
use crate::{Runtime, RuntimeError};

/// Something that happened to a container (not to an exec in one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container's process was started.
    Started {
        /// The container.
        id: String,
    },
    /// A container's process ended.
    Exited {
        /// The container.
        id: String,
        /// Exit code, 128 + signal for a signal.
        exit_code: i32,
        /// The process it was.
        pid: u32,
        /// When.
        at: jiff::Timestamp,
    },
    /// The kernel killed a process of a container for want of memory.
    Oom {
        /// The container.
        id: String,
    },
    /// The stream was broken and is back: events may have been lost, so look at [`Runtime::containers`].
    Resync,
}

impl Runtime {
    /// A receiver of all events from now on. One that lags should treat it like [`RuntimeEvent::Resync`].
    pub fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }
}

/// The topic of the event that we publish ourselves to see that a subscription works.
const PROBE_TOPIC: &str = "/orch/subscribed";

/// How long to wait before a broken stream is opened again, and between probes.
const RETRY: Duration = Duration::from_millis(200);

/// How long a subscription may take at the start.
const FIRST_SUBSCRIPTION: Duration = Duration::from_secs(20);

/// Follows events in the background until `stop`; returns once they are being received.
pub(crate) async fn follow(
    channel: Channel,
    namespace: &str,
    events: broadcast::Sender<RuntimeEvent>,
    stop: CancellationToken,
) -> Result<(), RuntimeError> {
    let (ready, is_ready) = oneshot::channel();
    let follower = Follower {
        channel,
        namespace: namespace.to_owned(),
        events,
        ready: Some(ready),
        probe: String::new(),
    };
    let cancelled = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = cancelled.cancelled() => {}
            () = follower.run() => {}
        }
    });
    let received = tokio::time::timeout(FIRST_SUBSCRIPTION, is_ready).await;
    if !matches!(received, Ok(Ok(()))) {
        stop.cancel();
        return Err(RuntimeError::system("subscribe to containerd's events")(
            std::io::Error::from(std::io::ErrorKind::TimedOut),
        ));
    }
    Ok(())
}

struct Follower {
    channel: Channel,
    namespace: String,
    events: broadcast::Sender<RuntimeEvent>,
    /// Told once, when the first subscription works.
    ready: Option<oneshot::Sender<()>>,
    /// The content of the probe that belongs to the current subscription.
    probe: String,
}

impl Follower {
    async fn run(mut self) {
        loop {
            if let Err(status) = self.follow_once().await {
                tracing::debug!(error = status.message(), "containerd's event stream broke");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// One subscription, to its end.
    async fn follow_once(&mut self) -> Result<(), tonic::Status> {
        self.probe = crate::sys::unique();
        let filters = vec![
            format!(
                "namespace==\"{}\",topic~=\"^/tasks/(start|exit|oom)$\"",
                self.namespace
            ),
            format!("namespace==\"{}\",topic==\"{PROBE_TOPIC}\"", self.namespace),
        ];
        let mut client = EventsClient::new(self.channel.clone());
        // containerd sends its headers with the first event, so this call waits for one. The probe is that
        // event, and it also proves that the subscription is in force.
        let probing = tokio::spawn(probe(
            self.channel.clone(),
            self.namespace.clone(),
            self.probe.clone(),
        ));
        let probing = AbortOnDrop(probing);
        let mut stream = client
            .subscribe(Request::new(SubscribeRequest { filters }))
            .await?
            .into_inner();
        let mut live = false;
        while let Some(envelope) = stream.message().await? {
            if envelope.topic != PROBE_TOPIC {
                self.publish(&envelope);
            } else if !live
                && envelope
                    .event
                    .as_ref()
                    .is_some_and(|e| e.value == self.probe.as_bytes())
            {
                live = true;
                probing.0.abort();
                match self.ready.take() {
                    Some(ready) => drop(ready.send(())),
                    None => drop(self.events.send(RuntimeEvent::Resync)),
                }
            }
        }
        Ok(())
    }

    fn publish(&self, envelope: &Envelope) {
        if let Some(event) = decode(envelope) {
            // Without receivers nobody misses it.
            let _ = self.events.send(event);
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Publishes the probe until it is aborted.
async fn probe(channel: Channel, namespace: String, content: String) {
    let mut client = EventsClient::new(channel);
    loop {
        let event = prost_types::Any {
            type_url: "orch.probe".to_owned(),
            value: content.clone().into_bytes(),
        };
        let mut request = Request::new(PublishRequest {
            topic: PROBE_TOPIC.to_owned(),
            event: Some(event),
        });
        if let Ok(namespace) = namespace.parse() {
            request.metadata_mut().insert("containerd-namespace", namespace);
        }
        if let Err(status) = client.publish(request).await {
            tracing::debug!(error = status.message(), "cannot publish to containerd");
        }
        tokio::time::sleep(RETRY / 4).await;
    }
}

fn decode(envelope: &Envelope) -> Option<RuntimeEvent> {
    let bytes = envelope.event.as_ref()?.value.as_slice();
    match envelope.topic.as_str() {
        "/tasks/start" => Some(RuntimeEvent::Started {
            id: TaskStart::decode(bytes).ok()?.container_id,
        }),
        "/tasks/oom" => Some(RuntimeEvent::Oom {
            id: TaskOom::decode(bytes).ok()?.container_id,
        }),
        "/tasks/exit" => {
            let exit = TaskExit::decode(bytes).ok()?;
            // An exec's exit has the exec's id here.
            (exit.id == exit.container_id).then(|| RuntimeEvent::Exited {
                id: exit.container_id,
                exit_code: exit.exit_status as i32,
                pid: exit.pid,
                at: exit
                    .exited_at
                    .and_then(to_jiff)
                    .unwrap_or_else(jiff::Timestamp::now),
            })
        }
        _ => None,
    }
}

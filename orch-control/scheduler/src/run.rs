//! The loop around [`schedule`]: it watches, decides, binds and tells.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use orch_shared::events::{Recorder, Severity};
use orch_shared::{pods, watch};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::pod::PodInfo;
use crate::queue::Queue;
use crate::schedule::{Decision, schedule};
use crate::snapshot::Snapshot;

/// The schedulerName of the pods that this scheduler places.
pub const DEFAULT_SCHEDULER_NAME: &str = "default-scheduler";

/// What came of one binding.
struct Bound {
    pod: Arc<PodInfo>,
    node: String,
    outcome: Result<(), kube::Error>,
}

struct Scheduler {
    client: Client,
    recorder: Recorder,
    snapshot: Snapshot,
    queue: Queue,
    bound: mpsc::UnboundedSender<Bound>,
    listed_pods: HashSet<String>,
    listed_nodes: HashSet<String>,
    synced: (bool, bool, bool),
}

/// Schedules pods until `token` is cancelled. Watches that fail are tried again for ever.
pub async fn run(client: Client, token: CancellationToken) {
    let (bound, mut outcomes) = mpsc::unbounded_channel();
    let config = watcher::Config::default;
    let mut pod_events = pin!(watch::events(Api::<Pod>::all(client.clone()), config(), trim));
    let mut node_events = pin!(watch::events(Api::<Node>::all(client.clone()), config(), |_| ()));
    let mut namespace_events = pin!(watch::events(
        Api::<Namespace>::all(client.clone()),
        config(),
        |_| ()
    ));
    let mut scheduler = Scheduler {
        recorder: Recorder::start(client.clone(), DEFAULT_SCHEDULER_NAME),
        client,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        bound,
        listed_pods: HashSet::new(),
        listed_nodes: HashSet::new(),
        synced: (false, false, false),
    };
    info!("scheduler started");
    loop {
        let next = scheduler.queue.tick(Instant::now());
        let ready = scheduler.synced == (true, true, true) && scheduler.queue.has_work();
        let sleep = tokio::time::sleep_until(
            next.unwrap_or_else(|| Instant::now() + Duration::from_secs(300))
                .into(),
        );
        // What is known is taken in before the next decision: `biased` tries the branches in this order.
        tokio::select! {
            biased;
            () = token.cancelled() => return,
            Some(event) = pod_events.next() => scheduler.pod_event(event),
            Some(event) = node_events.next() => scheduler.node_event(event),
            Some(event) = namespace_events.next() => scheduler.namespace_event(event),
            Some(outcome) = outcomes.recv() => scheduler.bound(outcome),
            () = std::future::ready(()), if ready => scheduler.schedule_one(),
            () = sleep => {}
        }
    }
}

/// Drops what no plug-in reads.
fn trim(pod: &mut Pod) {
    pod.metadata.annotations = None;
    for container in pod.spec.iter_mut().flat_map(|s| s.containers.iter_mut()) {
        container.env = None;
        container.args = None;
        container.command = None;
    }
}

impl Scheduler {
    fn pod_event(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed_pods.clear(),
            Event::InitApply(pod) => {
                self.listed_pods.insert(pod.uid().unwrap_or_default());
                self.set_pod(&pod);
            }
            Event::InitDone => {
                self.synced.0 = true;
                let known = self.snapshot.placed().chain(self.queue.uids());
                let gone: Vec<_> = known
                    .filter(|uid| !self.listed_pods.contains(*uid))
                    .cloned()
                    .collect();
                gone.iter().for_each(|uid| self.remove_pod(uid));
                self.listed_pods = HashSet::new();
            }
            Event::Apply(pod) => self.set_pod(&pod),
            Event::Delete(pod) => self.remove_pod(&pod.uid().unwrap_or_default()),
        }
    }

    fn set_pod(&mut self, pod: &Pod) {
        let uid = pod.uid().unwrap_or_default();
        if pods::is_terminal(pod) {
            return self.remove_pod(&uid);
        }
        let info = Arc::new(PodInfo::new(pod));
        if let Some(node) = info.node_name.clone() {
            self.queue.remove(&uid);
            let known = self.snapshot.pod(&uid).cloned();
            if known.as_ref().is_some_and(|k| **k == *info) {
                return;
            }
            // A pod that only now got its node is what a pod with affinity to it waits for; one that shrank or
            // began to terminate makes room or no longer counts.
            self.snapshot.place(info, &node);
            return self.queue.wake(Instant::now());
        }
        let ours = matches!(info.wishes.scheduler_name.as_str(), "" | DEFAULT_SCHEDULER_NAME);
        if info.deleting || info.wishes.gated || !ours {
            return self.queue.remove(&uid);
        }
        // While its binding is under way the pod stays on the node it was given.
        self.queue.set(info, Instant::now());
    }

    fn remove_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        if self.snapshot.remove_pod(uid) {
            self.queue.wake(Instant::now());
        }
    }

    fn node_event(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.listed_nodes.clear(),
            Event::InitApply(node) => {
                self.listed_nodes.insert(node.name_any());
                self.set_node(&node);
            }
            Event::InitDone => {
                self.synced.1 = true;
                let names = self.snapshot.node_names().into_iter();
                names
                    .filter(|n| !self.listed_nodes.contains(n))
                    .for_each(|n| self.snapshot.remove_node(&n));
            }
            Event::Apply(node) => self.set_node(&node),
            Event::Delete(node) => self.snapshot.remove_node(&node.name_any()),
        }
    }

    fn set_node(&mut self, node: &Node) {
        if self.snapshot.set_node(node) {
            self.queue.wake(Instant::now());
        }
    }

    fn namespace_event(&mut self, event: Event<Namespace>) {
        match event {
            Event::Init => {}
            Event::InitDone => self.synced.2 = true,
            Event::InitApply(namespace) | Event::Apply(namespace) => {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                self.snapshot.set_namespace(&namespace.name_any(), labels);
            }
            Event::Delete(namespace) => self.snapshot.remove_namespace(&namespace.name_any()),
        }
    }

    fn schedule_one(&mut self) {
        let now = Instant::now();
        let Some(pod) = self.queue.pop(now) else { return };
        match schedule(&self.snapshot, &pod) {
            Decision::Bind { node } => {
                self.snapshot.place(pod.clone(), &node);
                let (client, bound) = (self.client.clone(), self.bound.clone());
                tokio::spawn(async move {
                    let outcome = bind(client, &pod, &node).await;
                    // The receiver is gone only when the scheduler has stopped.
                    let _ = bound.send(Bound { pod, node, outcome });
                });
            }
            Decision::Unschedulable { message, plugins } => {
                debug!(?plugins, pod = %pod.name, namespace = %pod.namespace, %message, "unschedulable");
                if self.queue.park(&pod.uid, &message, now) {
                    tokio::spawn(tell(
                        self.client.clone(),
                        pod.clone(),
                        "Unschedulable",
                        message.clone(),
                    ));
                }
                self.recorder
                    .event(pod.reference(), Severity::Warning, "FailedScheduling", message);
            }
        }
    }

    fn bound(&mut self, Bound { pod, node, outcome }: Bound) {
        let error = match outcome {
            Ok(()) => {
                let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
                return self
                    .recorder
                    .event(pod.reference(), Severity::Normal, "Scheduled", message);
            }
            Err(error) => error,
        };
        // Unless the watch has meanwhile told that the pod is bound, the node does not have it.
        if self.snapshot.pod(&pod.uid).is_some_and(|p| p.node_name.is_none()) {
            self.remove_assumed(&pod.uid);
        }
        self.queue.hold(&pod.uid, Instant::now());
        // A pod that was deleted meanwhile is nothing to speak of; the watch will say so too.
        if !matches!(&error, kube::Error::Api(status) if status.code == 404) {
            warn!(pod = %pod.name, namespace = %pod.namespace, %node, %error, "failed to bind");
            let message = format!("binding rejected: {error}");
            self.recorder
                .event(pod.reference(), Severity::Warning, "FailedScheduling", message);
        }
    }

    fn remove_assumed(&mut self, uid: &str) {
        self.snapshot.remove_pod(uid);
        self.queue.wake(Instant::now());
    }
}

async fn bind(client: Client, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let params = PostParams::default();
    api.create_subresource::<_, Status>("binding", &pod.name, &params, &binding)
        .await
        .map(|_| ())
}

/// Writes the condition that tells the pod's owner why it does not run.
async fn tell(client: Client, pod: Arc<PodInfo>, reason: &'static str, message: String) {
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let condition = serde_json::json!({
        "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        "lastProbeTime": null, "lastTransitionTime": Time(Timestamp::now()),
    });
    let patch =
        serde_json::json!({ "metadata": { "uid": pod.uid }, "status": { "conditions": [condition] } });
    if let Err(error) = api
        .patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        debug!(pod = %pod.name, namespace = %pod.namespace, %error, "could not write PodScheduled");
    }
}

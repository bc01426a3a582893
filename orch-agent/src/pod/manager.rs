//! All pods of the node: one actor each, fed by the API's watch and by the runtime's events.

mod orphans;
mod refusal;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use orch_cluster::Cluster;
use orch_dataplane::Dataplane;
use orch_runtime::{ContainerState, ContainerStatus, Runtime, RuntimeEvent};
use parking_lot::Mutex;
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    actor::Actor,
    context::{Context, ManagerConfig},
    event::{Event, Exit},
    id::{self, Paths},
    objects::Objects,
    plan,
    ports::{Host, Node},
    recorder::Recorder,
    state::{Found, FoundState, Phase, State},
    stop,
};

/// A container for logs, exec and attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRef {
    /// The container's id in the runtime.
    pub id: String,
    /// Where it logs.
    pub log_path: PathBuf,
    /// Whether it runs.
    pub running: bool,
}

/// Why there is no such container to look at; the texts are the kubelet's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LookupError {
    /// No such pod on this node.
    #[error("pod \"{0}\" not found")]
    Pod(String),
    /// No such container in the pod.
    #[error("container {container} is not valid for pod {pod}")]
    Container {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
    /// It has not run yet.
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}")]
    Waiting {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
        /// The waiting reason.
        reason: String,
    },
    /// It has never been restarted.
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious {
        /// The container.
        container: String,
        /// The pod.
        pod: String,
    },
}

/// A pod at one moment.
#[derive(Debug, Clone, Default)]
pub struct PodSnapshot {
    /// The API's object.
    pub pod: Arc<Pod>,
    /// The status as this node sees it.
    pub status: Arc<PodStatus>,
    /// Its containers, init containers first.
    pub containers: Vec<ContainerSnapshot>,
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub struct ContainerSnapshot {
    /// Its name.
    pub name: String,
    /// The current or latest run.
    pub current: Option<ContainerRef>,
    /// The run before it.
    pub previous: Option<ContainerRef>,
    /// Why it has not run yet.
    pub waiting: Option<String>,
}

impl PodSnapshot {
    pub(super) fn of(state: &State, status: Arc<PodStatus>, paths: &Paths) -> Self {
        let core = state.core();
        let containers = core.slots.iter().map(|slot| {
            let of = |id: &str, attempt, running| ContainerRef {
                id: id.to_owned(),
                log_path: paths.log(&slot.name, attempt),
                running,
            };
            let last = slot.last.as_ref().map(|f| of(&f.id, f.attempt, false));
            let (current, previous, waiting) = match &slot.phase {
                Phase::Running(run) => (Some(of(&run.id, slot.attempt, true)), last, None),
                Phase::Exited(f) => (Some(of(&f.id, f.attempt, false)), last, None),
                Phase::Idle | Phase::Starting { .. } => {
                    (last.clone(), last, Some("ContainerCreating".to_owned()))
                }
                // Between two runs the one that ended is both: that is what `logs` and `logs -p` show.
                Phase::Delayed { reason, .. } => (last.clone(), last, Some((*reason).to_owned())),
            };
            ContainerSnapshot {
                name: slot.name.clone(),
                current,
                previous,
                waiting,
            }
        });
        Self {
            containers: containers.collect(),
            pod: core.pod.clone(),
            status,
        }
    }
}

struct Handle {
    uid: String,
    events: mpsc::UnboundedSender<Event>,
    snapshot: Arc<Mutex<PodSnapshot>>,
}

/// The pods of this node.
pub struct Manager {
    context: Arc<Context>,
    /// By the prefix of their containers' ids.
    actors: Mutex<HashMap<String, Handle>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

impl Manager {
    /// Takes over what runs on the node and begins to follow the API. Cancelling leaves every container running.
    pub fn start(
        config: ManagerConfig,
        client: Client,
        runtime: Arc<Runtime>,
        dataplane: Arc<Dataplane>,
        cluster: Arc<Cluster>,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        Self::start_on(
            config,
            client,
            Arc::new(Node { runtime, dataplane }),
            cluster,
            cancel,
        )
    }

    /// As [`Manager::start`], on any host.
    pub fn start_on(
        config: ManagerConfig,
        client: Client,
        host: Arc<dyn Host>,
        cluster: Arc<Cluster>,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        let recorder = Recorder::start(client.clone(), config.node_name.as_str());
        let context = Arc::new(Context {
            objects: Objects::new(client.clone()),
            config,
            client,
            host,
            cluster,
            recorder,
            pulls: Mutex::default(),
        });
        let manager = Arc::new(Self {
            context,
            actors: Mutex::default(),
            tasks: TaskTracker::new(),
            cancel,
        });
        manager.tasks.spawn(manager.clone().run());
        manager
    }

    /// All pods as they are now.
    #[must_use]
    pub fn pods(&self) -> Vec<PodSnapshot> {
        self.actors
            .lock()
            .values()
            .map(|h| h.snapshot.lock().clone())
            .collect()
    }

    /// Events about this node and its pods, for others that report.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        self.context.recorder.clone()
    }

    /// The container's current run, or the one before it if `previous`.
    ///
    /// # Errors
    /// When there is none; the text is for the user.
    pub fn container_id(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<ContainerRef, LookupError> {
        let named = |s: &PodSnapshot| {
            s.pod.metadata.namespace.as_deref() == Some(namespace)
                && s.pod.metadata.name.as_deref() == Some(pod)
        };
        // While a pod is being replaced under its name, the newer one is meant.
        let mut found: Vec<PodSnapshot> = self.pods().into_iter().filter(named).collect();
        found.sort_by_key(|s| s.pod.metadata.creation_timestamp.as_ref().map(|t| t.0));
        let snapshot = found.pop().ok_or_else(|| LookupError::Pod(pod.to_owned()))?;
        let (container, pod) = (container.to_owned(), pod.to_owned());
        let Some(entry) = snapshot.containers.into_iter().find(|c| c.name == container) else {
            return Err(LookupError::Container { container, pod });
        };
        if previous {
            return entry.previous.ok_or(LookupError::NoPrevious { container, pod });
        }
        let reason = entry.waiting.unwrap_or_default();
        entry.current.ok_or(LookupError::Waiting {
            container,
            pod,
            reason,
        })
    }

    /// Waits until every task has ended after the cancellation; containers go on.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn run(self: Arc<Self>) {
        let cancel = self.cancel.clone();
        tokio::select! {
            () = cancel.cancelled() => {}
            () = Box::pin(self.follow()) => {}
        }
    }

    /// Adopts what is there, then follows API and runtime.
    async fn follow(self: Arc<Self>) {
        // Subscribed before the list, so that no exit falls between the two.
        let mut runtime = self.context.host.events();
        let mut found = self.found().await;
        let pods: Api<Pod> = Api::all(self.context.client.clone());
        let selector = format!("spec.nodeName={}", self.context.config.node_name);
        let config = watcher::Config::default().fields(&selector).timeout(290);
        let mut watch = std::pin::pin!(watcher(pods, config).default_backoff());
        let mut listed: Option<HashSet<String>> = None;
        let mut first = true;
        loop {
            tokio::select! {
                event = runtime.recv() => match event {
                    Ok(event) => self.heard(event).await,
                    Err(RecvError::Lagged(_)) => self.resync().await,
                    Err(RecvError::Closed) => return,
                },
                event = watch.next() => match event {
                    None => return,
                    Some(Ok(watcher::Event::Init)) => listed = Some(HashSet::new()),
                    Some(Ok(watcher::Event::InitApply(pod))) => {
                        let uid = self.apply(pod, &mut found);
                        listed.get_or_insert_default().insert(uid);
                    }
                    Some(Ok(watcher::Event::Apply(pod))) => {
                        self.apply(pod, &mut found);
                    }
                    Some(Ok(watcher::Event::Delete(pod))) => {
                        let uid = pod.metadata.uid.clone().unwrap_or_default();
                        self.send(&id::pod_prefix(&uid), Event::Gone(Some(Arc::new(pod))));
                    }
                    Some(Ok(watcher::Event::InitDone)) => {
                        self.forget_unlisted(&listed.take().unwrap_or_default());
                        if std::mem::take(&mut first) {
                            self.adopt_orphans(std::mem::take(&mut found));
                        }
                    }
                    Some(Err(error)) => tracing::warn!(%error, "watch of pods failed, retrying"),
                },
            }
        }
    }

    /// What the runtime holds, by pod; asks until the runtime answers.
    async fn found(&self) -> HashMap<String, Vec<ContainerStatus>> {
        loop {
            match self.context.host.containers().await {
                Ok(list) => {
                    let mut by_pod: HashMap<String, Vec<ContainerStatus>> = HashMap::new();
                    for status in list {
                        by_pod.entry(status.pod_uid.clone()).or_default().push(status);
                    }
                    return by_pod;
                }
                Err(error) => {
                    tracing::warn!(%error, "containers not listed, trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn send(&self, prefix: &str, event: Event) {
        if let Some(handle) = self.actors.lock().get(prefix) {
            let _ = handle.events.send(event);
        }
    }

    /// An object of the API: to its actor, or the first word of a new one. Returns the pod's uid.
    fn apply(self: &Arc<Self>, mut pod: Pod, found: &mut HashMap<String, Vec<ContainerStatus>>) -> String {
        // Nothing here reads it, and it can be as large as the rest.
        pod.metadata.managed_fields = None;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let prefix = id::pod_prefix(&uid);
        let pod = Arc::new(pod);
        if let Some(handle) = self.actors.lock().get(&prefix) {
            let _ = handle.events.send(Event::Desired(pod));
            return uid;
        }
        let mine: Vec<Found> = found
            .remove(&uid)
            .unwrap_or_default()
            .iter()
            .filter_map(found_of)
            .collect();
        let now = Timestamp::now();
        let (state, ops) = match self.refusal(&pod, mine.is_empty()) {
            Some(verdict) => plan::refuse(pod, now, verdict),
            None => plan::adopt(pod, mine, now),
        };
        self.spawn(uid.clone(), prefix, state, ops);
        uid
    }

    fn spawn(self: &Arc<Self>, uid: String, prefix: String, state: State, ops: Vec<super::event::Op>) {
        let (events, mailbox) = mpsc::unbounded_channel();
        let pod = state.core().pod.clone();
        self.warn_unsupported(&pod);
        let status = Arc::new(pod.status.clone().unwrap_or_default());
        let snapshot = Arc::new(Mutex::new(PodSnapshot::of(
            &state,
            status,
            &self.context.paths(&pod),
        )));
        let actor = Actor::new(
            self.context.clone(),
            state,
            events.clone(),
            mailbox,
            snapshot.clone(),
        );
        self.actors.lock().insert(
            prefix.clone(),
            Handle {
                uid,
                events,
                snapshot,
            },
        );
        let manager = Arc::downgrade(self);
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            Box::pin(actor.run(ops, cancel.clone())).await;
            if let (Some(manager), false) = (manager.upgrade(), cancel.is_cancelled()) {
                manager.actors.lock().remove(&prefix);
            }
        });
    }

    /// Word from the runtime, for the actor whose container it is.
    async fn heard(&self, event: RuntimeEvent) {
        let (id, event) = match event {
            RuntimeEvent::Exited {
                id, exit_code, at, ..
            } => {
                // 137 may be the kernel's doing; the runtime's own record tells.
                let oom = exit_code == 137
                    && matches!(self.context.host.container(&id).await, Ok(Some(status)) if status.oom_killed);
                let exit = Exit {
                    code: exit_code,
                    at,
                    oom,
                    message: None,
                };
                (id.clone(), Event::Exited { id, exit })
            }
            RuntimeEvent::Oom { id } => (id.clone(), Event::Oom { id }),
            RuntimeEvent::Started { .. } => return,
            RuntimeEvent::Resync => return self.resync().await,
        };
        if let Some(prefix) = id.get(..32) {
            self.send(prefix, event);
        }
    }

    /// Events may have been lost: whatever has ended is told again.
    async fn resync(&self) {
        for status in self.found().await.into_values().flatten() {
            if status.state == ContainerState::Exited
                && let Some(prefix) = status.id.get(..32)
            {
                self.send(
                    prefix,
                    Event::Exited {
                        id: status.id.clone(),
                        exit: stop::exit_of(&status),
                    },
                );
            }
        }
    }

    /// After a full list: pods that it does not have are gone.
    fn forget_unlisted(&self, listed: &HashSet<String>) {
        for handle in self.actors.lock().values().filter(|h| !listed.contains(&h.uid)) {
            let _ = handle.events.send(Event::Gone(None));
        }
    }
}

/// A container of the runtime in the plan's words.
fn found_of(status: &ContainerStatus) -> Option<Found> {
    Some(Found {
        id: status.id.clone(),
        container: status.labels.get(id::CONTAINER)?.clone(),
        attempt: status.labels.get(id::ATTEMPT)?.parse().ok()?,
        started: status.started_at,
        now: match status.state {
            ContainerState::Created => FoundState::Created,
            ContainerState::Running => FoundState::Running,
            ContainerState::Exited => FoundState::Exited(stop::exit_of(status)),
        },
    })
}

//! One pod's actor: the only place that waits. It feeds events to the plan and starts the tasks that operations ask
//! for; their results come back as events.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use orch_runtime::Sandbox;
use parking_lot::Mutex;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    context::{Context, Target},
    event::{Event, Op, ProbeKind},
    manager::PodSnapshot,
    plan, prepare, probe,
    report::Report,
    start,
    state::{Phase, State},
    status, stop, volumes,
};

/// How much of a termination message is kept, by Kubernetes' rule.
const MAX_MESSAGE: usize = 4096;
/// How much of the log stands in for a message that is missing.
const MAX_LOG_MESSAGE: u64 = 2048;

/// What a pod's tasks share.
#[derive(Default)]
pub struct Local {
    /// The pod's namespaces, once prepared.
    pub sandbox: Mutex<Sandbox>,
    /// What is remembered about its volumes.
    pub volumes: volumes::Memory,
}

/// One pod's actor.
pub struct Actor {
    context: Arc<Context>,
    state: State,
    local: Arc<Local>,
    events: mpsc::UnboundedSender<Event>,
    mailbox: mpsc::UnboundedReceiver<Event>,
    snapshot: Arc<Mutex<PodSnapshot>>,
    report: Report,
    status: Arc<PodStatus>,
    starts: CancellationToken,
    preparing: Option<JoinHandle<()>>,
    refreshing: Option<AbortOnDropHandle<()>>,
    ending: Option<AbortOnDropHandle<()>>,
    probes: HashMap<(usize, ProbeKind), AbortOnDropHandle<()>>,
    stops: HashMap<usize, AbortOnDropHandle<()>>,
}

impl Actor {
    /// An actor in its first state; `events` is the sending side of `mailbox`.
    #[must_use]
    pub fn new(
        context: Arc<Context>,
        state: State,
        events: mpsc::UnboundedSender<Event>,
        mailbox: mpsc::UnboundedReceiver<Event>,
        snapshot: Arc<Mutex<PodSnapshot>>,
    ) -> Self {
        let pod = &state.core().pod;
        let status = Arc::new(pod.status.clone().unwrap_or_default());
        let report = Report::start(context.client.clone(), pod, status.clone());
        Self {
            context,
            state,
            local: Arc::default(),
            events,
            mailbox,
            snapshot,
            report,
            status,
            starts: CancellationToken::new(),
            preparing: None,
            refreshing: None,
            ending: None,
            probes: HashMap::new(),
            stops: HashMap::new(),
        }
    }

    /// Runs until the pod is gone, or until `cancel`, which leaves its containers running.
    pub async fn run(mut self, first: Vec<Op>, cancel: CancellationToken) {
        if self.carry_out(first) {
            return;
        }
        self.publish();
        loop {
            let event = tokio::select! {
                () = cancel.cancelled() => break,
                event = self.mailbox.recv() => event,
            };
            let Some(mut event) = event else { break };
            if let Event::Exited { id, exit } = &mut event {
                exit.message = self.termination_message(id, exit.code).await;
            }
            tracing::trace!(pod = self.pod().metadata.name, ?event, "event");
            let core = std::mem::replace(&mut self.state, State::Terminated(Box::new(empty())));
            let (state, ops) = plan::step(core, Timestamp::now(), event);
            self.state = state;
            if self.carry_out(ops) {
                return;
            }
            self.publish();
        }
        self.starts.cancel();
    }

    fn pod(&self) -> &Arc<Pod> {
        &self.state.core().pod
    }

    /// The pod's addresses; those of an adopted pod are known from its status before its sandbox has been looked at.
    fn ips(&self) -> Vec<IpAddr> {
        match self.state.core().ips() {
            [] => status::known_ips(&self.status)
                .filter_map(|ip| ip.parse().ok())
                .collect(),
            ips => ips.to_vec(),
        }
    }

    fn target(&self, slot: usize, id: String) -> Target {
        Target {
            context: self.context.clone(),
            pod: self.pod().clone(),
            slot,
            id,
            ips: self.ips(),
        }
    }

    /// Makes what the state says visible, to the API and to the kubelet API.
    fn publish(&mut self) {
        let status = status::of(
            &self.state,
            &self.context.config.node_ips,
            &self.status,
            Timestamp::now(),
        );
        if status != *self.status {
            self.status = Arc::new(status);
            self.report.set(self.status.clone());
        }
        let snapshot = PodSnapshot::of(&self.state, self.status.clone(), &self.context.paths(self.pod()));
        *self.snapshot.lock() = snapshot;
    }

    /// Starts what the plan asks for; true when the pod is finished.
    fn carry_out(&mut self, ops: Vec<Op>) -> bool {
        for op in ops {
            tracing::debug!(pod = self.pod().metadata.name, ?op, "operation");
            match op {
                Op::Finish => return true,
                other => self.carry_out_one(other),
            }
        }
        false
    }

    fn carry_out_one(&mut self, op: Op) {
        let (context, pod, events) = (self.context.clone(), self.pod().clone(), self.events.clone());
        match op {
            Op::Prepare => {
                let local = self.local.clone();
                self.preparing = Some(tokio::spawn(async move {
                    let _ = events.send(Box::pin(prepare::run(context, pod, local)).await);
                }));
            }
            Op::RefreshVolumes => {
                let task = tokio::spawn(prepare::refresh(context, pod, self.local.clone()));
                self.refreshing = Some(AbortOnDropHandle::new(task));
            }
            Op::Start { slot, id, attempt } => {
                let target = self.target(slot, id);
                tokio::spawn(start::run(
                    target,
                    self.local.clone(),
                    attempt,
                    self.starts.clone(),
                    events,
                ));
            }
            Op::CancelStarts => self.starts.cancel(),
            Op::Probe { slot, id, kind } => {
                let target = self.target(slot, id);
                let Some(probe) = target.container().and_then(|c| match kind {
                    ProbeKind::Startup => c.startup_probe.clone(),
                    ProbeKind::Readiness => c.readiness_probe.clone(),
                    ProbeKind::Liveness => c.liveness_probe.clone(),
                }) else {
                    return;
                };
                let task = AbortOnDropHandle::new(tokio::spawn(probe::run(target, kind, probe, events)));
                self.probes.insert((slot, kind), task);
            }
            Op::StopProbes { slot, keep_readiness } => {
                self.probes
                    .retain(|(s, kind), _| *s != slot || keep_readiness && *kind == ProbeKind::Readiness);
                if !keep_readiness {
                    self.stops.remove(&slot);
                }
            }
            Op::Stop {
                slot,
                id,
                grace,
                hook,
            } => {
                let task = tokio::spawn(stop::container(self.target(slot, id), grace, hook, events));
                self.stops.insert(slot, AbortOnDropHandle::new(task));
            }
            Op::Remove { slot, id, attempt } => self.remove(slot, id, attempt),
            Op::Timer(timer, after) => {
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    let _ = events.send(Event::Timer(timer));
                });
            }
            Op::Record(note) => context.note(&pod, note),
            Op::Drain(limit) => {
                let ips = self.ips();
                let task = tokio::spawn(async move {
                    stop::drain(context, pod, ips, limit).await;
                    let _ = events.send(Event::Drained);
                });
                self.ending = Some(AbortOnDropHandle::new(task));
            }
            Op::TearDown { purge } => {
                self.refreshing = None;
                let preparing = self.preparing.take();
                let task = tokio::spawn(async move {
                    if let Some(mut preparing) = preparing {
                        // What is being made can be removed only when it is there.
                        if tokio::time::timeout(Duration::from_secs(10), &mut preparing)
                            .await
                            .is_err()
                        {
                            preparing.abort();
                        }
                    }
                    Box::pin(stop::tear_down(context, pod, purge)).await;
                    let _ = events.send(Event::TornDown);
                });
                self.ending = Some(AbortOnDropHandle::new(task));
            }
            Op::Forget => {
                self.publish();
                let task = tokio::spawn(forget(context, pod, self.report.flushed(), events));
                self.ending = Some(AbortOnDropHandle::new(task));
            }
            Op::Finish => {}
        }
    }

    fn remove(&self, slot: usize, id: String, attempt: u32) {
        let Some(container) = self.state.core().slots.get(slot) else {
            return;
        };
        let log = self.context.paths(self.pod()).log(&container.name, attempt);
        let context = self.context.clone();
        tokio::spawn(async move {
            if let Err(error) = context.host.delete(&id).await {
                tracing::warn!(id, %error, "old container not removed");
            }
            remove_log(&log).await;
        });
    }

    /// What the container left in its message file, or the end of its log if it asks for that.
    async fn termination_message(&self, id: &str, code: i32) -> Option<String> {
        let core = self.state.core();
        let slot = core.slot_of(id)?;
        if matches!(core.slots[slot].phase, Phase::Exited(_)) {
            return None;
        }
        let (name, attempt) = (&core.slots[slot].name, core.slots[slot].attempt);
        let paths = self.context.paths(&core.pod);
        let mut bytes = tokio::fs::read(paths.message(name, attempt))
            .await
            .unwrap_or_default();
        bytes.truncate(MAX_MESSAGE);
        if !bytes.is_empty() {
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
        let policy = core
            .container(slot)
            .and_then(|c| c.termination_message_policy.as_deref());
        if code == 0 || policy != Some("FallbackToLogsOnError") {
            return None;
        }
        let log = paths.log(name, attempt);
        tokio::task::spawn_blocking(move || log_tail(&log))
            .await
            .ok()
            .flatten()
    }
}

/// The end of a CRI log without its time stamps.
fn log_tail(path: &std::path::Path) -> Option<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // Each line carries about 40 bytes of stamp; what is too much is cut below.
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG_MESSAGE * 4)))
        .ok()?;
    let mut raw = Vec::new();
    file.read_to_end(&mut raw).ok()?;
    let text = String::from_utf8_lossy(&raw);
    let lines: String = text
        .lines()
        .filter_map(|l| Some(l.splitn(4, ' ').nth(3)?.to_owned() + "\n"))
        .collect();
    let mut from = lines
        .len()
        .saturating_sub(usize::try_from(MAX_LOG_MESSAGE).unwrap_or(0));
    while !lines.is_char_boundary(from) {
        from += 1;
    }
    (!lines.is_empty()).then(|| lines[from..].to_owned())
}

/// Removes a log and its rotated parts (`N.log`, `N.log.1`, …).
async fn remove_log(log: &std::path::Path) {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return;
    };
    let Ok(mut entries) = tokio::fs::read_dir(dir).await else {
        return;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        if entry.file_name().to_str().is_some_and(|n| {
            n.strip_prefix(name)
                .is_some_and(|r| r.is_empty() || r.starts_with('.'))
        }) {
            let _ = tokio::fs::remove_file(entry.path()).await;
        }
    }
}

/// Deletes the object once the API has the final status; repeats until the API agrees.
async fn forget(
    context: Arc<Context>,
    pod: Arc<Pod>,
    flushed: impl Future<Output = ()>,
    events: mpsc::UnboundedSender<Event>,
) {
    flushed.await;
    let meta = &pod.metadata;
    let api: Api<Pod> = Api::namespaced(
        context.client.clone(),
        meta.namespace.as_deref().unwrap_or_default(),
    );
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: meta.uid.clone(),
            resource_version: None,
        }),
        ..Default::default()
    };
    let mut delay = Duration::from_millis(100);
    loop {
        match api
            .delete(meta.name.as_deref().unwrap_or_default(), &params)
            .await
        {
            // The watch tells when it is really gone (finalizers may hold it).
            Ok(_) => return,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                let _ = events.send(Event::Gone(None));
                return;
            }
            Err(error) => {
                tracing::warn!(pod = meta.name, %error, "pod not deleted from the API, trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(10));
            }
        }
    }
}

/// The core that stands in while a step owns the real one.
fn empty() -> super::state::Core {
    super::state::Core {
        pod: Arc::default(),
        slots: vec![],
        sandbox: super::state::Sandbox::Absent,
        start_time: Timestamp::UNIX_EPOCH,
        initialized: false,
        verdict: None,
        prepare_failures: 0,
    }
}

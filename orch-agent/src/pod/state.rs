//! What the agent knows of one pod: three states as an enum with data.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::backoff::Backoff;

/// A pod's life on the node.
#[derive(Debug)]
pub enum State {
    /// Containers are started and kept running as the spec says.
    Sync(Box<Core>),
    /// Containers are being stopped for good, then the sandbox is removed.
    Terminating(Box<Core>, Ending),
    /// Nothing runs and nothing but logs and exited containers is left; waits for the API to delete the pod.
    Terminated(Box<Core>),
}

impl State {
    /// The part all states share.
    #[must_use]
    pub fn core(&self) -> &Core {
        match self {
            Self::Sync(core) | Self::Terminating(core, _) | Self::Terminated(core) => core,
        }
    }
}

/// Why and how far a pod is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub cause: Cause,
    /// How far.
    pub stage: Stage,
    /// Grace period the containers get.
    pub grace: Duration,
    /// When it began.
    pub began: Timestamp,
    /// The teardown under way removes the containers too.
    pub purges: bool,
}

/// Why a pod is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its containers are done, or its deadline has passed; the object stays.
    Finished,
    /// The API asks for its deletion.
    Deleted,
    /// The API no longer has it.
    Gone,
}

/// How far the stopping is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Waiting for traffic to go elsewhere.
    Draining,
    /// Containers are stopping.
    Stopping,
    /// The sandbox is being removed.
    TearingDown,
    /// The object is being deleted from the API.
    Forgetting,
}

/// What every state knows.
#[derive(Debug)]
pub struct Core {
    /// The API's object, shared with every task that works for the pod.
    pub pod: Arc<Pod>,
    /// One slot per init container, in order, then one per container.
    pub slots: Vec<Slot>,
    /// The sandbox.
    pub sandbox: Sandbox,
    /// `status.startTime`: when this node took the pod on.
    pub start_time: Timestamp,
    /// Whether every init container has done its part once.
    pub initialized: bool,
    /// A phase decided by other things than the containers: a deadline, or refusal by the node.
    pub verdict: Option<Verdict>,
    /// Failed preparations in a row.
    pub prepare_failures: u32,
}

impl Core {
    /// The pod's spec; empty when the API's object had none.
    #[must_use]
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.pod.spec.as_ref().unwrap_or(&EMPTY)
    }

    /// The container spec of a slot.
    #[must_use]
    pub fn container(&self, slot: usize) -> Option<&Container> {
        container(&self.pod, slot)
    }

    /// The slot whose current run has this id.
    #[must_use]
    pub fn slot_of(&self, id: &str) -> Option<usize> {
        self.slots.iter().position(|s| s.current_id() == Some(id))
    }

    /// The pod's addresses, the primary one first.
    #[must_use]
    pub fn ips(&self) -> &[IpAddr] {
        match &self.sandbox {
            Sandbox::Ready(ips) => ips,
            _ => &[],
        }
    }

    /// Whether any container runs or is about to.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.slots
            .iter()
            .any(|s| matches!(s.phase, Phase::Running(_) | Phase::Starting { .. }))
    }
}

/// The container spec of `slot`: init containers first, then containers.
#[must_use]
pub fn container(pod: &Pod, slot: usize) -> Option<&Container> {
    let spec = pod.spec.as_ref()?;
    let init = spec.init_containers.as_deref().unwrap_or_default();
    init.get(slot)
        .or_else(|| spec.containers.get(slot.checked_sub(init.len())?))
}

/// The pod's namespaces and address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sandbox {
    /// Not there.
    Absent,
    /// Being made.
    Preparing,
    /// Ready, with the pod's addresses.
    Ready(Vec<IpAddr>),
}

/// A phase that does not follow from the containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `status.reason`.
    pub reason: &'static str,
    /// `status.message`.
    pub message: String,
}

/// What part a container plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs to completion before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts in turn, then runs along.
    Sidecar,
    /// One of the pod's containers.
    Main,
}

/// One container of the spec, and what became of it.
#[derive(Debug)]
pub struct Slot {
    /// The container's name.
    pub name: String,
    /// Its part.
    pub role: Role,
    /// What it does now.
    pub phase: Phase,
    /// How its run before this one ended.
    pub last: Option<Box<Finished>>,
    /// Number of the current run, or of the next if none has begun: the restart count.
    pub attempt: u32,
    /// Delay between restarts.
    pub crash: Backoff,
    /// Delay between attempts to pull the image.
    pub pull: Backoff,
    /// The image the latest run used.
    pub image_id: String,
    /// Whether startup probe and postStart hook are behind it.
    pub started: bool,
    /// The readiness probe's verdict, true without one; counts only while running and started.
    pub ready: bool,
    /// Whether the kernel killed a process of the current run for want of memory.
    pub oom: bool,
}

impl Slot {
    /// The id of the current run: starting, running or exited.
    #[must_use]
    pub fn current_id(&self) -> Option<&str> {
        match &self.phase {
            Phase::Starting { id } => Some(id),
            Phase::Running(run) => Some(&run.id),
            Phase::Exited(finished) => Some(&finished.id),
            Phase::Idle | Phase::Delayed { .. } => None,
        }
    }

    /// Whether the container runs and may get traffic.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match (&self.phase, self.role) {
            (Phase::Exited(f), Role::Init) => f.code == 0,
            (Phase::Running(_), Role::Main | Role::Sidecar) => self.started && self.ready,
            _ => false,
        }
    }
}

/// What a container does now.
#[derive(Debug)]
pub enum Phase {
    /// Waits for its turn.
    Idle,
    /// Is being started.
    Starting {
        /// The container's id.
        id: String,
    },
    /// Waits for a timer.
    Delayed {
        /// The waiting reason.
        reason: &'static str,
        /// The waiting message.
        message: String,
    },
    /// Runs.
    Running(Run),
    /// Has ended and is not (yet) to run again.
    Exited(Box<Finished>),
}

/// A running container.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// The container's id.
    pub id: String,
    /// When it started.
    pub at: Timestamp,
    /// Whether it has been asked to stop.
    pub stopping: bool,
}

/// A run that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The container's id.
    pub id: String,
    /// Number of the run.
    pub attempt: u32,
    /// Exit code.
    pub code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, …
    pub reason: &'static str,
    /// Termination message.
    pub message: Option<String>,
    /// When it started, if it did.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub at: Timestamp,
}

/// A container of this pod found in the runtime at the agent's start.
#[derive(Debug, Clone)]
pub struct Found {
    /// The container's id.
    pub id: String,
    /// The container's name in the pod.
    pub container: String,
    /// Number of its run.
    pub attempt: u32,
    /// When it started, if it did.
    pub started: Option<Timestamp>,
    /// What it does.
    pub now: FoundState,
}

/// What a found container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundState {
    /// Was made but never started.
    Created,
    /// Runs.
    Running,
    /// Ended.
    Exited(super::event::Exit),
}

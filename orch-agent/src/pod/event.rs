//! What a pod's plan hears ([`Event`]) and what it asks for ([`Op`]).

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

/// Something that happened to one pod.
#[derive(Debug, Clone)]
pub enum Event {
    /// The API's object changed (or was seen for the first time after the agent's start).
    Desired(Arc<Pod>),
    /// The API no longer has the pod; the last known object if the watch gave one.
    Gone(Option<Arc<Pod>>),
    /// Namespaces, address, volumes and files are in place.
    Prepared {
        /// The pod's addresses, the primary one first; the node's for host-network pods.
        ips: Vec<IpAddr>,
    },
    /// Preparation failed and has been recorded; it is tried again.
    PrepareFailed,
    /// A container's first process runs.
    Started {
        /// Index of the container's slot.
        slot: usize,
        /// The container's id.
        id: String,
        /// Digest that names the image, for the status.
        image_id: String,
        /// When it started.
        at: Timestamp,
    },
    /// A container could not be started.
    StartFailed {
        /// Index of the container's slot.
        slot: usize,
        /// The container's id.
        id: String,
        /// Why.
        failure: StartFailure,
    },
    /// The postStart hook ended.
    Hooked {
        /// Index of the container's slot.
        slot: usize,
        /// The container's id.
        id: String,
        /// Whether the hook succeeded.
        ok: bool,
    },
    /// A container's first process ended.
    Exited {
        /// The container's id.
        id: String,
        /// How it ended.
        exit: Exit,
    },
    /// The kernel killed something in the container for want of memory.
    Oom {
        /// The container's id.
        id: String,
    },
    /// A probe crossed one of its thresholds.
    Probed {
        /// Index of the container's slot.
        slot: usize,
        /// The container's id.
        id: String,
        /// Which probe.
        kind: ProbeKind,
        /// The new verdict.
        passed: bool,
    },
    /// A timer asked for by [`Op::Timer`] went off.
    Timer(Timer),
    /// No node should send the pod new connections any more.
    Drained,
    /// The pod's sandbox, volumes and address are gone.
    TornDown,
}

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, 128 + signal for a signal.
    pub code: i32,
    /// When.
    pub at: Timestamp,
    /// Whether the kernel killed it for want of memory.
    pub oom: bool,
    /// The termination message, if there is one.
    pub message: Option<String>,
}

/// Why a container did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFailure {
    /// The pod is being stopped.
    Cancelled,
    /// The image is not there; tried again with back-off.
    Image {
        /// The waiting reason: `ErrImagePull`, `ErrImageNeverPull` or `InvalidImageName`.
        reason: &'static str,
        /// What went wrong.
        message: String,
    },
    /// The container cannot be described yet (a ConfigMap is missing, say); tried again soon.
    Config {
        /// The waiting reason, `CreateContainerConfigError` or `CreateContainerError`.
        reason: &'static str,
        /// What went wrong.
        message: String,
    },
    /// The runtime could not run it: counts as a run that ended with code 128.
    Run {
        /// What the runtime said.
        message: String,
    },
}

/// The three probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Holds the others back until it passes; its failure restarts the container.
    Startup,
    /// Decides whether the container gets traffic.
    Readiness,
    /// Its failure restarts the container.
    Liveness,
}

impl ProbeKind {
    /// The probe's name as Kubernetes' events begin.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// Prepare again.
    Prepare,
    /// Start this slot's container again.
    Retry(usize),
    /// Turn this slot's `ErrImagePull` into `ImagePullBackOff`.
    PullBackOff(usize),
    /// `activeDeadlineSeconds` may be over.
    Deadline,
    /// Look whether mounted ConfigMaps, Secrets or tokens changed.
    Volumes,
    /// Tear down again.
    Teardown,
}

/// Something to do for one pod. Results come back as [`Event`]s.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Make namespaces, address, volumes and files.
    Prepare,
    /// Bring the volumes up to date.
    RefreshVolumes,
    /// Pull the image if need be, create and start the container, run its postStart hook.
    Start {
        /// Index of the container's slot.
        slot: usize,
        /// The container's id.
        id: String,
        /// Number of this run, from 0: the restart count.
        attempt: u32,
    },
    /// Give up starts that are in flight.
    CancelStarts,
    /// Begin to probe.
    Probe {
        /// Index of the container's slot.
        slot: usize,
        /// The container's id.
        id: String,
        /// Which probe.
        kind: ProbeKind,
    },
    /// Stop to probe.
    StopProbes {
        /// Index of the container's slot.
        slot: usize,
        /// Whether the readiness probe goes on (a terminating container still serves).
        keep_readiness: bool,
    },
    /// Run the preStop hook, ask the container to stop, kill it when `grace` is over.
    Stop {
        /// Index of the container's slot.
        slot: usize,
        /// The container's id.
        id: String,
        /// Time for hook and process together.
        grace: Duration,
        /// Whether the preStop hook runs.
        hook: bool,
    },
    /// Delete an exited container and its log.
    Remove {
        /// Index of the container's slot.
        slot: usize,
        /// The container's id.
        id: String,
        /// Number of its run.
        attempt: u32,
    },
    /// Send [`Event::Timer`] after a while.
    Timer(Timer, Duration),
    /// Record an event on the pod, about one container if given.
    Record(Note),
    /// Wait until no new connections come, at most this long.
    Drain(Duration),
    /// Remove sandbox, address, volumes and cgroups; also containers and logs if `purge`.
    TearDown {
        /// Whether containers and logs go too.
        purge: bool,
    },
    /// Delete the object from the API, once its final status is there.
    Forget,
    /// The pod's actor has nothing left to do.
    Finish,
}

/// A Kubernetes event about the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Slot of the container it is about.
    pub slot: Option<usize>,
    /// Whether it is a `Warning` (else `Normal`).
    pub warning: bool,
    /// CamelCase reason.
    pub reason: &'static str,
    /// The text.
    pub message: String,
}

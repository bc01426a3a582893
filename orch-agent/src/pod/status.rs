//! The pod's status as the API shows it: a pure function of its state and of the status before.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    resources::Qos,
    state::{Core, Finished, Phase, Role, Sandbox, Slot, State},
};

/// The status of a pod in `state` on a node with addresses `host_ips`; `before` lends transition times and the
/// conditions that others own.
#[must_use]
pub fn of(state: &State, host_ips: &[IpAddr], before: &PodStatus, now: Timestamp) -> PodStatus {
    let core = state.core();
    let known = core.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    if matches!(known, Some("Succeeded" | "Failed")) {
        // A phase that is final in the API was written when everything had ended.
        return before.clone();
    }
    let ended = !matches!(state, State::Sync(_)) && !core.is_busy();
    let phase = phase(core, matches!(state, State::Sync(_)), ended);
    let done = matches!(phase, "Succeeded" | "Failed");
    let ips: Vec<String> = match core.ips() {
        [] => known_ips(before).collect(),
        ips => ips.iter().map(IpAddr::to_string).collect(),
    };
    let slots = |main: bool| {
        let list: Vec<_> = (core.slots.iter().enumerate())
            .filter(|(_, s)| (s.role == Role::Main) == main)
            .map(|(i, s)| container_status(core, i, s, before))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: core.verdict.as_ref().map(|v| v.reason.to_owned()),
        message: core.verdict.as_ref().map(|v| v.message.clone()),
        conditions: Some(conditions(core, phase, done, before, now)),
        container_statuses: slots(true),
        init_container_statuses: slots(false),
        host_ip: host_ips.first().map(IpAddr::to_string),
        host_ips: Some(host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: Some(Qos::of(&core.pod).name().to_owned()),
        start_time: Some(Time(core.start_time)),
        observed_generation: core.pod.metadata.generation,
        ..Default::default()
    }
}

/// The addresses that a status says, the primary one first.
pub fn known_ips(status: &PodStatus) -> impl Iterator<Item = String> {
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let first = status.pod_ip.iter().filter(|_| status.pod_ips.is_none());
    first.chain(all).cloned()
}

fn phase(core: &Core, in_sync: bool, ended: bool) -> &'static str {
    if core.verdict.is_some() && !core.is_busy() {
        return "Failed";
    }
    let main = || core.slots.iter().filter(|s| s.role == Role::Main);
    let code = |s: &Slot| match &s.phase {
        Phase::Exited(f) => Some(f.code),
        _ => None,
    };
    if !in_sync && ended {
        let clean = main().all(|s| code(s) == Some(0));
        return if clean && core.initialized {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    let known = core.pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let ran = |s: &Slot| {
        !matches!(
            s.phase,
            Phase::Idle | Phase::Starting { .. } | Phase::Delayed { .. }
        ) || s.last.is_some()
    };
    // A phase never goes back to Pending; every container must have been made once for Running.
    if core.initialized && (main().all(ran) || known == Some("Running")) {
        "Running"
    } else {
        "Pending"
    }
}

fn container_status(core: &Core, index: usize, slot: &Slot, before: &PodStatus) -> ContainerStatus {
    let spec = core.container(index);
    let list = if slot.role == Role::Main {
        &before.container_statuses
    } else {
        &before.init_container_statuses
    };
    let earlier = list.iter().flatten().find(|s| s.name == slot.name);
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..Default::default()
    };
    let fresh = if slot.role == Role::Main && core.initialized && core.sandbox != Sandbox::Absent
        || slot.role == Role::Main && !core.slots.iter().any(|s| s.role != Role::Main)
    {
        "ContainerCreating"
    } else {
        "PodInitializing"
    };
    let state = match &slot.phase {
        Phase::Idle | Phase::Starting { .. } => waiting(fresh, None),
        Phase::Delayed { reason, message } => waiting(reason, Some(message.clone())),
        Phase::Running(run) => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: Some(Time(run.at)),
            }),
            ..Default::default()
        },
        Phase::Exited(finished) => terminated(finished),
    };
    let last_state = slot.last.as_deref().map(terminated);
    let id = match &slot.phase {
        Phase::Running(run) => Some(run.id.clone()),
        Phase::Exited(finished) => Some(finished.id.clone()),
        _ => slot.last.as_ref().map(|f| f.id.clone()),
    };
    ContainerStatus {
        name: slot.name.clone(),
        image: spec.and_then(|c| c.image.clone()).unwrap_or_default(),
        image_id: slot.image_id.clone(),
        container_id: id.map(|id| format!("containerd://{id}")),
        ready: slot.is_ready(),
        started: Some(matches!(slot.phase, Phase::Running(_)) && slot.started),
        restart_count: i32::try_from(slot.attempt).unwrap_or(i32::MAX),
        state: Some(state),
        // After the agent's restart an earlier run may be known to the API only.
        last_state: last_state
            .or_else(|| {
                earlier
                    .filter(|_| slot.attempt > 0)
                    .and_then(|s| s.last_state.clone())
            })
            .or_else(|| Some(ContainerState::default())),
        ..Default::default()
    }
}

fn terminated(finished: &Finished) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("containerd://{}", finished.id)),
            exit_code: finished.code,
            reason: Some(finished.reason.to_owned()),
            message: finished.message.clone(),
            started_at: finished.started.map(Time),
            finished_at: Some(Time(finished.at)),
            signal: None,
        }),
        ..Default::default()
    }
}

/// A condition's status, with reason and message where it is false.
type Judged = (&'static str, Option<(&'static str, String)>);

fn conditions(core: &Core, phase: &str, done: bool, before: &PodStatus, now: Timestamp) -> Vec<PodCondition> {
    let initialized = if core.initialized || phase == "Succeeded" {
        (
            "True",
            (phase == "Succeeded").then(|| ("PodCompleted", String::new())),
        )
    } else {
        let left = core
            .slots
            .iter()
            .filter(|s| s.role != Role::Main && !s.is_ready());
        let text = format!("containers with incomplete status: [{}]", names(left));
        if core.slots.iter().any(|s| s.role != Role::Main) {
            ("False", Some(("ContainersNotInitialized", text)))
        } else {
            ("True", None)
        }
    };
    let unready = names(
        core.slots
            .iter()
            .filter(|s| s.role != Role::Init && !s.is_ready()),
    );
    let containers: Judged = match phase {
        "Succeeded" => ("False", Some(("PodCompleted", String::new()))),
        "Failed" => ("False", Some(("PodFailed", String::new()))),
        _ if unready.is_empty() => ("True", None),
        _ => (
            "False",
            Some((
                "ContainersNotReady",
                format!("containers with unready status: [{unready}]"),
            )),
        ),
    };
    let gates: Vec<&str> = (core.spec().readiness_gates.iter().flatten())
        .map(|g| g.condition_type.as_str())
        .filter(|gate| !api_condition(core, gate))
        .collect();
    let ready: Judged = match &containers {
        ("True", _) if !gates.is_empty() => {
            let text =
                |g: &&str| format!("the status of pod readiness gate \"{g}\" is not \"True\", but False");
            let texts: Vec<_> = gates.iter().map(text).collect();
            ("False", Some(("ReadinessGatesNotReady", texts.join(", "))))
        }
        other => other.clone(),
    };
    let sandbox = matches!(core.sandbox, Sandbox::Ready(_)) && !done;
    let list: [(&str, Judged); 5] = [
        (
            "PodReadyToStartContainers",
            (if sandbox { "True" } else { "False" }, None),
        ),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", ("True", None)),
    ];
    list.into_iter()
        .map(|(kind, (status, why))| {
            let earlier = before
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == kind && c.status == status);
            PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: why.as_ref().map(|(r, _)| (*r).to_owned()),
                message: why.map(|(_, m)| m).filter(|m| !m.is_empty()),
                last_transition_time: earlier
                    .and_then(|c| c.last_transition_time.clone())
                    .or(Some(Time(now))),
                last_probe_time: None,
                observed_generation: core.pod.metadata.generation,
            }
        })
        .collect()
}

/// Whether the API's object carries this condition as true (a readiness gate that somebody else sets).
fn api_condition(core: &Core, kind: &str) -> bool {
    let conditions = core.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == kind && c.status == "True")
}

fn names<'a>(slots: impl Iterator<Item = &'a Slot>) -> String {
    slots.map(|s| s.name.as_str()).collect::<Vec<_>>().join(" ")
}
